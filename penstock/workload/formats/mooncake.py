"""Mooncake JSONL (FAST'25) and Bailian's (Qwen) dialect of it: lengths, and names of the prompt's blocks.

Mooncake has milliseconds and blocks of 512 tokens; Bailian has seconds, blocks of 16 tokens, and for each request its
own `chat_id` and that of the turn before it. Both are read, Mooncake is written.
"""

from collections.abc import Iterable, Iterator
from itertools import count

import msgspec

from penstock.workload.request import BAILIAN_BLOCK, MOONCAKE_BLOCK, Request

#: What a Mooncake line has no place for.
LEFT_OUT = ("limit_tokens", "priority", "slo", "session", "think_s", "cancel_s", "adapter")
_NEEDS = "a line needs timestamp (ms), input_length and output_length, and may have hash_ids and prompt"


class Line(msgspec.Struct, kw_only=True, omit_defaults=True, gc=False):
    """A line of either; lengths may be written as 700.0."""

    timestamp: float = 0.0
    input_length: float
    output_length: float
    hash_ids: tuple[int, ...] = ()
    prompt: str | None = None
    #: Bailian's only; its presence tells that times are s and blocks are small.
    chat_id: int | str | None = None
    parent_chat_id: int | str | None = None


def read(lines: Iterable[tuple[int, bytes]]) -> Iterator[Request]:
    """Requests of numbered lines, in the file's own times. Raises ValueError naming the line."""
    decode = msgspec.json.Decoder(Line).decode
    #: Chat -> the first chat of its conversation, which the session is named after.
    first: dict[int | str | None, str] = {}
    for number, line in lines:
        try:
            row = decode(line)
        except ValueError as error:
            raise ValueError(f"line {number}: {error}; {_NEEDS}") from None
        bailian = row.chat_id is not None
        if bailian:
            first[row.chat_id] = first.get(row.parent_chat_id, str(row.chat_id))
        yield Request(
            arrival_s=row.timestamp if bailian else row.timestamp / 1000,
            prompt_tokens=max(1, int(row.input_length)),
            output_tokens=max(1, int(row.output_length)),
            prompt=row.prompt,
            hash_ids=row.hash_ids,
            block_tokens=BAILIAN_BLOCK if bailian else MOONCAKE_BLOCK,
            session=first[row.chat_id] if bailian else "",
        )


def write(requests: list[Request]) -> Iterator[bytes]:
    """Lines with whole ms. Every prompt is named to its end, as readers of this format expect: own parts get fresh
    names, and blocks of another size are renamed (`reblocked`)."""
    if any(r.hash_ids and r.block_tokens != MOONCAKE_BLOCK for r in requests):
        names, used = reblocked(requests, MOONCAKE_BLOCK)
    else:
        names = [r.hash_ids for r in requests]
        used = 1 + max((max(ids) for ids in names if ids), default=-1)
    encode = msgspec.json.Encoder().encode
    for request, ids in zip(requests, names, strict=True):
        missing = -(-request.prompt_tokens // MOONCAKE_BLOCK) - len(ids)
        if missing > 0:
            ids = (*ids, *range(used, used + missing))
            used += missing
        row: dict[str, object] = {
            "timestamp": round(request.arrival_s * 1000),
            "input_length": request.prompt_tokens,
            "output_length": request.output_tokens,
            "hash_ids": ids,
        }
        if request.prompt is not None:
            row["prompt"] = request.prompt
        yield encode(row) + b"\n"


def reblocked(requests: list[Request], block: int) -> tuple[list[tuple[int, ...]], int]:
    """Names of each prompt's blocks of `block` tokens, made of those that it has, and how many names there are.

    Two of the new blocks have one name if they are covered by the same old ones in the same way. A block that is
    not covered to its end, within the prompt, has none.
    """
    fresh = count()
    known: dict[tuple[object, ...], int] = {}
    all_names = []
    for request in requests:
        old, ids = request.block_tokens, request.hash_ids
        names = []
        for start in range(0, min(len(ids) * old, request.prompt_tokens) - block + 1, block):
            key = (old, start % old, ids[start // old : -(-(start + block) // old)])
            names.append(known[key] if key in known else known.setdefault(key, next(fresh)))
        all_names.append(tuple(names))
    return all_names, len(known)
