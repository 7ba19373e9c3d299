"""Stretches of a trace, with its own arrivals and shared prefixes: one for each seed, spread over the whole of it.

A stretch that reaches the end goes on from the start, as if the trace came again. Promises and texts of requests are
left out: a plan has its own promise. Times are the trace's; `workload.trace` scales them.
"""

from functools import lru_cache
from math import sqrt

import msgspec

from penstock.workload import trace
from penstock.workload.request import Request

#: Multiples of this fall evenly into [0, 1), however many are taken.
_GOLDEN = (sqrt(5) - 1) / 2


@lru_cache(4)
def whole(path: str) -> list[Request]:
    """All of it, the first request at 0 s. Raises ValueError where it has no times, OSError where it is not there."""
    requests = trace.load(path)
    if not trace.mean_rate(requests):
        raise ValueError(f"{path}: its requests have no arrival times; for their lengths use --lengths trace:{path}")
    return [msgspec.structs.replace(r, slo=None, prompt=None) for r in requests]


def of(path: str, seed: int, count: int) -> list[Request]:
    """`count` requests, at most all; the first at 0 s. Seed 0 begins where the trace does."""
    requests = whole(path)
    start = int(seed * _GOLDEN % 1 * len(requests))
    again_s = requests[-1].arrival_s + 1 / trace.mean_rate(requests)
    # A conversation that was cut comes as two, lest its first turns seem to follow its last.
    again = [
        msgspec.structs.replace(r, arrival_s=r.arrival_s + again_s, session=r.session and f"{r.session} again")
        for r in requests[:start]
    ]
    return trace.cut((requests[start:] + again)[:count], start_s=requests[start].arrival_s)
