"""How sure a number is: intervals for a mean over repeated runs and for a share of requests. Knows nothing of runs.

    mean over n repeats    m +- t(n - 1) s / sqrt(n), s the sample deviation       Student, "The probable error of a
                                                                                   mean", Biometrika 6 (1908)
    share k of n           (k + z^2 / 2 +- z sqrt(k (n - k) / n + z^2 / 4)) / (n + z^2)       Wilson, "Probable
                           inference, the law of succession, and statistical inference", JASA 22 (1927)

t and z are the quantiles that leave (1 - confidence) / 2 above them.
"""

from collections.abc import Sequence
from math import sqrt
from statistics import NormalDist, fmean, stdev

import msgspec

CONFIDENCE = 0.95


class Interval(msgspec.Struct, frozen=True):
    """An estimate with the bounds of its confidence interval, all in one unit. Bounds of None: nothing is known of
    the spread."""

    value: float
    low: float | None = None
    high: float | None = None


def student(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """The mean of independent repeats; a single one has no bounds.

    Repeats that agree exactly give an interval of no width, which says that they agreed, not that they are certain.
    """
    mean = fmean(values)
    if len(values) < 2:
        return Interval(mean)
    # Half a second to import, and most verbs never come here.
    from scipy.special import stdtrit

    half = float(stdtrit(len(values) - 1, (1 + confidence) / 2)) * stdev(values) / sqrt(len(values))
    return Interval(mean, mean - half, mean + half)


def wilson(hits: int, trials: int, confidence: float = CONFIDENCE) -> Interval:
    """The share of hits among independent trials; within [0, 1], and of some width even for none or all.

    Raises ValueError unless 0 <= hits <= trials and there is a trial.
    """
    if not 0 <= hits <= trials or not trials:
        raise ValueError(f"a share needs 0 <= hits <= trials and at least one trial, not {hits} of {trials}")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    middle = hits + z * z / 2
    half = z * sqrt(hits * (trials - hits) / trials + z * z / 4)
    return Interval(
        hits / trials, max(0.0, (middle - half) / (trials + z * z)), min(1.0, (middle + half) / (trials + z * z))
    )
