"""What an engine is to a driver. Real and null engines have this one shape; no tensors here.

A driver calls the verbs in the order of the core's commands, all from one thread. The core accounts for pages by
number; the engine chooses which physical page is which, and can rely on the core never asking for more than there are.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import msgspec

from penstock.core.step import StepPlan
from penstock.engine.params import Logprobs, Sampling

if TYPE_CHECKING:
    from penstock.engine.backend import Kv


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
    #: Pages in host memory, for what preempted jobs have.
    host_pages: int = 0
    dtype: str
    device: str
    threads: int
    #: Ranks that share the model; pages are numbered alike on all, and `kv_bytes_per_token` is of all together.
    tensor_parallel_size: int = 1
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

    @property
    def kv(self) -> "Sequence[Kv]":
        """What a transport moves: KV tensors, several if the heads are split over them, in the order of the heads; none
        if there are no tensors. A pool's page has the same number in all."""

    def add(self, job: int, tokens: list[int], prompt: int, sampling: Sampling) -> None:
        """Make a job known: its tokens so far, of which the first `prompt` are the prompt and the rest were delivered
        by an earlier epoch. Comes before its first Bind. Raises ValueError if the sampling cannot be honoured,
        AssertionError if the job is there already."""

    def bind(self, job: int, keys: tuple[int, ...]) -> None: ...

    def share(self, job: int, key: int) -> None: ...

    def evict(self, key: int) -> None: ...

    def release(self, job: int, forget: bool) -> None: ...

    def stow(self, job: int, upto: int) -> None:
        """Keep the job's first `upto` positions in host memory, then as `release`."""

    def restore(self, job: int, upto: int) -> None:
        """As `bind`, with the `upto` positions that host memory has."""

    def receive(self, move: int, keys: tuple[int, ...]) -> None:
        """A job is to arrive under this move; it starts with the shared blocks `keys`."""

    def room(self, move: int, positions: int) -> list[int]:
        """Make room for so many positions of what arrives; the physical pages of them all, in order. Empty where there
        are no physical pages."""

    def adopt(self, job: int, move: int, upto: int) -> None:
        """The job, which has been added and is bound to nothing, takes over what arrived and stands at `upto`. The
        room beyond stays its own."""

    def discard(self, move: int) -> None:
        """What arrived under the move is not wanted. Nothing may write to its pages any more."""

    def pages_of(self, job: int, upto: int) -> list[int]:
        """Physical pages of the job's first `upto` positions, in order; fewer if it has fewer. Any thread may ask, of
        a job whose pages up to there stay as they are meanwhile."""

    def run(self, plan: StepPlan) -> list[Output]:
        """Execute a step. A slice whose job has finished, or whose `start` is not where the job stands, is skipped and
        reported with executed=0. Positions beyond what is known are those that the step before emitted."""

    def used(self) -> int | None:
        """Physical pages that are not free, shared blocks included: a check on the core's accounting. None: there are
        no physical pages."""
