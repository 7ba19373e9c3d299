"""A figure like the paper's: our lines, and the paper's points as hollow marks. Needs matplotlib (extra `plot`)."""

import csv
from pathlib import Path
from typing import Any

import numpy as np

from penstock.metrics.plot import check
from penstock.reproduce.figure import Panel, points
from penstock.reproduce.runs import Store, best, cell, line, y_of
from penstock.reproduce.twin import STAGES

#: Panels in a row.
_ACROSS = 4
_STACK = ("#e69f00", "#56b4e9", "#cc79a7", "#999999", "#0072b2")


def draw(store: Store, path: Path) -> None:
    """A PNG of what has been run so far. Raises ValueError where matplotlib is missing."""
    check()
    from matplotlib.figure import Figure as Canvas

    figure = store.figure
    across = min(len(figure.panels), _ACROSS)
    down = -(-len(figure.panels) // across)
    canvas = Canvas(figsize=(4.6 * across, 3.8 * down), layout="constrained")
    axes = canvas.subplots(down, across, squeeze=False).flatten()
    for axis in axes[len(figure.panels) :]:
        axis.set_visible(False)
    for axis, (key, panel) in zip(axes, figure.panels.items(), strict=False):
        _KINDS[panel.kind](axis, store, key, panel)
        axis.set_title(panel.title, fontsize="medium")
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize="x-small")
    canvas.suptitle(f"{figure.title}\n{figure.paper}; hollow: the paper's points", fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.savefig(path, dpi=100)


def write_csv(store: Store, path: Path) -> None:
    """What is drawn, and the paper's points beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure = store.figure
    paper = {(p.panel, p.row, p.x): p.y for p in points(figure.name)}
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("panel", "row", "x", "ours", "paper"))
        for key, panel in figure.panels.items():
            for row in figure.lines(panel):
                for place in panel.places:
                    numbers = _numbers(store, key, row, place)
                    ours = y_of(panel, numbers, place) if numbers is not None else None
                    theirs = paper.get((key, row, place))
                    if ours is not None or theirs is not None:
                        writer.writerow((key, row, f"{place:g}", "" if ours is None else f"{ours:.6g}", theirs))


def _numbers(store: Store, key: str, row: str, place: float) -> Any:
    option = best(store, key, row) if store.figure.rows[row].best_of is not None else ""
    return None if option is None else store.get(cell(store.figure, key, row, place, option))


def _look(style: str) -> dict[str, Any]:
    colour, mark, *dashes = style.split()
    return {"color": colour, "marker": mark, "linestyle": dashes[0] if dashes else "-", "markersize": 4}


def _lines(axis: Any, store: Store, key: str, panel: Panel) -> None:
    figure = store.figure
    theirs = points(figure.name)
    for row in figure.lines(panel):
        look = _look(figure.rows[row].style)
        found = line(store, key, row)
        axis.plot([x for x, _ in found], [y for _, y in found], label=_label(store, key, row), **look)
        published = [(p.x, p.y) for p in theirs if (p.panel, p.row) == (key, row)]
        if published:
            axis.plot(
                [x for x, _ in published], [y for _, y in published],
                **(look | {"linestyle": ":", "markerfacecolor": "none", "alpha": 0.7}),
            )  # fmt: skip
    if panel.target is not None:
        axis.axhline(panel.target, color="#444444", linestyle="--", linewidth=0.8)
    if panel.log:
        axis.set_yscale("log")
    axis.set_xlabel(panel.xlabel or panel.over)
    if panel.over == "slo_scale":
        axis.invert_xaxis()


def _label(store: Store, key: str, row: str) -> str:
    option = best(store, key, row) if store.figure.rows[row].best_of is not None else ""
    return f"{row}: {option}" if option else row


def _cdf(axis: Any, store: Store, key: str, panel: Panel) -> None:
    figure = store.figure
    for row in figure.lines(panel):
        for place in panel.places:
            numbers = _numbers(store, key, row, place)
            values = numbers.quantiles.get(panel.y) if numbers is not None else None
            if values:
                look = _look(figure.rows[row].style) | {"marker": ""}
                axis.plot(values, np.linspace(0, 1, len(values)), label=row, **look)
    axis.set_xlabel(panel.xlabel or panel.y)
    if panel.log:
        axis.set_xscale("log")


def _parts(axis: Any, store: Store, key: str, panel: Panel) -> None:
    """Shares, one bar a place, for the first row."""
    row = store.figure.lines(panel)[0]
    for position, place in enumerate(panel.places):
        numbers, bottom = _numbers(store, key, row, place), 0.0
        for stage, colour in zip(STAGES, _STACK, strict=True):
            share = numbers.values.get(f"stage_{stage}", 0.0) if numbers is not None else 0.0
            axis.bar(position, share, bottom=bottom, color=colour, label=stage if position == 0 else None)
            bottom += share
    axis.set_xticks(range(len(panel.places)), [f"{place:g}" for place in panel.places])
    axis.set_xlabel(panel.xlabel or panel.over)
    axis.legend(fontsize="x-small")


_KINDS = {"line": _lines, "cdf": _cdf, "parts": _parts}
