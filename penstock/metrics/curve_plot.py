"""Draws curves: attained over request rate, and over SLO scale at one rate. Needs matplotlib (extra `plot`).

The arrangement is that of DistServe's figure 8 (OSDI'24): a column an SLO, rates above, scales below with the strictest
on the right.
"""

from collections.abc import Sequence
from typing import Any

from penstock.metrics import plot
from penstock.metrics.confidence import Interval
from penstock.metrics.curves import Point, Series, crossing

#: Colours that people with colour blindness tell apart too, and marks for print without any (after Okabe and Ito).
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#444444")
_MARKS = "os^Dv<>"
_WHITE = {"boxstyle": "square,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.85}


def draw(
    curves: Sequence[Series],
    path: str,
    target: float,
    scales: Sequence[float] = (),
    rate: float | None = None,
    rate_unit: str = "req/s",
) -> None:
    """Write a PNG. Bands are confidence intervals; dotted lines fall from where a curve crosses the target.

    The lower row is there where scales are given; `rate` chooses the cells that it shows, by default the one at which
    the first curve of the column is nearest to the target. Raises ValueError where matplotlib is missing or no cell has
    that rate, and OSError where the file cannot be written.
    """
    plot.check()
    from matplotlib.figure import Figure

    slos = list(dict.fromkeys(one.slo for one in curves))
    rows = 2 if scales else 1
    figure = Figure(figsize=(1.5 + 5.5 * len(slos), 0.7 + 3.6 * rows), layout="constrained")
    axes = figure.subplots(rows, len(slos), squeeze=False, sharey=True)
    names = list(dict.fromkeys(one.label for one in curves))
    for column, slo in enumerate(slos):
        chosen = [one for one in curves if one.slo == slo]
        _over_rate(axes[0][column], chosen, names, target, rate_unit)
        axes[0][column].set_title(f"SLO {slo}" if slo else "each request by its own SLO", fontsize="medium")
        if scales:
            shown = rate if rate is not None else _telling_rate(chosen[0], target)
            _over_scale(axes[1][column], chosen, names, target, sorted(scales, reverse=True), shown)
    for row in axes:
        row[0].set_ylabel("requests that kept the SLO (%)")
    if names != [""]:
        drawn = {line.get_label(): line for axis in axes.flat for line in axis.get_legend_handles_labels()[0]}
        figure.legend(handles=list(drawn.values()), loc="outside upper left", ncols=4, fontsize="small", frameon=False)
    figure.supxlabel("Bands are 95 % confidence intervals; dotted lines are first crossings.", fontsize="small")
    figure.savefig(path, dpi=120)


def _over_rate(axis: Any, chosen: Sequence[Series], names: Sequence[str], target: float, rate_unit: str) -> None:
    for one in chosen:
        shares = [(p.cell.rate, p.attained()) for p in one.points]
        _curve(axis, shares, one.label, names.index(one.label), target)
    _dress(axis, target)
    axis.set(xlabel=f"request rate ({rate_unit})", xlim=(0, None))


def _over_scale(
    axis: Any, chosen: Sequence[Series], names: Sequence[str], target: float, scales: Sequence[float], rate: float
) -> None:
    at_rate = [(one, point) for one in chosen for point in one.points if point.cell.rate == rate]
    if not at_rate:
        rates = ", ".join(f"{p.cell.rate:g}" for p in chosen[0].points)
        raise ValueError(f"no cell has the rate {rate:g} to draw over SLO scales; there are {rates}")
    for one, point in at_rate:
        _curve(axis, _over(point, scales), one.label, names.index(one.label), target)
    _dress(axis, target)
    axis.set(xlabel=f"SLO scale at {rate:g} req/s (smaller is stricter)", xticks=scales)
    axis.invert_xaxis()


def _over(point: Point, scales: Sequence[float]) -> list[tuple[float, Interval]]:
    return [(scale, point.attained(scale)) for scale in scales]


def _curve(axis: Any, shares: Sequence[tuple[float, Interval]], label: str, index: int, target: float) -> None:
    colour, mark = _COLOURS[index % len(_COLOURS)], _MARKS[index % len(_MARKS)]
    xs, values = [x for x, _ in shares], [100 * share.value for _, share in shares]
    axis.plot(xs, values, color=colour, marker=mark, markersize=5, label=label)
    low = [100 * max(0.0, share.value if share.low is None else share.low) for _, share in shares]
    high = [100 * min(1.0, share.value if share.high is None else share.high) for _, share in shares]
    axis.fill_between(xs, low, high, color=colour, alpha=0.18, linewidth=0)
    at = crossing([(x, share.value) for x, share in shares], target)
    if at is not None:
        axis.plot([at, at], [0, 100 * target], color=colour, linestyle=":", linewidth=1.2)
        # One above the other, since curves may cross the target close by.
        axis.annotate(f"{at:.3g}", (at, 3 + 7 * index), color=colour, fontsize="small", ha="center", bbox=_WHITE)


def _dress(axis: Any, target: float) -> None:
    axis.axhline(100 * target, color="#444444", linestyle="--", linewidth=1)
    said = f"{100 * target:g} %"
    axis.text(
        0.995, 100 * target, said, transform=axis.get_yaxis_transform(), fontsize="small", ha="right", va="bottom"
    )
    axis.set_ylim(0, 102)
    axis.grid(alpha=0.3)


def _telling_rate(one: Series, target: float) -> float:
    return min(one.over_rate, key=lambda at: abs(at[1] - target))[0]
