"""A step cost of broken lines: what kernels do differently at different sizes, still linear in its coefficients.

    step = rows(new) + decodes(decodes) + contexts(sum of decode contexts)
         + a prompts + b prompt positions + c (sum of prompt contexts)

Linear layers see rows, whoever they belong to, hence `rows`, which also holds what a step costs however small.
`decodes` is what a job costs beyond its row (logits, sampling, its page table), b what a position of a prompt does
(attention among neighbours, which is dear however little it sees). `contexts` bends where KV no longer fits a cache.
Lines never fall and coefficients are never negative, so a larger step never takes less time.
"""

from bisect import bisect_right
from collections.abc import Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from penstock.core.step import Features
from penstock.cost.base import FEW, Cost, Durations

#: Rounds of reweighting, and beyond how many median errors a point counts for less.
_ROUNDS, _FAR = 6, 2.5

Array = npt.NDArray[np.float64]


class Curve(msgspec.Struct, frozen=True):
    """A broken line that never falls: at knot i it is ns[i], and from there on it rises by slopes[i] per unit."""

    knots: list[int]
    ns: list[float]
    slopes: list[float]

    def __post_init__(self) -> None:
        """Raises ValueError for what is no such line."""
        if not self.knots or self.knots[0] != 0 or not len(self.knots) == len(self.ns) == len(self.slopes):
            raise ValueError("a curve has knots from 0 on, and as many ns and slopes as knots")
        if any(b <= a for a, b in zip(self.knots, self.knots[1:], strict=False)):
            raise ValueError(f"knots rise; these do not: {self.knots}")
        if not (min(self.ns) >= 0 and min(self.slopes) >= 0) or self.ns != sorted(self.ns):
            raise ValueError("a curve is never negative and never falls")

    def at(self, x: int) -> float:
        i = bisect_right(self.knots, x) - 1
        return self.ns[i] + self.slopes[i] * (x - self.knots[i])


class Piecewise(Cost, frozen=True):
    """See the module's docstring."""

    #: Over the positions executed.
    rows: Curve
    #: Over the slices of one position.
    decodes: Curve
    #: Over the sum of their contexts.
    contexts: Curve
    #: ns of a slice of more than one position, of each of its positions, and of each position that one of those sees.
    prompt: float
    position: float
    prompt_context: float

    def step_ns(self, features: Features) -> int:
        """See `StepCost`."""
        new, context, decodes, decode_context = (
            features.new, features.new_context, features.decodes, features.decode_context,
        )  # fmt: skip
        rows, jobs, contexts = self.rows, self.decodes, self.contexts
        i = bisect_right(rows.knots, new) - 1
        j = bisect_right(jobs.knots, decodes) - 1
        k = bisect_right(contexts.knots, decode_context) - 1
        fixed = rows.ns[i] + rows.slopes[i] * (new - rows.knots[i])
        fixed += jobs.ns[j] + jobs.slopes[j] * (decodes - jobs.knots[j])
        fixed += self.prompt * features.prompts + self.position * (new - decodes)
        read = contexts.ns[k] + contexts.slopes[k] * (decode_context - contexts.knots[k])
        ns = round(fixed + self.prompt_context * (context - decode_context) + read)
        return ns if ns > 0 else 1

    def steps_ns(self, first: Features, growth: int, count: int) -> Durations:
        """See `StepCost`. The operations and their order are those of `step_ns`, so the numbers are the same."""
        if count < FEW:
            return Cost.steps_ns(self, first, growth, count)
        contexts = self.contexts
        fixed = self.rows.at(first.new)
        fixed += self.decodes.at(first.decodes)
        fixed += self.prompt * first.prompts + self.position * (first.new - first.decodes)
        at = np.arange(count)
        decode_context = first.decode_context + at * first.decodes
        k = np.searchsorted(contexts.knots, decode_context, side="right") - 1
        knots, values, slopes = np.array(contexts.knots), np.array(contexts.ns), np.array(contexts.slopes)
        read = values[k] + slopes[k] * (decode_context - knots[k])
        area = first.new_context + at * growth - decode_context
        ns = np.rint(fixed + self.prompt_context * area + read)
        whole: npt.NDArray[np.int64] = np.maximum(ns, 1).astype(np.int64)
        return whole


