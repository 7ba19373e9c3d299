"""Measured times on disk: an SQLite file that grows, is gone on with, and takes in other people's.

    setups      what was measured, on what: hardware, model, dtype, engine ... and an id
    points      a step of a setup, as groups (see `grid`), and its features
    repeats     each single time of a point, in ns, when it was taken, and how long its threads waited for a core
    overheads   what is not the model's own work, by name and parameter

Knows nothing of engines or of fits.
"""

import sqlite3
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from penstock.core.step import Features
from penstock.cost import grid
from penstock.cost.grid import Step

VERSION = 1
#: Marks the file as ours ("PENS").
_APPLICATION = 0x50454E53
_SCHEMA = """
CREATE TABLE setups (id INTEGER PRIMARY KEY, hardware TEXT, model TEXT, config TEXT, dtype TEXT, engine TEXT,
    threads INTEGER, tp INTEGER, pp INTEGER, page_tokens INTEGER,
    UNIQUE (hardware, model, config, dtype, engine, threads, tp, pp, page_tokens));
CREATE TABLE points (id INTEGER PRIMARY KEY, setup INTEGER NOT NULL REFERENCES setups, step TEXT NOT NULL,
    new INTEGER, new_context INTEGER, decodes INTEGER, decode_context INTEGER, prompts INTEGER, UNIQUE (setup, step));
CREATE TABLE repeats (point INTEGER NOT NULL REFERENCES points, at_s REAL NOT NULL, ns INTEGER NOT NULL,
    waited_ns INTEGER NOT NULL, UNIQUE (point, at_s, ns));
CREATE TABLE overheads (setup INTEGER NOT NULL REFERENCES setups, name TEXT NOT NULL, parameter TEXT NOT NULL,
    ns REAL NOT NULL, deviation_ns REAL NOT NULL, repeats INTEGER NOT NULL, UNIQUE (setup, name, parameter));
"""
#: Threads that waited for a core for more than this share of a step were disturbed by other processes.
WAITED_MAX = 0.05
_SETUP = "hardware, model, config, dtype, engine, threads, tp, pp, page_tokens"


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """What times depend on beside the step. Those of different setups are never mixed."""

    hardware: str
    model: str
    #: Hash of the model's configuration: the same name may stand for another shape.
    config: str
    dtype: str
    engine: str
    threads: int
    tp: int = 1
    pp: int = 1
    page_tokens: int

    def __str__(self) -> str:
        parts = f"tp {self.tp}, pp {self.pp}, pages of {self.page_tokens} tokens"
        return f"{self.model} ({self.config}), {self.dtype}, on {self.hardware}, {parts}; {self.engine}"


class Point(msgspec.Struct, frozen=True):
    """A step and its times."""

    step: Step
    features: Features
    #: (ns, ns that its threads waited for a core) of each repeat, in the order of time.
    repeats: list[tuple[int, int]]

    @property
    def settled(self) -> bool:
        """Whether it was ever left alone."""
        return not all(disturbed(*repeat) for repeat in self.repeats)

    @property
    def took(self) -> list[int]:
        """ns of the repeats that nothing disturbed; where there are none, of the one that waited least."""
        return [ns for ns, waited in self.repeats if not disturbed(ns, waited)] or [
            min(self.repeats, key=lambda repeat: repeat[1] / repeat[0])[0]
        ]

    @property
    def median(self) -> int:
        """What the step typically takes, ns."""
        return round(statistics.median(self.took))

    @property
    def deviation(self) -> float:
        """Standard deviation of `took`, as a fraction of its mean; 0 of a single one."""
        took = self.took
        return statistics.stdev(took) / statistics.fmean(took) if len(took) > 1 else 0.0


def disturbed(ns: int, waited_ns: int) -> bool:
    """Whether other processes had a part in such a time."""
    return waited_ns > WAITED_MAX * ns


class Overhead(msgspec.Struct, frozen=True):
    """A cost outside the model: ns of one `name` at `parameter`, the median, and the deviation of the repeats."""

    name: str
    parameter: str
    ns: float
    deviation_ns: float
    repeats: int


