"""Offline use: a model in this very process, prompts in, answers out. No server, no sockets.

from penstock import LLM, Sampling
llm = LLM()                                     # the demo model; or a folder, or a hub id
print(llm.generate("Once upon a time", Sampling(max_tokens=40, temperature=0))[0].text)
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

import penstock
from penstock.api.protocol import Message
from penstock.api.reader import Reader
from penstock.api.sampling import TextRules
from penstock.api.template import ChatTemplate, find_template
from penstock.api.tokenizer import load_tokenizer
from penstock.drivers.local import Local
from penstock.engine.hub import resolve
from penstock.engine.options import EngineOptions
from penstock.engine.params import Logprobs, Sampling
from penstock.engine.start import start_engine

DEMO = Path(penstock.__file__).parent / "engine" / "demo"

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
        chosen = EngineOptions(model=model or str(DEMO), **options)
        folder = resolve(chosen.model, chosen.download_dir, weights=False)
        self._tokenizer = load_tokenizer(folder)
        self._template = ChatTemplate(find_template(folder, ""), self._tokenizer.special)
        self._local = Local(start_engine(chosen), policy)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: Sampling | Sequence[Sampling] | None = None,
        *,
        stop: Sequence[str] = (),
    ) -> list[Answer]:
        """Answer prompts (texts, or lists of token ids), batched by the scheduler; answers come in their order.

        `params`: one for all, or one each; default 64 tokens. Raises ValueError if one cannot be honoured.
        """
        asked: list[Prompt] = [prompts] if isinstance(prompts, str) or _is_ids(prompts) else list(prompts)  # type: ignore[list-item, arg-type]
        chosen = params or Sampling(max_tokens=64)
        each = [chosen] * len(asked) if isinstance(chosen, Sampling) else list(chosen)
        answers: dict[int, Answer] = {}
        readers: dict[int, Reader] = {}
        for prompt, sampling in zip(asked, each, strict=True):
            tokens = self._tokenizer.encode(prompt, special=True) if isinstance(prompt, str) else list(prompt)
            job = self._local.submit(tokens, sampling)
            answers[job] = Answer(tokens)
            rules = TextRules(stops=tuple(stop), min_tokens=sampling.min_tokens)
            readers[job] = Reader(self._tokenizer.detokenizer(True), rules)
        self._read(answers, readers)
        return list(answers.values())

    def chat(self, messages: Sequence[dict[str, Any]], params: Sampling | None = None) -> Answer:
        """Answer a conversation of {"role": ..., "content": ...} messages, by the model's chat template."""
        text = self._template.render([msgspec.convert(message, Message) for message in messages])
        return self.generate([self._tokenizer.encode(text, special=False)], params)[0]

    def _read(self, answers: dict[int, Answer], readers: dict[int, Reader]) -> None:
        for output in self._local.run():
            answer = answers[output.job]
            if output.finish is not None and output.finish.startswith("error:"):
                raise ValueError(output.finish.removeprefix("error:"))
            if answer.finish:
                continue
            piece = readers[output.job].push(output.tokens, output.logprobs, output.finish)
            answer.tokens += piece.tokens
            answer.text += piece.text
            answer.logprobs += piece.logprobs
            answer.finish = piece.finish or ""


def _is_ids(prompts: Any) -> bool:
    return bool(prompts) and isinstance(prompts[0], int)
