"""Curves as text: a table with a row a cell, where the target is crossed in words, and CSV. Judges nothing."""

import csv
from collections.abc import Iterable, Sequence
from typing import Any

from penstock.metrics.confidence import Interval
from penstock.metrics.curves import Point, Series, crossing

_CELL = 28
_HEAD = (
    f"{'':<{_CELL}}{'':>9}{'no':>7}{'attained':>21}{'goodput':>16}{'TTFT (ms)':>18}{'TPOT (ms)':>18}",
    f"{'cell':<{_CELL}}{'requests':>9}{'answer':>7}{'%':>21}{'req/s':>16}" + f"{'median':>9}{'P99':>9}" * 2,
)
_WIDTH = len(_HEAD[1])

CSV_COLUMNS = (
    "label", "slo", "slo_scale", "rate_req_per_s", "cv", "num_prompts", "repeats", "requests", "unanswered",
    "attained", "attained_low", "attained_high", "interval", "goodput_req_per_s", "goodput_low", "goodput_high",
    "ttft_median_ms", "ttft_p99_ms", "tpot_median_ms", "tpot_p99_ms",
)  # fmt: skip


def render(
    curves: Sequence[Series],
    target: float,
    scales: Sequence[float] = (),
    failed: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> str:
    """For each SLO its cells, its crossings and, where scales are given, what is attained at each; then what failed.

    `notes` are lines to go below it all.
    """
    lines: list[str] = []
    for slo in dict.fromkeys(one.slo for one in curves):
        chosen = [one for one in curves if one.slo == slo]
        lines += [f" {f'SLO {slo}' if slo else 'Each request by its own SLO'} ".center(_WIDTH, "="), *_HEAD]
        for one in chosen:
            lines += [_heading(one.label)] * bool(one.label) + [_row(point) for point in one.points]
        lines.append(_heading(f"Highest request rate with {100 * target:g} % attained"))
        lines += [f"{one.label or 'all cells':<{_CELL}}{_rate_said(one, target)}" for one in chosen]
        lines += _scale_table(chosen, target, sorted(scales, reverse=True)) if scales else []
    lines += [_heading("Failed"), *failed] if failed else []
    explained = _notes([point for one in curves for point in one.points])
    return "\n".join([*lines, "-" * _WIDTH, *explained, *notes, "=" * _WIDTH])


def write_csv(curves: Iterable[Series], path: str) -> None:
    """A row for each cell and SLO scale; shares are fractions. Raises OSError."""
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(CSV_COLUMNS)
        for one in curves:
            for point in one.points:
                writer.writerows(_csv_rows(one, point))


def crossing_said(points: Sequence[tuple[float, float]], target: float, unit: str = "") -> str:
    """The crossing in words, or why there is none, or that the curve comes back above the target later."""
    (x_first, first), (x_last, last) = points[0], points[-1]
    if first < target:
        return f"no crossing: {100 * first:.2f} % at {x_first:g}{unit} already"
    at = crossing(points, target)
    if at is None:
        return f"no crossing: still {100 * last:.2f} % at {x_last:g}{unit}"
    below = next(k for k, (_, y) in enumerate(points) if y < target)
    again = next((x for x, y in points[below:] if y >= target), None)
    return f"{at:.3f}{unit}" + ("" if again is None else f"; back above it at {again:g}{unit}")


def _rate_said(one: Series, target: float) -> str:
    said = crossing_said(one.over_rate, target, " req/s")
    alone = one.repeats_crossing(target)
    return said if alone is None else f"{said} (each repeat by itself: {_plus_minus(alone, 3)})"


def _scale_table(chosen: Sequence[Series], target: float, scales: Sequence[float]) -> list[str]:
    lines = [
        _heading(f"Attained (%) with every target of the SLO times a factor; the smallest with {100 * target:g} %"),
        f"{'cell':<{_CELL}}" + "".join(f"{scale:>8g}" for scale in scales) + "  smallest",
    ]
    for one in chosen:
        lines += [_heading(one.label)] * bool(one.label)
        for point in one.points:
            shares = [(scale, point.attained(scale).value) for scale in scales]
            values = "".join(f"{100 * share:>8.2f}" for _, share in shares)
            lines.append(f"{point.cell.name:<{_CELL}}{values}  {crossing_said(shares, target)}")
    return lines


def _row(point: Point) -> str:
    times = [point.latency_ms(name, percentile) for name in ("ttft", "tpot") for percentile in (50.0, 99.0)]
    return (
        f"{point.cell.name:<{_CELL}}{_requests(point.requests):>9}{point.unanswered:>7}"
        f"{_attained(point):>21}{_plus_minus(point.goodput_per_s, 3):>16}"
        + "".join(f"{'-' if ms is None else f'{ms:,.1f}':>9}" for ms in times)
    )


def _requests(counts: Sequence[int]) -> str:
    if len(counts) == 1:
        return str(counts[0])
    return f"{len(counts)} x {counts[0]}" if len(set(counts)) == 1 else f"{len(counts)}: {sum(counts)}"


def _attained(point: Point) -> str:
    """Student's interval as +-; Wilson's, which is not symmetric, by its bounds."""
    share = point.attained()
    if len(point.runs) > 1 or share.low is None or share.high is None:
        return _plus_minus(share, 2, 100)
    return f"{100 * share.value:.2f} [{100 * share.low:.1f}, {100 * share.high:.1f}]"


def _plus_minus(interval: Interval, digits: int, times: float = 1.0) -> str:
    value = f"{times * interval.value:.{digits}f}"
    return value if interval.high is None else f"{value} +- {times * (interval.high - interval.value):.{digits}f}"


def _notes(points: Sequence[Point]) -> list[str]:
    repeats = sorted({len(p.runs) for p in points})
    said = [
        "attained: good requests of all that the client did not cancel. no answer: dropped, rejected or failed.",
        "Highest rate, smallest factor: where attained first falls below the target, linear between cells.",
    ]
    if repeats and repeats[-1] > 1:
        counts = ", ".join(str(n) for n in repeats if n > 1)
        said.append(f"+-: 95 % confidence interval of the mean over repeats (Student's t, {counts} repeats).")
        said.append("Latencies of several repeats are the means of each one's median and P99.")
    if repeats and repeats[0] == 1:
        said.append(
            "[low, high]: 95 % confidence interval of a single run, as if its requests were independent (Wilson)."
        )
    return said


def _heading(text: str) -> str:
    return f" {text} ".center(_WIDTH, "-")


def _csv_rows(one: Series, point: Point) -> list[list[Any]]:
    cell, goodput = point.cell, point.goodput_per_s
    setting = [cell.rate, cell.cv, cell.num_prompts, len(point.runs), sum(point.requests), point.unanswered]
    times = [point.latency_ms(name, percentile) for name in ("ttft", "tpot") for percentile in (50.0, 99.0)]
    rows = []
    for scale in sorted(point.runs[0].attained, reverse=True):
        share = point.attained(scale)
        interval = "student" if len(point.runs) > 1 else "wilson"
        # Goodput is that of the SLO itself.
        good = [goodput.value, goodput.low, goodput.high] if scale == 1.0 else [None] * 3
        rows.append([one.label, one.slo, scale, *setting, share.value, share.low, share.high, interval, *good, *times])
    return rows
