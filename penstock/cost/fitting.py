"""Which cost model fits, said by points that it has not seen, and how far off it is.

Points are divided into folds, the same ones every time; each candidate is fitted to all but one fold and predicts that
one, so every point is predicted by a model that knows only others. The candidate with the least mean relative error is
then fitted to all of them. What is fitted is typical: medians of repeats, for sums of medians are what a run takes once
stalls are told apart; how much longer a step takes on average is the sources' to say.
"""

import statistics
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import msgspec

from penstock.core.predict import regime
from penstock.core.step import Features
from penstock.cost import linear, piecewise
from penstock.cost.base import Cost
from penstock.cost.linear import Linear
from penstock.cost.models import Scaled, corrected
from penstock.cost.piecewise import Knots, Piecewise

Sample = tuple[Features, int]
Model = Linear | Piecewise
FOLDS = 8
#: With fewer points there is nothing to hold out.
POINTS_MIN = 8
REGIMES = ("prefill", "decode", "mixed", "all")


def _powers(base: float, least: int, most: int) -> tuple[int, ...]:
    """Whole numbers from `least` to `most`, each about `base` times the one before."""
    found, x = [], float(least)
    while x <= most:
        found.append(round(x))
        x *= base
    return tuple(dict.fromkeys(found))


_CONTEXTS = tuple(1 << n for n in (12, 14, 16))
_ROWS, _JOBS = _powers(4, 1, 4096), _powers(4, 1, 256)
_FORMS = {
    "piecewise in rows": Knots(_ROWS, (), ()),
    "piecewise in rows and contexts": Knots(_ROWS, (), _CONTEXTS),
    "piecewise in rows, jobs and contexts": Knots(_powers(2, 1, 4096), _JOBS, _CONTEXTS),
    "piecewise in all three, many knots": Knots(_powers(2**0.5, 1, 4096), _powers(2, 1, 256), _CONTEXTS),
}
_SMOOTH = {"": 0.03, ", smooth": 0.3}
#: Candidates, the simplest first: it wins a draw.
CANDIDATES: dict[str, Callable[[Sequence[Sample]], Model]] = {"linear": linear.fit} | {
    name + how: partial(piecewise.fit, knots=knots, smooth=smooth)
    for name, knots in _FORMS.items()
    for how, smooth in _SMOOTH.items()
}


class Chosen(msgspec.Struct, frozen=True, kw_only=True):
    """The model, and how it was chosen."""

    name: str
    #: Fitted to all samples.
    cost: Model
    #: What each sample was predicted to take by a model that had not seen it, ns.
    held_out: list[int]
    #: Mean held-out relative error of each candidate.
    candidates: dict[str, float]


def choose(
    samples: Sequence[Sample], candidates: dict[str, Callable[[Sequence[Sample]], Model]] = CANDIDATES
) -> Chosen:
    """The candidate with the least mean held-out error. Raises ValueError with too few samples to hold any out."""
    if len(samples) < POINTS_MIN:
        raise ValueError(f"{len(samples)} different steps are too few to fit: {POINTS_MIN} are needed, better 50")
    predicted = {name: hold_out(samples, fit) for name, fit in candidates.items()}
    means = {name: statistics.fmean(relative_errors(samples, found)) for name, found in predicted.items()}
    best = min(means, key=lambda name: means[name])
    return Chosen(name=best, cost=candidates[best](samples), held_out=predicted[best], candidates=means)


class Fitted(msgspec.Struct, frozen=True, kw_only=True):
    """A cost model of recorded steps."""

    #: It gives the steps of each regime, together, the time that they took.
    cost: Scaled
    form: str
    steps: int
    #: Different ones.
    kinds: int
    #: Mean and P90 of the held-out relative errors.
    mean: float
    p90: float
    #: What all steps took together over what the fit to typical ones says.
    over: float

    def said(self, of: str) -> str:
        """In words; `of`: whose steps."""
        return (
            f"Step times fitted to {self.steps} steps ({self.kinds} kinds) of {of}: {self.form};\n"
            f"  held-out relative error mean {100 * self.mean:.1f} %, P90 {100 * self.p90:.1f} %; "
            f"then times {self.over:.3f}, what steps took over what is typical."
        )


