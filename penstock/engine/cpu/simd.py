"""Vector operations for kernels that numba compiles: written as LLVM IR, so that no C++ compiler is needed.

Here are words (widen, outer product, exponential, transpose); sentences are in `kernels`. Addresses are int64, in
bytes, unchecked. Numbers are float32 in registers, whatever they are in memory.

Two bfloat16 share a 32-bit lane, the even one in the lower half. A bfloat16 is the upper half of a float32, so a
shift and a mask widen a whole vector, without any shuffle:

    memory   a0 a1 | a2 a3 | a4 a5 | ...      32-bit lanes of two
    even     a0    | a2    | a4    | ...      lanes << 16, read as float32
    odd      a1    | a3    | a5    | ...      lanes & 0xffff0000, read as float32
"""

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

Value = Any
Builder = Any
#: A part of a step of `outer_products`: offset of x in bytes, type of x, one vector a column, how to multiply and add.
Product = tuple[int, Any, list[Value], Callable[..., Value]]

FEATURES = dict(llvm.get_host_cpu_features())
#: float32 numbers in one register of the matrix kernels.
LANES = 16 if FEATURES.get("avx512f") else 8
#: Columns in a panel of packed weights: two registers.
PANEL = 2 * LANES
#: Rows that one pass of the matrix kernels takes: as many as leave two registers for weights and one to spare.
ROWS = 12 if LANES == 16 else 6
#: Attention has registers of eight everywhere, and blocks of two of them: 16 positions.
BLOCK = 16
#: Whether the processor multiplies pairs of bfloat16 (AVX512-BF16).
HAS_DOT = bool(FEATURES.get("avx512bf16"))

#: The types of what numba code hands over.
Int, Float, Nothing = types.int64, types.float32, types.void
F32, I16, I32, I64 = ir.FloatType(), ir.IntType(16), ir.IntType(32), ir.IntType(64)
LOG2E = 1.4426950408889634


def vec(element: Any, lanes: int) -> Any:
    return ir.VectorType(element, lanes)


def fill(value: float, lanes: int, element: Any = F32) -> Value:
    return ir.Constant(vec(element, lanes), [value] * lanes)


def fill_with(numbers: Iterable[int]) -> Value:
    lanes = [I32(number) for number in numbers]
    return ir.Constant(vec(I32, len(lanes)), lanes)


def load(b: Builder, address: Value, kind: Any) -> Value:
    return b.load(b.inttoptr(address, kind.as_pointer()), align=4)


def store(b: Builder, value: Value, address: Value) -> None:
    b.store(value, b.inttoptr(address, value.type.as_pointer()), align=2)


def prefetch(b: Builder, address: Value) -> None:
    """Ask for the cache line of this address, which may be any."""
    byte = ir.IntType(8).as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [byte, I32, I32, I32])
    ask = cgutils.get_or_insert_function(b.module, kind, "llvm.prefetch.p0")
    b.call(ask, [b.inttoptr(address, byte), I32(0), I32(3), I32(1)])


def opaque(b: Builder, number: Value) -> Value:
    """The same number, but LLVM does not know that: what is loaded from there is loaded anew. No instruction."""
    return b.asm(ir.FunctionType(number.type, [number.type]), "", "=r,0", [number], False)


def at(b: Builder, base: Value, index: Value | int, stride: Value | int) -> Value:
    """base + index * stride"""
    number = [I64(n) if isinstance(n, int) else n for n in (index, stride)]
    return b.add(base, b.mul(*number))


def splat(b: Builder, scalar: Value, lanes: int) -> Value:
    kind = vec(scalar.type, lanes)
    one = b.insert_element(ir.Constant(kind, ir.Undefined), scalar, I32(0))
    return b.shuffle_vector(one, one, fill(0, lanes, I32))


def call(b: Builder, name: str, *args: Value) -> Value:
    """An LLVM intrinsic whose result has the type of its first argument."""
    kind = ir.FunctionType(args[0].type, [arg.type for arg in args])
    return b.call(cgutils.get_or_insert_function(b.module, kind, name), args)


def fma(b: Builder, x: Value, y: Value, z: Value) -> Value:
    return call(b, f"llvm.fma.v{x.type.count}f32", x, y, z)


def dot_pairs(b: Builder, x: Value, y: Value, z: Value) -> Value:
    """z + x.even * y.even + x.odd * y.odd, where x and y hold pairs of bfloat16."""
    lanes = z.type.count
    if not HAS_DOT:
        (x0, x1), (y0, y1) = widen(b, x), widen(b, y)
        return fma(b, x1, y1, fma(b, x0, y0, z))
    kind = ir.FunctionType(z.type, [z.type, x.type, x.type])
    name = f"llvm.x86.avx512bf16.dpbf16ps.{32 * lanes}"
    return b.call(cgutils.get_or_insert_function(b.module, kind, name), [z, x, y])


def widen(b: Builder, pairs: Value) -> tuple[Value, Value]:
    """Even and odd bfloat16 of 32-bit lanes, as float32."""
    lanes = pairs.type.count
    even = b.shl(pairs, fill(16, lanes, I32))
    odd = b.and_(pairs, fill(-65536, lanes, I32))
    return b.bitcast(even, vec(F32, lanes)), b.bitcast(odd, vec(F32, lanes))


def narrow(b: Builder, value: Value) -> Value:
    """float32 to the bits of the nearest bfloat16, ties to even, in the upper half of each lane."""
    lanes = value.type.count
    bits = b.bitcast(value, vec(I32, lanes))
    odd = b.and_(b.lshr(bits, fill(16, lanes, I32)), fill(1, lanes, I32))
    return b.add(bits, b.add(odd, fill(0x7FFF, lanes, I32)))


