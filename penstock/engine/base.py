"""What an engine is to a driver. Real and null engines have this one shape; no tensors here.

A driver calls the verbs in the order of the core's commands, all from one thread. The core accounts for pages by
number; the engine chooses which physical page is which, and can rely on the core never asking for more than there are.
"""

from typing import Protocol

import msgspec

from penstock.core.step import StepPlan
from penstock.engine.params import Logprobs, Sampling


class EngineInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What the rest of the system must know of a loaded engine."""

    model: str
    vocab: int
    #: The most tokens, prompt and output, that a job may have.
    max_len: int
    pages: int
    page_tokens: int
    #: Prefixes are shared in blocks of so many tokens, a multiple of `page_tokens`.
    block_tokens: int
    kv_bytes_per_token: int
    dtype: str
    device: str
    threads: int
    eos_token_ids: list[int]
    #: Whether logprobs, penalties and grammars work (the null engine has none).
    notes: list[str] = []


class Output(msgspec.Struct, array_like=True):
    """What a step did for one job. `executed` as in `core.events.Executed`; `index` counts the job's output tokens
    from 0, so that `tokens[0]` is output token `index`. Jobs that emitted nothing and ran as planned have none."""

    job: int
    executed: int
    index: int
    tokens: list[int]
    logprobs: list[Logprobs] | None = None
    #: "stop" (EOS), "stop:<token id>", "length", or "error:<what>" (then that job alone fails)
    finish: str | None = None


class Engine(Protocol):
    """One model replica and its KV pool."""

    info: EngineInfo

    def add(self, job: int, tokens: list[int], prompt: int, sampling: Sampling) -> None:
        """Make a job known: its tokens so far, of which the first `prompt` are the prompt and the rest were delivered
        by an earlier epoch. Comes before its first Bind. Raises ValueError if the sampling cannot be honoured,
        AssertionError if the job is there already."""

    def bind(self, job: int, keys: tuple[int, ...]) -> None: ...

    def share(self, job: int, key: int) -> None: ...

    def evict(self, key: int) -> None: ...

    def release(self, job: int, forget: bool) -> None: ...

    def run(self, plan: StepPlan) -> list[Output]:
        """Execute a step. A slice whose job has finished, or whose `start` is not where the job stands, is skipped and
        reported with executed=0. Positions beyond what is known are those that the step before emitted."""

    def used(self) -> int | None:
        """Physical pages that are not free, shared blocks included: a check on the core's accounting. None: there are
        no physical pages."""
