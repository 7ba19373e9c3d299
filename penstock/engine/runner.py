"""The engine with tensors: a transformers model, its pages, and the jobs that run on it.

The core decides what runs and counts pages; here tokens are computed and sampled. One thread calls the verbs.
"""

import numpy as np
import torch
from torch import nn

from penstock.core.step import Slice, StepPlan
from penstock.engine.backend import Backend, Int64, Kv
from penstock.engine.base import EngineInfo, Output
from penstock.engine.batch import Piece, build
from penstock.engine.grammar import Grammars
from penstock.engine.params import Sampling
from penstock.engine.pool import Pool, Table
from penstock.engine.sampling import Pick, Row, sample
from penstock.engine.stowage import Stowage
from penstock.engine.warm import Point, warm


class State(Row):
    """One job: its tokens, where it stands, how it samples."""

    __slots__ = ("buffer", "computed", "finish", "id", "known", "table")

    def __init__(self, job: int, tokens: list[int], prompt: int, sampling: Sampling, eos: list[int]) -> None:
        #: `tokens` is buffer[:known]; there is room for all that may come.
        self.buffer: Int64 = np.zeros(prompt + sampling.max_tokens, np.int64)
        self.buffer[: len(tokens)] = tokens
        self.known = len(tokens)
        super().__init__(sampling, self.buffer[: self.known], prompt, sampling.stop_token_ids + eos)
        self.id = job
        #: Positions whose KV is in the pages.
        self.computed = 0
        self.table: Table | None = None
        #: Why the job ended.
        self.finish: str | None = None

    def append(self, token: int) -> None:
        self.buffer[self.known] = token
        self.known += 1
        self.tokens = self.buffer[: self.known]


