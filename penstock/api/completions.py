"""POST /v1/completions: a text (or token ids) in, its continuation out. Several prompts make several answers."""

import secrets
import time
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import UNSET
from msgspec.json import encode

from penstock.api.call import Call
from penstock.api.chat import usage_of
from penstock.api.errors import bad
from penstock.api.front import Ask, Choice, Front, run
from penstock.api.grammar import grammar_of
from penstock.api.logprobs import completion_logprobs
from penstock.api.protocol import (
    CompletionChoice,
    CompletionLogprobs,
    CompletionRequest,
    CompletionResponse,
    Usage,
    refuse_unserved,
)
from penstock.api.reader import Piece
from penstock.api.sampling import check_tokens, room, sampling_of, text_rules
from penstock.api.sampling import completion_logprobs as logprobs_of
from penstock.api.sse import DONE, Frames, stream_wanted, usage_wanted

_DECODER = msgspec.json.Decoder(CompletionRequest)


async def completions(front: Front, call: Call) -> None:
    request = await front.decode(call, _DECODER)
    front.check_model(request.model)
    refuse_unserved(request)
    count = _count(request)
    given = _prompts(request.prompt)
    if len(given) * count > front.config.choices_max:
        message = (
            f"{len(given)} prompts times n={count} is more than the {front.config.choices_max} answers of one request."
        )
        raise bad(message, "n" if count > 1 else "prompt")
    streamed = stream_wanted(request)
    prompts = [await _ids(front, call, request, prompt) for prompt in given]
    asks = await _asks(front, request, prompts, count)
    choices = front.submit(call, request, asks, text_rules(request))
    answer = (_Streamed if streamed else _Whole)(front, call, request, prompts, choices)
    await run(call, choices, answer, front.config.request_timeout_s)


def _count(request: CompletionRequest) -> int:
    count = request.n or 1
    if request.best_of not in (None, count):
        raise bad(f"best_of is {request.best_of} and n is {count}: best_of must equal n, or be left out.", "best_of")
    if request.echo and request.logprobs is not None:
        raise bad("echo and logprobs exclude each other: log-probabilities are given for output tokens only.", "echo")
    return count


def _prompts(prompt: str | list[Any]) -> list[str | list[int]]:
    """One entry for each prompt: a text, or token ids."""
    if isinstance(prompt, str):
        return [prompt]
    kinds = {type(entry) for entry in prompt}
    if kinds == {int}:
        return [prompt]
    if len(kinds) > 1:
        raise bad(
            "prompt must be a text, token ids, a list of texts or a list of lists of token ids; not a mixture.",
            "prompt",
        )
    return prompt


async def _ids(front: Front, call: Call, request: CompletionRequest, prompt: str | list[int]) -> list[int]:
    info = front.info()
    if isinstance(prompt, str):
        text, special = prompt, request.add_special_tokens is not False
        prompt = await front.offload(len(text), lambda: front.tokenizer.encode(text, special))
    check_tokens(prompt, info, "prompt")
    return prompt


async def _asks(front: Front, request: CompletionRequest, prompts: Sequence[list[int]], count: int) -> list[Ask]:
    """For each prompt its n jobs, which differ by `choice` only."""
    info = front.info()
    logprobs = logprobs_of(request, front.config.logprobs_max)
    grammar = await grammar_of(request)
    asks: list[Ask] = []
    for tokens in prompts:
        # OpenAI's default of 16 tokens is for nobody's good: as in chat, what fits.
        sampling = sampling_of(request, room(request.max_tokens, len(tokens), info), info, grammar, logprobs)
        asks += [(tokens, msgspec.structs.replace(sampling, choice=index)) for index in range(count)]
    return asks


class _Answer:
    """What whole and streamed answers share."""

    def __init__(
        self,
        front: Front,
        call: Call,
        request: CompletionRequest,
        prompts: Sequence[list[int]],
        choices: list[Choice],
    ) -> None:
        self._front = front
        self._call = call
        self._request = request
        self._prompts = prompts
        self._choices = choices
        self._id = f"cmpl-{secrets.token_hex(12)}"
        self._created = int(time.time())
        front.remember(self._id, choices)
        self._echoes = [self._echo(prompt) for prompt in prompts]

    def _echo(self, prompt: list[int]) -> str:
        return self._front.tokenizer.decode(prompt, True) if self._request.echo else ""

    def _of_prompt(self, entries: Sequence[Any], index: int) -> Any:
        """The entry of choice `index`'s prompt."""
        return entries[index // (len(self._choices) // len(self._prompts))]

    def _logprobs(self, pieces: Sequence[Piece]) -> CompletionLogprobs | None:
        top = self._request.logprobs
        return None if top is None else completion_logprobs(self._front.tokenizer, pieces, top)

    def _usage(self) -> Usage:
        return usage_of(self._prompts, self._choices)


class _Whole(_Answer):
    """Collects everything, answers once."""

    def __init__(self, *shared: Any) -> None:
        super().__init__(*shared)
        self._pieces: list[list[Piece]] = [[] for _ in self._choices]

    async def deliver(self, index: int, piece: Piece) -> None:
        self._pieces[index].append(piece)

    async def end(self) -> None:
        response = CompletionResponse(
            id=self._id,
            created=self._created,
            model=self._front.model,
            choices=[self._choice(choice.index) for choice in self._choices],
            usage=self._usage(),
        )
        await self._call.reply(200, encode(response))

    def _choice(self, index: int) -> CompletionChoice:
        pieces, wants_ids = self._pieces[index], self._request.return_token_ids
        return CompletionChoice(
            index=index,
            text=self._of_prompt(self._echoes, index) + "".join(piece.text for piece in pieces),
            logprobs=self._logprobs(pieces),
            finish_reason="length" if pieces[-1].finish == "length" else "stop",
            stop_reason=pieces[-1].stop_reason,
            token_ids=[token for piece in pieces for token in piece.tokens] if wants_ids else UNSET,
            prompt_token_ids=self._of_prompt(self._prompts, index) if wants_ids else UNSET,
        )


class _Streamed(_Answer):
    """Writes a frame for each piece that shows something."""

    def __init__(self, *shared: Any) -> None:
        super().__init__(*shared)
        self._shows_usage = usage_wanted(self._request)
        self._frames = Frames("text_completion", self._id, self._created, self._front.model, self._shows_usage)
        self._echoed = [not self._request.echo] * len(self._choices)

    async def deliver(self, index: int, piece: Piece) -> None:
        text = piece.text
        if not self._echoed[index]:
            self._echoed[index] = True
            text = self._of_prompt(self._echoes, index) + text
        ids = piece.tokens if self._request.return_token_ids else UNSET
        logprobs = self._logprobs((piece,))
        if text or piece.finish or logprobs is not None or ids is not UNSET:
            body = b'"text":' + encode(text)
            await self._call.write(self._frames.choice(index, body, piece.finish, piece.stop_reason, logprobs, ids))

    async def end(self) -> None:
        usage = self._frames.usage(self._usage()) if self._shows_usage else b""
        await self._call.write(usage + DONE)
        await self._call.end()
