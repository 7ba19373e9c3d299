"""The simplest step cost that follows the shape of a transformer: a constant, and four terms in what the step does.

    step = base + a new + b (sum of contexts) + c decodes + d (decode contexts)        every coefficient >= 0

`base` is what a step costs however small (reading the weights), `a` what each position costs in the linear layers, `b`
its attention; decoding one position costs `c` and `d` more or less than that, which non-negativity allows for by
splitting the terms. The form is that of DistServe (OSDI'24, appendix A) and LoongServe (SOSP'24, section 5.2).
"""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from penstock.core.step import Features
from penstock.cost.base import Cost

_TERMS = 5
_STEPS = np.arange(512)


class Linear(Cost, frozen=True):
    """Coefficients in ns: per step, per prompt position, per prompt context, per decode, per decode context."""

    base: float
    prompt: float
    prompt_context: float
    decode: float
    decode_context: float

    def step_ns(self, features: Features) -> int:
        """See `StepCost`."""
        new, context = features.new, features.new_context
        decodes, decode_context = features.decodes, features.decode_context
        prompts = self.prompt * (new - decodes) + self.prompt_context * (context - decode_context)
        ns = round(self.base + prompts + self.decode * decodes + self.decode_context * decode_context)
        return ns if ns > 0 else 1

    def steps_ns(self, first: Features, growth: int, count: int) -> npt.NDArray[np.int64]:
        """The terms in the order of `step_ns`, so that not a bit differs."""
        decodes = first.decodes
        steps = _STEPS[:count] if count <= len(_STEPS) else np.arange(count)
        context: Any = first.new_context - first.decode_context
        if growth != decodes:
            context = context + (growth - decodes) * steps
        prompts = self.prompt * (first.new - decodes) + self.prompt_context * context
        decode_context = first.decode_context + decodes * steps
        ns: npt.NDArray[np.float64] = np.rint(
            self.base + prompts + self.decode * decodes + self.decode_context * decode_context
        )
        return np.maximum(ns, 1, out=ns).astype(np.int64)


def _row(features: Features) -> tuple[float, ...]:
    """The terms of a step, in the order of the coefficients."""
    new, context, decodes, decode_context, _ = msgspec.structs.astuple(features)
    return (1, new - decodes, context - decode_context, decodes, decode_context)


def fit(samples: Sequence[tuple[Features, int]]) -> Linear:
    """Coefficients with the least squared *relative* error over (features, ns); none negative.

    Raises ValueError without samples. Non-negative least squares by trying every subset of the five terms: with so few
    it is exact, and needs no solver.
    """
    if not samples:
        raise ValueError("a cost cannot be fitted to no steps at all: record some first")
    took = np.array([ns for _, ns in samples], float)
    rows = np.array([_row(features) for features, _ in samples], float) / took[:, None]
    subsets = [list(s) for size in range(1, _TERMS + 1) for s in combinations(range(_TERMS), size)]
    solutions = [_solve(rows, subset) for subset in subsets]
    best = min(solutions, key=lambda x: float(np.sum((rows @ x - 1) ** 2)))
    return Linear(*map(float, best))


def _solve(rows: npt.NDArray[np.float64], subset: list[int]) -> npt.NDArray[np.float64]:
    """Least squares of `rows` x = 1 over some of the columns; zero if that needs a negative coefficient."""
    scale = np.abs(rows[:, subset]).max(axis=0) + 1e-300
    found = np.linalg.lstsq(rows[:, subset] / scale, np.ones(len(rows)), rcond=None)[0] / scale
    full = np.zeros(_TERMS)
    if (found >= 0).all():
        full[subset] = found
    return full


def relative_error(cost: Linear, samples: Sequence[tuple[Features, int]]) -> list[float]:
    """|predicted - measured| / measured of each sample."""
    return [abs(cost.step_ns(features) - ns) / ns for features, ns in samples]
