"""Attention over paged keys and values, and the write into the pages, as Triton kernels.

A query sees the tokens of its own job only, found through a block table, and none after itself. Chunks of a prompt and
single decode tokens are one kernel: a program serves a tile of queries with all the query heads that share a KV head,
so that each key and value is read once a group (FlashAttention 2, Dao 2023, over pages as in PagedAttention, Kwon et
al. 2023). Long contexts of single tokens are cut into a given number of splits that merge by log-sum-exp (Flash-
Decoding, Dao et al. 2023). It knows no model, allocates no page, and has no sliding window, soft cap or sink.

On a machine without a GPU the kernels run under TRITON_INTERPRET=1, which must be set before Triton is imported.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from penstock.engine.backend import Int32

try:
    import triton
    import triton.language as tl
except ImportError as error:
    raise ImportError("attention on CUDA needs Triton: pip install 'penstock[cuda]'") from error

HEAD_DIM_MAX = 256
#: The least side that a tensor core's tile has.
ROWS_MIN = 16

# Multiply-add as one rounding; Triton 3.10 turns it off where it is not asked for.
FUSED = {"enable_fp_fusion": True}


def _kernel(varying: list[str]) -> Callable[[Callable[..., None]], Any]:
    """Triton's decorator, which has no types; a kernel is launched as kernel[grid](...). Arguments in `varying` differ
    from step to step: a variant for each of their values or alignments would be compiled while requests wait."""
    decorator: Callable[[Callable[..., None]], Any] = triton.jit(
        do_not_specialize=varying, do_not_specialize_on_alignment=varying
    )
    return decorator


@dataclass(frozen=True)
class Batch:
    """The queries of a step: `backend.Step` on the device, int32 all. J jobs; the first `decodes` have one query."""

    #: [J + 1] job j has the rows query_start[j] to query_start[j + 1] of q.
    query_start: Tensor
    #: [J] tokens in the pages that the job sees. 0: none (the result is 0, its log-sum-exp -inf).
    contexts: Tensor
    #: [J, pages] pages of the job in order. Entries beyond the context are not read.
    tables: Tensor
    decodes: int
    #: [tiles, 2] of (job, first query): the queries of the jobs after `decodes`, from `tile_queries` with
    #: tile_rows(...) // group queries to a tile.
    tiles: Tensor


def tile_rows(q: Tensor, group: int) -> int:
    """Rows (queries x the `group` heads of a KV head) of a tile of several queries q [tokens, heads, head_dim]. A tile
    of 16-bit numbers with its keys and values fits the shared memory of an Ampere or Ada chip: less than 99 KiB."""
    rows = 32 if q.element_size() > 2 else 64 if q.shape[2] > 128 else 128
    return max(rows, next_power(group))


def tile_queries(query_start: Int32, decodes: int, queries: int) -> Int32:
    """`Batch.tiles`, so many queries each, on the host. A job's late tiles see more keys and come first, so that the
    last to start are the short ones."""
    lengths = np.diff(query_start)[decodes:].tolist()
    tiles = [
        (job, first) for job, length in enumerate(lengths, decodes) for first in reversed(range(0, length, queries))
    ]
    return np.array(tiles, np.int32).reshape(-1, 2)


def paged_attention(
    q: Tensor, keys: Tensor, values: Tensor, batch: Batch, scale: float, splits: int = 1, causal: bool = True
) -> tuple[Tensor, Tensor]:
    """Attention of q [tokens, heads, head_dim] over one layer's keys [pages, kv_heads, page_tokens, head_dim] and
    values [pages, kv_heads, page_tokens, value_dim].

    Returns out [tokens, heads, value_dim] in q's dtype and the natural log-sum-exp of the scores [tokens, heads] in
    float32. A job's queries are the last tokens of its context, and none sees past itself (if they are more than the
    context, the first see nothing); with `causal` False they come after the context and see it whole: a part of it
    that another pool holds (see `merge.merge`). `splits` cuts the contexts of `decodes`; where it is fixed, no row
    depends on what else is in the batch. Raises ValueError where the kernel cannot serve the shapes or dtypes.
    """
    _check(q, keys, values)
    out = torch.empty((*q.shape[:2], values.shape[3]), dtype=q.dtype, device=q.device)
    lse = torch.empty(q.shape[:2], dtype=torch.float32, device=q.device)
    if batch.decodes:
        _attend_singles(q, keys, values, batch, scale, splits, causal, out, lse)
    if len(batch.tiles):
        rows = tile_rows(q, q.shape[1] // keys.shape[1])
        grid = (len(batch.tiles), keys.shape[1], 1)
        _launch(grid, q, keys, values, batch, scale, rows, False, causal, out[None], lse[None])
    return out, lse


def write_pages(k: Tensor, v: Tensor, keys: Tensor, values: Tensor, slots: Tensor) -> None:
    """Put k [tokens, kv_heads, head_dim] and v [tokens, kv_heads, value_dim] into one layer's pages, token i at place
    slots[i] % page_tokens of page slots[i] // page_tokens. Both may be strided but for their last dimension."""
    _check_pages(keys, values)
    if k.stride(2) != 1 or v.stride(2) != 1:
        raise ValueError("the last dimension of k and of v must be contiguous")
    _, kv_heads, page_tokens, head_dim = keys.shape
    value_dim = values.shape[3]
    _write[(len(slots),)](
        k, v, keys, values, slots, k.stride(0), k.stride(1), v.stride(0), v.stride(1),
        KV_HEADS=kv_heads, BLOCK_H=next_power(kv_heads), PAGE_TOKENS=page_tokens,
        HEAD_DIM=head_dim, BLOCK_D=next_power(head_dim), VALUE_DIM=value_dim, BLOCK_V=next_power(value_dim),
        num_warps=4, **FUSED,
    )  # fmt: skip


