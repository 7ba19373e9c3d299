"""What all endpoints share: the home, the tokenizer, the limits, the ledger; and a request's way through the home."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

import msgspec

from penstock.api.call import Call, ClientGone
from penstock.api.config import FrontConfig
from penstock.api.errors import ApiError, bad, busy, unavailable
from penstock.api.ledger import Answer, Ledger
from penstock.api.metrics import Metrics
from penstock.api.protocol import SampledRequest
from penstock.api.reader import Piece, Reader
from penstock.api.sampling import TextRules
from penstock.api.template import ChatTemplate, find_template
from penstock.api.tokenizer import load_tokenizer
from penstock.api.tools import choose_parser
from penstock.core.slo import Slo, Target
from penstock.drivers.home import BaseHome
from penstock.drivers.story import Story
from penstock.drivers.stream import Busy, JobFailed, Stream, Unavailable
from penstock.engine.base import EngineInfo
from penstock.engine.params import Sampling

T = TypeVar("T")

#: Requests whose stories can be asked for: the latest.
_RECENT = 1024

Deliver = Callable[[int, Piece], Awaitable[None]]

#: A job to be: its prompt and how it samples.
Ask = tuple[list[int], Sampling]


class Writer(Protocol):
    """Puts an answer on the wire."""

    async def deliver(self, index: int, piece: Piece) -> None:
        """More of choice `index`."""

    async def end(self) -> None:
        """All choices are complete."""


class Choice(msgspec.Struct):
    """One answer under way."""

    index: int
    stream: Stream
    reader: Reader
    answer: Answer


class Front:
    """Raises FileNotFoundError or ValueError if the model folder has no usable tokenizer."""

    def __init__(self, home: BaseHome, config: FrontConfig) -> None:
        self.home = home
        self.config = config
        self.model = config.served_names[0]
        self.created = int(time.time())
        self.tokenizer = load_tokenizer(config.model_folder)
        self.template = ChatTemplate(find_template(config.model_folder, config.chat_template), self.tokenizer.special)
        self.tool_parser = choose_parser(config.tool_call_parser, self.template.source)
        self.metrics = Metrics(self.model)
        self.ledger = Ledger(home.predict, self.metrics)
        #: By the answer's id, one for each choice.
        self.recent: dict[str, list[Story]] = {}
        home.on_moved = self.metrics.moved
        self._threads = ThreadPoolExecutor(2, "tokenize")

    def info(self) -> EngineInfo:
        """The engine's sizes. ApiError (503) while there has been none yet."""
        if self.home.info is None:
            raise unavailable(f"The model is not ready: {self.home.state} {self.home.state_reason}".rstrip() + ".")
        return self.home.info

    def check_model(self, name: str | None) -> None:
        if name is not None and name not in self.config.served_names:
            served = ", ".join(self.config.served_names)
            message = f"The model {name!r} does not exist here: use {served}."
            raise ApiError(404, message, param="model", code="model_not_found")

    async def decode(self, call: Call, decoder: msgspec.json.Decoder[T]) -> T:
        return await call.decode(decoder, self.config.body_bytes_max, self.config.body_timeout_s)

    async def offload(self, size: int, work: Callable[[], T]) -> T:
        """Runs `work` over a text of `size` characters: small ones here, others in a thread (they release the GIL)."""
        if size <= self.config.inline_chars_max:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def submit(self, call: Call, request: SampledRequest, asks: Sequence[Ask], rules: TextRules) -> list[Choice]:
        """Opens one stream for each ask, all or none. Raises ApiError (429, 503)."""
        slo = self._slo(call)
        streams: list[Stream] = []
        try:
            for tokens, sampling in asks:
                streams.append(self._stream(call, request, slo, tokens, sampling))
        except Busy as error:
            for stream in streams:
                stream.close()
            self.ledger.refused(len(asks), slo)
            refuse = unavailable if isinstance(error, Unavailable) else busy
            raise refuse(error.reason, error.retry_s) from None
        eos = self.info().eos_token_ids
        return [
            Choice(
                index,
                stream,
                Reader(self.tokenizer.detokenizer(rules.skip_special), rules, eos),
                self.ledger.begin(call.arrival_s, len(tokens), slo),
            )
            for index, (stream, (tokens, _)) in enumerate(zip(streams, asks, strict=True))
        ]

    def remember(self, request: str, choices: Sequence[Choice]) -> None:
        """Under this id one may ask what happened to them."""
        if len(self.recent) >= _RECENT:
            del self.recent[next(iter(self.recent))]
        self.recent[request] = [choice.stream.story for choice in choices]

    def _stream(self, call: Call, request: SampledRequest, slo: Slo, tokens: list[int], sampling: Sampling) -> Stream:
        deadline_ms = _milliseconds(call, "x-deadline-ms")
        return self.home.submit(
            tokens,
            sampling,
            slo=slo,
            priority=request.priority or 0,
            deadline_s=None if deadline_ms is None else deadline_ms / 1000,
            tenant=request.cache_salt or "",
        )

    def _slo(self, call: Call) -> Slo:
        """The SLO of the request's headers (x-slo-ttft-ms: 200), each target else the server's."""
        default = self.config.slo
        return Slo(
            _target(call, "x-slo-ttft-ms") or default.ttft,
            _target(call, "x-slo-tpot-ms") or default.tpot,
            _target(call, "x-slo-e2e-ms") or default.e2e,
        )