def exp2(b: Builder, x: Value) -> Value:
    """2^x to about 2 units in the last place; below 2^-126 it is 2^-126 (call it zero), above 2^127 it stays there.

    The nearest integer goes into the exponent; a polynomial (Taylor's) does the rest, within [-1/2, 1/2].
    """
    lanes = x.type.count
    x = call(b, f"llvm.maxnum.v{lanes}f32", x, fill(-126.0, lanes))
    x = call(b, f"llvm.minnum.v{lanes}f32", x, fill(127.0, lanes))
    whole = call(b, f"llvm.rint.v{lanes}f32", x)
    rest = b.fsub(x, whole)
    term, terms = 1.0, []
    for n in range(1, 8):
        term *= 0.6931471805599453 / n
        terms.append(term)
    y = fill(terms[-1], lanes)
    for coefficient in [*terms[-2::-1], 1.0]:
        y = fma(b, y, rest, fill(coefficient, lanes))
    exponent = b.shl(b.fptosi(whole, vec(I32, lanes)), fill(23, lanes, I32))
    return b.bitcast(b.add(b.bitcast(y, vec(I32, lanes)), exponent), vec(F32, lanes))


def silu(b: Builder, x: Value) -> Value:
    """x / (1 + exp(-x))"""
    lanes = x.type.count
    return b.fdiv(x, b.fadd(fill(1.0, lanes), exp2(b, b.fmul(x, fill(-LOG2E, lanes)))))


def halves(b: Builder, x: Value) -> tuple[Value, Value]:
    half = x.type.count // 2
    masks = [fill_with(range(start, start + half)) for start in (0, half)]
    low, high = (b.shuffle_vector(x, x, mask) for mask in masks)
    return low, high


def reduce(b: Builder, x: Value, join: Callable[[Value, Value], Value]) -> Value:
    """All lanes joined into one scalar, by halving."""
    while x.type.count > 1:
        x = join(*halves(b, x))
    return b.extract_element(x, I32(0))


def transpose(b: Builder, rows: list[Value]) -> list[Value]:
    """n vectors of n lanes, n a power of two: recursively, exchange the off-diagonal quarters."""
    n = len(rows)
    step = 1
    while step < n:
        low = fill_with(i if not i & step else i - step + n for i in range(n))
        high = fill_with(i + step if not i & step else i + n for i in range(n))
        for i in range(n):
            if not i & step:
                pair = rows[i], rows[i + step]
                rows[i], rows[i + step] = (b.shuffle_vector(*pair, mask) for mask in (low, high))
        step *= 2
    return rows


def interleave(b: Builder, even: Value, odd: Value) -> Value:
    n = even.type.count
    return b.shuffle_vector(even, odd, fill_with(i // 2 + n * (i % 2) for i in range(2 * n)))


def op(result: Any, *arguments: Any) -> Callable[[Callable[..., Value | None]], Any]:
    """Make a function that emits IR (builder, one value an argument) callable in numba code."""

    def register(emit: Callable[..., Value | None]) -> Any:
        signature = result(*arguments)

        def define(context: Any, *_: Any) -> Any:
            def generate(context: Any, builder: Builder, _: Any, args: list[Value]) -> Value:
                value = emit(builder, *args)
                return context.get_dummy_value() if value is None else value

            return signature, generate

        names = ["context", *(f"argument{i}" for i in range(len(arguments)))]
        define.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]
        )
        define.__name__ = define.__qualname__ = getattr(emit, "__name__", "op")
        return intrinsic(define)

    return register


def apart(name: str, emit: Callable[..., None]) -> Callable[..., None]:
    """The same code in a function of its own. Within a function of many loops, LLVM gives registers away that the
    innermost needs, and sums go through memory."""

    def call_it(b: Builder, *args: Value) -> None:
        function = b.module.globals.get(name)
        if function is None:
            function = ir.Function(b.module, ir.FunctionType(ir.VoidType(), [arg.type for arg in args]), name)
            function.linkage = "internal"
            function.attributes.add("noinline")
            body = ir.IRBuilder(function.append_basic_block("entry"))
            emit(body, *function.args)
            body.ret_void()
        b.call(function, args)

    return call_it


def outer_products(
    b: Builder,
    acc: list[list[Value]],
    rows: list[Value],
    count: Value,
    x_step: int,
    weights: Callable[[Value], Iterable[Product]],
) -> None:
    """acc[r][c] += sum over k of x[r][k] * w[k][c], for `count` steps.

    `acc` are stack slots (LLVM keeps them in registers), `rows` the addresses of x; `weights(k)` is step k.
    """
    with cgutils.for_range(b, count, intp=I64) as loop:
        for offset, kind, columns, multiply_add in weights(loop.index):
            for row, slots in zip(rows, acc, strict=True):
                x = splat(b, load(b, b.add(at(b, row, loop.index, x_step), I64(offset)), kind), columns[0].type.count)
                for slot, column in zip(slots, columns, strict=True):
                    b.store(multiply_add(b, x, column, b.load(slot)), slot)


def accumulators(b: Builder, rows: int, start: list[Value]) -> list[list[Value]]:
    return [[cgutils.alloca_once_value(b, value) for value in start] for _ in range(rows)]


def per_row_count(b: Builder, count: Value, most: int, emit: Callable[[int], None]) -> None:
    """Code specialised for count = 1 ... most."""
    done = b.append_basic_block("done")
    switch = b.switch(count, done)
    for rows in range(1, most + 1):
        block = b.append_basic_block(f"rows{rows}")
        switch.add_case(I64(rows), block)
        b.position_at_end(block)
        emit(rows)
        b.branch(done)
    b.position_at_end(done)
