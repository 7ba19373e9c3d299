"""Draws a run: TTFT and TPOT of each request over time, and their distributions. Needs matplotlib (extra `plot`)."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from penstock.core.slo import MS, SECOND, Slo
from penstock.metrics.record import COMPLETED, Record

_GOOD, _LATE, _LOST, _LINE = "#2a7f62", "#e08e1b", "#b3261e", "#444444"
_NAMES = {"ttft": "TTFT (sent to first token)", "tpot": "TPOT (time per output token after the first)"}


def check() -> None:
    """Raises ValueError, saying what to install, where nothing can be drawn."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ValueError("drawing needs matplotlib: pip install 'penstock[plot]'") from None


def plot(records: Iterable[Record], slo: Slo, path: str, *, title: str = "") -> None:
    """Write a PNG: the left column is latency over sending time, the right one the share of requests up to a latency.

    Late requests stand out by colour; those that got no answer are marks at the foot. Absolute targets of `slo` are
    lines. Raises ValueError where matplotlib is missing, and OSError where the file cannot be written.
    """
    check()
    from matplotlib.figure import Figure

    everyone = list(records)
    figure = Figure(figsize=(12, 7), layout="constrained")
    axes = figure.subplots(2, 2, width_ratios=(2, 1))
    targets = {"ttft": slo.ttft, "tpot": slo.tpot}
    for (over_time, cdf), name in zip(axes, _NAMES, strict=True):
        target = targets[name]
        line_ms = target.ns / MS if target is not None and target.ns else None
        _over_time(over_time, everyone, slo, name, line_ms)
        _cdf(cdf, everyone, name, line_ms)
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="upper right", ncols=4, fontsize="small")
    said = title or f"{len(everyone)} requests" + (f", SLO {slo}" if slo else "")
    figure.suptitle(said, x=0.02, ha="left")
    figure.savefig(path, dpi=110)


def _over_time(axis: Any, records: Sequence[Record], slo: Slo, name: str, line_ms: float | None) -> None:
    done = [r for r in records if r.outcome == COMPLETED and _value_ms(r, name) is not None]
    kept = [r.good(slo) for r in done]
    for wanted, colour, label in ((True, _GOOD, "good" if slo else "completed"), (False, _LATE, "late")):
        chosen = [r for r, good in zip(done, kept, strict=True) if good == wanted]
        if chosen:
            axis.plot(
                [r.sent_ns / SECOND for r in chosen],
                [_value_ms(r, name) for r in chosen],
                ".",
                color=colour,
                label=label,
                markersize=4,
            )
    lost = [r for r in records if r.outcome != COMPLETED]
    if lost:
        axis.plot(
            [r.sent_ns / SECOND for r in lost], [0] * len(lost), "x", color=_LOST, label="no answer", markersize=5
        )
    if line_ms is not None:
        axis.axhline(line_ms, color=_LINE, linestyle="--", linewidth=1, label="SLO")
    axis.set(xlabel="sent at (s after the start)", ylabel="ms", title=_NAMES[name], ylim=(0, None))
    axis.grid(alpha=0.3)


def _cdf(axis: Any, records: Sequence[Record], name: str, line_ms: float | None) -> None:
    done = [_value_ms(r, name) for r in records if r.outcome == COMPLETED]
    values = np.sort([v for v in done if v is not None])
    if len(values):
        axis.plot(values, 100 * np.arange(1, len(values) + 1) / len(values), color=_GOOD, drawstyle="steps-post")
    if line_ms is not None:
        axis.axvline(line_ms, color=_LINE, linestyle="--", linewidth=1)
    axis.set(xlabel=f"{name.upper()} in ms, at most", ylabel="% of completed requests", ylim=(0, 101), xlim=(0, None))
    axis.grid(alpha=0.3)


def _value_ms(record: Record, name: str) -> float | None:
    value_ns = record.ttft_ns if name == "ttft" else record.tpot_ns
    return None if value_ns is None else value_ns / MS
