"""Where the runs of a sweep lie on disk, and of which setting a saved run is. Runs nothing and judges nothing.

    DIR/sweep.json                                what was asked, as `Sweep`
    DIR/cells/rate=2,cv=1,n=200/repeat0.json      a run, as `result.Result`; its `run` has "sweep": an `Origin`

A file has its final name only when it is whole: it is written as `*.partial` and then renamed.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from penstock.metrics.result import Result

FORMAT, VERSION = "penstock-sweep", 1
#: Key of an `Origin` in the `run` of a saved result.
ORIGIN = "sweep"


class Cell(msgspec.Struct, frozen=True, omit_defaults=True):
    """One setting of a sweep. None: left to the flags that all cells share."""

    #: Requests/s.
    rate: float
    #: Coefficient of variation of the gaps between arrivals.
    cv: float | None = None
    num_prompts: int | None = None

    @property
    def name(self) -> str:
        """`rate=2,cv=1,n=200`: a folder name, and what `--only` matches."""
        pairs = (("rate", self.rate), ("cv", self.cv), ("n", self.num_prompts))
        return ",".join(f"{key}={value:.12g}" for key, value in pairs if value is not None)


class Origin(msgspec.Struct, frozen=True):
    """What a run is part of."""

    cell: Cell
    repeat: int
    seed: int
    #: Version of penstock that ran it.
    version: str


class Sweep(msgspec.Struct, kw_only=True):
    """What was asked for last, and how it was to be judged."""

    format: str = FORMAT
    version: int = VERSION
    #: `bench serve` or `simulate`, and the flags it was given for every cell.
    verb: str
    flags: list[str]
    cells: list[Cell]
    repeats: int
    seed: int
    slos: list[str]
    slo_scales: list[float]
    target: float
    #: As `summary.summarize` takes it.
    warmup: dict[str, Any]
    #: Program -> version.
    versions: dict[str, str]
    date: str


def path_of(folder: Path, cell: Cell, repeat: int) -> Path:
    """Where a run lies, or will."""
    return folder / "cells" / cell.name / f"repeat{repeat}.json"


def partial(path: Path) -> Path:
    """Where it is written until it is whole."""
    return path.with_name(path.name + ".partial")


def save(sweep: Sweep, folder: Path) -> None:
    """Write DIR/sweep.json, making the folder as needed. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "sweep.json"
    partial(path).write_bytes(msgspec.json.format(msgspec.json.encode(sweep), indent=1))
    os.replace(partial(path), path)


def load(folder: Path) -> Sweep | None:
    """Read it back; None where there is none. Raises ValueError for a file that is something else."""
    path = folder / "sweep.json"
    if not path.exists():
        return None
    try:
        sweep = msgspec.json.decode(path.read_bytes(), type=Sweep)
    except msgspec.DecodeError as error:
        raise ValueError(f"{path} is not the description of a sweep: {error}") from None
    if (sweep.format, sweep.version) != (FORMAT, VERSION):
        raise ValueError(f"{path} is {sweep.format} version {sweep.version}; this reads {FORMAT} {VERSION}")
    return sweep


def runs_in(path: Path) -> list[Path]:
    """The saved runs that a path means: itself, all of a sweep, or the JSON files of any other folder.

    Raises ValueError where there are none.
    """
    if not path.is_dir():
        return [path]
    found = path.glob("cells/*/repeat*.json") if (path / "cells").is_dir() else path.glob("*.json")
    runs = sorted(p for p in found if p.name != "sweep.json")
    if not runs:
        raise ValueError(f"{path} has no saved runs in it")
    return runs


def cell_of(result: Result) -> Cell:
    """The setting of a run: of its sweep, else of its flags, else the request rate that it turned out to have.

    Raises ValueError where no rate is known: all requests were there at once.
    """
    run = result.run
    if ORIGIN in run:
        return msgspec.convert(run[ORIGIN], Origin).cell
    rate = run.get("request_rate") or result.summary.offered_per_s
    if not rate:
        raise ValueError("it has no request rate: all its requests were there at once")
    drawn = run.get("request_rate") and run.get("arrival") in (None, "gamma")
    cv = run["burstiness"] ** -0.5 if drawn and run.get("burstiness") else None
    return Cell(float(f"{rate:.4g}"), cv, run.get("num_prompts"))


def repeat_of(result: Result) -> int:
    """Which repeat of its cell a run is; 0 where it is of no sweep."""
    return msgspec.convert(result.run[ORIGIN], Origin).repeat if ORIGIN in result.run else 0


def columns(cells: Iterable[Cell]) -> list[str]:
    """Which of cv and n tell these cells apart at one and the same rate: what a curve over rates is named after.

    Cells that give every rate a number of prompts of its own, as `(num_prompts, rate)` pairs do, are one curve.
    """
    cells = list(dict.fromkeys(cells))
    differing = ["cv"] if len({c.cv for c in cells}) > 1 else []
    if len({(c.rate, c.cv) for c in cells}) < len(cells):
        differing.append("num_prompts")
    return differing
