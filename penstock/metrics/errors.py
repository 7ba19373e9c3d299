"""How far a twin is from the run that it repeats: the error of every metric. Pure functions over records.

    error       (twin - live) / live of a statistic; with its sign, so -5 % says that the twin is too quick
    attainment  good requests, of all but the cancelled; its error is the difference, in points

Each run's latencies are those of the requests that completed in it, as in `summary`.
"""

from collections.abc import Iterable, Sequence

import msgspec

from penstock.core.slo import Slo
from penstock.metrics.record import Record
from penstock.metrics.summary import PERCENTILES, Dist, Summary, summarize

METRICS = {
    "ttft": ("TTFT", "to first token"),
    "tpot": ("TPOT", "each later token"),
    "e2el": ("E2E", "to last token"),
}
_WIDTH = 80


class Error(msgspec.Struct, frozen=True):
    """A statistic of one metric in both runs, in ms; None where no request has that metric."""

    #: A key of `METRICS`.
    metric: str
    #: mean, median, P90, ...
    statistic: str
    live_ms: float | None
    twin_ms: float | None

    @property
    def relative(self) -> float | None:
        """(twin - live) / live, with its sign; None where either is missing or the live one is 0."""
        if not self.live_ms or self.twin_ms is None:
            return None
        return (self.twin_ms - self.live_ms) / self.live_ms


class Attainment(msgspec.Struct, frozen=True):
    """Shares of good requests, 0 to 1, under one SLO; an empty one: under each request's own."""

    slo: Slo
    live: float
    twin: float

    @property
    def points(self) -> float:
        """Twin less live, in percentage points."""
        return 100 * (self.twin - self.live)


class Errors(msgspec.Struct, frozen=True):
    """All that a twin says of a run, beside what the run was."""

    errors: list[Error]
    #: None where nothing was promised.
    attainment: Attainment | None
    #: Outcome -> requests, live and in the twin, of outcomes that there were.
    outcomes: dict[str, tuple[int, int]]

    def of(self, metric: str, statistic: str) -> Error:
        """The error of one statistic, as `of("ttft", "P90")`."""
        return next(e for e in self.errors if (e.metric, e.statistic) == (metric, statistic))


def compare(
    live: Iterable[Record], twin: Iterable[Record], slo: Slo = Slo(), *, percentiles: Sequence[float] = PERCENTILES
) -> Errors:
    """The errors of `twin`, under each record's own SLO or else `slo`.

    Raises ValueError for a run without requests, or where an SLO is in multiples of idle time that a record lacks.
    """
    ours, theirs = (summarize(records, slo, percentiles=percentiles) for records in (live, twin))
    return Errors(
        [error for metric in METRICS for error in _errors(metric, ours, theirs)],
        _attainment(ours, theirs),
        {name: (n, m) for name, n in ours.outcomes.items() if n + (m := theirs.outcomes[name])},
    )


def _errors(metric: str, live: Summary, twin: Summary) -> list[Error]:
    ours, theirs = _statistics(live.latency[metric]), _statistics(twin.latency[metric])
    names = ["mean", *map(_name, live.percentiles)]
    return [Error(metric, name, ours.get(name), theirs.get(name)) for name in names]


def _statistics(dist: Dist | None) -> dict[str, float]:
    if dist is None:
        return {}
    return {"mean": dist.mean_ms} | {_name(at): value for at, value in dist.percentiles_ms.items()}


def _name(percentile: float) -> str:
    return "median" if percentile == 50 else f"P{percentile:g}"


def _attainment(live: Summary, twin: Summary) -> Attainment | None:
    if live.goodput is None or twin.goodput is None:
        return None
    return Attainment(live.goodput.slo, live.goodput.share, twin.goodput.share)


def render(errors: Errors, names: tuple[str, str] = ("recorded", "simulated")) -> str:
    """The errors as a table: for each metric both runs, in ms, and the error in percent."""
    statistics = list(dict.fromkeys(e.statistic for e in errors.errors))
    lines = [_line("latency, from arrival", "", statistics)]
    for metric, (short, meaning) in METRICS.items():
        found = [errors.of(metric, name) for name in statistics]
        said = f"{short:<5}{meaning}"
        lines.append(_line(said, f"{names[0]}, ms", [_number(e.live_ms) for e in found]))
        lines.append(_line("", f"{names[1]}, ms", [_number(e.twin_ms) for e in found]))
        lines.append(_line("", "error, %", [_number(e.relative, 100, "+.1f") for e in found]))
    lines += ["-" * _WIDTH, f"{'':<40}{names[0]:>14}{names[1]:>14}{'error':>12}"]
    if errors.attainment is not None:
        lines.append(_attained(errors.attainment))
    lines += [f"{'requests ' + name:<40}{n:>14}{m:>14}{m - n:>+12}" for name, (n, m) in errors.outcomes.items()]
    return "\n".join(lines)


def _line(said: str, of: str, values: list[str]) -> str:
    return f"{said:<24}{of:>16}" + "".join(f" {value:>9}" for value in values)


def _number(value: float | None, times: float = 1.0, form: str = ",.2f") -> str:
    return "-" if value is None else format(value * times, form)


def _attained(found: Attainment) -> str:
    under = f"under {found.slo}" if found.slo else "under their own SLOs"
    values = f"{100 * found.live:>12.2f} %{100 * found.twin:>12.2f} %{found.points:>+7.2f} pts"
    return f"{'good requests ' + under:<40}{values}"
