"""The batched sampler equals a slow one that takes row by row, token by token."""

import math
from collections import Counter

import numpy as np
import pytest
import torch

from penstock.engine.noise import gumbel
from penstock.engine.params import Sampling
from penstock.engine.sampling import Row, nucleus, sample, truncate

VOCAB = 700


def slow(logits: list[float], row: Row) -> tuple[int, list[float]]:
    """The token, and the log-probabilities that are reported: plain Python on one row."""
    s = row.sampling
    total = math.log(sum(math.exp(x) for x in logits))
    reported = [x - total for x in logits]
    scores = list(logits)
    if row.index < s.min_tokens:
        for token in row.ends:
            scores[token] = -math.inf
    for token, bias in s.logit_bias.items():
        scores[token] += bias
    for token in set(row.tokens.tolist()):
        scores[token] *= s.repetition_penalty if scores[token] < 0 else 1 / s.repetition_penalty
    for token, count in Counter(row.tokens[row.prompt :].tolist()).items():
        scores[token] -= s.frequency_penalty * count + s.presence_penalty
    if s.temperature:
        scores = perturbed([x / s.temperature for x in scores], row)
    return max(range(len(scores)), key=scores.__getitem__), reported


def perturbed(scores: list[float], row: Row) -> list[float]:
    s = row.sampling
    best = max(scores)
    scores = [x if math.exp(x - best) >= s.min_p else -math.inf for x in scores]
    if 0 < s.top_k < len(scores):
        least = sorted(scores, reverse=True)[s.top_k - 1]
        scores = [x if x >= least else -math.inf for x in scores]
    total = sum(math.exp(x) for x in scores)
    mass, kept = 0.0, set()
    for token in sorted(range(len(scores)), key=lambda t: -scores[t]):
        if mass < s.top_p:
            kept.add(token)
        mass += math.exp(scores[token]) / total
    noise = gumbel([s.seed], [s.choice], [row.index], len(scores))[0].tolist()
    return [x + g if t in kept else -math.inf for t, (x, g) in enumerate(zip(scores, noise, strict=True))]


def random_row(draw: np.random.Generator) -> Row:
    """Each parameter at its default half of the time."""

    def maybe(value: float, default: float) -> float:
        return value if draw.random() < 0.5 else default

    sampling = Sampling(
        max_tokens=50,
        temperature=maybe(float(draw.uniform(0.2, 2)), 0 if draw.random() < 0.3 else 1),
        top_k=int(maybe(int(draw.integers(1, 800)), 0)),
        top_p=maybe(float(draw.uniform(0.05, 1)), 1),
        min_p=maybe(float(draw.uniform(0, 0.3)), 0),
        repetition_penalty=maybe(float(draw.uniform(0.5, 2)), 1),
        presence_penalty=maybe(float(draw.uniform(-2, 2)), 0),
        frequency_penalty=maybe(float(draw.uniform(-2, 2)), 0),
        logit_bias={int(draw.integers(VOCAB)): float(draw.uniform(-100, 100))} if draw.random() < 0.5 else {},
        min_tokens=int(maybe(20, 0)),
        seed=int(draw.integers(2**63)),
        choice=int(draw.integers(4)),
        logprobs=3 if draw.random() < 0.5 else None,
    )
    prompt = int(draw.integers(1, 30))
    tokens = draw.integers(0, VOCAB, prompt + int(draw.integers(0, 40)))
    return Row(sampling, tokens, prompt, ends=[3, int(draw.integers(VOCAB))])


