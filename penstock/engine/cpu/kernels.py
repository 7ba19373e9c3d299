"""The kernels: packed linear layers, RMS norm, rotary embedding with the write to the cache, paged attention.

They take addresses and sizes, all int64, and check nothing; `linear`, `layers` and `backend` call them with tensors.
Words are in `simd`. Activations are float32; weights are packed bfloat16 (see `linear.pack`); the cache is bfloat16
or float32. Loops over tickets are numba, what is inside is IR.
"""

import struct
from collections.abc import Iterator
from functools import partial
from typing import Any

from llvmlite import ir
from numba.core import cgutils

from penstock.engine.cpu import simd
from penstock.engine.cpu.jit import Kernel
from penstock.engine.cpu.simd import (
    BLOCK,
    F32,
    I32,
    I64,
    LANES,
    PANEL,
    ROWS,
    Builder,
    Float,
    Int,
    Nothing,
    Value,
    fill,
    fma,
    op,
    vec,
)

LOG2E = simd.LOG2E
#: Rows of queries that attention takes at once (a grouped query head counts as a row), and the most it can take.
QUERY_ROWS, QUERY_ROWS_MOST = 24, 64
HEAD_DIM_MOST = 256
VF, VI = vec(F32, LANES), vec(I32, LANES)
V8, P8 = vec(F32, 8), vec(I32, 8)


@op(Int, Int, Int)
def arg(b: Builder, base: Value, index: Value) -> Value:
    """The int64 at `index`."""
    return b.load(b.inttoptr(simd.at(b, base, index, 8), I64.as_pointer()))


@op(Nothing, Int, Int, Int)
def put(b: Builder, base: Value, index: Value, value: Value) -> None:
    b.store(value, b.inttoptr(simd.at(b, base, index, 8), I64.as_pointer()))


@op(Int, Int, Int)
def arg32(b: Builder, base: Value, index: Value) -> Value:
    """The int32 at `index`."""
    return b.sext(simd.load(b, simd.at(b, base, index, 4), I32), I64)


@op(Nothing, Int, Int, Float)
def putf(b: Builder, base: Value, index: Value, value: Value) -> None:
    simd.store(b, value, simd.at(b, base, index, 4))


@op(Float, Int)
def bits_float(b: Builder, bits: Value) -> Value:
    """The float32 with these bits."""
    return b.bitcast(b.trunc(bits, I32), F32)


def float_bits(number: float) -> int:
    """The bits of a float32, as a kernel takes it."""
    return int.from_bytes(struct.pack("<f", number), "little", signed=True)


@op(Int, Int)
def ticket(b: Builder, counter: Value) -> Value:
    """The next number, from 0."""
    return b.atomic_rmw("add", b.inttoptr(counter, I64.as_pointer()), I64(1), "monotonic")


def scratch(size: int) -> Any:
    """Memory of this thread: a function of no argument, giving its address."""

    @op(Int)
    def address(b: Builder) -> Value:
        with b.goto_entry_block():
            slot = b.alloca(ir.ArrayType(ir.IntType(8), size))
            slot.align = 64
        return b.ptrtoint(slot, I64)

    return address


# Linear layers. Packed weights are panels of PANEL columns; in a panel, for each pair of inputs, PANEL lanes of two.

STORE, ADD, SILU_MUL = 0, 1, 2
#: Steps that rows take in turn before any goes on: so many of a panel's weights stay in the first cache.
TILE = 128
#: Weights are asked for so many steps before they are used.
AHEAD = 48
#: Rows of a block at most.
BLOCK_ROWS = 32 * ROWS


def weights_of(b: Builder, w: Value, k: Value) -> Value:
    """The address of step k's weights. Those that come later are asked for: the first rows of a tile wait for memory
    otherwise, and memory for the last."""
    start = simd.at(b, w, k, 4 * PANEL)
    for line in range(0, 4 * PANEL, 64):
        simd.prefetch(b, b.add(start, I64(AHEAD * 4 * PANEL + line)))
    return start


