"""Finds out what a server takes, and writes request bodies for it. Sends no load.

Prompts go as token ids where the server has /tokenize (to learn ids of ordinary words) and takes ids, so
that their lengths are exact. Elsewhere, and for chats, they are common words, as many as gave about the
right number of tokens when the server was asked once; the usage in its answers then tells the true numbers.
"""

import asyncio
import contextlib
import json
import time
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Any, NamedTuple

import aiohttp

from penstock.workload.prompts import WORDS
from penstock.workload.request import Request
from penstock.workload.trace import scale_lengths

PROBE_S_MAX = 60.0
#: How long a server is waited for that says that it is loading, and how often it is asked.
LOADING_S, ASK_EVERY_S = 600.0, 0.5
#: With fewer different tokens, prompts could be alike; and the ids before the first are often special.
IDS_MIN, IDS_FIRST = 32, 8
_TEXT = " ".join(WORDS)
#: What /health says of a server that will be ready.
_STARTING = ("starting", "restarting")
_MORE = "See what it printed, or give it longer with --ready-check-timeout-sec."
Json = dict[str, Any]


class NoServer(Exception):
    """There is no server, or not one that can be used; the message says what to do."""


class Unready(NamedTuple):
    """Why a server cannot be used now, and whether it says that it soon can."""

    starting: bool
    why: str


