"""Offline use: a model in this very process, prompts in, answers out. No server, no sockets.

from penstock import LLM, Sampling
llm = LLM()                                     # the demo model; or a folder, or a hub id
print(llm.generate("Once upon a time", Sampling(max_tokens=40, temperature=0))[0].text)
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from penstock.api.errors import ApiError
from penstock.api.protocol import Message
from penstock.api.reader import Piece, Reader
from penstock.api.sampling import TextRules
from penstock.api.template import ChatTemplate, find_template
from penstock.api.tokenizer import load_tokenizer
from penstock.drivers.local import Local
from penstock.engine.hub import DEMO, resolve
from penstock.engine.options import EngineOptions
from penstock.engine.params import Logprobs, Sampling
from penstock.engine.start import start_engine
from penstock.policies.bundles import row

Prompt = str | list[int]


class Answer(msgspec.Struct):
    """What became of one prompt. `finish` is stop or length."""

    prompt: list[int]
    tokens: list[int] = []
    text: str = ""
    finish: str = ""
    logprobs: list[Logprobs] = []


class LLM:
    """A loaded model. `options` are those of `EngineOptions`: dtype, max_len, kv_bytes, threads, ..."""

    def __init__(self, model: str = "", *, policy: str = "fcfs", **options: Any) -> None:
        """Raises ValueError or FileNotFoundError, saying what to change, if the model cannot be served."""
        row(policy)  # before the model is loaded, in case there is no such policy
        chosen = EngineOptions(model=model or str(DEMO), **options)
        folder = resolve(chosen.model, chosen.download_dir, weights=False)
        self._tokenizer = load_tokenizer(folder)
        self._template = ChatTemplate(find_template(folder, ""), self._tokenizer.special)
        self._engine = start_engine(chosen)
        self._policy = policy
        self._local = Local(self._engine, policy)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: Sampling | Sequence[Sampling] | None = None,
        *,
        stop: str | Sequence[str] = (),
    ) -> list[Answer]:
        """Answer prompts (texts, or lists of token ids), batched by the scheduler; answers come in their order.

        `params`: one for all, or one each; default 64 tokens. Equal prompts with equal seeds have equal answers: give
        them a `seed` or a `choice` each to have them differ. Answers end before the first `stop` string.
        Raises ValueError, naming the prompt, if one cannot be answered; then none is, and the next call starts afresh.
        """
        asked: list[Prompt] = [prompts] if isinstance(prompts, str) or _is_ids(prompts) else list(prompts)  # type: ignore[list-item, arg-type]
        chosen = params or Sampling(max_tokens=64)
        each = [chosen] * len(asked) if isinstance(chosen, Sampling) else list(chosen)
        if len(each) != len(asked):
            raise ValueError(f"{len(each)} params for {len(asked)} prompts: give one for all, or one each")
        stops = (stop,) if isinstance(stop, str) else tuple(stop)
        if "" in stops:
            raise ValueError("a stop string is empty")
        try:
            return self._generate(asked, each, stops)
        except BaseException:
            # Even Ctrl-C in the middle of a step: jobs may be anywhere.
            self._engine.clear()
            self._local = Local(self._engine, self._policy)
            raise

    def chat(
        self, messages: Sequence[dict[str, Any]], params: Sampling | None = None, *, stop: str | Sequence[str] = ()
    ) -> Answer:
        """Answer a conversation of {"role": ..., "content": ...} messages, by the model's chat template."""
        if not self._template.source:
            raise ValueError("the model has no chat template: use generate() with a prompt")
        try:
            text = self._template.render([msgspec.convert(message, Message) for message in messages])
        except (ApiError, msgspec.ValidationError) as error:
            raise ValueError(f"messages: {error}") from error
        return self.generate([self._tokenizer.encode(text, special=False)], params, stop=stop)[0]

    def _generate(self, prompts: list[Prompt], params: list[Sampling], stops: tuple[str, ...]) -> list[Answer]:
        answers = [Answer(self._ids(prompt)) for prompt in prompts]
        jobs: dict[int, int] = {}
        for at, (answer, sampling) in enumerate(zip(answers, params, strict=True)):
            try:
                jobs[self._local.submit(answer.prompt, sampling)] = at
            except ValueError as error:
                raise ValueError(f"prompt {at}: {error}") from error
        eos = self._engine.info.eos_token_ids
        readers = [
            Reader(self._tokenizer.detokenizer(True), TextRules(stops=stops, min_tokens=sampling.min_tokens), eos)
            for sampling in params
        ]
        for output in self._local.run():
            at = jobs[output.job]
            if output.finish is not None and output.finish.startswith("error:"):
                raise ValueError(f"prompt {at}: {output.finish.removeprefix('error:')}")
            if not answers[at].finish:
                _extend(answers[at], readers[at].push(output.tokens, output.logprobs, output.finish))
                if answers[at].finish and output.finish is None:
                    self._local.cancel(output.job)
        return answers

    def _ids(self, prompt: Prompt) -> list[int]:
        return self._tokenizer.encode(prompt, special=True) if isinstance(prompt, str) else list(prompt)


def _extend(answer: Answer, piece: Piece) -> None:
    answer.tokens += piece.tokens
    answer.text += piece.text
    answer.logprobs += piece.logprobs
    answer.finish = piece.finish or ""


def _is_ids(prompts: Any) -> bool:
    return bool(prompts) and isinstance(prompts[0], int)
