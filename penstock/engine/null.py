"""An engine without tensors: the same verbs, made-up tokens, durations handed in. For simulation, and for tests and
benchmarks of everything around an engine. Knows nothing of models.

Output token i of job j is `(j * 31 + i * 7) % vocab`, so that a reader can check that no token is lost or doubled.
"""

import time
from collections.abc import Callable

import msgspec

from penstock.core.features import features
from penstock.core.step import Slice, StepCost, StepPlan
from penstock.engine.base import EngineInfo, Output
from penstock.engine.params import Sampling


class _State:
    __slots__ = ("computed", "finished", "known", "limit", "prompt")

    def __init__(self, known: int, prompt: int, limit: int) -> None:
        self.known, self.prompt, self.limit = known, prompt, limit
        self.computed = 0
        self.finished = False


class NullOptions(msgspec.Struct, frozen=True, kw_only=True, tag="null"):
    """A null engine instead of a model."""

    pages: int = 4096
    page_tokens: int = 16
    block_tokens: int = 64
    max_len: int = 1 << 20
    vocab: int = 256
    host_pages: int = 0
    #: Coefficients of the step cost (see `cost.linear`): 5 ms a step, 20 us a prompt token, 100 us a decode.
    cost: tuple[float, float, float, float, float] = (5e6, 2e4, 0.0, 1e5, 0.0)


def null_info(options: NullOptions) -> EngineInfo:
    """What a null engine says of itself."""
    return EngineInfo(
        model="null",
        vocab=options.vocab,
        max_len=min(options.max_len, options.pages * options.page_tokens),
        pages=options.pages,
        page_tokens=options.page_tokens,
        block_tokens=options.block_tokens,
        kv_bytes_per_token=0,
        host_pages=options.host_pages,
        dtype="none",
        device="none",
        threads=0,
        eos_token_ids=[],
        notes=["tokens are made up"],
    )


class NullEngine:
    """`sleep` is called with each step's duration in seconds; the simulator, which keeps its own time, passes None."""

    kv: tuple[()] = ()

    def __init__(self, info: EngineInfo, cost: StepCost, sleep: Callable[[float], None] | None = time.sleep) -> None:
        self.info = info
        self._cost = cost
        self._sleep = sleep
        self._jobs: dict[int, _State] = {}

    def add(self, job: int, tokens: list[int], prompt: int, sampling: Sampling) -> None:
        if sampling.grammar or sampling.logprobs is not None:
            raise ValueError("the null engine makes its tokens up: it has no logprobs and follows no grammar")
        self.expect(job, len(tokens), prompt, sampling.max_tokens)

    def expect(self, job: int, known: int, prompt: int, tokens: int) -> None:
        """As `add`, for a simulator, which has lengths only: the job ends after so many tokens."""
        self._jobs[job] = _State(known, prompt, tokens)

    def bind(self, job: int, keys: tuple[int, ...]) -> None:
        self._jobs[job].computed = len(keys) * self.info.block_tokens

    def share(self, job: int, key: int) -> None:
        pass

    def evict(self, key: int) -> None:
        pass

    def release(self, job: int, forget: bool) -> None:
        if forget:
            self._jobs.pop(job, None)
        else:
            self._jobs[job].computed = 0

    def receive(self, move: int, keys: tuple[int, ...]) -> None:
        pass

    def room(self, move: int, positions: int) -> list[int]:
        return []

    def adopt(self, job: int, move: int, upto: int) -> None:
        self._jobs[job].computed = upto

    def discard(self, move: int) -> None:
        pass

    def pages_of(self, job: int, upto: int) -> list[int]:
        return []

    def stow(self, job: int, upto: int) -> None:
        self._jobs[job].computed = 0

    def restore(self, job: int, upto: int) -> None:
        self._jobs[job].computed = upto

    def used(self) -> None:
        return None

    def run(self, plan: StepPlan) -> list[Output]:
        if self._sleep is not None:
            self._sleep(self._cost.step_ns(features(plan.slices)) / 1e9)
        return [output for piece in plan.slices if (output := self._execute(piece)) is not None]

    def _execute(self, piece: Slice) -> Output | None:
        state = self._jobs.get(piece.job)
        if state is None or state.finished or piece.start != state.computed:
            return Output(piece.job, 0, state.known - state.prompt if state else 0, [])
        state.computed += piece.count
        if state.computed < state.known:
            return None
        index = state.known - state.prompt
        state.known += 1
        state.finished = index + 1 >= state.limit
        token = (piece.job * 31 + index * 7) % self.info.vocab
        return Output(piece.job, piece.count, index, [token], None, "length" if state.finished else None)