class Target:
    """A server and a model on it. Make one with `find`."""

    def __init__(self, base_url: str, endpoint: str, model: str, headers: dict[str, str]) -> None:
        self.base_url = base_url.rstrip("/")
        self.url = self.base_url + endpoint
        self.chat = endpoint.endswith("chat/completions")
        self.model = model
        self.headers = headers
        #: Token ids to make prompts of; empty: the server gets text.
        self.ids: list[int] = []
        #: How many tokens a word of `WORDS` is, on average.
        self.tokens_per_word = 1.0

    @property
    def symbols(self) -> int:
        """The size of the alphabet that prompts are drawn from."""
        return len(self.ids) or len(WORDS)

    def sized(self, request: Request) -> Request:
        """The request with its lengths in symbols: what `Prompts.of` is to draw."""
        return request if self.ids else scale_lengths([request], 1 / self.tokens_per_word)[0]

    def prompt(self, request: Request, symbols: Sequence[int]) -> str | list[int]:
        """What is sent: the request's own text where it has one, else the symbols as ids or words."""
        if request.prompt is not None:
            return request.prompt
        return [self.ids[s] for s in symbols] if self.ids else " ".join(WORDS[s] for s in symbols)

    def body(self, request: Request, prompt: str | list[int], extra: Json) -> bytes:
        """A streaming request as JSON; `extra` goes in as it is.

        The limit is the request's own, unless the answer is to have exactly the length given (`ignore_eos`).
        """
        said: Json = {"messages": [{"role": "user", "content": prompt}]} if self.chat else {"prompt": prompt}
        if request.priority is not None:
            said["priority"] = request.priority
        limit = request.output_tokens if extra.get("ignore_eos") else request.limit_tokens or request.output_tokens
        said |= {"model": request.adapter or self.model, "max_tokens": limit, "stream": True}
        return json.dumps(said | {"stream_options": {"include_usage": True}} | extra).encode()

    def request_headers(self, request: Request) -> dict[str, str]:
        """Tells the server the request's own SLO, where it has one in absolute times."""
        slo = request.slo
        bounds = {"ttft": slo.ttft, "tpot": slo.tpot, "e2e": slo.e2e} if slo else {}
        return {f"x-slo-{name}-ms": f"{t.ns / 1e6:g}" for name, t in bounds.items() if t is not None and t.ns}

    async def wait(self, within_s: float | None = None, say: Callable[[str], object] = lambda text: None) -> None:
        """Until the server is ready. By default one that is starting (503 from /health) has ten minutes, one that has
        failed or is not there none. Raises NoServer."""
        said, end = False, time.monotonic() + (LOADING_S if within_s is None else within_s)
        async with aiohttp.ClientSession(headers=self.headers) as session:
            while (unready := await self._health(session, max(1.0, end - time.monotonic()))) is not None:
                if time.monotonic() >= end or (within_s is None and not unready.starting):
                    raise NoServer(unready.why)
                if not said:
                    said = True
                    say(f"waiting for the server at {self.base_url} to be ready")
                await asyncio.sleep(ASK_EVERY_S)

    async def _health(self, session: aiohttp.ClientSession, within_s: float) -> "Unready | None":
        """None where it is ready, as far as /health tells."""
        timeout = aiohttp.ClientTimeout(total=min(PROBE_S_MAX, within_s))
        try:
            async with session.get(self.base_url + "/health", timeout=timeout) as response:
                if response.status < HTTPStatus.INTERNAL_SERVER_ERROR:
                    return None
                text = await response.text()
        except (aiohttp.ClientError, OSError) as error:
            return Unready(False, self._no_answer(error))
        with contextlib.suppress(ValueError, KeyError, TypeError):
            told = json.loads(text)["error"]
            return Unready(told["code"] in _STARTING, f"{self.base_url} is not ready: {told['message']} {_MORE}")
        starting = response.status == HTTPStatus.SERVICE_UNAVAILABLE
        return Unready(starting, f"{self.base_url} is not ready: /health answers {response.status}. {_MORE}")

    def _no_answer(self, error: Exception) -> str:
        return (
            f"no server answers at {self.base_url} ({str(error) or type(error).__name__}); start one, or say where it "
            "is with --base-url, or --host and --port; --ready-check-timeout-sec waits for one that is yet to start"
        )

    async def find(self) -> None:
        """Learn the model, if none was named, and what prompts may be. Raises NoServer."""
        timeout = aiohttp.ClientTimeout(total=PROBE_S_MAX)
        try:
            async with aiohttp.ClientSession(headers=self.headers, timeout=timeout) as session:
                if not self.model:
                    self.model = await self._first_model(session)
                await self._learn_alphabet(session)
        except (aiohttp.ClientError, OSError) as error:
            raise NoServer(self._no_answer(error)) from None

    async def words_of(self, prompt: str | list[int]) -> str:
        """The prompt as text, for people; token ids where the server cannot tell their text."""
        if isinstance(prompt, str):
            return prompt
        timeout = aiohttp.ClientTimeout(total=PROBE_S_MAX)
        async with aiohttp.ClientSession(headers=self.headers, timeout=timeout) as session:
            told = await self._ask(session, "/detokenize", {"model": self.model, "tokens": prompt})
        return str(told["prompt"]) if told and "prompt" in told else str(prompt)

    async def _first_model(self, session: aiohttp.ClientSession) -> str:
        async with session.get(self.base_url + "/v1/models") as response:
            if response.status != 200:
                raise NoServer(
                    f"{self.base_url}/v1/models answers {response.status} {response.reason}; give --model, and "
                    "the API key in OPENAI_API_KEY if there is one"
                )
            try:
                return str((await response.json())["data"][0]["id"])
            except (ValueError, KeyError, IndexError, TypeError):
                raise NoServer(f"{self.base_url}/v1/models names no model; give --model") from None

    async def _learn_alphabet(self, session: aiohttp.ClientSession) -> None:
        told = await self._ask(
            session, "/tokenize", {"model": self.model, "prompt": _TEXT, "add_special_tokens": False}
        )
        tokens = told.get("tokens") if told else None
        if tokens:
            self.tokens_per_word = len(tokens) / len(WORDS)
            ids = sorted(set(tokens))
            if not self.chat and await self._complete(session, ids[:4]):
                self.ids = ids if len(ids) >= IDS_MIN else await self._any_ids(session)
        elif usage := await self._complete(session, _TEXT):
            self.tokens_per_word = usage.get("prompt_tokens", len(WORDS)) / len(WORDS)

    async def _any_ids(self, session: aiohttp.ClientSession) -> list[int]:
        """Ids of whatever tokens, as many as the server takes. Raises NoServer if those are too few.

        A tokenizer that knows no ordinary word makes the same token of each: all prompts would be alike, and a server
        that reuses prefixes would be measured at that.
        """
        for count in (8192, 4096, 1024, 256, 2 * IDS_MIN):
            if await self._complete(session, [IDS_FIRST, count - 1]):
                return list(range(IDS_FIRST, count))
        raise NoServer("the server's tokenizer makes the same few tokens of all words, and other ids are not taken")

    async def _complete(self, session: aiohttp.ClientSession, prompt: str | list[int]) -> Json | None:
        """The usage of a one-token answer, or None where the server does not take such a prompt."""
        said = {"messages": [{"role": "user", "content": prompt}]} if self.chat else {"prompt": prompt}
        told = await self._ask(
            session, self.url.removeprefix(self.base_url), {"model": self.model, "max_tokens": 1} | said
        )
        return (told.get("usage") or {}) if told else None

    async def _ask(self, session: aiohttp.ClientSession, path: str, said: Json) -> Json | None:
        async with session.post(self.base_url + path, json=said) as response:
            if response.status != 200:
                return None
            told = await response.json(content_type=None)
            return told if isinstance(told, dict) else None