class TransformersEngine:
    """One model replica with its KV pool; see `base.Engine` for the verbs."""

    def __init__(
        self, model: nn.Module, backend: Backend, kv: Kv, pool: Pool, info: EngineInfo, grammars: Grammars
    ) -> None:
        self.info = info
        self._model = model
        self._backend = backend
        self._kv = kv
        self._pool = pool
        self._grammars = grammars
        self._stowage = Stowage(self.kv, info.host_pages) if info.host_pages else None
        self._jobs: dict[int, State] = {}
        #: Move -> the table of the job that arrives under it.
        self._arriving: dict[int, Table] = {}

    @property
    def kv(self) -> list[Kv]:
        kvs = [self._kv, *self._kv.peers]
        if len(kvs) < self.info.tensor_parallel_size:
            raise ValueError("KV of ranks on several GPUs cannot be moved; use tensor_parallel_size 1, or one instance")
        return kvs

    def add(self, job: int, tokens: list[int], prompt: int, sampling: Sampling) -> None:
        assert job not in self._jobs, f"job {job} is here already: release it first, or its pages are lost"
        check(tokens, prompt, sampling, self.info)
        state = State(job, tokens, prompt, sampling, self.info.eos_token_ids)
        if sampling.grammar:
            state.grammar = self._grammars.start(sampling.grammar)
            for token in tokens[prompt:]:
                if wrong := state.grammar.accept(token):
                    raise ValueError(f"delivered tokens do not fit the grammar: {wrong}")
        self._jobs[job] = state

    def bind(self, job: int, keys: tuple[int, ...]) -> None:
        state = self._jobs[job]
        state.table = self._pool.bind(keys)
        state.computed = len(keys) * self.info.block_tokens

    def share(self, job: int, key: int) -> None:
        table = self._jobs[job].table
        assert table is not None, f"job {job} shares a block before it is bound"
        self._pool.share(table, key)

    def evict(self, key: int) -> None:
        self._pool.evict(key)

    def release(self, job: int, forget: bool) -> None:
        state = self._jobs.get(job)
        if state is None:
            return
        if state.table is not None:
            self._pool.release(state.table)
        state.table, state.computed = None, 0
        if forget:
            del self._jobs[job]
            if self._stowage is not None:
                self._stowage.drop(job)

    def stow(self, job: int, upto: int) -> None:
        assert self._stowage is not None, "the core swaps, but there is no host memory for that"
        self._stowage.keep(job, self.pages_of(job, upto))
        self.release(job, forget=False)

    def restore(self, job: int, upto: int) -> None:
        assert self._stowage is not None, "the core swaps, but there is no host memory for that"
        state = self._jobs[job]
        state.table = self._pool.bind(())
        self._pool.grow(state.table, upto)
        state.computed = upto
        self._stowage.give(job, self.pages_of(job, upto))

    def receive(self, move: int, keys: tuple[int, ...]) -> None:
        assert move not in self._arriving, f"move {move} is under way already: discard it first, or its pages are lost"
        self._arriving[move] = self._pool.bind(keys)

    def room(self, move: int, positions: int) -> list[int]:
        table = self._arriving[move]
        self._pool.grow(table, positions)
        return self._pool.pages_of(table, positions)

    def adopt(self, job: int, move: int, upto: int) -> None:
        state = self._jobs[job]
        assert state.table is None, f"job {job} is bound already: release it first, or its pages are lost"
        state.table, state.computed = self._arriving.pop(move), upto

    def discard(self, move: int) -> None:
        self._pool.release(self._arriving.pop(move))

    def pages_of(self, job: int, upto: int) -> list[int]:
        state = self._jobs.get(job)
        return [] if state is None or state.table is None else self._pool.pages_of(state.table, upto)

    def clear(self) -> None:
        """Forget all jobs, all that arrives, and all shared blocks."""
        for job in list(self._jobs):
            self.release(job, forget=True)
        for move in list(self._arriving):
            self.discard(move)
        for key in list(self._pool.blocks):
            self.evict(key)

    def used(self) -> int:
        return self._pool.used()

    def warm(self, budget_s: float = 1.5) -> list[Point]:
        """What steps cost, measured now (see `warm.warm`); the engine must be empty."""
        return warm(self, budget_s)

    @torch.inference_mode()
    def run(self, plan: StepPlan) -> list[Output]:
        work, outputs = self._select(plan)
        if not work:
            return outputs
        pieces = [self._piece(state, count) for state, count in work]
        logits = self._backend.forward(self._model, build(pieces, self._pool.tables, self._pool.page_tokens), self._kv)
        emitting = [state for (state, _), piece in zip(work, pieces, strict=True) if piece.emit]
        picks = dict(zip((s.id for s in emitting), sample(logits, emitting) if emitting else [], strict=True))
        for state, count in work:
            state.computed += count
            if state.id in picks:
                outputs.append(self._emit(state, count, picks[state.id]))
        return outputs

    def _select(self, plan: StepPlan) -> tuple[list[tuple[State, int]], list[Output]]:
        """What can be executed, jobs of one position first, and word of what cannot."""
        work, outputs = [], []
        for piece in plan.slices:
            state = self._jobs.get(piece.job)
            count = executable(state, piece)
            if state is not None and count:
                work.append((state, count))
            else:
                outputs.append(Output(piece.job, 0, state.known - state.prompt if state else 0, []))
        work.sort(key=lambda item: item[1] > 1)
        return work, outputs

    def _piece(self, state: State, count: int) -> Piece:
        assert state.table is not None
        end = state.computed + count
        self._pool.grow(state.table, end)
        emit = (count - 1,) if end == state.known else ()
        return Piece(state.buffer[state.computed : end], state.computed, state.table.row, emit)

    def _emit(self, state: State, executed: int, pick: Pick) -> Output:
        index = state.index
        if pick.error:
            state.finish = f"error:{pick.error}"
            return Output(state.id, executed, index, [], None, state.finish)
        state.append(pick.token)
        state.finish = self._finish(state, pick.token)
        logprobs = None if pick.logprobs is None else [pick.logprobs]
        return Output(state.id, executed, index, [pick.token], logprobs, state.finish)

    def _finish(self, state: State, token: int) -> str | None:
        """Why the job ends with this token, if it does."""
        sampling, grammar = state.sampling, state.grammar
        if grammar is not None and (wrong := grammar.accept(token)):
            return f"error:grammar: {wrong}"
        if token in self.info.eos_token_ids and not sampling.ignore_eos:
            return "stop"
        if token in sampling.stop_token_ids:
            return f"stop:{token}"
        if grammar is not None and grammar.complete:
            return "stop"
        return "length" if state.known == len(state.buffer) else None


def executable(state: State | None, piece: Slice) -> int:
    """How many positions of the slice can be executed now."""
    if state is None or state.finish is not None or state.table is None or piece.start != state.computed:
        return 0
    return max(0, min(piece.count, state.known - piece.start))


def check(tokens: list[int], prompt: int, sampling: Sampling, info: EngineInfo) -> None:
    """Raise ValueError if the engine cannot honour such a job."""
    if not 1 <= prompt <= len(tokens) < prompt + sampling.max_tokens <= info.max_len:
        raise ValueError(
            f"{prompt} prompt tokens, {len(tokens) - prompt} of at most {sampling.max_tokens} delivered: "
            f"a job needs a prompt, something left to do, and no more than {info.max_len} tokens in all"
        )
    named = [*tokens, *sampling.logit_bias, *sampling.stop_token_ids]
    if min(named) < 0 or max(named) >= info.vocab:
        raise ValueError(f"token ids run from 0 to {info.vocab - 1}")
