"""Mean time to first token of a prefill instance as an M/D/1 queue: what DistServe's placement reasons with.

Requests arrive at random (Poisson), `rate` a second; each prefill takes the same `service_s` on one GPU and runs alone.
Two GPUs can share it as a pipeline (inter-op) or by splitting every operation (intra-op), which makes it `speedup`
times as fast. From Zhong et al., DistServe, OSDI 2024, section 3.1; the waiting time is the textbook's. At a low rate
intra-op is faster, at a high one inter-op. Seconds throughout; nothing here knows of tokens.
"""


def mean_ttft_s(rate: float, service_s: float) -> float:
    """One GPU: D + R D² / (2 (1 - R D)). Raises ValueError at saturation, R D >= 1, and for a negative rate."""
    return service_s + _wait_s(rate, service_s)


def mean_ttft_inter_op_s(rate: float, service_s: float) -> float:
    """A pipeline of two: D + R D² / (4 (2 - R D)). A prefill takes D as before, but one may start every D / 2. Raises
    ValueError at saturation, R D >= 2."""
    return service_s + _wait_s(rate, service_s / 2)


def mean_ttft_intra_op_s(rate: float, service_s: float, speedup: float) -> float:
    """Two GPUs on every operation: D / K + R D² / (2 K (K - R D)), 1 < K <= 2. Raises ValueError at saturation,
    R D >= K."""
    if not 1 < speedup <= 2:
        raise ValueError(f"two GPUs are more than 1 and up to 2 times as fast as one, not {speedup:g}")
    return mean_ttft_s(rate, service_s / speedup)


def _wait_s(rate: float, interval_s: float) -> float:
    """The mean wait before starts at least `interval_s` apart."""
    load = rate * interval_s
    if rate < 0 or interval_s <= 0:
        raise ValueError(f"a queue needs a rate of 0 or more and a positive service time, not {rate:g}, {interval_s:g}")
    if load >= 1:
        raise ValueError(
            f"saturated: {rate:g} requests a second of at least {interval_s:g} s apart is a load of {load:g}"
        )
    return rate * interval_s**2 / (2 * (1 - load))
