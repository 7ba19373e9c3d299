"""A run on disk: JSON with every request, so that it can be judged again under another SLO. Draws nothing.

{"format": "penstock-bench", "version": 1,
 "run":     {what was asked for: flags, model, date, ...},
 "summary": {as `summary.Summary`; percentiles are keyed by text, SLOs are [ttft, tpot, e2e], a target [ns, times]},
 "client":  {"send": ..., "loop": ...}: how late the client was, as `summary.Dist`,
 "records": [{as `record.Record`; fields at their default are left out}]}
"""

from pathlib import Path
from typing import Any

import msgspec

from penstock.metrics.record import Record
from penstock.metrics.summary import Dist, Summary

FORMAT, VERSION = "penstock-bench", 1


class Result(msgspec.Struct, kw_only=True):
    """What a benchmark leaves behind."""

    format: str = FORMAT
    version: int = VERSION
    run: dict[str, Any]
    summary: Summary
    client: dict[str, Dist | None] = {}
    records: list[Record]


def save(result: Result, path: str | Path) -> None:
    """Write it, making folders as needed. Raises OSError."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.encode(result, enc_hook=list))


def load(path: str | Path) -> Result:
    """Read it back. Raises OSError, and ValueError for a file that is something else."""
    data = Path(path).read_bytes()
    try:
        result = msgspec.json.decode(data, type=Result)
    except msgspec.DecodeError as error:
        raise ValueError(f"{path} is not the result of a benchmark: {error}") from None
    if (result.format, result.version) != (FORMAT, VERSION):
        raise ValueError(f"{path} is {result.format} version {result.version}; this reads {FORMAT} {VERSION}")
    return result
