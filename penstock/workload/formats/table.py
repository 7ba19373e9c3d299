"""CSV: Azure's, BurstGPT's and vidur's traces by the names of their columns, and a plain one of our own.

What a column means is told by its name alone (lower case, blanks and dashes as `_`); columns of other names are left
alone. Times are seconds, or dates and times. The plain one has a request's own names.
"""

import csv
import io
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from math import inf, isfinite
from typing import Any

from penstock.core.slo import Slo
from penstock.workload.formats.native import slo_text
from penstock.workload.request import Request

#: What a row has no place for.
LEFT_OUT = ("hash_ids",)

#: A field, and the names of the columns it may stand in: our own, then Azure's, vidur's, BurstGPT's, Mooncake's.
_NAMES = {
    "arrival_s": ("arrival_s", "arrived_at", "arrival_time", "arrival", "timestamp"),
    "prompt_tokens": (
        "prompt_tokens", "contexttokens", "num_prefill_tokens", "request_tokens", "input_length", "input_tokens",
    ),
    "output_tokens": (
        "output_tokens", "generatedtokens", "num_decode_tokens", "response_tokens", "output_length",
    ),
    "session": ("session", "session_id"),
}  # fmt: skip


def _span(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds < inf:
        raise ValueError(f"{text!r} must be seconds, at least 0")
    return seconds


_FIRST = ("arrival_s", "prompt_tokens", "output_tokens")
#: Columns that only a plain file has, and what their text means.
_OPTIONAL: dict[str, Callable[[str], Any]] = {
    "limit_tokens": int,
    "priority": int,
    "slo": Slo.parse,
    "session": str,
    "think_s": _span,
    "cancel_s": _span,
    "adapter": str,
    "prompt": str,
}


def read(lines: Iterable[str]) -> Iterator[Request]:
    """Requests in the file's own times, dates from the first one seen. Raises ValueError naming the line."""
    reader = csv.reader(lines)
    header = [name.strip().lower().replace(" ", "_").replace("-", "_") for name in next(reader, [])]
    prompt, output = _column(header, "prompt_tokens"), _column(header, "output_tokens")
    if prompt is None or output is None:
        raise ValueError(
            f"line 1: the header {','.join(header)!r} needs a column prompt_tokens and a column output_tokens, "
            f"or one of the names {', '.join(_NAMES['prompt_tokens'][1:] + _NAMES['output_tokens'][1:])}"
        )
    arrival = _column(header, "arrival_s")
    optional = [(name, column, of) for name, of in _OPTIONAL.items() if (column := _column(header, name)) is not None]
    seconds = _clock()
    for row in reader:
        if not row:
            continue
        try:
            yield Request(
                arrival_s=0.0 if arrival is None else seconds(row[arrival]),
                prompt_tokens=max(1, int(float(row[prompt]))),
                output_tokens=max(1, int(float(row[output]))),
                **{name: of(row[column]) for name, column, of in optional if row[column]},
            )
        except (ValueError, IndexError, OverflowError) as error:
            said = f"it has {len(row)} of {len(header)} columns" if isinstance(error, IndexError) else str(error)
            raise ValueError(f"line {reader.line_num}: {said}; correct the row or take it out") from None


def write(requests: list[Request]) -> Iterator[bytes]:
    """The header, and a row each, in pieces of about 1 MB: time and lengths, and what else any request has."""
    extra = [name for name in _OPTIONAL if any(getattr(r, name) not in (None, "") for r in requests)]
    out = io.StringIO()
    rows = csv.writer(out, lineterminator="\n")
    rows.writerow([*_FIRST, *extra])
    for request in requests:
        rows.writerow(
            [
                f"{request.arrival_s:.6f}".rstrip("0").rstrip("."),
                request.prompt_tokens,
                request.output_tokens,
                *(_cell(getattr(request, name)) for name in extra),
            ]
        )
        if out.tell() > 1 << 20:
            yield out.getvalue().encode()
            out.seek(0)
            out.truncate()
    yield out.getvalue().encode()


def _cell(value: Any) -> Any:
    return slo_text(value) if isinstance(value, Slo) else value


def _column(header: list[str], field: str) -> int | None:
    return next((header.index(name) for name in _NAMES.get(field, (field,)) if name in header), None)


def _clock() -> Callable[[str], float]:
    """A reader of times: seconds as a number, or a date and time, which counts from the first one seen."""
    first: datetime | None = None

    def seconds(text: str) -> float:
        nonlocal first
        try:
            return _finite(text)
        except ValueError:
            moment = _moment(text)
            first = first or moment
            return (moment - first).total_seconds()

    return seconds


def _finite(text: str) -> float:
    number = float(text)
    if not isfinite(number):
        raise ValueError
    return number


def _moment(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"the time {text!r} is neither seconds nor a date and time") from None
