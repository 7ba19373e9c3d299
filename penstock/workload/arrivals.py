"""When requests come: arrival processes with a given rate. Seeded, and the same on every machine.

A closed loop has no arrival times: all requests are there at 0 s, and the client's `max_concurrency` holds
them back.
"""

import numpy as np
import numpy.typing as npt

Times = npt.NDArray[np.float64]

KINDS = ("poisson", "gamma", "constant", "closed", "trace")


def arrivals(kind: str, count: int, rate: float, *, cv: float = 1.0, seed: int = 0) -> Times:
    """`count` arrival times in s, ascending. The first gap comes before the first request.

    poisson: exponential gaps of mean 1 / `rate`. gamma: gaps with coefficient of variation `cv` (1 is
    Poisson; more is burstier; `vllm bench serve --burstiness b` is cv = b ** -0.5). constant: equal gaps.
    closed, or an infinite rate: all at 0 s. Raises ValueError on any other kind and on numbers that are
    not positive.
    """
    if kind not in KINDS or kind == "trace":
        raise ValueError(f"arrivals {kind!r}: must be one of {', '.join(KINDS[:-1])}")
    if rate <= 0 or cv <= 0:
        raise ValueError(f"the request rate ({rate:g}) and the coefficient of variation ({cv:g}) must be positive")
    if kind == "closed" or rate == float("inf"):
        return np.zeros(count)
    if kind == "constant":
        return np.arange(1, count + 1) / rate
    return np.cumsum(unit_gaps(count, cv if kind == "gamma" else 1.0, seed)) / rate


def unit_gaps(count: int, cv: float, seed: int) -> Times:
    """`count` gamma-distributed gaps of mean 1 and coefficient of variation `cv`."""
    shape = cv**-2
    return np.random.default_rng([seed, 1]).gamma(shape, 1 / shape, count)