def widened(b: Builder, w: Value, k: Value) -> Iterator[simd.Product]:
    """Weights of step k: both inputs of a pair, widened; x is float32."""
    start = weights_of(b, w, k)
    for half in range(2):
        pairs = [simd.load(b, b.add(start, I64(c * 4 * LANES)), VI) for c in range(2)]
        yield 4 * half, F32, [simd.widen(b, pair)[half] for pair in pairs], fma
        # Loaded again for the second half: kept, they would push sums out of the registers.
        start = simd.opaque(b, start)


def paired(b: Builder, w: Value, k: Value) -> Iterator[simd.Product]:
    """Weights of step k as they are; x is pairs of bfloat16."""
    start = weights_of(b, w, k)
    yield 0, I32, [simd.load(b, b.add(start, I64(c * 4 * LANES)), VI) for c in range(2)], simd.dot_pairs


def emit_panel(b: Builder, rows: Value, x: Value, ldx: Value, w: Value, steps: Value, out: Value, ldo: Value,
               start: Value, lds: Value, *, weights: Any, x_step: int) -> None:  # fmt: skip
    """Up to ROWS rows of x times part of a panel, plus rows of `start`, to out."""

    def emit(n: int) -> None:
        acc = [
            [cgutils.alloca_once_value(b, simd.load(b, b.add(simd.at(b, start, r, lds), I64(c * 4 * LANES)), VF))
             for c in range(2)]
            for r in range(n)
        ]  # fmt: skip
        simd.outer_products(b, acc, [simd.at(b, x, r, ldx) for r in range(n)], steps, x_step, partial(weights, b, w))
        for r, pair in enumerate(acc):
            for c, slot in enumerate(pair):
                simd.store(b, b.load(slot), b.add(simd.at(b, out, r, ldo), I64(c * 4 * LANES)))

    simd.per_row_count(b, rows, ROWS, emit)


panel_widened = op(Nothing, *[Int] * 9)(simd.apart("panel_widened", partial(emit_panel, weights=widened, x_step=8)))
panel_paired = op(Nothing, *[Int] * 9)(simd.apart("panel_paired", partial(emit_panel, weights=paired, x_step=4)))
#: What `panel_*` gave, where it is not the last word.
_product = scratch(BLOCK_ROWS * PANEL * 4)


@op(Nothing, Int, Int, Int, Int)
def add_rows(b: Builder, rows: Value, product: Value, out: Value, ldo: Value) -> None:
    """out [rows, PANEL] += product."""
    with cgutils.for_range(b, rows, intp=I64) as loop:
        source, to = simd.at(b, product, loop.index, 4 * PANEL), simd.at(b, out, loop.index, ldo)
        for offset in (I64(0), I64(4 * LANES)):
            old, new = (simd.load(b, b.add(place, offset), VF) for place in (to, source))
            simd.store(b, b.fadd(old, new), b.add(to, offset))


@op(Nothing, Int, Int, Int, Int)
def gate_rows(b: Builder, rows: Value, product: Value, out: Value, ldo: Value) -> None:
    """out [rows, LANES] = silu(left half of product) * right half."""
    with cgutils.for_range(b, rows, intp=I64) as loop:
        source = simd.at(b, product, loop.index, 4 * PANEL)
        left, right = (simd.load(b, b.add(source, I64(c * 4 * LANES)), VF) for c in range(2))
        simd.store(b, b.fmul(simd.silu(b, left), right), simd.at(b, out, loop.index, ldo))