async def run(call: Call, choices: Sequence[Choice], writer: Writer, limit_s: float) -> None:
    """Reads all choices to their end, and ends the answer.

    The first choice that fails ends them all (ApiError); so does a client that leaves (ClientGone), and `limit_s`
    without progress.
    """
    outcome = "failed"
    try:
        await call.guard(_run(call, choices, writer), limit_s)
    except (ClientGone, asyncio.CancelledError):
        outcome = "cancelled"
        raise
    finally:
        # What has ended already stays as it is.
        for choice in choices:
            choice.stream.close()
            choice.answer.fail(outcome)


async def _run(call: Call, choices: Sequence[Choice], writer: Writer) -> None:
    if len(choices) == 1:
        await _run_one(call, choices[0], writer.deliver)
    else:
        await _run_all(call, choices, writer.deliver)
    await writer.end()


async def _run_all(call: Call, choices: Sequence[Choice], deliver: Deliver) -> None:
    try:
        async with asyncio.TaskGroup() as group:
            for choice in choices:
                group.create_task(_run_one(call, choice, deliver))
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None


async def _run_one(call: Call, choice: Choice, deliver: Deliver) -> None:
    try:
        async for chunk in choice.stream:
            call.progressed()
            choice.answer.grew(len(chunk.tokens))
            piece = choice.reader.push(chunk.tokens, chunk.logprobs, chunk.finish)
            if piece.finish is not None:
                choice.stream.close()
                choice.answer.end(piece.finish)
            await deliver(choice.index, piece)
            if piece.finish is not None:
                return
        raise JobFailed("failed", "the answer's stream ended before the answer did")
    except JobFailed as error:
        choice.answer.fail("failed" if error.outcome == "invalid" else error.outcome)
        raise _failed(error) from None


def _failed(error: JobFailed) -> ApiError:
    if error.outcome == "invalid":
        return bad(error.reason)
    if error.outcome == "rejected":
        return busy(error.reason)
    if error.outcome == "dropped":
        return ApiError(408, error.reason, code="request_dropped")
    if error.outcome == "cancelled":
        return unavailable(error.reason, code=f"request_{error.outcome}")
    return ApiError(500, error.reason, type="server_error", code="engine_error")


def _target(call: Call, name: str) -> Target | None:
    if (text := call.header(name)) is None:
        return None
    try:
        return Target.parse(text)
    except ValueError as error:
        raise bad(f"Header {name}: {error}.", name) from None


def _milliseconds(call: Call, name: str) -> float | None:
    if (text := call.header(name)) is None:
        return None
    if not text.isdecimal() or not 0 < int(text) < 2**40:
        raise bad(f"Header {name} must be a positive whole number of milliseconds.", name)
    return int(text)
