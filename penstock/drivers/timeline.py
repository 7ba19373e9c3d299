"""A run as a Chrome trace: open it in Perfetto (ui.perfetto.dev) or chrome://tracing.

One process an instance, with its steps; one process for requests, each a bar for waiting and prefill and one for
decoding. Works on records, so live runs have the request half, too.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from penstock.core.predict import regime
from penstock.core.step import Features, repeated
from penstock.drivers.sim import Times
from penstock.metrics.record import COMPLETED, Record

_REQUESTS = 1_000_000
#: Rows of the requests' process: requests that overlap are on different ones.
_ROWS = 512


class Timeline:
    """Collects steps, as `sim.Observer`, and writes them with the requests."""

    def __init__(self, steps_max: int = 2_000_000) -> None:
        self._events: list[dict[str, Any]] = []
        self._instances: dict[int, None] = {}
        self._steps_max = steps_max
        #: Steps that there was no room for.
        self.left_out = 0

    def steps(self, instance: int, start_ns: int, ends_ns: Times, first: Features) -> None:
        """See `sim.Observer`."""
        self._instances[instance] = None
        room = self._steps_max - len(self._events)
        self.left_out += max(0, len(ends_ns) - room)
        decodes_only = first.new == first.decodes
        growth = first.decodes + (0 if decodes_only else (first.new - first.decodes) ** 2)
        for end, features in zip(ends_ns[: max(0, room)], repeated(first, growth, len(ends_ns)), strict=False):
            said = {"positions": features.new, "decodes": features.decodes, "context": features.new_context}
            self._events.append(_bar(regime(features), start_ns, int(end), instance, 0, said))
            start_ns = int(end)

    def write(self, path: str | Path, records: Iterable[Record]) -> None:
        """Write it all as JSON. Raises OSError."""
        events = [_name(instance, f"instance {instance}") for instance in self._instances]
        events += [_name(_REQUESTS, "requests"), *self._events, *_requests(records)]
        Path(path).write_bytes(msgspec.json.encode({"traceEvents": events, "displayTimeUnit": "ms"}))


def _requests(records: Iterable[Record]) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    free_at = [0] * _ROWS
    for record in sorted(records, key=lambda r: (r.sent_ns, r.id)):
        row = next((i for i, at in enumerate(free_at) if at <= record.sent_ns), _ROWS - 1)
        free_at[row] = max(free_at[row], record.end_ns)
        said = {
            "request": record.id, "prompt_tokens": record.prompt_tokens, "output_tokens": record.output_tokens,
            "outcome": record.outcome, "error": record.error,
        }  # fmt: skip
        if not record.times_ns:
            events.append(_bar(record.outcome, record.sent_ns, record.end_ns, _REQUESTS, row, said))
            continue
        first = record.times_ns[0]
        events.append(_bar("to first token", record.sent_ns, first, _REQUESTS, row, said))
        name = "decoding" if record.outcome == COMPLETED else f"decoding, then {record.outcome}"
        events.append(_bar(name, first, max(first, record.end_ns), _REQUESTS, row, said))
    return events


def _bar(name: str, start_ns: int, end_ns: int, process: int, row: int, said: dict[str, Any]) -> dict[str, Any]:
    """A complete event; times in us."""
    return {
        "name": name, "ph": "X", "ts": start_ns / 1000, "dur": (end_ns - start_ns) / 1000, "pid": process, "tid": row,
        "args": said,
    }  # fmt: skip


def _name(process: int, name: str) -> dict[str, Any]:
    return {"name": "process_name", "ph": "M", "pid": process, "args": {"name": name}}