def batch(count: int, seed: int) -> tuple[torch.Tensor, list[Row]]:
    draw = np.random.default_rng(seed)
    logits = torch.from_numpy(draw.normal(0, 4, (count, VOCAB)))
    return logits, [random_row(draw) for _ in range(count)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", range(5))
def test_equals_the_slow_sampler(seed: int, dtype: torch.dtype) -> None:
    """In float32 by the compiled draw, in float64 by tensors alone."""
    logits, rows = batch(40, seed)
    logits = logits.to(dtype)
    for pick, values, row in zip(sample(logits, rows), logits.tolist(), rows, strict=True):
        token, reported = slow(values, row)
        assert pick.token == token, row.sampling
        if row.sampling.logprobs is None:
            assert pick.logprobs is None
            continue
        assert pick.logprobs is not None
        best = sorted(range(VOCAB), key=lambda t: -reported[t])[:3]
        assert pick.logprobs.chosen == pytest.approx(reported[token], rel=1e-5)
        assert [t for t, _ in pick.logprobs.top] == best
        assert [x for _, x in pick.logprobs.top] == pytest.approx([reported[t] for t in best], rel=1e-5)


def test_neither_batch_nor_neighbours_matter() -> None:
    logits, rows = batch(40, 9)
    logits = logits.float()
    together = sample(logits, rows)
    order = np.random.default_rng(1).permutation(40).tolist()
    shuffled = sample(logits[order], [rows[i] for i in order])
    assert [shuffled[order.index(i)] for i in range(40)] == together
    for i in range(40):
        assert sample(logits[i : i + 1], [rows[i]])[0].token == together[i].token


def test_logits_stay_as_they_are() -> None:
    logits, rows = batch(10, 3)
    before = logits.clone()
    sample(logits, rows)
    assert torch.equal(logits, before)


def test_plain_greedy_takes_the_best() -> None:
    logits, _ = batch(6, 4)
    rows = [Row(Sampling(max_tokens=5, temperature=0), np.array([1]), 1) for _ in range(6)]
    assert [p.token for p in sample(logits.bfloat16(), rows)] == logits.bfloat16().argmax(1).tolist()


def test_a_row_that_is_no_number_fails_alone() -> None:
    logits, rows = batch(12, 5)
    for row in rows[::2]:
        row.sampling = Sampling(max_tokens=5, temperature=0)
    good = sample(logits, rows)
    logits[2, 100] = logits[3, 100] = float("nan")
    picks = sample(logits, rows)
    assert all("not a number" in picks[i].error for i in (2, 3))
    assert [p for i, p in enumerate(picks) if i not in (2, 3)] == [p for i, p in enumerate(good) if i not in (2, 3)]


def test_a_row_without_a_possible_token_fails_alone() -> None:
    logits, _ = batch(2, 6)
    logits[0] = float("-inf")
    rows = [Row(Sampling(max_tokens=5), np.array([1]), 1) for _ in range(2)]
    assert [p.error for p in sample(logits, rows)] == ["no token is possible", ""]


def test_choices_differ_and_seeds_repeat() -> None:
    logits = torch.zeros(5, VOCAB)
    rows = [Row(Sampling(max_tokens=5, seed=7, choice=c), np.array([1]), 1) for c in (0, 1, 2, 3, 0)]
    tokens = [p.token for p in sample(logits, rows)]
    assert len(set(tokens)) == 4
    assert tokens[0] == tokens[4]


def test_nucleus_beyond_the_first_look() -> None:
    """A flat distribution needs more tokens than the quick look has."""
    scores = torch.linspace(0, 0.1, 5000).repeat(2, 1)
    kept = (scores >= nucleus(scores, [0.9, 0.2])).sum(1)
    order = scores[0].softmax(0).flip(0).cumsum(0)
    assert kept.tolist() == [int((order < p).sum()) + 1 for p in (0.9, 0.2)]


def test_a_row_that_keeps_all_does_not_make_the_others_look_further(monkeypatch: pytest.MonkeyPatch) -> None:
    looked, topk = [], torch.Tensor.topk
    monkeypatch.setattr(torch.Tensor, "topk", lambda self, k, dim: (looked.append(k), topk(self, k, dim))[1])
    scores = torch.linspace(0, 500, 5000).repeat(2, 1)
    assert (scores >= nucleus(scores, [0.9, 1.0])).sum(1).tolist()[1] == 5000
    assert looked == [64]


def test_equal_tokens_stay_or_go_together() -> None:
    scores = torch.tensor([[1.0, 2.0, 2.0, 0.0, 2.0]])
    assert truncate(scores, [Sampling(max_tokens=1, top_k=2)]).isfinite().tolist() == [[False, True, True, False, True]]
    assert truncate(scores, [Sampling(max_tokens=1, top_p=0.01)]).isfinite().sum() == 3
