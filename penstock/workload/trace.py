"""One record a request, readers for the trace files people have, and how to cut and scale them.

A `Request` says when a request comes and how long it is; the words of its prompt are made in `prompts`.
Readers know Mooncake and Bailian JSONL, Azure and BurstGPT CSV, and any CSV whose header has the usual
names. Nothing is fetched.
"""

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from penstock.core.slo import Slo

MOONCAKE_BLOCK = 512
BAILIAN_BLOCK = 16


class Request(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One request of a workload. `arrival_s` counts from the start of the run."""

    arrival_s: float
    prompt_tokens: int
    #: How many tokens the answer has, or the most that it may have.
    output_tokens: int
    #: The prompt itself, where the trace has it.
    prompt: str | None = None
    #: Names of the prompt's blocks, from its start: equal names promise equal content. What is left is its
    #: own.
    hash_ids: tuple[int, ...] = ()
    #: Tokens that each of them stands for.
    block_tokens: int = MOONCAKE_BLOCK
    #: Lower is more urgent; None: not said.
    priority: int | None = None
    #: This request's own, where it differs from the run's.
    slo: Slo | None = None
    session: str = ""


#: Column names in use (own, Azure's, vidur's, BurstGPT's, Mooncake's): lower case, blanks and dashes as `_`.
_ARRIVAL = ("arrival_s", "arrived_at", "arrival_time", "arrival", "timestamp")
_PROMPT = (
    "prompt_tokens",
    "contexttokens",
    "num_prefill_tokens",
    "request_tokens",
    "input_length",
    "input_tokens",
)
_OUTPUT = ("output_tokens", "generatedtokens", "num_decode_tokens", "response_tokens", "output_length")
_SESSION = ("session", "session_id")


def load(
    path: str | Path, *, start_s: float = 0.0, duration_s: float | None = None, limit: int | None = None
) -> list[Request]:
    """Read a trace (`.jsonl`, else CSV), sorted by arrival, its first request at 0 s, then `cut` as asked.

    Files without arrival times get 0 for all. Raises ValueError naming file and line where a row cannot be
    read, and OSError where the file cannot.
    """
    path = Path(path)
    with path.open(newline="", encoding="utf-8-sig") as lines:
        rows = _read_jsonl(lines) if path.suffix in (".jsonl", ".json") else _read_csv(lines)
        try:
            requests = list(rows)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    if not requests:
        raise ValueError(f"{path}: no requests in it")
    return cut(_from_zero(requests), start_s=start_s, duration_s=duration_s, limit=limit)


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
    return [msgspec.structs.replace(r, arrival_s=r.arrival_s - start_s) for r in kept]


def scale_times(requests: list[Request], factor: float) -> list[Request]:
    """Every arrival time times `factor`: 0.5 is twice the rate."""
    return [msgspec.structs.replace(r, arrival_s=r.arrival_s * factor) for r in requests]


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
    """Prompts, shared blocks and outputs times `factor` (at least 1 token each), then cut off at the caps.

    Prompts given as text stay as they are.
    """

    def one(request: Request) -> Request:
        return msgspec.structs.replace(
            request,
            prompt_tokens=_scaled(request.prompt_tokens, factor, input_max),
            output_tokens=_scaled(request.output_tokens, factor, output_max),
            block_tokens=_scaled(request.block_tokens, factor, None),
        )

    return [one(r) for r in requests]


def _scaled(tokens: int, factor: float, cap: int | None) -> int:
    scaled = max(1, round(tokens * factor))
    return scaled if cap is None else min(scaled, cap)


def _from_zero(requests: list[Request]) -> list[Request]:
    requests.sort(key=lambda r: r.arrival_s)
    first_s = requests[0].arrival_s
    return [msgspec.structs.replace(r, arrival_s=r.arrival_s - first_s) for r in requests]


def _read_jsonl(lines: Iterable[str]) -> Iterator[Request]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            yield _from_bailian(row) if "chat_id" in row else _from_mooncake(row)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"line {number}: {type(error).__name__} {error}; a line needs timestamp (ms), input_length "
                "and output_length, and may have hash_ids and prompt"
            ) from None


def _from_mooncake(row: dict[str, Any]) -> Request:
    return Request(
        arrival_s=float(row.get("timestamp", 0)) / 1000,
        prompt_tokens=max(1, int(row["input_length"])),
        output_tokens=max(1, int(row["output_length"])),
        prompt=row.get("prompt"),
        hash_ids=tuple(int(key) for key in row.get("hash_ids", ())),
    )


def _from_bailian(row: dict[str, Any]) -> Request:
    """As Mooncake's, but in seconds and blocks of 16 tokens; the chat is the session."""
    plain = _from_mooncake(row)
    return msgspec.structs.replace(
        plain,
        arrival_s=float(row["timestamp"]),
        block_tokens=BAILIAN_BLOCK,
        session=str(row["chat_id"]),
    )


def _read_csv(lines: Iterable[str]) -> Iterator[Request]:
    reader = csv.reader(lines)
    header = [name.strip().lower().replace(" ", "_").replace("-", "_") for name in next(reader, [])]
    prompt, output = _column(header, _PROMPT), _column(header, _OUTPUT)
    if prompt is None or output is None:
        raise ValueError(
            f"the header {','.join(header)!r} needs a column {_PROMPT[0]} and a column {_OUTPUT[0]}, "
            f"or one of the names {', '.join(_PROMPT[1:] + _OUTPUT[1:])}"
        )
    arrival, session, text = (
        _column(header, _ARRIVAL),
        _column(header, _SESSION),
        _column(header, ("prompt",)),
    )
    seconds = _clock()
    for row in reader:
        if not row:
            continue
        try:
            yield Request(
                arrival_s=0.0 if arrival is None else seconds(row[arrival]),
                prompt_tokens=max(1, int(float(row[prompt]))),
                output_tokens=max(1, int(float(row[output]))),
                prompt=None if text is None else row[text] or None,
                session="" if session is None else row[session],
            )
        except (ValueError, IndexError) as error:
            raise ValueError(f"line {reader.line_num}: {error}") from None


def _column(header: list[str], names: tuple[str, ...]) -> int | None:
    return next((header.index(name) for name in names if name in header), None)


def _clock() -> Callable[[str], float]:
    """A reader of times: seconds as a number, or a date and time, which counts from the first one seen."""
    first: datetime | None = None

    def seconds(text: str) -> float:
        nonlocal first
        try:
            return float(text)
        except ValueError:
            moment = datetime.fromisoformat(text)
            first = first or moment
            return (moment - first).total_seconds()

    return seconds
