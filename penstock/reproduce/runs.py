"""The runs that a figure needs, and where they lie.

    DIR/distserve/fig8-13b/cells/NAME/repeat0.json     the numbers of a run
    DIR/distserve/fig8-13b/{figure.png,numbers.csv,figure.claim}

A cell that has its file is not run again. A file has its final name only when it is whole.
"""

import fnmatch
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from penstock.metrics.layout import partial as unfinished
from penstock.plan.search import processes
from penstock.reproduce import search_time, stall, twin
from penstock.reproduce.figure import Figure, Panel
from penstock.reproduce.numbers import Numbers, mean

#: What `measure:` of a figure may say, beside serving: (figure, change of the cell, seed) -> numbers.
MEASURES: dict[str, Callable[[Figure, str, Mapping[str, Any], int], Numbers]] = {
    "stall": stall.measure,
    "search-time": search_time.measure,
}


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """A row under one load."""

    row: str
    #: Of the row's `best_of`: which.
    option: str = ""
    #: Requests/s, a GPU where the load is counted so.
    rate: float
    cv: float
    requests: int
    #: The x of a panel that is over `at`, and whose change it is.
    at: float | None = None
    panel: str = ""

    @property
    def name(self) -> str:
        """A folder, and what `--only` matches."""
        row = re.sub(r"[^A-Za-z0-9.+=,:-]+", "_", self.option or self.row)
        parts = [row, f"rate={self.rate:g}", f"cv={self.cv:g}", f"n={self.requests}"]
        return ",".join(parts + ([] if self.at is None else [f"{self.panel}={self.at:g}"]))


class Store:
    """What has been run of a figure."""

    def __init__(self, folder: Path, figure: Figure) -> None:
        self.folder = folder / figure.name
        self.figure = figure
        self._read: dict[Cell, Numbers | None] = {}

    def path(self, cell: Cell, repeat: int) -> Path:
        return self.folder / "cells" / cell.name / f"repeat{repeat}.json"

    def save(self, cell: Cell, repeat: int, numbers: Numbers) -> None:
        path = self.path(cell, repeat)
        path.parent.mkdir(parents=True, exist_ok=True)
        drawn = {panel.y for panel in self.figure.panels.values() if panel.kind != "line"}
        kept = _rounded(numbers, drawn)
        unfinished(path).write_bytes(msgspec.json.format(msgspec.json.encode(kept), indent=1))
        os.replace(unfinished(path), path)
        self._read.pop(cell, None)

    def get(self, cell: Cell) -> Numbers | None:
        """The mean of its repeats; None where it has not been run."""
        if cell not in self._read:
            files = sorted((self.folder / "cells" / cell.name).glob("repeat*.json"))
            read = [msgspec.json.decode(path.read_bytes(), type=Numbers) for path in files]
            self._read[cell] = mean(read) if read else None
        return self._read[cell]

    def forget(self, only: str) -> None:
        """Delete what has been run."""
        for path in (self.folder / "cells").glob("*/repeat*.json"):
            if fnmatch.fnmatch(path.parent.name, only):
                path.unlink()


def cell(figure: Figure, key: str, row: str, x: float, option: str = "") -> Cell:
    """The run that a panel shows at x."""
    panel = figure.panels[key]
    load = figure.load_of(row, panel.at.get(x, {}))
    rate, cv = panel.rate if panel.rate is not None else load.rate, panel.cv or load.cv
    at = x if panel.over == "at" else None
    # Panels over the same changes show the same runs.
    first = next(name for name, other in figure.panels.items() if other.at == panel.at)
    return Cell(
        row=row, option=option, requests=load.requests, at=at, panel=first if at is not None else "",
        rate=x if panel.over == "rate" else rate, cv=x if panel.over == "cv" else cv,
    )  # fmt: skip


def y_of(panel: Panel, numbers: Numbers, x: float) -> float | None:
    """What the panel shows of a run; None where the run has no such number."""
    if panel.over == "slo_scale":
        return numbers.scales.get(f"{x:g}")
    value = numbers.values.get(panel.y)
    return None if value is None else value * panel.times


def line(store: Store, key: str, row: str, y: str = "") -> list[tuple[float, float]]:
    """(x, y) of what has been run; empty where nothing was. `y`: another number than the panel's."""
    figure, panel = store.figure, store.figure.panels[key]
    shown = msgspec.structs.replace(panel, y=y, times=1.0) if y else panel
    option = best(store, key, row) if figure.rows[row].best_of is not None else ""
    if option is None:
        return []
    found = []
    for place in panel.places:
        numbers = store.get(cell(figure, key, row, place, option))
        if numbers is None:
            continue
        x, value = numbers.values.get(panel.x, place) if panel.x else place, y_of(shown, numbers, place)
        if value is not None:
            found.append((x, value))
    return found


