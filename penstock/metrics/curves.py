"""Many runs in numbers: the share that kept its promise over request rate and over SLO scale, and where it falls.

    attained         good requests / counted requests that the client did not cancel (`summary.Goodput.share`)
    SLO scale k      every target of the SLO, and of each request's own, times k; below 1 is stricter
    crossing         where attained first falls below a target, walking from the easy end of a curve (low rates, large
                     scales), on the straight line between the two grid points around it

Knows nothing of files and draws nothing; live and simulated runs are the same to it.
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import msgspec

from penstock.core.slo import Slo, Target
from penstock.metrics import layout
from penstock.metrics.confidence import Interval, student, wilson
from penstock.metrics.layout import Cell
from penstock.metrics.record import CANCELLED, COMPLETED, Record
from penstock.metrics.summary import Summary, after_warmup, summarize

PERCENTILES = (50.0, 99.0)


class Judged(msgspec.Struct, frozen=True):
    """One run under one SLO."""

    summary: Summary
    #: SLO scale -> good requests, and those they are a share of.
    attained: dict[float, tuple[int, int]]
    goodput_per_s: float

    @property
    def share(self) -> float:
        """Attained at the SLO itself."""
        good, offered = self.attained[1.0]
        return good / offered if offered else 0.0


class Point(msgspec.Struct, frozen=True):
    """A cell of a sweep: all repeats of one setting under one SLO. At least one."""

    cell: Cell
    runs: tuple[Judged, ...]

    @property
    def requests(self) -> list[int]:
        """Counted requests of each repeat."""
        return [run.summary.requests for run in self.runs]

    @property
    def unanswered(self) -> int:
        """Requests of all repeats that were dropped, rejected or failed."""
        outcomes = [run.summary.outcomes for run in self.runs]
        return sum(count for o in outcomes for name, count in o.items() if name not in (COMPLETED, CANCELLED))

    def attained(self, scale: float = 1.0) -> Interval:
        """The share that kept the scaled SLO: Student's interval over repeats, Wilson's over one run's requests."""
        counts = [run.attained[scale] for run in self.runs]
        if len(counts) == 1:
            return wilson(*counts[0]) if counts[0][1] else Interval(0.0)
        return student([good / offered if offered else 0.0 for good, offered in counts])

    @property
    def goodput_per_s(self) -> Interval:
        """Good requests/s; without bounds for a single run."""
        return student([run.goodput_per_s for run in self.runs])

    def latency_ms(self, name: str, percentile: float) -> float | None:
        """The mean over repeats of each one's percentile; None where no request completed."""
        dists = [run.summary.latency[name] for run in self.runs]
        values = [dist.percentiles_ms[percentile] for dist in dists if dist]
        return sum(values) / len(values) if values else None


class Series(msgspec.Struct, frozen=True):
    """Points that differ in rate, ascending, under one SLO: a curve with a name."""

    label: str
    slo: Slo
    points: tuple[Point, ...]

    @property
    def over_rate(self) -> list[tuple[float, float]]:
        """(requests/s, attained), from the easy end."""
        return [(p.cell.rate, p.attained().value) for p in self.points]

    def repeats_crossing(self, target: float) -> Interval | None:
        """The mean of the rates at which each repeat by itself crosses the target; None unless all of several do."""
        counts = {len(p.runs) for p in self.points}
        alone = [[(p.cell.rate, p.runs[k].share) for p in self.points] for k in range(min(counts))]
        found = [rate for curve in alone if (rate := crossing(curve, target)) is not None]
        return student(found) if len(counts) == 1 and 1 < len(found) == len(alone) else None


def judge(records: Sequence[Record], slo: Slo, scales: Iterable[float] = (), **warmup: Any) -> Judged:
    """Raises ValueError without an SLO, where the warm-up leaves nothing, and where needed idle times are missing."""
    summary = summarize(records, slo, percentiles=PERCENTILES, **warmup)
    goodput = summary.goodput
    if goodput is None:
        raise ValueError("there is no SLO to judge by: give one with --goodput ttft:200 tpot:50")
    counted = after_warmup(records, **warmup)
    offered = summary.requests - summary.outcomes[CANCELLED]
    attained = {1.0: (goodput.good, offered)}
    for scale in scales:
        attained[scale] = (_good(counted, slo, scale), offered)
    return Judged(summary, attained, goodput.requests_per_s)


def scaled(slo: Slo, times: float) -> Slo:
    """The SLO with every target times this. Raises ValueError unless it is positive."""
    if times <= 0:
        raise ValueError(f"the SLO scale {times:g} must be positive")

    def one(target: Target | None) -> Target | None:
        return target and Target(round(target.ns * times), target.times * times)

    return Slo(one(slo.ttft), one(slo.tpot), one(slo.e2e))


def series(label: str, slo: Slo, points: Iterable[Point]) -> list[Series]:
    """The points as curves over rate, each named after `label` and what sets it apart (`layout.columns`)."""
    points = sorted(points, key=lambda p: p.cell.rate)
    columns = layout.columns(p.cell for p in points)
    groups: dict[tuple[float, ...], list[Point]] = {}
    for point in points:
        groups.setdefault(tuple(getattr(point.cell, name) or 0 for name in columns), []).append(point)
    return [
        Series(" ".join(filter(None, [label, *map(_setting, columns, values)])), slo, tuple(members))
        for values, members in sorted(groups.items())
    ]


def _setting(column: str, value: float) -> str:
    return f"{ {'cv': 'CV', 'num_prompts': 'n'}[column] } {value:.12g}"


def crossing(points: Sequence[tuple[float, float]], target: float) -> float | None:
    """x where y first falls below `target`; points run from the easy end to the hard one.

    None where that is nowhere: y is below from the start, or never.
    """
    if not points or points[0][1] < target:
        return None
    for (x, y), (x_next, y_next) in pairwise(points):
        if y_next < target:
            return x + (x_next - x) * (y - target) / (y - y_next)
    return None


def _good(records: Iterable[Record], slo: Slo, scale: float) -> int:
    """How many kept the SLO, or their own, scaled."""
    shared = scaled(slo, scale)
    own = (msgspec.structs.replace(r, slo=scaled(r.slo, scale)) if r.slo else r for r in records)
    return sum(r.good(shared) for r in own)
