"""A run as a Chrome trace: open it in Perfetto (ui.perfetto.dev) or chrome://tracing.

One process an instance, with its steps, on as many rows as there are steps in flight at one time, and below them the
moves of jobs that leave and arrive: a bar with its phases at the source, one at the destination, and an arrow between
the two where the job changes hands. One process for requests, each a bar for waiting and prefill and one for decoding.
Works on records, so live runs have the request half, too.
"""

from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator
from heapq import heappop, heappush
from itertools import accumulate, chain, pairwise
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from penstock.core.features import repeated
from penstock.core.move import MoveEnded
from penstock.core.moves import Phase
from penstock.core.predict import regime
from penstock.core.step import Features
from penstock.drivers.sim import Times
from penstock.metrics.record import COMPLETED, Record

#: Rows of a process at most; what overlaps beyond that shares the last one.
ROWS = 512
#: Moves of an instance stand below so many rows of steps.
_MOVES = ROWS
#: The process of requests. Those of instances follow: readers of traces keep number 0 for themselves.
_REQUESTS = 1

Event = dict[str, Any]


class Timeline:
    """Collects steps, as `sim.Observer`, and writes them with the requests."""

    def __init__(self, steps_max: int = 1_000_000) -> None:
        #: Instance -> (start of the first, ends, features of the first) of steps that repeat one plan.
        self._steps: defaultdict[int, list[tuple[int, array[int], Features]]] = defaultdict(list)
        #: (when it began, source, destination if that is there, what became of it), as they end.
        self._moves: list[tuple[int, int, int | None, MoveEnded]] = []
        self._room = steps_max
        #: Steps that there was no room for: the last ones.
        self.left_out = 0

    def steps(self, instance: int, start_ns: int, ends_ns: Times, first: Features) -> None:
        """See `sim.Observer`."""
        kept = min(len(ends_ns), self._room)
        self._room -= kept
        self.left_out += len(ends_ns) - kept
        if kept:
            self._steps[instance].append((start_ns, array("q", [int(end) for end in ends_ns[:kept]]), first))

    def moved(self, instance: int, to: int | None, ended: MoveEnded, now_ns: int) -> None:
        """See `sim.Observer`."""
        self._moves.append((now_ns - sum(ended.phases), instance, to, ended))

    def write(self, path: str | Path, records: Iterable[Record]) -> None:
        """Write it all as JSON. Raises OSError."""
        with Path(path).open("wb") as file:
            file.write(b'{"displayTimeUnit":"ms","traceEvents":[')
            _write(file, chain(self._instances(), _moves(self._moves), _requests(records)))
            file.write(b"]}")

    def _instances(self) -> Iterator[Event]:
        for instance in sorted(self._steps):
            process, rows = _REQUESTS + 1 + instance, _Rows()
            yield _name(process, f"instance {instance}")
            for start, end, features in self._steps_of(instance):
                said = {"positions": features.new, "decodes": features.decodes, "context": features.new_context}
                yield _bar(regime(features), start, end, process, rows.take(start, end), said)

    def _steps_of(self, instance: int) -> Iterator[tuple[int, int, Features]]:
        for start, ends, first in self._steps[instance]:
            # Only one slice of a plan that repeats has more than one position.
            growth = first.decodes + (first.new - first.decodes) ** 2
            for end, features in zip(ends, repeated(first, growth, len(ends)), strict=True):
                yield start, end, features
                start = end


class _Rows:
    """Gives each bar the lowest row that is free; bars come by their start."""

    def __init__(self) -> None:
        self._free: list[int] = []
        #: (end of its bar, row)
        self._taken: list[tuple[int, int]] = []
        self._rows = 0

    def take(self, start: int, end: int) -> int:
        """Rows are numbered from 1."""
        while self._taken and self._taken[0][0] <= start:
            heappush(self._free, heappop(self._taken)[1])
        if not self._free:
            if self._rows == ROWS:
                return ROWS
            self._rows += 1
            heappush(self._free, self._rows)
        row = heappop(self._free)
        heappush(self._taken, (end, row))
        return row


def _moves(moves: Iterable[tuple[int, int, int | None, MoveEnded]]) -> Iterator[Event]:
    rows: defaultdict[int, _Rows] = defaultdict(_Rows)
    for number, (began, source, to, ended) in enumerate(sorted(moves, key=lambda move: move[:2])):
        marks = list(accumulate(ended.phases, initial=began))
        said = {
            "request": ended.job, "why": ended.why, "came to nothing": ended.reason, "copied": ended.copied,
            "computed again": ended.again,
        }  # fmt: skip
        at = _REQUESTS + 1 + source
        row = _MOVES + rows[at].take(began, marks[-1])
        yield _bar(f"request {ended.job} leaves", began, marks[-1], at, row, said)
        for phase, (start, end) in zip(Phase, pairwise(marks), strict=True):
            if end > start:
                yield _bar(phase.name.lower(), start, end, at, row, {})
        if to is None or ended.reason:
            continue
        there = _REQUESTS + 1 + to
        stood = marks[Phase.SWITCHING]
        came = marks[Phase.COPYING] if ended.copied else stood
        row_there = _MOVES + rows[there].take(began, marks[-1])
        yield _bar(f"request {ended.job} arrives", came, marks[-1], there, row_there, said)
        yield _arrow("s", number, stood, at, row)
        yield _arrow("f", number, stood, there, row_there)


def _requests(records: Iterable[Record]) -> Iterator[Event]:
    yield _name(_REQUESTS, "requests")
    rows = _Rows()
    for record in sorted(records, key=lambda r: (r.sent_ns, r.id)):
        last = max(record.end_ns, record.times_ns[-1] if record.times_ns else 0)
        row = rows.take(record.sent_ns, last)
        said = {
            "request": record.id, "prompt_tokens": record.prompt_tokens, "output_tokens": record.output_tokens,
            "outcome": record.outcome, "error": record.error,
        }  # fmt: skip
        if not record.times_ns:
            yield _bar(record.outcome, record.sent_ns, last, _REQUESTS, row, said)
            continue
        first = record.times_ns[0]
        yield _bar("to first token", record.sent_ns, first, _REQUESTS, row, said)
        name = "decoding" if record.outcome == COMPLETED else f"decoding, then {record.outcome}"
        yield _bar(name, first, last, _REQUESTS, row, said)


def _write(file: BinaryIO, events: Iterator[Event]) -> None:
    """One after the other, as there may be millions."""
    encode = msgspec.json.Encoder().encode
    for number, event in enumerate(events):
        file.write(b",\n" * (number > 0) + encode(event))


def _bar(name: str, start_ns: int, end_ns: int, process: int, row: int, said: dict[str, Any]) -> Event:
    """A complete event; times in us."""
    return {
        "name": name, "ph": "X", "ts": start_ns / 1000, "dur": (end_ns - start_ns) / 1000, "pid": process, "tid": row,
        "args": said,
    }  # fmt: skip


def _arrow(end: str, number: int, at_ns: int, process: int, row: int) -> Event:
    """The start ("s") or finish ("f") of a flow, bound to the bar that is there then."""
    return {
        "name": "move", "cat": "move", "ph": end, "bp": "e", "id": number, "ts": at_ns / 1000, "pid": process,
        "tid": row,
    }  # fmt: skip


def _name(process: int, name: str) -> Event:
    return {"name": "process_name", "ph": "M", "pid": process, "tid": 0, "args": {"name": name}}
