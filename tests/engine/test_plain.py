"""Plain attention of many jobs at once is that of each alone, and one long job does not make room for all its like."""

import numpy as np
import pytest
import torch

from penstock.engine import plain
from penstock.engine.backend import Kv, Step
from penstock.engine.plain import Plain, alike, attend_one

PAGE_TOKENS = 4


@pytest.mark.parametrize("seed", range(4))
def test_groups_are_bounded_and_leave_nobody_out(seed: int) -> None:
    contexts = np.random.default_rng(seed).integers(1, 400, 50).astype(np.int32)
    groups = list(alike(contexts, 300))
    assert sorted(np.concatenate(groups).tolist()) == list(range(50))
    for group in groups:
        assert contexts[group].max() == contexts[group[0]]
        assert len(group) == 1 or len(group) * contexts[group[0]] <= 300


def test_one_long_job_among_short_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(2)
    contexts = draw.integers(1, 20, 33).astype(np.int32)
    contexts[5] = 500
    most = -(-int(contexts.max()) // PAGE_TOKENS)
    tables = draw.permutation(33 * most).reshape(33, most).astype(np.int32) + 1
    generator = torch.Generator().manual_seed(3)
    kv = Kv(*(torch.randn(1, 33 * most + 1, 2, PAGE_TOKENS, 16, generator=generator) for _ in range(2)))
    q, k, v = (torch.randn(33, heads, 16, generator=generator) for heads in (4, 2, 2))
    last = contexts - 1
    slots = tables[np.arange(33), last // PAGE_TOKENS].astype(np.int64) * PAGE_TOKENS + last % PAGE_TOKENS
    step = Step(
        ids=np.zeros(33, np.int64), positions=last.astype(np.int64), slots=slots, decodes=33, contexts=contexts,
        query_start=np.arange(34, dtype=np.int32), tables=tables, emit=np.arange(33),
    )  # fmt: skip
    sizes = []

    def gather(cache: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        sizes.append(table.numel() * PAGE_TOKENS)
        return found(cache, table)

    found = plain.gather
    monkeypatch.setattr(plain, "gather", gather)
    monkeypatch.setattr(plain, "_GATHERED_MOST", 200)
    out = Plain().attend(0, q, k, v, kv, step, 0.3)
    assert max(sizes) == 500
    assert sum(sizes) < 2 * 2 * contexts.sum()
    for job in range(33):
        alone = attend_one(
            q[job : job + 1], kv.keys[0], kv.values[0], torch.from_numpy(tables[job]), int(contexts[job]), 0.3
        )
        torch.testing.assert_close(out[job : job + 1], alone, atol=1e-5, rtol=1e-4)
