"""One HTTP request under way: its body in, its answer out, and the end of it when the client leaves or nothing moves.

Plain ASGI. Knows nothing of models or of OpenAI's shapes.
"""

import asyncio
import time
from collections.abc import Awaitable, Mapping
from contextlib import suppress
from typing import TypeVar

import msgspec
from starlette.types import Receive, Scope, Send

from penstock.api.errors import ApiError, bad, undecodable

T = TypeVar("T")

JSON = "application/json"
EVENTS = "text/event-stream; charset=utf-8"


class ClientGone(Exception):
    """The client has closed the connection: nobody reads an answer."""


class Call:
    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        self._receive = receive
        self._send = send
        self._headers: dict[bytes, bytes] = dict(scope["headers"])
        #: Monotonic seconds at which the body was complete.
        self.arrival_s = time.monotonic()
        #: Bytes of the body.
        self.size = 0
        #: Whether the answer's status is out already.
        self.started = False
        self._progressed_s = self.arrival_s
        self._gone = False

    def header(self, name: str) -> str | None:
        value = self._headers.get(name.encode())
        return None if value is None else value.decode("latin-1")

    async def decode(self, decoder: msgspec.json.Decoder[T], bytes_max: int, timeout_s: float) -> T:
        """The body, checked. Raises ApiError (400, 408, 413) or ClientGone."""
        body = await self._body(bytes_max, timeout_s)
        self.size = len(body)
        self.arrival_s = self._progressed_s = time.monotonic()
        try:
            return decoder.decode(body)
        except msgspec.DecodeError as error:
            raise undecodable(error) from None
        except UnicodeDecodeError:
            raise bad("The request body must be UTF-8.", code="invalid_json") from None
        except RecursionError:
            raise bad("The request body is nested too deeply.", code="invalid_json") from None

    async def reply(
        self, status: int, body: bytes, content_type: str = JSON, headers: Mapping[str, str] | None = None
    ) -> None:
        """The whole answer at once."""
        await self._start(status, content_type, {"content-length": str(len(body)), **(headers or {})})
        await self._send({"type": "http.response.body", "body": body})

    async def write(self, frames: bytes) -> None:
        """More of an event stream, whose status goes out with its first frames."""
        if not self.started:
            await self._start(200, EVENTS, {"cache-control": "no-cache", "x-accel-buffering": "no"})
        await self._send({"type": "http.response.body", "body": frames, "more_body": True})
        self.progressed()

    async def end(self) -> None:
        """The event stream is complete."""
        await self._send({"type": "http.response.body", "body": b""})

    def progressed(self) -> None:
        """Something moved: the request may go on for another `limit_s` of `guard`."""
        self._progressed_s = time.monotonic()

    async def guard(self, work: Awaitable[None], limit_s: float) -> None:
        """Runs `work`, cancelled when the client leaves (ClientGone) or nothing progresses for `limit_s` (ApiError)."""
        try:
            async with asyncio.timeout(None) as scope:
                watcher = asyncio.create_task(self._watch(scope, limit_s))
                try:
                    await work
                finally:
                    watcher.cancel()
        except TimeoutError:
            if not scope.expired():
                raise
            if self._gone:
                raise ClientGone from None
            message = f"The request made no progress for {limit_s:g} s and was ended: try again later."
            raise ApiError(504, message, type="server_error", code="timeout") from None

    async def _watch(self, scope: asyncio.Timeout, limit_s: float) -> None:
        while not self._gone and (wait_s := self._progressed_s + limit_s - time.monotonic()) > 0:
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._until_gone()
        scope.reschedule(asyncio.get_running_loop().time())

    async def _until_gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._gone = True

    async def _body(self, bytes_max: int, timeout_s: float) -> bytes:
        message = f"The request body is larger than {bytes_max} bytes: send less."
        too_large = ApiError(413, message, code="body_too_large")
        if (length := self.header("content-length")) and length.isdecimal() and int(length) > bytes_max:
            raise too_large
        parts = bytearray()
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    event = await self._receive()
                    if event["type"] == "http.disconnect":
                        raise ClientGone
                    parts += event.get("body", b"")
                    if len(parts) > bytes_max:
                        raise too_large
                    if not event.get("more_body"):
                        return bytes(parts)
        except TimeoutError:
            message = f"The request body did not arrive within {timeout_s:g} s: send it faster, or less of it."
            raise ApiError(408, message, code="body_timeout") from None

    async def _start(self, status: int, content_type: str, headers: Mapping[str, str]) -> None:
        self.started = True
        pairs = [(b"content-type", content_type.encode())]
        pairs += [(name.encode(), value.encode()) for name, value in headers.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": pairs})
