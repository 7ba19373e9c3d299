"""Summaries as text: one run as a table like that of `vllm bench serve`, or two side by side."""

from collections.abc import Iterable, Sequence

import msgspec

from penstock.metrics.summary import Dist, Goodput, Summary

METRICS = {
    "ttft": ("TTFT", "sent to first token"),
    "tpot": ("TPOT", "a token after the first"),
    "itl": ("ITL", "between deliveries"),
    "e2el": ("E2EL", "sent to last token"),
}
_WIDTH = 72
_WIDTH_TWO = 80


class Row(msgspec.Struct, frozen=True):
    """A line of a table; a value of None is printed as a dash."""

    label: str
    value: float | None
    digits: int = 2


class Section(msgspec.Struct, frozen=True):
    heading: str
    rows: list[Row]


def render(
    summary: Summary,
    *,
    title: str = "Serving benchmark",
    metrics: Sequence[str] = tuple(METRICS),
    notes: Iterable[str] = (),
) -> str:
    """The report of one run; `notes` are lines to go below it."""
    lines = [f" {title} ".center(_WIDTH, "=")]
    for section in _counts(summary):
        lines += [_heading(section, _WIDTH)] if section.heading else []
        lines += [f"{row.label:<{_WIDTH - 14}}{_number(row.value, row.digits):>14}" for row in section.rows]
    lines += [*_latency_table(summary, metrics), "-" * _WIDTH, *window(summary)]
    lines += [f"{count} x {text[:200]}" for text, count in list(summary.errors.items())[:3]]
    return "\n".join([*lines, *notes, "=" * _WIDTH])


def compare(
    left: Summary,
    right: Summary,
    *,
    names: tuple[str, str] = ("live", "simulated"),
    metrics: Sequence[str] = tuple(METRICS),
) -> str:
    """Two runs side by side, and by how much the second differs from the first."""
    lines = [f"{'':<40}{names[0]:>14}{names[1]:>14}{'difference':>12}"]
    for ours, theirs in zip(_sections(left, metrics), _sections(right, metrics), strict=True):
        lines += [_heading(ours, _WIDTH_TWO)] if ours.heading else []
        for a, b in zip(ours.rows, theirs.rows, strict=True):
            values = f"{_number(a.value, a.digits):>14}{_number(b.value, b.digits):>14}"
            lines.append(f"{a.label:<40}{values}{_difference(a.value, b.value):>12}")
    said = [f"{name}: {line}" for name, run in zip(names, (left, right), strict=True) for line in window(run)]
    return "\n".join([*lines, "-" * _WIDTH_TWO, *said])


def window(summary: Summary) -> list[str]:
    """Over what the numbers were taken, in words."""
    left_out = f"{summary.warmup_requests} left out as warm-up ({summary.warmup_said})"
    if not summary.warmup_requests:
        left_out = "none left out as warm-up"
    return [
        f"Window: {summary.window_s:.2f} s, first counted request sent to last over;",
        f"{summary.requests} requests counted, {left_out}.",
    ]


def _sections(summary: Summary, metrics: Sequence[str]) -> list[Section]:
    latencies = [_latency(name, summary.latency[name], summary.percentiles) for name in metrics]
    return [*_counts(summary), *latencies]


def _counts(summary: Summary) -> list[Section]:
    return [Section("", _throughput(summary)), _promise(summary.goodput)]


def _heading(section: Section, width: int) -> str:
    return f" {section.heading} ".center(width, "-")


def _latency_table(summary: Summary, metrics: Sequence[str]) -> list[str]:
    columns = ["mean", *(_percentile(p) for p in summary.percentiles)]
    lines = [" Latency ".center(_WIDTH, "-"), f"{'ms':<32}" + "".join(f"{name:>10}" for name in columns)]
    for name in metrics:
        short, meaning = METRICS[name]
        values = [row.value for row in _latency(name, summary.latency[name], summary.percentiles).rows]
        lines.append(f"{short:<6}{meaning:<26}" + "".join(f"{_number(value, 2):>10}" for value in values))
    return lines


def _throughput(summary: Summary) -> list[Row]:
    outcomes = [Row(f"Requests {name}", count, 0) for name, count in summary.outcomes.items()]
    return [
        *outcomes,
        Row("Duration (s)", summary.window_s),
        Row("Input tokens of completed requests", summary.prompt_tokens, 0),
        Row("Output tokens of completed requests", summary.output_tokens, 0),
        Row("Offered request rate (req/s)", summary.offered_per_s),
        Row("Request throughput (req/s)", summary.requests_per_s),
        Row("Output token throughput (tok/s)", summary.output_tokens_per_s),
        Row("Total token throughput (tok/s)", summary.total_tokens_per_s),
        Row("Peak concurrent requests", summary.peak_concurrency, 0),
    ]


def _promise(goodput: Goodput | None) -> Section:
    if goodput is None:
        return Section("Goodput: no SLO given", [])
    on_time = goodput.tokens_on_time_per_s
    return Section(
        f"Goodput under {goodput.slo}" if goodput.slo else "Goodput under each request's own SLO",
        [
            Row("Good requests", goodput.good, 0),
            Row("Late requests", goodput.late, 0),
            Row("Good, of all not cancelled (%)", 100 * goodput.share),
            Row("Request goodput (req/s)", goodput.requests_per_s),
            Row("Output tokens of good requests (tok/s)", goodput.tokens_per_s),
            Row("Output tokens on time (tok/s)", on_time),
        ],
    )


def _latency(name: str, dist: Dist | None, percentiles: Sequence[float]) -> Section:
    short, meaning = METRICS[name]
    at = dist.percentiles_ms if dist else {}
    rows = [Row(f"{_percentile(p)} {short} (ms)", at.get(p)) for p in percentiles]
    return Section(f"{short}, {meaning}", [Row(f"mean {short} (ms)", dist.mean_ms if dist else None), *rows])


def _percentile(percentile: float) -> str:
    return "median" if percentile == 50 else f"P{percentile:g}"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def _difference(before: float | None, after: float | None) -> str:
    if before is None or after is None:
        return ""
    if before == after:
        return "0 %"
    return f"{100 * (after - before) / before:+.1f} %" if before else "new"