@Kernel
def linear(a: int) -> None:
    """rows, x, ldx, w, steps, panels, out, ldo, bias, mode, whether x is bfloat16, rows of a block, panels of a
    ticket"""
    rows, x, ldx, w = arg(a, 1), arg(a, 2), arg(a, 3), arg(a, 4)
    steps, panels, out, ldo = arg(a, 5), arg(a, 6), arg(a, 7), arg(a, 8)
    bias, mode, pairs, block, chunk = arg(a, 9), arg(a, 10), arg(a, 11), arg(a, 12), arg(a, 13)
    width = 4 * (LANES if mode == SILU_MUL else PANEL)
    product, blocks = _product(), (rows + block - 1) // block
    tickets = blocks * ((panels + chunk - 1) // chunk)
    while True:
        t = ticket(a)
        if t >= tickets:
            break
        part = t // blocks
        row = (t - part * blocks) * rows // blocks
        end = (t - part * blocks + 1) * rows // blocks
        passes = (end - row + ROWS - 1) // ROWS
        for p in range(part * chunk, min(panels, part * chunk + chunk)):
            weights = w + p * steps * 4 * PANEL
            for k in range(0, steps, TILE):
                tile = min(TILE, steps - k)
                over = k + tile == steps
                first = row
                for i in range(passes):
                    last = row + (i + 1) * (end - row) // passes
                    count, place = last - first, out + p * width + first * ldo
                    sums = product + (first - row) * 4 * PANEL
                    start, lds = (sums, 4 * PANEL) if k else (bias + p * 4 * PANEL, 0)
                    target, ldt = (place, ldo) if over and mode == STORE else (sums, 4 * PANEL)
                    source, part_w = x + first * ldx + k * (4 if pairs else 8), weights + k * 4 * PANEL
                    if pairs:
                        panel_paired(count, source, ldx, part_w, tile, target, ldt, start, lds)
                    else:
                        panel_widened(count, source, ldx, part_w, tile, target, ldt, start, lds)
                    if over and mode == ADD:
                        add_rows(count, sums, place, ldo)
                    elif over and mode == SILU_MUL:
                        gate_rows(count, sums, place, ldo)
                    first = last


# RMS norm.


@op(Nothing, Int, Int, Int, Int, Float)
def normalize(b: Builder, x: Value, weight: Value, out: Value, lanes8: Value, eps: Value) -> None:
    """out = x / sqrt(mean of squares + eps) * weight, for one row of lanes8 * 8."""
    total = cgutils.alloca_once_value(b, fill(0.0, 8))
    with cgutils.for_range(b, lanes8, intp=I64) as loop:
        value = simd.load(b, simd.at(b, x, loop.index, 32), V8)
        b.store(fma(b, value, value, b.load(total)), total)
    mean = b.fdiv(simd.reduce(b, b.load(total), b.fadd), b.sitofp(b.shl(lanes8, I64(3)), F32))
    root = simd.call(b, "llvm.sqrt.f32", b.fadd(mean, eps))
    scale = simd.splat(b, b.fdiv(F32(1.0), root), 8)
    with cgutils.for_range(b, lanes8, intp=I64) as loop:
        value, w = (simd.load(b, simd.at(b, base, loop.index, 32), V8) for base in (x, weight))
        simd.store(b, b.fmul(b.fmul(value, scale), w), simd.at(b, out, loop.index, 32))


@Kernel
def rms_norm(a: int) -> None:
    """rows, x, ldx, weight, out, ldo, width, bits of eps, rows of a ticket"""
    rows, x, ldx, weight, out, ldo = arg(a, 1), arg(a, 2), arg(a, 3), arg(a, 4), arg(a, 5), arg(a, 6)
    width, eps, chunk = arg(a, 7), bits_float(arg(a, 8)), arg(a, 9)
    while True:
        first = ticket(a) * chunk
        if first >= rows:
            break
        for r in range(first, min(rows, first + chunk)):
            normalize(x + r * ldx, weight, out + r * ldo, width // 8, eps)


# Rotary embedding, and the write to the cache.


@op(Nothing, Int, Int, Int, Int, Int)
def rotate(b: Builder, x: Value, cos: Value, sin: Value, out: Value, half8: Value) -> None:
    """One head: halves x1, x2 become x1 cos1 - x2 sin1, x2 cos2 + x1 sin2; half8 * 8 numbers in a half."""
    half = b.shl(half8, I64(5))
    with cgutils.for_range(b, half8, intp=I64) as loop:
        places = [
            (simd.at(b, base, loop.index, 32), simd.at(b, b.add(base, half), loop.index, 32))
            for base in (x, cos, sin, out)
        ]
        (x1, x2), (c1, c2), (s1, s2) = ([simd.load(b, place, V8) for place in pair] for pair in places[:3])
        simd.store(b, fma(b, x1, c1, b.fneg(b.fmul(x2, s1))), places[3][0])
        simd.store(b, fma(b, x2, c2, b.fmul(x1, s2)), places[3][1])


@op(Nothing, Int, Int, Int, Int)
def write(b: Builder, x: Value, out: Value, lanes8: Value, half_width: Value) -> None:
    """Copy lanes8 * 8 numbers into the cache, as bfloat16 where half_width is not 0."""
    with cgutils.for_range(b, lanes8, intp=I64) as loop:
        value = simd.load(b, simd.at(b, x, loop.index, 32), V8)
        with b.if_else(b.icmp_signed("!=", half_width, I64(0))) as (short, full):
            with short:
                bits = b.lshr(simd.narrow(b, value), fill(16, 8, I32))
                simd.store(b, b.trunc(bits, vec(simd.I16, 8)), simd.at(b, out, loop.index, 16))
            with full:
                simd.store(b, value, simd.at(b, out, loop.index, 32))


@Kernel
def rotate_and_write(a: int) -> None:
    """rows, q, ldq, heads, k, ldk, v, ldv, kv_heads, dim, value_dim, cos, sin, ld of both, slots, page_tokens,
    keys, values, whether the cache is bfloat16, rows of a ticket, weights of the norms of q and k, bits of their eps.
    cos 0: no rotation; weights 0: no norms. q and k change in place."""
    rows, q, ldq, heads = arg(a, 1), arg(a, 2), arg(a, 3), arg(a, 4)
    k, ldk, v, ldv, kv_heads = arg(a, 5), arg(a, 6), arg(a, 7), arg(a, 8), arg(a, 9)
    dim, value_dim, cos, sin, ldc = arg(a, 10), arg(a, 11), arg(a, 12), arg(a, 13), arg(a, 14)
    slots, page_tokens, keys, values = arg(a, 15), arg(a, 16), arg(a, 17), arg(a, 18)
    half_width, chunk = arg(a, 19), arg(a, 20)
    q_norm, k_norm, eps = arg(a, 21), arg(a, 22), bits_float(arg(a, 23))
    size = 2 if half_width else 4
    while True:
        start = ticket(a) * chunk
        if start >= rows:
            break
        for r in range(start, min(rows, start + chunk)):
            slot = arg(slots, r)
            page = slot // page_tokens
            place = page * kv_heads * page_tokens + slot - page * page_tokens
            for h in range(heads + kv_heads):
                head = q + r * ldq + h * dim * 4 if h < heads else k + r * ldk + (h - heads) * dim * 4
                if q_norm:
                    normalize(head, q_norm if h < heads else k_norm, head, dim // 8, eps)
                if cos:
                    rotate(head, cos + r * ldc, sin + r * ldc, head, dim // 16)
            for h in range(kv_heads):
                to = place + h * page_tokens
                write(k + r * ldk + h * dim * 4, keys + to * dim * size, dim // 8, half_width)
                write(v + r * ldv + h * value_dim * 4, values + to * value_dim * size, value_dim // 8, half_width)


# Paged attention: blocks of BLOCK positions, online softmax in base 2.

_queries = scratch(QUERY_ROWS_MOST * HEAD_DIM_MOST * 4)
_results = scratch(QUERY_ROWS_MOST * HEAD_DIM_MOST * 4)
_panel = scratch(BLOCK * HEAD_DIM_MOST * 4)
_scores = scratch(QUERY_ROWS_MOST * BLOCK * 4)
#: Running maximum and sum of each row.
_states = scratch(QUERY_ROWS_MOST * 8)
#: Addresses of the keys, then of the values, of a block's positions.
_places = scratch(BLOCK * 16)


@op(Nothing, Int, Int, Int, Float)
def scale_row(b: Builder, x: Value, out: Value, lanes8: Value, factor: Value) -> None:
    with cgutils.for_range(b, lanes8, intp=I64) as loop:
        value = simd.load(b, simd.at(b, x, loop.index, 32), V8)
        simd.store(b, b.fmul(value, simd.splat(b, factor, 8)), simd.at(b, out, loop.index, 32))


@op(Nothing, Int, Int)
def clear(b: Builder, out: Value, lanes8: Value) -> None:
    with cgutils.for_range(b, lanes8, intp=I64) as loop:
        simd.store(b, fill(0.0, 8), simd.at(b, out, loop.index, 32))


@op(Nothing, Int, Int)
def prefetch(b: Builder, start: Value, size: Value) -> None:
    with cgutils.for_range(b, b.lshr(size, I64(6)), intp=I64) as loop:
        simd.prefetch(b, simd.at(b, start, loop.index, 64))


def row_places(b: Builder, places: Value, start: int, count: int) -> list[Value]:
    return [simd.load(b, b.add(places, I64(8 * (start + i))), I64) for i in range(count)]


@op(Nothing, Int, Int, Int, Int)
def transpose_keys(b: Builder, places: Value, dim: Value, out: Value, half_width: Value) -> None:
    """Keys of BLOCK positions as a panel: float32 [dim, BLOCK]."""
    rows = row_places(b, places, 0, BLOCK)

    def square(load_at: Value, put_at: Any) -> None:
        for half in range(2):
            some = [simd.load(b, b.add(row, load_at), P8) for row in rows[8 * half : 8 * half + 8]]
            for i, column in enumerate(simd.transpose(b, some)):
                put_at(i, half, column)

    with b.if_else(b.icmp_signed("!=", half_width, I64(0))) as (short, full):
        with short, cgutils.for_range(b, b.lshr(dim, I64(4)), intp=I64) as loop:
            block = simd.at(b, out, loop.index, 16 * BLOCK * 4)

            def put_pair(i: int, half: int, column: Value) -> None:
                for odd, value in enumerate(simd.widen(b, column)):
                    simd.store(b, value, b.add(block, I64((2 * i + odd) * BLOCK * 4 + half * 32)))

            square(b.shl(loop.index, I64(5)), put_pair)
        with full, cgutils.for_range(b, b.lshr(dim, I64(3)), intp=I64) as loop:
            block = simd.at(b, out, loop.index, 8 * BLOCK * 4)

            def put_one(i: int, half: int, column: Value) -> None:
                simd.store(b, column, b.add(block, I64(i * BLOCK * 4 + half * 32)))

            square(b.shl(loop.index, I64(5)), put_one)


@op(Nothing, Int, Int, Int, Int, Int)
def score(b: Builder, rows: Value, q: Value, dim: Value, panel: Value, out: Value) -> None:
    """out [rows, BLOCK] = q [rows, dim] times a panel of keys, for up to 6 rows."""

    def weights(k: Value) -> list[simd.Product]:
        start = simd.at(b, panel, k, BLOCK * 4)
        return [(0, F32, [simd.load(b, b.add(start, I64(32 * c)), V8) for c in range(2)], fma)]

    def emit(n: int) -> None:
        acc = simd.accumulators(b, n, [fill(0.0, 8)] * 2)
        ldq = b.shl(dim, I64(2))
        simd.outer_products(b, acc, [simd.at(b, q, r, ldq) for r in range(n)], dim, 4, weights)
        for r, pair in enumerate(acc):
            for c, slot in enumerate(pair):
                simd.store(b, b.load(slot), b.add(out, I64(r * BLOCK * 4 + 32 * c)))

    simd.per_row_count(b, rows, 6, emit)


@op(Nothing, Int, Int, Int, Int)
def soften(b: Builder, scores: Value, state: Value, acc: Value, lanes8: Value) -> None:
    """One row of scores to weights 2^(score - maximum); the row's maximum, sum and result so far follow."""
    places = [b.add(scores, I64(32 * c)) for c in range(2)]
    values = [simd.load(b, place, V8) for place in places]
    high = partial(simd.call, b, "llvm.maxnum.f32")
    most = simd.reduce(
        b,
        simd.call(b, "llvm.maxnum.v8f32", *values),
        lambda x, y: simd.call(b, f"llvm.maxnum.v{x.type.count}f32", x, y),
    )
    before, total = (simd.load(b, b.add(state, I64(4 * i)), F32) for i in range(2))
    maximum = high(before, most)
    weights = [simd.exp2(b, b.fsub(value, simd.splat(b, maximum, 8))) for value in values]
    for place, weight in zip(places, weights, strict=True):
        simd.store(b, weight, place)
    added = simd.reduce(b, b.fadd(*weights), b.fadd)
    shrink = simd.exp2(b, simd.splat(b, b.fsub(before, maximum), 8))
    simd.store(b, maximum, state)
    simd.store(b, b.fadd(b.fmul(total, b.extract_element(shrink, I32(0))), added), b.add(state, I64(4)))
    with b.if_then(b.fcmp_ordered("!=", before, maximum)), cgutils.for_range(b, lanes8, intp=I64) as loop:
        place = simd.at(b, acc, loop.index, 32)
        simd.store(b, b.fmul(simd.load(b, place, V8), shrink), place)


@op(Nothing, Int, Int, Int, Int, Int, Int)
def gather_values(
    b: Builder, rows: Value, weights: Value, places: Value, acc: Value, dim: Value, half_width: Value
) -> None:
    """acc [rows, dim] += weights [rows, BLOCK] times the values of BLOCK positions, for up to 6 rows.

    Of a bfloat16 cache, 16 results lie in `acc` as 8 even ones and 8 odd ones.
    """

    def emit(n: int) -> None:
        with cgutils.for_range(b, b.lshr(dim, I64(4)), intp=I64) as loop:
            first = simd.at(b, acc, loop.index, 64)
            ends = [[b.add(simd.at(b, first, r, b.shl(dim, I64(2))), I64(32 * c)) for c in range(2)] for r in range(n)]
            slots = [[cgutils.alloca_once_value(b, simd.load(b, end, V8)) for end in pair] for pair in ends]
            x = [b.add(weights, I64(r * BLOCK * 4)) for r in range(n)]

            def short(k: Value) -> list[simd.Product]:
                place = simd.at(b, simd.load(b, simd.at(b, places, k, 8), I64), loop.index, 32)
                return [(0, F32, list(simd.widen(b, simd.load(b, place, P8))), fma)]

            def full(k: Value) -> list[simd.Product]:
                place = simd.at(b, simd.load(b, simd.at(b, places, k, 8), I64), loop.index, 64)
                return [(0, F32, [simd.load(b, b.add(place, I64(32 * c)), V8) for c in range(2)], fma)]

            with b.if_else(b.icmp_signed("!=", half_width, I64(0))) as (of_short, of_full):
                with of_short:
                    simd.outer_products(b, slots, x, I64(BLOCK), 4, short)
                with of_full:
                    simd.outer_products(b, slots, x, I64(BLOCK), 4, full)
            for pair, two in zip(ends, slots, strict=True):
                for end, slot in zip(pair, two, strict=True):
                    simd.store(b, b.load(slot), end)

    simd.per_row_count(b, rows, 6, emit)


@op(Nothing, Int, Int, Int, Int, Int)
def finish_row(b: Builder, acc: Value, state: Value, out: Value, dim: Value, half_width: Value) -> None:
    """out = acc / sum, in the order of the head's numbers."""
    total = simd.splat(b, simd.load(b, b.add(state, I64(4)), F32), 8)
    with cgutils.for_range(b, b.lshr(dim, I64(4)), intp=I64) as loop:
        first, to = (simd.at(b, base, loop.index, 64) for base in (acc, out))
        pair = [b.fdiv(simd.load(b, b.add(first, I64(32 * c)), V8), total) for c in range(2)]
        with b.if_else(b.icmp_signed("!=", half_width, I64(0))) as (short, full):
            with short:
                simd.store(b, simd.interleave(b, *pair), to)
            with full:
                for c, value in enumerate(pair):
                    simd.store(b, value, b.add(to, I64(32 * c)))


@Kernel
def attend(a: int) -> None:
    """items (int32 [n, 4]: job, first row, rows, positions that the first row sees), n, q, ldq, out, ldo, group, dim,
    value_dim, kv_heads, keys, values, tables, ld of tables, page_tokens, whether the cache is bfloat16, bits of
    scale * log2(e). A ticket is one item of one KV head."""
    items, count, q, ldq = arg(a, 1), arg(a, 2), arg(a, 3), arg(a, 4)
    out, ldo, group, dim, value_dim = arg(a, 5), arg(a, 6), arg(a, 7), arg(a, 8), arg(a, 9)
    kv_heads, keys, values, tables, ldt = arg(a, 10), arg(a, 11), arg(a, 12), arg(a, 13), arg(a, 14)
    page_tokens, half_width, factor = arg(a, 15), arg(a, 16), bits_float(arg(a, 17))
    size = 2 if half_width else 4
    queries, results, panel = _queries(), _results(), _panel()
    scores, states, places = _scores(), _states(), _places()
    while True:
        t = ticket(a)
        if t >= count * kv_heads:
            break
        item = t // kv_heads
        head = t - item * kv_heads
        job, row = arg32(items, 4 * item), arg32(items, 4 * item + 1)
        steps, first = arg32(items, 4 * item + 2), arg32(items, 4 * item + 3)
        rows, context = steps * group, first + steps - 1
        for r in range(rows):
            source = q + (row + r // group) * ldq + (head * group + r % group) * dim * 4
            scale_row(source, queries + r * dim * 4, dim // 8, factor)
            clear(results + r * value_dim * 4, value_dim // 8)
            putf(states, 2 * r, -1e30)
            putf(states, 2 * r + 1, 0.0)
        for start in range(0, context, BLOCK):
            page, offset = start // page_tokens, start % page_tokens
            block = arg32(tables + job * ldt, page) * kv_heads + head
            for i in range(BLOCK):
                # Beyond the context a page may hold anything: the first position stands in, with no weight.
                inside = start + i < context
                if inside and offset == page_tokens:
                    page, offset = page + 1, 0
                    block = arg32(tables + job * ldt, page) * kv_heads + head
                place = block * page_tokens + offset
                put(places, i, keys + place * dim * size if inside else arg(places, 0))
                put(places, BLOCK + i, values + place * value_dim * size if inside else arg(places, BLOCK))
                offset += 1
            following = start + BLOCK
            if following < context:
                # The pages of a job lie anywhere, so the processor cannot guess the next one.
                index = arg32(tables + job * ldt, following // page_tokens) * kv_heads + head
                place = index * page_tokens + following % page_tokens
                prefetch(keys + place * dim * size, BLOCK * dim * size)
                prefetch(values + place * value_dim * size, BLOCK * value_dim * size)
            transpose_keys(places, dim, panel, half_width)
            for r in range(0, rows, 6):
                score(min(6, rows - r), queries + r * dim * 4, dim, panel, scores + r * BLOCK * 4)
            for r in range(rows if start + BLOCK > first else 0):
                for i in range(max(0, first + r // group - start), BLOCK):
                    putf(scores, r * BLOCK + i, -1e30)
            for r in range(rows):
                soften(scores + r * BLOCK * 4, states + 8 * r, results + r * value_dim * 4, value_dim // 8)
            for r in range(0, rows, 6):
                gather_values(
                    min(6, rows - r), scores + r * BLOCK * 4, places + 8 * BLOCK,
                    results + r * value_dim * 4, value_dim, half_width,
                )  # fmt: skip
        for r in range(rows):
            target = out + (row + r // group) * ldo + (head * group + r % group) * value_dim * 4
            finish_row(results + r * value_dim * 4, states + 8 * r, target, value_dim, half_width)