def best(store: Store, key: str, row: str) -> str | None:
    """Of the row's options, the one that keeps most where the panel is hardest; None before they were run."""
    figure, panel = store.figure, store.figure.panels[key]
    hardest = _hardest(panel)
    found: list[tuple[float, str]] = []
    for option in candidates(figure, row):
        numbers = store.get(cell(figure, key, row, hardest, option))
        y = y_of(panel, numbers, hardest) if numbers is not None else None
        if y is None:
            return None
        found.append((-y, option))
    return min(found)[1] if found else None


def candidates(figure: Figure, row: str) -> list[str]:
    """Names of the row's options."""
    spec = figure.rows[row].best_of
    return [option.name for option in spec.options(figure.promise)] if spec is not None else []


def _hardest(panel: Panel) -> float:
    return min(panel.places) if panel.over == "slo_scale" else max(panel.places)


def wanted(store: Store) -> Iterator[list[Cell]]:
    """All cells of a figure, in waves: what the second needs is known when the first has run."""
    figure = store.figure
    plain: dict[Cell, None] = {}
    chosen: list[tuple[str, str]] = []
    for key, panel in figure.panels.items():
        for row in figure.lines(panel):
            if figure.rows[row].best_of is None:
                plain.update(dict.fromkeys(cell(figure, key, row, x) for x in panel.places))
            else:
                chosen.append((key, row))
                for option in candidates(figure, row):
                    plain[cell(figure, key, row, _hardest(panel), option)] = None
    yield _once(plain)
    if chosen:
        more: dict[Cell, None] = {}
        for key, row in chosen:
            winner = best(store, key, row)
            if winner is not None:
                more.update(dict.fromkeys(cell(figure, key, row, x, winner) for x in figure.panels[key].places))
        yield _once(more)


def _once(cells: Mapping[Cell, None]) -> list[Cell]:
    """Rows that choose among the same options share their runs."""
    return list({one.name: one for one in cells}.values())


def run(
    store: Store,
    *,
    repeats: int = 1,
    only: str = "*",
    jobs: int = 1,
    measure: Callable[[Figure, Cell, int], Numbers] | None = None,
    on_cells: Callable[[int], object] = lambda count: None,
    on_run: Callable[[], object] = lambda: None,
) -> None:
    """Run what is missing. `measure`: instead of the twin."""
    for wave in wanted(store):
        todo = [
            (one, repeat)
            for one in wave
            for repeat in range(repeats)
            if fnmatch.fnmatch(one.name, only) and not store.path(one, repeat).exists()
        ]
        on_cells(len(todo))
        task = partial(_run, figure=store.figure, measure=measure or in_twin)
        with processes(min(jobs, len(todo)) if measure is None else 1) as each:
            for (one, repeat), numbers in zip(todo, each(task, todo), strict=True):
                store.save(one, repeat, numbers)
                on_run()


def _run(one: tuple[Cell, int], *, figure: Figure, measure: Callable[[Figure, Cell, int], Numbers]) -> Numbers:
    return measure(figure, *one)


def in_twin(figure: Figure, one: Cell, repeat: int) -> Numbers:
    """A run in simulated time, or whatever the figure measures."""
    change = figure.panels[one.panel].at[one.at] if one.at is not None else {}
    spec = figure.rows[one.row]
    load = figure.load_of(one.row, change)
    if figure.measure != "serving":
        return MEASURES[figure.measure](figure, one.row, change, load.seed + repeat)
    if spec.best_of is not None:
        options = {option.name: option for option in spec.best_of.options(figure.promise)}
        deployment, gpus = options[one.option].deployment, options[one.option].gpus
    else:
        deployment = figure.deployment(one.row, change)
        gpus = spec.gpus or sum(pool.instances * pool.tp * pool.pp for pool in deployment.pools)
    each = gpus if load.per_gpu else 1
    asked = twin.requests(load, one.rate * each, one.requests * each, one.cv, load.seed + repeat)
    staged = any(panel.y.startswith(("stage_", "transfer_ms")) for panel in figure.panels.values())
    found = twin.run(deployment, asked, figure.promise, figure.slo_scales, staged, blind=spec.blind)
    return msgspec.structs.replace(found, values=found.values | {"gpus": float(gpus)})


def _rounded(numbers: Numbers, drawn: Collection[str]) -> Numbers:
    """Six digits, so that files say what was measured and no more; and quantiles that are drawn."""
    return Numbers(
        values={key: float(f"{value:.6g}") for key, value in numbers.values.items()},
        scales={key: float(f"{value:.6g}") for key, value in numbers.scales.items()},
        quantiles={key: values for key, values in numbers.quantiles.items() if key in drawn},
    )
