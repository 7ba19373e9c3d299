"""Traces: files of requests, read and written, cut and scaled.

Which format a file has is told by its first line (`formats`, a file each). Nothing is fetched.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path

import msgspec

from penstock.workload.formats import mooncake, native, table
from penstock.workload.request import Request as Request

#: What `save` can write, and the fields that get lost.
FORMATS: dict[str, tuple[Callable[[list[Request]], Iterator[bytes]], tuple[str, ...]]] = {
    "penstock": (native.write, ()),
    "mooncake": (mooncake.write, mooncake.LEFT_OUT),
    "csv": (table.write, table.LEFT_OUT),
}
_BOM = b"\xef\xbb\xbf"


def load(
    path: str | Path, *, start_s: float = 0.0, duration_s: float | None = None, limit: int | None = None
) -> list[Request]:
    """Read a trace (JSON lines or CSV), sorted by arrival, its first request at 0 s, then `cut` as asked.

    Files without arrival times get 0 for all. Raises ValueError naming file and line where a row cannot be
    read, and OSError where the file cannot.
    """
    path = Path(path)
    try:
        requests = _read_jsonl(path) if _is_jsonl(path) else _read_csv(path)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if not requests:
        raise ValueError(f"{path}: no requests in it")
    return cut(_from_zero(requests), start_s=start_s, duration_s=duration_s, limit=limit)


def save(requests: list[Request], path: str | Path, format: str = "penstock") -> dict[str, int]:
    """Write a trace in one of `FORMATS`. Returns what the format has no place for: field -> requests that had it.

    Raises ValueError on another format, and OSError where the file cannot be written.
    """
    if format not in FORMATS:
        raise ValueError(f"format {format!r}: must be one of {', '.join(FORMATS)}")
    write, left_out = FORMATS[format]
    with Path(path).open("wb") as file:
        file.writelines(write(requests))
    lost = {name: sum(getattr(r, name) not in (None, "", ()) for r in requests) for name in left_out}
    return {name: count for name, count in lost.items() if count}


def cut(
    requests: list[Request],
    *,
    start_s: float = 0.0,
    duration_s: float | None = None,
    limit: int | None = None,
) -> list[Request]:
    """Those that arrive in [start, start + duration), at most `limit`, with `start` as the new 0 s."""
    end_s = float("inf") if duration_s is None else start_s + duration_s
    kept = [r for r in requests if start_s <= r.arrival_s < end_s][:limit]
    return [msgspec.structs.replace(r, arrival_s=r.arrival_s - start_s) for r in kept] if start_s else kept


def scale_times(requests: list[Request], factor: float) -> list[Request]:
    """Every arrival time, and the time between an answer and the next turn, times `factor`: 0.5 is twice the rate.

    How long a client waits before it hangs up stays as it is.
    """

    def one(request: Request) -> Request:
        if request.think_s is None:
            return msgspec.structs.replace(request, arrival_s=request.arrival_s * factor)
        return msgspec.structs.replace(request, arrival_s=request.arrival_s * factor, think_s=request.think_s * factor)

    return [one(r) for r in requests]


def to_rate(requests: list[Request], rate: float) -> list[Request]:
    """Times scaled so that the `mean_rate` is `rate` requests/s."""
    own = mean_rate(requests)
    return scale_times(requests, own / rate) if own else requests


def mean_rate(requests: list[Request]) -> float:
    """Gaps over the time from first to last arrival, in requests/s; 0 where that is no time."""
    span_s = requests[-1].arrival_s - requests[0].arrival_s if requests else 0.0
    return (len(requests) - 1) / span_s if span_s > 0 else 0.0


def scale_lengths(
    requests: list[Request],
    factor: float = 1.0,
    *,
    input_max: int | None = None,
    output_max: int | None = None,
) -> list[Request]:
    """Prompts, shared blocks, outputs and their limits times `factor` (at least 1 token each), then cut off at the
    caps.

    Prompts given as text stay as they are.
    """

    def one(request: Request) -> Request:
        limit = request.limit_tokens
        return msgspec.structs.replace(
            request,
            prompt_tokens=_scaled(request.prompt_tokens, factor, input_max),
            output_tokens=_scaled(request.output_tokens, factor, output_max),
            block_tokens=_scaled(request.block_tokens, factor, None),
            limit_tokens=None if limit is None else _scaled(limit, factor, output_max),
        )

    return [one(r) for r in requests]


def _scaled(tokens: int, factor: float, cap: int | None) -> int:
    scaled = max(1, round(tokens * factor))
    return scaled if cap is None else min(scaled, cap)


def _from_zero(requests: list[Request]) -> list[Request]:
    requests.sort(key=lambda r: r.arrival_s)
    first_s = requests[0].arrival_s
    return [msgspec.structs.replace(r, arrival_s=r.arrival_s - first_s) for r in requests] if first_s else requests


def _is_jsonl(path: Path) -> bool:
    """By its name, or by how it begins."""
    with path.open("rb") as file:
        return path.suffix in (".jsonl", ".json") or file.readline().removeprefix(_BOM).lstrip().startswith(b"{")


def _read_jsonl(path: Path) -> list[Request]:
    with path.open("rb") as file:
        lines = _numbered(file)
        first = next(lines, None)
        if first is None:
            return []
        read = native.read if native.is_header(first[1]) else mooncake.read
        return list(read(chain([first], lines)))


def _numbered(lines: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, from 1."""
    for number, line in enumerate(lines, 1):
        if text := line.removeprefix(_BOM).strip():
            yield number, text


def _read_csv(path: Path) -> list[Request]:
    with path.open(newline="", encoding="utf-8-sig") as lines:
        return list(table.read(lines))
