"""A small OpenAI-compatible server with a script: real HTTP, no model. Every word of its vocabulary is a token."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from penstock.workload.prompts import WORDS


@dataclass
class Script:
    """How one request is answered."""

    status: int = 200
    message: str = "no"
    #: Before the first token, and between tokens.
    first_s: float = 0.0
    gap_s: float = 0.0
    #: After so many tokens: an error event with this code, or the connection is cut.
    error_after: int | None = None
    error_code: int = 500
    cut_after: int | None = None
    #: After so many tokens the stream ends in good order, but without an end of the answer.
    end_after: int | None = None
    #: Tokens in each chunk.
    per_chunk: int = 1
    usage: bool = True
    #: Split what is written at these many bytes.
    write_bytes: int | None = None


@dataclass
class FakeServer:
    """Answers with `max_tokens` words. `script(index, body)` decides how; `bodies` is what came in."""

    script: Callable[[int, dict[str, Any]], Script] = lambda index, body: Script()
    takes_ids: bool = True
    tokenizes: bool = True
    #: Knows no word: each is token 2, as with a tokenizer of another language; ids go up to this.
    wordless: int = 0
    #: So many times it says that it is not ready.
    loading: int = 0
    #: With this code.
    state: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    disconnects: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))
    open: int = 0
    open_max: int = 0
    url: str = ""

    @asynccontextmanager
    async def running(self, port: int = 0) -> AsyncIterator["FakeServer"]:
        app = web.Application()
        app.router.add_get("/health", self._health)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/completions", self._complete)
        app.router.add_post("/v1/chat/completions", self._complete)
        if self.tokenizes:
            app.router.add_post("/tokenize", self._tokenize)
            app.router.add_post("/detokenize", self._detokenize)
        runner = web.AppRunner(app, handler_cancellation=True)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", port)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield self
        finally:
            await runner.cleanup()

    async def deserted(self, times: int) -> None:
        """Waits until so many clients have hung up."""
        for _ in range(times):
            await self.disconnects.acquire()

    async def _health(self, request: web.Request) -> web.Response:
        self.loading -= 1
        if self.loading >= 0 and self.state:
            return web.json_response({"error": {"code": self.state, "message": "no engine"}}, status=503)
        return web.Response(status=200 if self.loading < 0 else 503)

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "fake-model"}]})

    async def _tokenize(self, request: web.Request) -> web.Response:
        words = (await request.json())["prompt"].split()
        tokens = [2 if self.wordless else 100 + WORDS.index(word) for word in words]
        return web.json_response({"tokens": tokens, "count": len(tokens)})

    async def _detokenize(self, request: web.Request) -> web.Response:
        tokens = (await request.json())["tokens"]
        return web.json_response({"prompt": " ".join(WORDS[token - 100] for token in tokens)})

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        chat = request.path.startswith("/v1/chat")
        prompt = body["messages"][0]["content"] if chat else body["prompt"]
        if isinstance(prompt, list) and not self.takes_ids:
            return _error(400, "prompt must be a string")
        if self.wordless and isinstance(prompt, list) and max(prompt) >= self.wordless:
            return _error(400, "no such token")
        usage = {"prompt_tokens": len(prompt if isinstance(prompt, list) else prompt.split()) + 1}
        if not body.get("stream"):
            return web.json_response({"choices": [{"text": "the"}], "usage": usage | {"completion_tokens": 1}})
        self.bodies.append(body)
        self.headers.append(dict(request.headers))
        script = self.script(len(self.bodies) - 1, body)
        if script.status != 200:
            return _error(script.status, script.message)
        self.open += 1
        self.open_max = max(self.open_max, self.open)
        try:
            return await self._stream(request, body["max_tokens"], script, usage, chat)
        except (ConnectionError, asyncio.CancelledError):
            self.disconnects.release()
            raise
        finally:
            self.open -= 1

    async def _stream(
        self, request: web.Request, tokens: int, script: Script, usage: dict[str, int], chat: bool
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)

        async def event(said: Any) -> None:
            text = said if isinstance(said, str) else json.dumps(said)
            data = f"data: {text}\r\n\r\n".encode()
            size = script.write_bytes or len(data)
            for at in range(0, len(data), size):
                await response.write(data[at : at + size])

        if chat:
            await event({"choices": [{"delta": {"role": "assistant", "content": ""}}]})
        await asyncio.sleep(script.first_s)
        for at in range(0, tokens, script.per_chunk):
            if script.error_after is not None and at >= script.error_after:
                await event({"error": {"message": "the engine said no", "code": script.error_code}})
                return response
            if script.cut_after is not None and at >= script.cut_after:
                assert request.transport is not None
                request.transport.abort()
                return response
            if script.end_after is not None and at >= script.end_after:
                return response
            words = " the" * min(script.per_chunk, tokens - at)
            await event({"choices": [{"delta": {"content": words}} if chat else {"text": words}]})
            await asyncio.sleep(script.gap_s)
        end: dict[str, Any] = {"delta": {}} if chat else {"text": ""}
        await event({"choices": [end | {"finish_reason": "length"}]})
        if script.usage:
            await event({"choices": [], "usage": usage | {"completion_tokens": tokens}})
        await event("[DONE]")
        return response


def _error(status: int, message: str) -> web.Response:
    return web.json_response({"error": {"message": message, "type": "x", "code": status}}, status=status)


if __name__ == "__main__":

    async def forever() -> None:
        async with FakeServer(script=lambda i, b: Script(first_s=0.02, gap_s=0.02)).running(8765):
            await asyncio.Event().wait()

    asyncio.run(forever())
