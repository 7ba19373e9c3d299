"""The Triton kernels against plain softmax over gathered keys in float64: in Triton's interpreter, or on a GPU."""
# ruff: noqa: E402

import importlib
import os
from collections.abc import Iterator
from copy import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

# Triton reads this when it is imported. TRITON_INTERPRET=0 runs the tests of the kernels on a GPU.
os.environ.setdefault("TRITON_INTERPRET", "1")
triton = pytest.importorskip("triton")
if os.environ["TRITON_INTERPRET"] == "1" and isinstance(triton.language.max, triton.JITFunction):
    pytest.skip("another test imported Triton first: set TRITON_INTERPRET=1 before pytest", allow_module_level=True)

from penstock.engine.merge import merge
from penstock.engine.triton_attention import (
    Batch,
    paged_attention,
    tile_queries,
    tile_rows,
    write_pages,
)

DEVICE = "cpu" if os.environ["TRITON_INTERPRET"] == "1" else "cuda"
#: float32 kernels differ from float64 by rounding alone; bf16 rounds probabilities and the result to 8 bits.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The tensors are tiny: threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Case:
    """A step of jobs (queries, context), single queries first, over shuffled pages that are NaN where unused."""

    def __init__(
        self, jobs: list[tuple[int, int]], heads: int = 4, kv_heads: int = 2, dim: int = 16, value_dim: int = 0,
        page_tokens: int = 8, dtype: torch.dtype = torch.float32,
    ) -> None:  # fmt: skip
        self.rng = torch.Generator().manual_seed(len(jobs))
        self.jobs, self.scale, self.page_tokens = jobs, 1.5 * dim**-0.5, page_tokens
        self.q = self.random(sum(n for n, _ in jobs), heads, dim).to(dtype)
        self.k = [self.random(context, kv_heads, dim).to(dtype) for _, context in jobs]
        self.v = [self.random(context, kv_heads, value_dim or dim).to(dtype) for _, context in jobs]
        self.fill()

    def random(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.rng)

    def fill(self) -> None:
        """Lay k and v out in pages."""
        counts = [-(-context // self.page_tokens) for _, context in self.jobs]
        free = (torch.randperm(sum(counts) + 3, generator=self.rng) + 1).tolist()
        self.keys, self.values = (
            torch.full((sum(counts) + 4, t.shape[1], self.page_tokens, t.shape[2]), torch.nan, dtype=t.dtype)
            for t in (self.k[0], self.v[0])
        )
        self.tables = np.full((len(self.jobs), max(counts) + 1), 10**6, np.int32)
        for row, count, k, v in zip(self.tables, counts, self.k, self.v, strict=True):
            row[:count], free = free[:count], free[count:]
            for at in range(len(k)):
                page, place = row[at // self.page_tokens], at % self.page_tokens
                self.keys[page, :, place], self.values[page, :, place] = k[at], v[at]

    def part(self, cut: slice) -> "Case":
        """The same queries, with only these of every job's keys in the pages."""
        part = copy(self)
        part.k, part.v = [k[cut] for k in self.k], [v[cut] for v in self.v]
        part.jobs = [(queries, len(k)) for (queries, _), k in zip(self.jobs, part.k, strict=True)]
        part.fill()
        return part

    def run(self, splits: int = 1, causal: bool = True) -> tuple[Tensor, Tensor]:
        query_start = np.cumsum([0] + [n for n, _ in self.jobs], dtype=np.int32)
        decodes = next((i for i, (n, _) in enumerate(self.jobs) if n > 1), len(self.jobs))
        group = self.q.shape[1] // self.keys.shape[1]
        tiles = tile_queries(query_start, decodes, tile_rows(self.q, group) // group)
        contexts = np.array([context for _, context in self.jobs], np.int32)
        start, seen, tables, work = (
            torch.from_numpy(a).to(DEVICE) for a in (query_start, contexts, self.tables, tiles)
        )
        q, keys, values = (t.to(DEVICE) for t in (self.q, self.keys, self.values))
        batch = Batch(start, seen, tables, decodes, work)
        out, lse = paged_attention(q, keys, values, batch, self.scale, splits, causal)
        return out.cpu(), lse.cpu()

    def reference(self, causal: bool = True) -> tuple[Tensor, Tensor]:
        """One job and head at a time, nothing clever."""
        outs, lses, row = [], [], 0
        for (queries, context), k, v in zip(self.jobs, self.k, self.v, strict=True):
            q = self.q[row : row + queries].double()
            group = q.shape[1] // k.shape[1]
            k, v = (t.double().repeat_interleave(group, dim=1) for t in (k, v))
            score = torch.einsum("qhd,khd->qhk", q, k) * self.scale
            if causal:
                late = torch.arange(context)[None, :] > torch.arange(context - queries, context)[:, None]
                score = score.masked_fill(late[:, None, :], -torch.inf)
            lses.append(torch.logsumexp(score, -1))
            outs.append(torch.einsum("qhk,khd->qhd", torch.nan_to_num(score.softmax(-1), 0.0), v))
            row += queries
        return torch.cat(outs), torch.cat(lses)

    def check(self, splits: int = 1, causal: bool = True) -> None:
        out, lse = self.run(splits, causal)
        expected, expected_lse = self.reference(causal)
        tolerance = TOLERANCE[self.q.dtype]
        assert out.dtype == self.q.dtype
        assert lse.dtype == torch.float32
        torch.testing.assert_close(out.double(), expected, atol=tolerance, rtol=tolerance)
        torch.testing.assert_close(lse.double(), expected_lse, atol=tolerance, rtol=tolerance)


MIXED = [(1, 1), (1, 37), (1, 8), (1, 70), (9, 9), (5, 43), (2, 2), (35, 41)]


@pytest.mark.parametrize("group", [1, 2, 3, 4, 8])
def test_mixed_step(group: int) -> None:
    Case(MIXED, heads=2 * group).check()


@pytest.mark.parametrize("dim", [64, 80, 96, 128])
def test_head_dims(dim: int) -> None:
    Case([(1, 19), (3, 21)], dim=dim).check(splits=2)


def test_values_of_another_width() -> None:
    Case([(1, 19), (3, 21)], dim=16, value_dim=24).check(splits=2)


@pytest.fixture
def bf16_dot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's interpreter keeps bf16 as uint16 and multiplies the bit patterns; widen them, which is exact."""
    if DEVICE == "cuda":
        return
    interpreter = importlib.import_module("triton.runtime.interpreter")
    plain = interpreter.InterpreterBuilder.create_dot

    def widen(handle: Any) -> Any:
        if handle.data.dtype != np.uint16:
            return handle
        return interpreter.TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), triton.language.float32)

    def create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return plain(self, widen(a), widen(b), *rest)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)


@pytest.mark.usefixtures("bf16_dot")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_short_floats(dtype: torch.dtype) -> None:
    Case([(1, 70), (1, 5), (7, 90)], dim=64, dtype=dtype).check(splits=2)


@pytest.mark.parametrize("page_tokens", [1, 7, 16])
def test_page_sizes(page_tokens: int) -> None:
    Case([(1, 33), (1, 16), (1, 17), (4, 17), (16, 32)], page_tokens=page_tokens).check()


@pytest.mark.parametrize("context", [1, 15, 16, 17, 31, 32, 33, 64, 65])
def test_around_page_and_block_boundaries(context: int) -> None:
    Case([(1, context), (min(context, 2), context)], page_tokens=16).check(splits=2)


@pytest.mark.parametrize("splits", [1, 2, 3, 4])
def test_splits_do_not_change_the_result(splits: int) -> None:
    Case([(1, 1), (1, 31), (1, 64), (1, 131), (1, 200)]).check(splits)


def test_a_long_chunk_in_several_tiles() -> None:
    group = 4
    queries = 3 * tile_rows(torch.empty(1, 8, 16), group) // group + 1
    Case([(queries, queries + 5)], heads=2 * group).check()


def test_more_heads_to_a_kv_head_than_a_tile_has_rows() -> None:
    Case([(1, 9), (3, 12)], heads=40, kv_heads=1).check(splits=2)


def test_no_context_gives_zero_and_weighs_nothing() -> None:
    for splits in (1, 2):
        out, lse = Case([(1, 0), (1, 3), (1, 0)]).run(splits)
        assert out[0].eq(0).all()
        assert out[2].eq(0).all()
        assert lse[0].eq(-torch.inf).all()
        assert lse[1].isfinite().all()


def test_queries_after_the_context_see_it_whole() -> None:
    Case([(1, 9), (6, 4), (5, 40)]).check(splits=2, causal=False)


def test_queries_before_the_context_see_nothing() -> None:
    """Where another pool holds the keys of the first of them."""
    Case([(1, 9), (6, 4), (40, 1)]).check(splits=2)


@pytest.mark.parametrize("cut", [1, 16, 23])
def test_halves_merge_into_the_whole(cut: int) -> None:
    """Keys before the cut in one pool, the rest with the queries in another."""
    whole = Case([(1, 40), (1, 27), (4, 33)])
    parts = whole.part(slice(None, cut)).run(causal=False), whole.part(slice(cut, None)).run()
    out, lse = merge(*(torch.stack(tensors) for tensors in zip(*parts, strict=True)))
    expected, expected_lse = whole.reference()
    torch.testing.assert_close(out.double(), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(lse.double(), expected_lse, atol=1e-5, rtol=1e-5)


def test_with_fixed_splits_a_row_depends_on_its_job_alone() -> None:
    together = Case([(1, 50), (1, 7), (1, 90), (3, 12), (9, 60)])
    out, lse = together.run(splits=4)
    row = 0
    for index, (queries, context) in enumerate(together.jobs):
        alone = copy(together)
        alone.jobs, alone.k, alone.v = [(queries, context)], [together.k[index]], [together.v[index]]
        alone.q = together.q[row : row + queries]
        alone.fill()
        out_alone, lse_alone = alone.run(splits=4)
        assert torch.equal(out_alone, out[row : row + queries])
        assert torch.equal(lse_alone, lse[row : row + queries])
        row += queries


def test_strided_queries() -> None:
    """As transformers hands them over: [heads, tokens, head_dim] in memory."""
    case = Case([(1, 9), (4, 12)])
    case.q = case.q.transpose(0, 1).contiguous().transpose(0, 1)
    case.check(splits=2)


@pytest.mark.parametrize(("kv_heads", "dim", "value_dim"), [(2, 16, 16), (3, 80, 48), (1, 4, 4)])
def test_write_pages(kv_heads: int, dim: int, value_dim: int) -> None:
    rng = torch.Generator().manual_seed(1)
    pages, page_tokens, tokens = 5, 4, 11
    k = torch.randn(kv_heads, tokens, dim, generator=rng).transpose(0, 1)
    v = torch.randn(tokens, 2 * kv_heads, value_dim, generator=rng)[:, ::2]
    slots = torch.randperm(pages * page_tokens, generator=rng)[:tokens]
    keys = torch.randn(pages, kv_heads, page_tokens, dim, generator=rng)
    values = torch.randn(pages, kv_heads, page_tokens, value_dim, generator=rng)
    expected_keys, expected_values = keys.clone(), values.clone()
    for token, slot in enumerate(slots.tolist()):
        expected_keys[slot // page_tokens, :, slot % page_tokens] = k[token]
        expected_values[slot // page_tokens, :, slot % page_tokens] = v[token]
    keys, values = keys.to(DEVICE), values.to(DEVICE)
    write_pages(k.to(DEVICE), v.to(DEVICE), keys, values, slots.to(DEVICE))
    assert torch.equal(keys.cpu(), expected_keys)
    assert torch.equal(values.cpu(), expected_values)


def test_refuses_what_it_cannot_serve() -> None:
    case = Case([(1, 3)], heads=4, kv_heads=2)
    case.q = case.q[:, :3]
    with pytest.raises(ValueError, match="3 query heads do not divide among 2"):
        case.run()
    case = Case([(1, 3)])
    case.q = case.q.double()
    with pytest.raises(ValueError, match="must be alike"):
        case.run()
    with pytest.raises(ValueError, match="256 dimensions"):
        Case([(1, 3)], dim=320).run()


def test_tiles_cover_every_query_once_and_late_ones_first() -> None:
    query_start = np.array([0, 1, 2, 23, 25], np.int32)
    assert tile_queries(query_start, 2, 10).tolist() == [[2, 20], [2, 10], [2, 0], [3, 0]]
    assert tile_queries(query_start[:3], 2, 10).shape == (0, 2)
