"""Draws how well a cost model fits: predicted against measured, and the error over the size of the step. Needs
matplotlib (extra `plot`). Knows neither models nor how they are fitted."""

from collections.abc import Sequence
from typing import Any

from penstock.metrics.plot import check

#: regime, positions in the step, measured ms, predicted ms
Mark = tuple[str, int, float, float]

_COLOURS = {"prefill": "#2a6f97", "decode": "#2a7f62", "mixed": "#e08e1b"}
_LINE = "#444444"


def plot(marks: Sequence[Mark], path: str, *, title: str = "") -> None:
    """Write a PNG of steps that the model had not seen. Raises ValueError where matplotlib is missing, and OSError
    where the file cannot be written."""
    check()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    _predicted(left, marks)
    _errors(right, marks)
    left.legend(fontsize="small")
    figure.suptitle(title or f"{len(marks)} steps", x=0.02, ha="left", fontsize="medium")
    figure.savefig(path, dpi=110)


def _predicted(axis: Any, marks: Sequence[Mark]) -> None:
    for name, some in _by_regime(marks):
        axis.plot([m[2] for m in some], [m[3] for m in some], ".", color=_COLOURS[name], label=name, alpha=0.8)
    ends = [min(m[2] for m in marks), max(m[2] for m in marks)]
    axis.plot(ends, ends, color=_LINE, linewidth=1, label="equal")
    axis.set(xscale="log", yscale="log", xlabel="measured, ms a step", ylabel="predicted, held out, ms a step")
    axis.grid(alpha=0.3, which="both")


def _errors(axis: Any, marks: Sequence[Mark]) -> None:
    for name, some in _by_regime(marks):
        axis.plot([m[1] for m in some], [100 * (m[3] / m[2] - 1) for m in some], ".", color=_COLOURS[name], alpha=0.8)
    axis.axhline(0, color=_LINE, linewidth=1)
    axis.set(xscale="log", xlabel="positions in the step", ylabel="predicted over measured, % more or less")
    axis.grid(alpha=0.3, which="both")


def _by_regime(marks: Sequence[Mark]) -> list[tuple[str, list[Mark]]]:
    found = [(name, [mark for mark in marks if mark[0] == name]) for name in _COLOURS]
    return [(name, some) for name, some in found if some]