class Knots(msgspec.Struct, frozen=True):
    """Where the three lines may bend, above 0."""

    rows: tuple[int, ...]
    decodes: tuple[int, ...]
    contexts: tuple[int, ...]


def fit(samples: Sequence[tuple[Features, int]], knots: Knots, smooth: float = 0.03) -> Piecewise:
    """The cost with the least *relative* error over (features, ns), far-off samples counting for less.

    `smooth` is how strongly neighbouring slopes are drawn together: a little fills segments that few samples lie in,
    more holds against noise. Knots beyond all samples are left out. Raises ValueError without samples.
    """
    if not samples:
        raise ValueError("a cost cannot be fitted to no steps at all: measure some first")
    seen = np.array([msgspec.structs.astuple(features) for features, _ in samples], float)
    new, context, decodes, decode_context, prompts = seen.T
    lines = [
        _kept(some, over) for some, over in
        ((knots.rows, new), (knots.decodes, decodes), (knots.contexts, decode_context))
    ]  # fmt: skip
    parts = [_segments(line, over) for line, over in zip(lines, (new, decodes, decode_context), strict=True)]
    ones = np.ones((len(samples), 1))
    others = np.stack([prompts, new - decodes, context - decode_context], axis=1)
    table = np.hstack([ones, *parts, others])
    took = np.array([ns for _, ns in samples], float)
    found = _solve(table / took[:, None], [len(line) for line in lines], smooth)
    base, *rest = found.tolist()
    slopes = [[rest.pop(0) for _ in line] for line in lines]
    rows, jobs, contexts = (
        _curve(line, some, start) for line, some, start in zip(lines, slopes, (base, 0.0, 0.0), strict=True)
    )
    return Piecewise(rows, jobs, contexts, *rest)


def _kept(knots: Sequence[int], over: Array) -> list[int]:
    """0, and the knots that have samples above them."""
    return [0, *(knot for knot in knots if 0 < knot < over.max())]


def _segments(knots: list[int], over: Array) -> Array:
    """How much of each segment lies below each value: the last one has no end."""
    ends = np.array([*knots[1:], np.inf])
    lengths: Array = np.clip(over[:, None], knots, ends) - np.array(knots, float)
    return lengths


def _curve(knots: list[int], slopes: list[float], start: float) -> Curve:
    values = [start]
    for a, b, slope in zip(knots, knots[1:], slopes, strict=False):
        values.append(values[-1] + slope * (b - a))
    return Curve(knots, values, slopes)


def _solve(rows: Array, lines: list[int], strength: float) -> Array:
    """x >= 0 for which `rows` x is nearest to 1, by least squares that are reweighted so that outliers count for
    less (Huber). `lines` are the lengths of the broken lines, whose columns follow the first one."""
    from scipy.optimize import nnls  # Takes long to import, and only fits need it.

    scale = np.sqrt((rows**2).mean(axis=0)) + 1e-300
    scaled = rows / scale
    smooth = strength * np.sqrt(len(rows)) * _smoothing(scale, lines)
    target = np.concatenate([np.ones(len(rows)), np.zeros(len(smooth))])
    weights = np.ones(len(rows))
    for _ in range(_ROUNDS):
        found = nnls(np.vstack([scaled * weights[:, None], smooth]), target * np.append(weights, np.ones(len(smooth))))[
            0
        ]
        error = np.abs(scaled @ found - 1)
        weights = np.sqrt(np.minimum(1, _FAR * max(float(np.median(error)), 1e-6) / np.maximum(error, 1e-9)))
    return np.asarray(found / scale, float)


def _smoothing(scale: Array, lines: list[int]) -> Array:
    """Rows that pull neighbouring slopes together, in scaled coefficients."""
    rows, at = [], 1
    for length in lines:
        for i in range(at, at + length - 1):
            row = np.zeros(len(scale))
            middle = np.sqrt(scale[i] * scale[i + 1])
            row[i], row[i + 1] = middle / scale[i], -middle / scale[i + 1]
            rows.append(row)
        at += length
    return np.array(rows).reshape(-1, len(scale))