def next_power(n: int) -> int:
    """The least power of two that is at least n (n >= 1)."""
    return 1 << (n - 1).bit_length()


def _check(q: Tensor, keys: Tensor, values: Tensor) -> None:
    _check_pages(keys, values)
    if q.shape[1] % keys.shape[1]:
        raise ValueError(f"{q.shape[1]} query heads do not divide among {keys.shape[1]} KV heads")
    if not q.dtype == keys.dtype == values.dtype:
        raise ValueError(f"queries are {q.dtype}, pages {keys.dtype} and {values.dtype}: they must be alike")
    if keys.shape[3] != q.shape[2]:
        raise ValueError(f"queries of {q.shape[2]} dimensions do not fit keys of {keys.shape[3]}")
    if q.stride(2) != 1:
        raise ValueError("the last dimension of q must be contiguous")


def _check_pages(keys: Tensor, values: Tensor) -> None:
    if keys.shape[:3] != values.shape[:3]:
        raise ValueError(f"keys {tuple(keys.shape)} and values {tuple(values.shape)} are not of the same pages")
    if max(keys.shape[3], values.shape[3]) > HEAD_DIM_MAX:
        raise ValueError(f"a head of more than {HEAD_DIM_MAX} dimensions is more than the kernels take")
    if not (keys.is_contiguous() and values.is_contiguous()):
        raise ValueError("the pages of a layer must be contiguous")


