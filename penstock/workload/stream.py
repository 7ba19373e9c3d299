"""Reads an OpenAI-compatible event stream: bytes in, deliveries out. No sockets and no clock.

Which chunk is a delivery of tokens? One with text, and one with empty text, since servers send those for a token
whose character is not complete yet. Not the chunk that only names the role; and not an empty one that only says why
the answer ends, unless the usage counts more tokens than there were other deliveries (an end-of-sequence token). How
many tokens each delivery had is not in the protocol: the usage's total is spread evenly over them.

Every chunk is decoded, into a struct of the few fields that matter: 2 or 3 us each, of the 100 or so that the event
loop, the HTTP parser and the kernel take for it.
"""

from itertools import pairwise
from typing import Any

import msgspec


class ServerError(Exception):
    """The server said in its stream that the request failed. `code` is the HTTP status it gave, or 0."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Delta(msgspec.Struct):
    role: str | None = None
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: Any = None


class Choice(msgspec.Struct):
    text: str | None = None
    delta: Delta | None = None
    finish_reason: str | None = None


class Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Chunk(msgspec.Struct):
    choices: list[Choice] = []
    usage: Usage | None = None
    error: Any = None
    object: str = ""
    message: str = ""
    code: Any = None


_decode = msgspec.json.Decoder(Chunk).decode


class Events:
    """Splits a `text/event-stream` into the data of its events. Lines may end in LF or CRLF; chunks
    anywhere."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []

    def feed(self, data: bytes) -> list[bytes]:
        """The data of each event that these bytes complete. Comments and other fields are skipped."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        events = []
        for line in lines:
            if line.startswith(b"data:"):
                self._data.append(line[5:].strip())
            elif self._data and line in (b"", b"\r"):
                events.append(b"\n".join(self._data))
                self._data.clear()
        return events


class Answer:
    """One streamed answer as it comes in."""

    def __init__(self, keep_text: bool = False) -> None:
        self._events = Events()
        self._keep_text = keep_text
        #: When each delivery came, in the caller's ns.
        self.times: list[int] = []
        #: The text of each delivery, where it is kept.
        self.pieces: list[str] = []
        self.usage: Usage | None = None
        #: Whether the server said that the answer is complete.
        self.done = False
        self._empty_end = False

    def feed(self, data: bytes, now_ns: int) -> None:
        """Take what came in at `now_ns`. Raises ServerError for an error event, ValueError for nonsense."""
        for event in self._events.feed(data):
            if event == b"[DONE]":
                self.done = True
            else:
                self._take(_chunk(event), now_ns)

    def _take(self, chunk: Chunk, now_ns: int) -> None:
        if chunk.error is not None or chunk.object == "error":
            raise _server_error(chunk)
        if chunk.usage is not None:
            self.usage = chunk.usage
        for choice in chunk.choices:
            self._deliver(choice, now_ns)

    def _deliver(self, choice: Choice, now_ns: int) -> None:
        text = _text(choice)
        if choice.finish_reason is not None:
            self.done = True
            self._empty_end = not text
        elif not text and choice.delta is not None and choice.delta.role is not None:
            return
        self.times.append(now_ns)
        if self._keep_text:
            self.pieces.append(text)

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    def settle(self) -> tuple[list[int], list[int]]:
        """Times and token counts of the deliveries, now that all is said."""
        told = self.usage.completion_tokens if self.usage else 0
        if self._empty_end and (not told or len(self.times) > told):
            self.times.pop()
            self._empty_end = False
        return self.times, _spread(told or len(self.times), len(self.times))


def _chunk(event: bytes) -> Chunk:
    try:
        return _decode(event)
    except msgspec.DecodeError as error:
        raise ValueError(f"not a chunk of a completion: {event[:200]!r} ({error})") from None


def message_of(body: bytes) -> str:
    """What an error body says, in OpenAI's shape or any other."""
    try:
        chunk = _decode(body)
    except msgspec.DecodeError:
        return body.decode(errors="replace").strip()[:500]
    return str(_server_error(chunk))


def _spread(tokens: int, deliveries: int) -> list[int]:
    """`tokens` split into `deliveries` nearly equal counts; the first is not empty unless there are no
    tokens."""
    up = deliveries - 1 if tokens < deliveries else 0
    marks = [(tokens * i + up) // deliveries for i in range(deliveries + 1)] if deliveries else []
    return [after - before for before, after in pairwise(marks)]


def _text(choice: Choice) -> str:
    delta = choice.delta
    if delta is None:
        return choice.text or ""
    text = delta.content or delta.reasoning_content or delta.reasoning
    return text or (msgspec.json.encode(delta.tool_calls).decode() if delta.tool_calls else "")


def _server_error(chunk: Chunk) -> ServerError:
    error = chunk.error if isinstance(chunk.error, dict) else {"message": chunk.error or chunk.message}
    code = error.get("code", chunk.code)
    message = str(error.get("message") or error.get("type") or error or "no reason given")
    return ServerError(int(code) if str(code).isdigit() else 0, message)