class Profile:
    """An open file, made if it is not there. As a context manager it keeps what was added, however it ends."""

    def __init__(self, path: str | Path, must_exist: bool = False) -> None:
        """Raises FileNotFoundError, and ValueError for a file that is something else."""
        self.path = Path(path)
        if must_exist and not self.path.exists():
            raise FileNotFoundError(f"{path} is not there; `penstock profile --out {path}` makes it")
        if not self.path.parent.is_dir():
            raise FileNotFoundError(f"{path}: there is no folder {self.path.parent}")
        self._kept_s = time.monotonic()
        with self._errors():
            self._db = sqlite3.connect(self.path)
        try:
            self._check()
        except BaseException:
            self._db.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with self._errors():
            self._db.commit()
        self._db.close()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            raise OSError(f"{self.path}: {error}") from None
        except sqlite3.DatabaseError as error:
            raise ValueError(f"{self.path} is not a profile that `penstock profile` wrote: {error}") from None

    def _check(self) -> None:
        with self._errors():
            (found,) = self._db.execute("PRAGMA application_id").fetchone()
            (version,) = self._db.execute("PRAGMA user_version").fetchone()
            if not self._db.execute("SELECT 1 FROM sqlite_master").fetchone() and not version:
                self._db.executescript(_SCHEMA)
                self._db.execute(f"PRAGMA application_id = {_APPLICATION}")
                self._db.execute(f"PRAGMA user_version = {VERSION}")
                self._db.commit()
            elif found != _APPLICATION:
                raise ValueError(f"{self.path} is not a profile that `penstock profile` wrote, but another SQLite file")
            elif version != VERSION:
                raise ValueError(f"{self.path} has profile version {version}, this reads {VERSION}: measure again")

    # -- writing -----------------------------------------------------------------------------------------------

    def setup_id(self, setup: Setup) -> int:
        """The id of a setup, which is entered if it is new."""
        values = msgspec.structs.astuple(setup)
        with self._errors():
            marks = ", ".join("?" * len(values))
            self._db.execute(f"INSERT OR IGNORE INTO setups ({_SETUP}) VALUES ({marks})", values)
            (found,) = self._db.execute(f"SELECT id FROM setups WHERE ({_SETUP}) = ({marks})", values).fetchone()
        return int(found)

    def add(self, setup: int, step: Step, features: Features, repeats: Sequence[tuple[int, int]], at_s: float) -> None:
        """Times of a step (see `Point.repeats`), all of one occasion. In the file for good a second later at most."""
        text = msgspec.json.encode(step).decode()
        values = msgspec.structs.astuple(features)
        with self._errors():
            self._db.execute(
                "INSERT OR IGNORE INTO points (setup, step, new, new_context, decodes, decode_context, prompts) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)", (setup, text, *values),
            )  # fmt: skip
            (point,) = self._db.execute("SELECT id FROM points WHERE (setup, step) = (?, ?)", (setup, text)).fetchone()
            rows = [(point, at_s, *repeat) for repeat in repeats]
            self._db.executemany("INSERT OR IGNORE INTO repeats VALUES (?, ?, ?, ?)", rows)
            if time.monotonic() > self._kept_s + 1:
                self._db.commit()
                self._kept_s = time.monotonic()

    def add_overhead(self, setup: int, overhead: Overhead) -> None:
        """Enter a cost outside the model, in the place of an older value."""
        with self._errors():
            values = msgspec.structs.astuple(overhead)
            self._db.execute("INSERT OR REPLACE INTO overheads VALUES (?, ?, ?, ?, ?, ?)", (setup, *values))

    def merge(self, other: "Profile") -> tuple[int, int]:
        """Take in another file; how many points and how many single times are new."""
        before = self._totals()
        # All of it is read first: a damaged file must not be taken in by halves.
        read = [(setup, other._repeats(at), other.overheads(at)) for at, setup in other.setups()]
        for setup, repeats, overheads in read:
            mine = self.setup_id(setup)
            for step, features, at_s, repeat in repeats:
                self.add(mine, step, features, [repeat], at_s)
            for overhead in overheads:
                self.add_overhead(mine, overhead)
        after = self._totals()
        return after[0] - before[0], after[1] - before[1]

    # -- reading -----------------------------------------------------------------------------------------------

    def setups(self) -> list[tuple[int, Setup]]:
        """All setups with their ids, the oldest first."""
        with self._errors():
            rows = self._db.execute(f"SELECT id, {_SETUP} FROM setups ORDER BY id").fetchall()
        try:
            return [
                (row[0], msgspec.convert(dict(zip(_SETUP.split(", "), row[1:], strict=True)), Setup)) for row in rows
            ]
        except msgspec.ValidationError as error:
            raise ValueError(f"{self.path} is damaged: {error}") from None

    def points(self, setup: int) -> list[Point]:
        """Points of a setup that have a time, in the order in which they were first measured."""
        found: dict[Step, Point] = {}
        for step, features, _, repeat in self._repeats(setup):
            found.setdefault(step, Point(step, features, [])).repeats.append(repeat)
        return list(found.values())

    def visits(self, setup: int) -> dict[Step, int]:
        """On how many occasions each step was measured undisturbed."""
        occasions: dict[Step, set[float]] = {}
        for step, _, at_s, repeat in self._repeats(setup):
            if not disturbed(*repeat):
                occasions.setdefault(step, set()).add(at_s)
        return {step: len(times) for step, times in occasions.items()}

    def overheads(self, setup: int) -> list[Overhead]:
        """Costs outside the model."""
        query = "SELECT name, parameter, ns, deviation_ns, repeats FROM overheads WHERE setup = ? ORDER BY rowid"
        with self._errors():
            return [Overhead(*row) for row in self._db.execute(query, (setup,))]

    def _repeats(self, setup: int) -> list[tuple[Step, Features, float, tuple[int, int]]]:
        query = (
            "SELECT step, new, new_context, decodes, decode_context, prompts, at_s, ns, waited_ns FROM points "
            "JOIN repeats ON point = id WHERE setup = ? ORDER BY at_s, repeats.rowid"
        )
        with self._errors():
            rows = self._db.execute(query, (setup,)).fetchall()
        try:
            return [_repeat(row) for row in rows]
        except (msgspec.DecodeError, ValueError) as error:
            raise ValueError(f"{self.path} is damaged: {error}") from None

    def _totals(self) -> tuple[int, int]:
        with self._errors():
            query = "SELECT (SELECT count(*) FROM points), (SELECT count(*) FROM repeats)"
            points, repeats = self._db.execute(query).fetchone()
        return points, repeats


def _repeat(row: tuple[Any, ...]) -> tuple[Step, Features, float, tuple[int, int]]:
    """A row of the file, checked: files come from other people too."""
    text, *values, at_s, ns, waited_ns = row
    step = msgspec.json.decode(text, type=Step)
    found = grid.features(step)
    if tuple(values) != msgspec.structs.astuple(found) or found.new < 1:
        raise ValueError(f"the step {text} cannot have the features {values}")
    if not isinstance(ns, int) or ns < 1 or not isinstance(waited_ns, int) or waited_ns < 0:
        raise ValueError(f"a time of {ns!r} ns, {waited_ns!r} of them waiting")
    return step, found, at_s, (ns, waited_ns)
