"""The compiled draw takes what the best score with noise is, by the tensors that define it."""

import math

import numpy as np
import pytest
import torch

from penstock.engine.draw import draw
from penstock.engine.noise import gumbel, requests_of
from penstock.engine.sampling import nucleus

INF = float("inf")


def drawn(scores: torch.Tensor, floors: list[float], ps: list[float], first_seed: int) -> list[int]:
    rows = len(scores)
    least = torch.tensor(floors)
    totals = scores.masked_fill(scores < least[:, None], -INF).logsumexp(1)
    requests = requests_of(list(range(first_seed, first_seed + rows)), [1] * rows, [70] * rows)
    return draw(scores, requests, least, ps, totals)[1]


def defined(scores: torch.Tensor, floors: list[float], ps: list[float], first_seed: int) -> list[int]:
    rows = len(scores)
    scores = scores.masked_fill(scores < torch.tensor(floors)[:, None], -INF)
    scores = scores.masked_fill(scores < nucleus(scores, ps), -INF)
    noise = gumbel(list(range(first_seed, first_seed + rows)), [1] * rows, [70] * rows, scores.shape[1])
    return (scores + noise).argmax(1).tolist()


@pytest.mark.parametrize("vocab", [1, 3, 255, 256, 257, 2003])
@pytest.mark.parametrize("spread", [0.0, 0.5, 3.0, 12.0])
def test_equals_the_definition(vocab: int, spread: float) -> None:
    """Flat and peaked, with floors and nuclei of all sizes; seeds beyond 32 bits."""
    draw_ = np.random.default_rng(vocab)
    scores = torch.from_numpy(draw_.normal(5, spread, (150, vocab)).astype(np.float32))
    if not spread:
        # Equal scores are told apart by noise alone; a nucleus among them has no order to follow.
        assert drawn(scores, [-INF] * 150, [1.0] * 150, 7) == defined(scores, [-INF] * 150, [1.0] * 150, 7)
        return
    floors = [-INF if n % 2 else float(scores[n].sort().values[draw_.integers(vocab)]) for n in range(150)]
    ps = [1.0 if n % 3 == 0 else float(draw_.uniform(0.01, 1)) for n in range(150)]
    assert drawn(scores, floors, ps, 2**32 - 75) == defined(scores, floors, ps, 2**32 - 75)


def test_the_largest_noise_is_not_missed() -> None:
    """A token far below the best wins where its noise is large enough: none is passed over by the bounds."""
    noise = gumbel(list(range(3000)), [0] * 3000, [0] * 3000, 256)
    row = int(noise.max(1).values.argmax())
    token = int(noise[row].argmax())
    assert noise[row, token] > 11
    scores = torch.zeros(1, 256)
    scores[0, token] = float(noise[row].topk(2).values[1] - noise[row, token]) + 1e-3
    requests = requests_of([row], [0], [0])
    assert draw(scores, requests, torch.tensor([-INF]), [1.0], torch.zeros(1))[1] == [token]
    scores[0, token] -= 2e-3
    assert draw(scores, requests, torch.tensor([-INF]), [1.0], torch.zeros(1))[1] != [token]


@pytest.mark.parametrize("token", [0, 300, 599])
def test_what_is_not_a_number_shows(token: int) -> None:
    scores = torch.zeros(3, 600)
    scores[1, token] = math.nan
    scores[1, 20] = 100.0
    requests = requests_of([1, 2, 3], [0] * 3, [0] * 3)
    for floor in (-INF, math.nan):
        tops, _ = draw(scores, requests, torch.tensor([-INF, floor, -INF]), [1.0, 0.5, 1.0], scores.logsumexp(1))
        assert [math.isnan(top) for top in tops] == [False, True, False]


def test_no_token_is_possible() -> None:
    tops, tokens = draw(
        torch.full((1, 600), -INF), requests_of([1], [0], [0]), torch.tensor([-INF]), [1.0], torch.zeros(1)
    )
    assert (tops, tokens) == ([-INF], [-1])