def of_steps(steps: Sequence[Sample], more: Sequence[Sample] = ()) -> Fitted:
    """The model of what was recorded. `more`: typical steps from elsewhere, such as a profile's, to fit it to as well.
    Raises ValueError with too few."""
    samples = condense(steps)
    if len(samples) + len(more) < POINTS_MIN:
        raise ValueError(f"{len(samples)} different steps are too few to fit step times to: say them with --cost")
    samples += more
    chosen = choose(samples)
    error = errors(samples, chosen.held_out)["all"]
    said = sum(chosen.cost.step_ns(features) for features, _ in steps)
    return Fitted(
        cost=corrected(chosen.cost, steps), form=chosen.name, steps=len(steps), kinds=len(samples),
        mean=error["mean"], p90=error["p90"], over=sum(ns for _, ns in steps) / said if said else 1.0,
    )  # fmt: skip


def hold_out(samples: Sequence[Sample], fit: Callable[[Sequence[Sample]], Cost]) -> list[int]:
    """For each sample, ns by a model fitted to the other folds. Folds are dealt by size, so that each covers all."""
    order = sorted(range(len(samples)), key=lambda i: (msgspec.structs.astuple(samples[i][0]), samples[i][1]))
    predicted = [0] * len(samples)
    for fold in range(FOLDS):
        out = order[fold::FOLDS]
        kept = set(out)
        cost = fit([sample for i, sample in enumerate(samples) if i not in kept])
        for i in out:
            predicted[i] = cost.step_ns(samples[i][0])
    return predicted


def relative_errors(samples: Sequence[Sample], predicted: Sequence[int]) -> list[float]:
    """|predicted - measured| / measured of each sample."""
    return [abs(found - ns) / ns for (_, ns), found in zip(samples, predicted, strict=True)]


def errors(samples: Sequence[Sample], predicted: Sequence[int]) -> dict[str, dict[str, float]]:
    """Regime -> statistic of the relative error, of regimes that have samples; `points` is how many, `bias` signed."""
    found: dict[str, dict[str, float]] = {}
    for name in REGIMES:
        some = [i for i, (what, _) in enumerate(samples) if name in (regime(what), "all")]
        if some:
            part, guess = [samples[i] for i in some], [predicted[i] for i in some]
            bias = statistics.fmean(p / ns - 1 for (_, ns), p in zip(part, guess, strict=True))
            found[name] = _statistics(relative_errors(part, guess)) | {"bias": bias}
    return found


def _statistics(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {
        "points": float(len(ordered)),
        "mean": statistics.fmean(ordered),
        # An exact hit would make it zero whatever the others are.
        "geometric": statistics.geometric_mean([max(value, 1e-4) for value in ordered]),
        "median": statistics.median(ordered),
        "p90": ordered[min(len(ordered) - 1, len(ordered) * 9 // 10)],
        "worst": ordered[-1],
    }


def condense(samples: Iterable[Sample]) -> list[Sample]:
    """One sample for all steps that are nearly the same: the one that took the median time.

    A recorded run has thousands of steps, most of them alike and a few of them stalled. Alike is: each feature within
    about 6 %.
    """
    buckets: dict[tuple[int, ...], list[Sample]] = {}
    for sample in samples:
        if sample[1] > 0:
            key = tuple(_coarse(value) for value in msgspec.structs.astuple(sample[0]))
            buckets.setdefault(key, []).append(sample)
    return [sorted(some, key=lambda s: s[1])[(len(some) - 1) // 2] for some in buckets.values()]


def _coarse(value: int) -> int:
    """The number with its four highest bits only."""
    drop = max(0, value.bit_length() - 4)
    return value >> drop << drop
