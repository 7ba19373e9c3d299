"""When requests come: arrival processes with a given rate. Seeded, and the same on every machine.

A closed loop has no arrival times: all requests are there at 0 s, and the client's `max_concurrency` holds
them back. The processes named after papers are those of the papers' published benchmarks.
"""

import numpy as np
import numpy.typing as npt

Times = npt.NDArray[np.float64]

KINDS = ("poisson", "gamma", "constant", "closed", "distserve", "loongserve", "llumnix", "trace")


def arrivals(kind: str, count: int, rate: float, *, cv: float = 1.0, seed: int = 0) -> Times:
    """`count` arrival times in s, ascending. The first gap comes before the first request.

    poisson: exponential gaps of mean 1 / `rate`. gamma: gaps with coefficient of variation `cv` (1 is
    Poisson; more is burstier; `vllm bench serve --burstiness b` is cv = b ** -0.5). constant: equal gaps.
    closed, or an infinite rate: all at 0 s. Of the papers, each with its first request at 0 s:
    distserve: gamma. loongserve: Poisson, stretched so that the last of `count` falls at count / `rate` s;
    the artifact's own draw where the seed is its 0. llumnix: gamma, as the artifact draws it after `count`
    input and `count` output lengths from the same generator (`lengths`, `llumnix:...`).
    Raises ValueError on any other kind and on numbers that are not positive.
    """
    if kind not in KINDS or kind == "trace":
        raise ValueError(f"arrivals {kind!r}: must be one of {', '.join(KINDS[:-1])}")
    if rate <= 0 or cv <= 0:
        raise ValueError(f"the request rate ({rate:g}) and the coefficient of variation ({cv:g}) must be positive")
    if kind == "closed" or rate == float("inf"):
        return np.zeros(count)
    if kind == "constant":
        return np.arange(1, count + 1) / rate
    if kind in ("poisson", "gamma"):
        return np.cumsum(unit_gaps(count, cv if kind == "gamma" else 1.0, seed)) / rate
    even = np.concatenate([[0.0], np.cumsum(_GAPS[kind](count, cv, seed))])[:count]
    return even * (count / even[-1]) / rate if kind == "loongserve" and count > 1 else even / rate


def diurnal(count: int, trough: float, peak: float, period_s: float, *, cv: float = 1.0, seed: int = 0) -> Times:
    """`count` arrival times in s under a rate that swings as a cosine, from `trough` (requests/s, at 0 s) to `peak`
    half a `period_s` later, and back.

    Gamma gaps of coefficient of variation `cv`, drawn at an even rate, are warped: the rate's integral at each
    arrival is the sum of the unit gaps up to it. So the burstiness is `cv` at any hour. Raises ValueError unless
    0 <= trough <= peak and the rest is positive.
    """
    if not 0 <= trough <= peak or peak <= 0 or period_s <= 0 or cv <= 0:
        raise ValueError(
            f"diurnal arrivals: 0 <= trough ({trough:g}) <= peak ({peak:g}) must hold, and the peak, the period "
            f"({period_s:g} s) and the coefficient of variation ({cv:g}) must be positive"
        )
    even = np.cumsum(unit_gaps(count, cv, seed))
    mean, swing = (trough + peak) / 2, (peak - trough) / 2
    turn = 2 * np.pi / period_s
    # The integral of the rate stays within `swing / turn` of a straight line, so its inverse is bracketed.
    low, high = (even - swing / turn) / mean, (even + swing / turn) / mean
    for _ in range(60):
        middle = (low + high) / 2
        early = mean * middle - swing / turn * np.sin(turn * middle) < even
        low, high = np.where(early, middle, low), np.where(early, high, middle)
    return np.asarray(high)


def unit_gaps(count: int, cv: float, seed: int) -> Times:
    """`count` gamma-distributed gaps of mean 1 and coefficient of variation `cv`; more gaps begin with the same."""
    shape = cv**-2
    return np.random.default_rng([seed, 1]).gamma(shape, 1 / shape, count)


def _loongserve_gaps(count: int, cv: float, seed: int) -> Times:
    """The artifact's first gap comes before the first request, which it then moves to 0 s."""
    return np.random.RandomState(seed).exponential(1.0, count + 1)[1:]


def _llumnix_gaps(count: int, cv: float, seed: int) -> Times:
    """Two uniform numbers a request, one for each of its lengths, have been taken from the generator before."""
    state = np.random.RandomState(seed)
    state.random_sample(2 * count)
    return state.exponential(1.0, count) if cv == 1 else state.gamma(cv**-2, cv**2, count)


#: Unit gaps after the first request, of the processes that begin at 0 s.
_GAPS = {"distserve": unit_gaps, "loongserve": _loongserve_gaps, "llumnix": _llumnix_gaps}
