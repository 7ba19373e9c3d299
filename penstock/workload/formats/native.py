"""Our own format: JSON lines with every field of a request, after a header line that says so.

    {"format": "penstock-trace", "version": 1, "requests": 2}
    {"arrival_s": 0.0, "prompt_tokens": 812, "output_tokens": 64, "session": "a", "slo": "ttft=500ms,tpot=3x"}
    {"arrival_s": 1.25, "prompt_tokens": 980, "output_tokens": 31, "session": "a", "think_s": 4.0}

Fields at their defaults are left out. Fields that the version does not know are errors, so that a slip of the pen is
not a request without a priority.
"""

from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Annotated

import msgspec

from penstock.core.slo import MS, Slo, Target
from penstock.workload.request import MOONCAKE_BLOCK, Request

NAME = "penstock-trace"
VERSION = 1

_Tokens = Annotated[int, msgspec.Meta(ge=1)]
_Seconds = Annotated[float, msgspec.Meta(ge=0)]


class Header(msgspec.Struct):
    """The first line. What else stands in it is for people."""

    format: str
    version: int
    #: How many lines follow; None: not said.
    requests: int | None = None


class Line(msgspec.Struct, kw_only=True, omit_defaults=True, forbid_unknown_fields=True, gc=False):
    """A `Request` as it is written: its SLO as text."""

    arrival_s: float
    prompt_tokens: _Tokens
    output_tokens: _Tokens
    prompt: str | None = None
    hash_ids: tuple[int, ...] = ()
    block_tokens: _Tokens = MOONCAKE_BLOCK
    limit_tokens: _Tokens | None = None
    priority: int | None = None
    slo: str = ""
    session: str = ""
    think_s: _Seconds | None = None
    cancel_s: _Seconds | None = None
    adapter: str = ""


def read(lines: Iterable[tuple[int, bytes]]) -> Iterator[Request]:
    """Requests of numbered lines, the header's first. Raises ValueError naming the line."""
    lines = iter(lines)
    header = _header(*next(lines))
    decode = msgspec.json.Decoder(Line).decode
    number = seen = 0
    slos: dict[str, Slo | None] = {"": None}
    for number, line in lines:
        try:
            row = decode(line)
            if row.slo not in slos:
                slos[row.slo] = Slo.parse(row.slo)
        except ValueError as error:
            raise ValueError(f"line {number}: {error}; the fields are {', '.join(Line.__struct_fields__)}") from None
        seen += 1
        yield _request(row, slos[row.slo])
    if header.requests not in (None, seen):
        raise ValueError(
            f"line {number}: the file ends after {seen} requests and its header says {header.requests}; "
            "get the whole file, or correct `requests` in line 1"
        )


def write(requests: list[Request]) -> Iterator[bytes]:
    """The header, and a line each."""
    encode = msgspec.json.Encoder().encode
    yield encode(Header(NAME, VERSION, len(requests))) + b"\n"
    for request in requests:
        yield encode(request if request.slo is None else _line(request, request.slo)) + b"\n"


def is_header(line: bytes) -> bool:
    """Whether a file that begins with this line is in this format."""
    try:
        return msgspec.json.decode(line, type=Header).format == NAME
    except ValueError:
        return False


@lru_cache(1024)
def slo_text(slo: Slo) -> str:
    """What `Slo.parse` makes exactly this of; `str(slo)` rounds."""
    pairs = (("ttft", slo.ttft), ("tpot", slo.tpot), ("e2e", slo.e2e))
    return ",".join(f"{name}={_target_text(target)}" for name, target in pairs if target is not None)


def _target_text(target: Target) -> str:
    number, unit = (target.times, "x") if target.times else (target.ns / MS, "ms")
    return f"{number:.9f}".rstrip("0").rstrip(".") + unit


def _header(number: int, line: bytes) -> Header:
    header = msgspec.json.decode(line, type=Header)
    if header.version != VERSION:
        raise ValueError(
            f"line {number}: version {header.version} of {NAME}, and this penstock reads version {VERSION}; "
            "convert the trace with the penstock that wrote it"
        )
    return header


def _request(row: Line, slo: Slo | None) -> Request:
    return Request(
        arrival_s=row.arrival_s,
        prompt_tokens=row.prompt_tokens,
        output_tokens=row.output_tokens,
        prompt=row.prompt,
        hash_ids=row.hash_ids,
        block_tokens=row.block_tokens,
        limit_tokens=row.limit_tokens,
        priority=row.priority,
        slo=slo,
        session=row.session,
        think_s=row.think_s,
        cancel_s=row.cancel_s,
        adapter=row.adapter,
    )


def _line(request: Request, slo: Slo) -> Line:
    return Line(
        arrival_s=request.arrival_s,
        prompt_tokens=request.prompt_tokens,
        output_tokens=request.output_tokens,
        prompt=request.prompt,
        hash_ids=request.hash_ids,
        block_tokens=request.block_tokens,
        limit_tokens=request.limit_tokens,
        priority=request.priority,
        slo=slo_text(slo),
        session=request.session,
        think_s=request.think_s,
        cancel_s=request.cancel_s,
        adapter=request.adapter,
    )
