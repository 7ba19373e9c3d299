"""Gumbel-max on CPUs in one compiled pass over the scores: as `argmax(scores + gumbel(...))`, at a tenth of the time.

Logarithms are what noise costs, and few tokens need them: that of a word w is bounded by its number of leading zeros
(noise is less than -log(w / 2^32)), and where the bound does not lift a token above the best one so far, the noise
itself does not matter. Nor do the words of a stretch of tokens that even the largest noise could not lift.

A nucleus (top-p) needs no sorting: if the token that is drawn lies outside, so do all that are not better than it, and
the draw is repeated among the better ones.
"""

import math
from functools import cache
from typing import Any

import numba
import numpy as np
from numba import float32, int32, uint32, uint64
from torch import Tensor

from penstock.engine.backend import Int64
from penstock.engine.noise import MULTIPLY, WEYL

#: Tokens whose noise is made at once.
_STRETCH = 256
#: No noise is larger: that of the word 0 is 22.9.
_NOISE_MOST = 23.0
_LOG_2 = math.log(2)
#: More than the bound can lose to rounding.
_ROUNDING = 1e-3


def draw(
    scores: Tensor, requests: Int64, floors: Tensor, ps: list[float], totals: Tensor
) -> tuple[list[float], list[int]]:
    """The best score with noise of each row of `scores` (float32 [n, vocab], on the CPU), and its token.

    `requests` as in `noise.philox_rows`. Of each row only tokens of at least `floors` [n] count, and of those only the
    fewest best ones whose probabilities sum to `ps`; `totals` [n] is their log-sum-exp, used where `ps` is less than 1.
    A score that is not a number is the best; the token is -1 where none can be drawn.
    """
    tops, tokens = np.empty(len(scores), np.float32), np.empty(len(scores), np.int64)
    rows, least, mass = scores.contiguous().numpy(), floors.numpy(), totals.numpy()
    _compiled()(rows, requests, least, np.array(ps, np.float32), mass, tops, tokens)
    return tops.tolist(), tokens.tolist()


def _draw(scores: Any, requests: Any, floors: Any, ps: Any, totals: Any, tops: Any, tokens: Any) -> None:
    words, bounds = np.empty(_STRETCH, np.uint32), np.empty(_STRETCH, np.float32)
    for r in range(scores.shape[0]):
        row, floor = scores[r], floors[r]
        while True:
            tops[r], tokens[r] = _best(row, requests[r], floor, words, bounds)
            if tokens[r] < 0 or tops[r] != tops[r] or ps[r] >= 1 or _is_inside(row, row[tokens[r]], ps[r], totals[r]):
                break
            floor = np.nextafter(row[tokens[r]], float32(np.inf))


@numba.njit(inline="always")  # type: ignore[untyped-decorator]
def _is_inside(row: Any, score: Any, p: Any, total: Any) -> bool:
    """Whether the probabilities of all better tokens sum to less than p; the best one is always inside."""
    mass = 0.0
    for i in range(row.shape[0]):
        if row[i] > score:
            mass += math.exp(row[i] - total)
            if mass >= p:
                return False
    return True


@numba.njit(inline="always")  # type: ignore[untyped-decorator]
def _best(row: Any, request: Any, floor: Any, words: Any, bounds: Any) -> Any:
    """(score with noise, token) of the best token that is not below `floor`."""
    best, token = float32(-np.inf), -1
    for start in range(0, row.shape[0], _STRETCH):
        part = row[start : start + _STRETCH]
        # Comparisons are turned so that what is not a number passes, and is found.
        if _count(part, max(float32(best - float32(_NOISE_MOST)), floor)) == 0:
            continue
        _fill(request, start // 4, words)
        _lift(part, words, bounds)
        if _count(bounds[: part.shape[0]], best) == 0:
            continue
        for i in range(part.shape[0]):
            if part[i] < floor or bounds[i] < best:
                continue
            uniform = (float32(words[i]) + float32(0.5)) * float32(2.0**-32)
            score = part[i] + float32(-math.log(-math.log1p(-uniform)))
            if score != score:
                return score, start + i
            if score > best:
                best, token = score, start + i
    return best, token


@numba.njit(inline="always")  # type: ignore[untyped-decorator]
def _count(scores: Any, least: Any) -> int:
    """How many are not less; without a branch, which keeps it quick."""
    count = 0
    for i in range(scores.shape[0]):
        count += not (scores[i] < least)
    return count


@numba.njit(inline="always")  # type: ignore[untyped-decorator]
def _fill(request: Any, first: int, words: Any) -> None:
    """Philox words (see `noise`) of one request from block `first` on."""
    low, high = uint32(request[0]), uint32(request[1])
    choice, index = uint32(request[2]), uint32(request[3])
    for block in range(_STRETCH // 4):
        x0, x1, x2, x3, k0, k1 = uint32(first + block), index, choice, uint32(0), low, high
        for _ in range(10):
            p0, p1 = uint64(x0) * uint64(MULTIPLY[0]), uint64(x2) * uint64(MULTIPLY[1])
            x0, x1 = uint32(p1 >> uint64(32)) ^ x1 ^ k0, uint32(p1)
            x2, x3 = uint32(p0 >> uint64(32)) ^ x3 ^ k1, uint32(p0)
            k0, k1 = uint32(k0 + uint32(WEYL[0])), uint32(k1 + uint32(WEYL[1]))
        at = 4 * block
        words[at], words[at + 1], words[at + 2], words[at + 3] = x0, x1, x2, x3


@numba.njit(inline="always")  # type: ignore[untyped-decorator]
def _lift(scores: Any, words: Any, bounds: Any) -> None:
    """Bounds of scores with noise, too high by log 2 at most where noise is large. A float's exponent tells how many
    zeros lead."""
    for i in range(_STRETCH):
        bounds[i] = float32(int32(words[i] >> uint32(1)))
    bits = bounds.view(np.int32)
    for i in range(scores.shape[0]):
        bounds[i] = scores[i] + float32(_LOG_2) * float32(int32(158) - (bits[i] >> int32(23))) + float32(_ROUNDING)


@cache
def _compiled() -> Any:
    types = "void(float32[:,::1], int64[:,::1], float32[::1], float32[::1], float32[::1], float32[::1], int64[::1])"
    try:
        return numba.njit(types, cache=True, nogil=True)(_draw)
    except RuntimeError:
        # Nowhere to keep what is compiled: some seconds at each start.
        return numba.njit(types, nogil=True)(_draw)