def _attend_singles(
    q: Tensor, keys: Tensor, values: Tensor, batch: Batch, scale: float, splits: int, causal: bool,
    out: Tensor, lse: Tensor,
) -> None:  # fmt: skip
    """The first `decodes` rows, each a job of its own, with their splits merged."""
    heads, kv_heads, value_dim = q.shape[1], keys.shape[1], values.shape[3]
    grid = (batch.decodes, kv_heads, splits)
    rows = max(ROWS_MIN, next_power(heads // kv_heads))
    if splits == 1:
        _launch(grid, q, keys, values, batch, scale, rows, True, causal, out[None], lse[None])
        return
    parts = (splits, batch.decodes, heads)
    outs = torch.empty((*parts, value_dim), dtype=torch.float32, device=q.device)
    lses = torch.empty(parts, dtype=torch.float32, device=q.device)
    _launch(grid, q, keys, values, batch, scale, rows, True, causal, outs, lses)
    _merge[(batch.decodes, heads)](
        outs, lses, out, lse, heads, lses.stride(0),
        VALUE_DIM=value_dim, BLOCK_V=next_power(value_dim), SPLITS=splits, BLOCK_S=next_power(splits), num_warps=1,
        **FUSED,
    )  # fmt: skip


def _launch(
    grid: tuple[int, int, int], q: Tensor, keys: Tensor, values: Tensor, batch: Batch, scale: float, rows: int,
    single: bool, causal: bool, out: Tensor, lse: Tensor,
) -> None:  # fmt: skip
    """One launch over `grid` (tiles, kv_heads, splits) with out [splits, tokens, heads, value_dim] and lse [splits,
    tokens, heads]."""
    _, kv_heads, page_tokens, head_dim = keys.shape
    group, value_dim, short = q.shape[1] // kv_heads, values.shape[3], q.element_size() == 2
    _attend[grid](
        q, keys, values, out, lse, batch.tiles, batch.query_start, batch.contexts, batch.tables,
        scale * math.log2(math.e), q.stride(0), q.stride(1), batch.tables.stride(0), lse.stride(0),
        KV_HEADS=kv_heads, GROUP=group, PAGE_TOKENS=page_tokens, HEAD_DIM=head_dim, VALUE_DIM=value_dim,
        BLOCK_D=max(ROWS_MIN, next_power(head_dim)), BLOCK_V=max(ROWS_MIN, next_power(value_dim)),
        BLOCK_M=rows, BLOCK_N=64 if short and head_dim <= 128 else 32, SINGLE=single, CAUSAL=causal, SPLITS=grid[2],
        # TF32 would keep ten bits of a float32.
        PRECISION="tf32" if short else "ieee",
        num_warps=8 if rows >= 128 else 4, num_stages=2, **FUSED,
    )  # fmt: skip


@_kernel(["tiles_ptr", "query_start_ptr", "contexts_ptr", "tables_ptr", "table_stride", "split_stride"])
def _attend(  # type: ignore[no-untyped-def]
    q_ptr, keys_ptr, values_ptr, out_ptr, lse_ptr, tiles_ptr, query_start_ptr, contexts_ptr, tables_ptr,
    scale_log2, q_token_stride, q_head_stride, table_stride, split_stride,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, PAGE_TOKENS: tl.constexpr, HEAD_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, SINGLE: tl.constexpr, CAUSAL: tl.constexpr, SPLITS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A tile of one job's queries with all heads of one KV head, over one split of the keys."""
    kv_head, split = tl.program_id(1), tl.program_id(2)
    if SINGLE:
        job = tl.program_id(0)
        first = 0
    else:
        job = tl.load(tiles_ptr + 2 * tl.program_id(0))
        first = tl.load(tiles_ptr + 2 * tl.program_id(0) + 1)
    start = tl.load(query_start_ptr + job)
    length = tl.load(query_start_ptr + job + 1) - start
    context = tl.load(contexts_ptr + job)

    row = tl.arange(0, BLOCK_M)
    query = first + row // GROUP
    head = kv_head * GROUP + row % GROUP
    row_ok = (row < BLOCK_M // GROUP * GROUP) & (query < length)
    token = (start + query).to(tl.int64)
    dim, v_dim = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_V)
    dim_ok, v_dim_ok = dim < HEAD_DIM, v_dim < VALUE_DIM
    q_at = token[:, None] * q_token_stride + head[:, None] * q_head_stride + dim[None, :]
    q = tl.load(q_ptr + q_at, mask=row_ok[:, None] & dim_ok[None, :], other=0.0)

    # A row sees the keys [0, seen), the tile [0, tile_seen), this program [begin, end).
    if CAUSAL:
        seen = context - length + query + 1
        tile_seen = tl.minimum(context, context - length + first + BLOCK_M // GROUP)
    else:
        seen = tl.zeros_like(query) + context
        tile_seen = context
    per_split = tl.cdiv(tl.cdiv(tile_seen, BLOCK_N), SPLITS) * BLOCK_N
    begin = split * per_split
    end = tl.minimum(begin + per_split, tile_seen)

    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    result = tl.zeros([BLOCK_M, BLOCK_V], tl.float32)
    for block in range(begin, end, BLOCK_N):
        key = block + tl.arange(0, BLOCK_N)
        key_ok = key < end
        page = tl.load(tables_ptr + job * table_stride + key // PAGE_TOKENS, mask=key_ok, other=0).to(tl.int64)
        place = (page * KV_HEADS + kv_head) * PAGE_TOKENS + key % PAGE_TOKENS
        k_at = place[None, :] * HEAD_DIM + dim[:, None]
        k = tl.load(keys_ptr + k_at, mask=key_ok[None, :] & dim_ok[:, None], other=0.0)
        score = tl.dot(q, k, input_precision=PRECISION) * scale_log2
        score = tl.where(key_ok[None, :] & (key[None, :] < seen[:, None]), score, float("-inf"))
        new_top = tl.maximum(top, tl.max(score, 1))
        # While a row has seen no key its top is -inf, and -inf less -inf would be NaN.
        base = tl.where(new_top == float("-inf"), 0.0, new_top)
        decay = tl.exp2(top - base)
        weight = tl.exp2(score - base[:, None])
        total = total * decay + tl.sum(weight, 1)
        # Places beyond the context may hold NaN, which 0 x NaN would keep: they are masked here, not only in score.
        v_at = place[:, None] * VALUE_DIM + v_dim[None, :]
        v = tl.load(values_ptr + v_at, mask=key_ok[:, None] & v_dim_ok[None, :], other=0.0)
        result = result * decay[:, None] + tl.dot(weight.to(v.dtype), v, input_precision=PRECISION)
        top = new_top

    none = total == 0.0
    some = tl.where(none, 1.0, total)
    lse = tl.where(none, float("-inf"), (top + tl.log2(some)) * 0.6931471805599453)
    at = split.to(tl.int64) * split_stride + token * (KV_HEADS * GROUP) + head
    result = (result / some[:, None]).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + at[:, None] * VALUE_DIM + v_dim[None, :], result, mask=row_ok[:, None] & v_dim_ok[None, :])
    tl.store(lse_ptr + at, lse, mask=row_ok)


@_kernel(["split_stride"])
def _merge(  # type: ignore[no-untyped-def]
    outs_ptr, lses_ptr, out_ptr, lse_ptr, heads, split_stride,
    VALUE_DIM: tl.constexpr, BLOCK_V: tl.constexpr, SPLITS: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """The splits of one row and head, as `merge.merge`."""
    at = tl.program_id(0).to(tl.int64) * heads + tl.program_id(1)
    split, dim = tl.arange(0, BLOCK_S), tl.arange(0, BLOCK_V)
    split_ok, dim_ok = split < SPLITS, dim < VALUE_DIM
    part = split.to(tl.int64) * split_stride + at
    lses = tl.load(lses_ptr + part, mask=split_ok, other=float("-inf"))
    top = tl.max(lses, 0)
    base = tl.where(top == float("-inf"), 0.0, top)
    weight = tl.exp2((lses - base) * 1.4426950408889634)
    total = tl.sum(weight, 0)
    none = total == 0.0
    some = tl.where(none, 1.0, total)
    outs_at = part[:, None] * VALUE_DIM + dim[None, :]
    outs = tl.load(outs_ptr + outs_at, mask=split_ok[:, None] & dim_ok[None, :], other=0.0)
    result = (tl.sum(outs * weight[:, None], 0) / some).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + at * VALUE_DIM + dim, result, mask=dim_ok)
    tl.store(lse_ptr + at, tl.where(none, float("-inf"), base + tl.log2(some) * 0.6931471805599453))


@_kernel(["slots_ptr"])
def _write(  # type: ignore[no-untyped-def]
    k_ptr, v_ptr, keys_ptr, values_ptr, slots_ptr, k_token_stride, k_head_stride, v_token_stride, v_head_stride,
    KV_HEADS: tl.constexpr, BLOCK_H: tl.constexpr, PAGE_TOKENS: tl.constexpr, HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr, VALUE_DIM: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """One token, all its KV heads."""
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots_ptr + token).to(tl.int64)
    head = tl.arange(0, BLOCK_H)[:, None]
    dim, v_dim = tl.arange(0, BLOCK_D)[None, :], tl.arange(0, BLOCK_V)[None, :]
    ok, v_ok = (head < KV_HEADS) & (dim < HEAD_DIM), (head < KV_HEADS) & (v_dim < VALUE_DIM)
    place = (slot // PAGE_TOKENS * KV_HEADS + head) * PAGE_TOKENS + slot % PAGE_TOKENS
    k = tl.load(k_ptr + token * k_token_stride + head * k_head_stride + dim, mask=ok)
    v = tl.load(v_ptr + token * v_token_stride + head * v_head_stride + v_dim, mask=v_ok)
    tl.store(keys_ptr + place * HEAD_DIM + dim, k, mask=ok)
    tl.store(values_ptr + place * VALUE_DIM + v_dim, v, mask=v_ok)
