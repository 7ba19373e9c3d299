"""Frames of an event stream, built cheaply: what is the same in all frames of an answer is encoded once."""

from typing import Any

from msgspec import UNSET
from msgspec.json import encode

from penstock.api.errors import ApiError, bad
from penstock.api.protocol import SampledRequest, Usage

DONE = b"data: [DONE]\n\n"


def error_frames(error: ApiError) -> bytes:
    """For an answer that fails after its status has gone out."""
    return b"data: " + error.body() + b"\n\n" + DONE


def stream_wanted(request: SampledRequest) -> bool:
    if request.stream_options is not None and not request.stream:
        raise bad("stream_options needs stream to be true.", "stream_options")
    return bool(request.stream)


def usage_wanted(request: SampledRequest) -> bool:
    """Whether a stream ends with the usage, in a frame of its own."""
    return request.stream_options is not None and bool(request.stream_options.include_usage)


class Frames:
    """The frames of one request; `kind` is OpenAI's `object`."""

    def __init__(self, kind: str, id: str, created: int, model: str, usage: bool) -> None:
        head = encode({"id": id, "object": kind, "created": created, "model": model})
        self._head = b"data: " + head[:-1] + b',"choices":['
        self._tail = b'],"usage":null}\n\n' if usage else b"]}\n\n"

    def choice(
        self,
        index: int,
        body: bytes,
        finish: str | None = None,
        stop_reason: str | int | None = None,
        logprobs: Any = None,
        token_ids: Any = UNSET,
    ) -> bytes:
        """`body` is the JSON member that carries the text: `"delta":{...}` or `"text":"..."`."""
        parts = [self._head, b'{"index":%d,' % index, body]
        parts.append(b',"logprobs":null' if logprobs is None else b',"logprobs":' + encode(logprobs))
        if token_ids is not UNSET:
            parts.append(b',"token_ids":' + encode(token_ids))
        if finish is None:
            parts.append(b',"finish_reason":null}')
        else:
            parts.append(b',"finish_reason":%b,"stop_reason":%b}' % (encode(finish), encode(stop_reason)))
        parts.append(self._tail)
        return b"".join(parts)

    def usage(self, usage: Usage) -> bytes:
        return self._head + b'],"usage":' + encode(usage) + b"}\n\n"
