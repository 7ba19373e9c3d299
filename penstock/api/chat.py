"""POST /v1/chat/completions: messages in, a message out, whole or as an event stream."""

import secrets
import time
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import UNSET
from msgspec.json import encode

from penstock.api.call import Call
from penstock.api.errors import bad
from penstock.api.front import Choice, Front, run
from penstock.api.grammar import grammar_of
from penstock.api.logprobs import chat_logprobs
from penstock.api.protocol import (
    AnswerMessage,
    ChatChoice,
    ChatLogprobs,
    ChatRequest,
    ChatResponse,
    Message,
    Tool,
    ToolCall,
    Usage,
    refuse_unserved,
)
from penstock.api.reader import Piece
from penstock.api.sampling import chat_logprobs as logprobs_of
from penstock.api.sampling import check_tokens, room, sampling_of, text_rules
from penstock.api.sse import DONE, Frames, stream_wanted, usage_wanted
from penstock.api.tools import Said, ToolPlan, plan_tools
from penstock.engine.params import Sampling

_DECODER = msgspec.json.Decoder(ChatRequest)


async def chat(front: Front, call: Call) -> None:
    request = await front.decode(call, _DECODER)
    front.check_model(request.model)
    refuse_unserved(request)
    streamed = stream_wanted(request)
    plan = await plan_tools(request, front.tool_parser, front.template.source)
    tokens, sampling = await _ask(front, call, request, plan)
    count = request.n or 1
    if count > front.config.choices_max:
        raise bad(f"n is {count}, and this server gives at most {front.config.choices_max} answers: lower it.", "n")
    asks = [(tokens, msgspec.structs.replace(sampling, choice=index)) for index in range(count)]
    choices = front.submit(call, request, asks, text_rules(request, plan.show_special))
    answer = (_Streamed if streamed else _Whole)(front, call, request, plan, tokens, choices)
    await run(call, choices, answer, front.config.request_timeout_s)


async def prompt_tokens(
    front: Front,
    call: Call,
    messages: Sequence[Message],
    tools: Sequence[Tool],
    add_generation_prompt: bool | None,
    extra: dict[str, Any] | None,
    special: bool = False,
) -> list[int]:
    """Ids of a chat. The template writes the special tokens itself, so by default none are added."""

    def work() -> list[int]:
        text = front.template.render(messages, tools, add_generation_prompt is not False, extra)
        return front.tokenizer.encode(text, special)

    return await front.offload(call.size, work)


async def _ask(front: Front, call: Call, request: ChatRequest, plan: ToolPlan) -> tuple[list[int], Sampling]:
    """The prompt and how choice 0 samples."""
    info = front.info()
    logprobs = logprobs_of(request, front.config.logprobs_max)
    grammar = plan.grammar or await grammar_of(request)
    tokens = await prompt_tokens(
        front, call, request.messages, plan.shown, request.add_generation_prompt, request.chat_template_kwargs
    )
    check_tokens(tokens, info, "messages")
    name = "max_tokens" if request.max_completion_tokens is None else "max_completion_tokens"
    most = room(getattr(request, name), len(tokens), info, name)
    return tokens, sampling_of(request, most, info, grammar, logprobs)


class _Answer:
    """What whole and streamed answers share."""

    def __init__(
        self,
        front: Front,
        call: Call,
        request: ChatRequest,
        plan: ToolPlan,
        prompt: list[int],
        choices: list[Choice],
    ) -> None:
        self._front = front
        self._call = call
        self._request = request
        self._prompt = prompt
        self._choices = choices
        self._tools = [plan.reader() for _ in choices]
        self._id = f"chatcmpl-{secrets.token_hex(12)}"
        self._created = int(time.time())
        front.remember(self._id, choices)

    def _logprobs(self, piece: Piece) -> ChatLogprobs | None:
        return chat_logprobs(self._front.tokenizer, piece) if self._request.logprobs else None

    def _usage(self) -> Usage:
        return usage_of([self._prompt], self._choices)


class _Whole(_Answer):
    """Collects everything, answers once."""

    def __init__(self, *shared: Any) -> None:
        super().__init__(*shared)
        self._said = [Said() for _ in self._choices]
        self._pieces: list[list[Piece]] = [[] for _ in self._choices]

    async def deliver(self, index: int, piece: Piece) -> None:
        self._pieces[index].append(piece)
        self._said[index].add(self._tools[index].read(piece))

    async def end(self) -> None:
        wants_ids = bool(self._request.return_token_ids)
        response = ChatResponse(
            id=self._id,
            created=self._created,
            model=self._front.model,
            choices=[self._choice(choice.index, wants_ids) for choice in self._choices],
            usage=self._usage(),
            prompt_token_ids=self._prompt if wants_ids else UNSET,
        )
        await self._call.reply(200, encode(response))

    def _choice(self, index: int, wants_ids: bool) -> ChatChoice:
        pieces, said = self._pieces[index], self._said[index]
        content = [entry for piece in pieces if (found := self._logprobs(piece)) for entry in found.content]
        return ChatChoice(
            index=index,
            message=AnswerMessage(
                content=said.text if said.text or not said.calls else None, tool_calls=said.calls or UNSET
            ),
            logprobs=ChatLogprobs(content=content) if self._request.logprobs else None,
            finish_reason=said.finish or "stop",
            stop_reason=pieces[-1].stop_reason,
            token_ids=[token for piece in pieces for token in piece.tokens] if wants_ids else UNSET,
        )


class _Streamed(_Answer):
    """Writes a frame for each piece that shows something."""

    def __init__(self, *shared: Any) -> None:
        super().__init__(*shared)
        self._shows_usage = usage_wanted(self._request)
        self._frames = Frames("chat.completion.chunk", self._id, self._created, self._front.model, self._shows_usage)
        self._introduced = [False] * len(self._choices)
        self._calls = [0] * len(self._choices)

    async def deliver(self, index: int, piece: Piece) -> None:
        said = self._tools[index].read(piece)
        frames = b""
        if not self._introduced[index]:
            self._introduced[index] = True
            frames = self._frames.choice(index, b'"delta":{"role":"assistant","content":""}')
        ids = piece.tokens if self._request.return_token_ids else UNSET
        logprobs = self._logprobs(piece)
        if said.text or said.calls or said.finish or logprobs is not None or ids is not UNSET:
            delta = self._delta(index, said)
            frames += self._frames.choice(index, delta, said.finish, piece.stop_reason, logprobs, ids)
        if frames:
            await self._call.write(frames)

    async def end(self) -> None:
        usage = self._frames.usage(self._usage()) if self._shows_usage else b""
        await self._call.write(usage + DONE)
        await self._call.end()

    def _delta(self, index: int, said: Said) -> bytes:
        if not said.calls:
            return b'"delta":{"content":' + encode(said.text) + b"}" if said.text else b'"delta":{}'
        first = self._calls[index]
        self._calls[index] += len(said.calls)
        delta = {"content": said.text} if said.text else {}
        return b'"delta":' + encode(delta | {"tool_calls": [_numbered(*pair) for pair in enumerate(said.calls, first)]})


def usage_of(prompts: Sequence[list[int]], choices: Sequence[Choice]) -> Usage:
    """Each prompt counts once, however many choices it has."""
    prompt, completion = sum(map(len, prompts)), sum(choice.reader.tokens for choice in choices)
    return Usage(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion)


def _numbered(number: int, call: ToolCall) -> dict[str, Any]:
    return {"index": number, **msgspec.to_builtins(call)}
