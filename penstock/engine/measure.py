"""Measures what a step takes: puts jobs where the step needs them, runs it, and removes them again.

Uses an engine's verbs alone, so it measures whatever implements them, and leaves it as empty as it was. A step is told
as groups (jobs, start, count): so many jobs that each execute positions [start, start + count). What stands before
`start` is computed once, as shared blocks, and jobs take different ones as far as there are any: jobs that read the
same KV would find it in a cache.
"""

import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from penstock.core.features import features
from penstock.core.step import Features, Slice, StepPlan
from penstock.engine.base import Engine, EngineInfo
from penstock.engine.params import Sampling

#: Jobs, positions before the step, positions in it; of one position is decoding.
Group = tuple[int, int, int]

#: Positions that are computed in one step when contexts are made.
_MAKE_TOKENS = 512
_TASKS = Path("/proc/self/task")


class Took(NamedTuple):
    """One execution of a step."""

    seconds: float
    #: What this process's threads waited in all for a core that something else was on; 0 where nobody knows.
    waited_s: float


class Bench:
    """Jobs and shared blocks of its own, with ids below zero. The engine must be empty. As a context manager it leaves
    nothing behind, however it ends."""

    def __init__(self, engine: Engine, context_tokens: int = 8192) -> None:
        """`context_tokens` of context are computed at most, or as many as one job has before it."""
        self._engine = engine
        self._info = engine.info
        self._blocks_max = context_tokens // engine.info.block_tokens
        self._seq = 0
        self._next_id = -1
        self._jobs: list[int] = []
        #: Shared blocks, as many as were needed so far.
        self._keys: list[int] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._release()
        self._evict()

    def fits(self, groups: Sequence[Group], times: int = 1) -> bool:
        """Whether the engine's lengths and pages have room for the step, `times` over."""
        longest = max(start + count for _, start, count in groups)
        return longest < self._info.max_len and self._pages(groups, times, self._blocks(groups)) <= self._info.pages

    def measure(self, groups: Sequence[Group], times: int = 1) -> tuple[Features, list[Took]]:
        """The step's features, and what it took, each of `times` in a row, with jobs of their own."""
        if self._pages(groups, times, max(len(self._keys), self._blocks(groups))) > self._info.pages:
            self._evict()
        self._make_blocks(self._blocks(groups))
        rounds = [self._place(groups) for _ in range(times)]
        short = [Slice(s.job, s.start - s.start % self._block, s.start % self._block) for r in rounds for s in r]
        for piece in short:
            if piece.count:
                self._run([piece])
        took = [self._run(slices) for slices in rounds]
        self._release()
        return features(rounds[0]), took

    @property
    def _block(self) -> int:
        return self._info.block_tokens

    def _blocks(self, groups: Iterable[Group]) -> int:
        """Shared blocks that the step needs: different ones for each job, as far as that is wanted."""
        whole = [(jobs, start // self._block) for jobs, start, _ in groups]
        return max(max(blocks for _, blocks in whole), min(self._blocks_max, sum(j * blocks for j, blocks in whole)))

    def _pages(self, groups: Iterable[Group], times: int, blocks: int) -> int:
        own = sum(jobs * -(-(start % self._block + count) // self._info.page_tokens) for jobs, start, count in groups)
        return times * own + blocks * self._block // self._info.page_tokens

    def _place(self, groups: Iterable[Group]) -> list[Slice]:
        """Jobs for one step, bound to what is before it; the step's slices."""
        slices, at = [], 0
        for jobs, start, count in groups:
            blocks = start // self._block
            for _ in range(jobs):
                job = self._add(start + count)
                self._engine.bind(job, tuple(self._keys[(at + i) % len(self._keys)] for i in range(blocks)))
                slices.append(Slice(job, start, count))
                at += blocks
        return slices

    def _make_blocks(self, blocks: int) -> None:
        while (missing := blocks - len(self._keys)) > 0:
            some = min(missing, max(1, _MAKE_TOKENS // self._block))
            job = self._add(some * self._block)
            self._engine.bind(job, ())
            self._run([Slice(job, 0, some * self._block)])
            for _ in range(some):
                self._keys.append(self._id())
                self._engine.share(job, self._keys[-1])
            self._release()

    def _run(self, slices: list[Slice]) -> Took:
        plan = StepPlan(self._seq, slices)
        self._seq += 1
        before_s = waited_s()
        start_s = time.perf_counter()
        self._engine.run(plan)
        return Took(time.perf_counter() - start_s, waited_s() - before_s)

    def _add(self, prompt: int) -> int:
        job = self._id()
        tokens = [(7919 * i + job) % self._info.vocab for i in range(prompt)]
        self._engine.add(job, tokens, prompt, Sampling(max_tokens=1, temperature=0, ignore_eos=True))
        self._jobs.append(job)
        return job

    def _id(self) -> int:
        self._next_id -= 1
        return self._next_id

    def _release(self) -> None:
        for job in self._jobs:
            self._engine.release(job, forget=True)
        self._jobs.clear()

    def _evict(self) -> None:
        for key in self._keys:
            self._engine.evict(key)
        self._keys.clear()


def waited_s(tasks: Path = _TASKS) -> float:
    """Seconds that threads of this process were ready to run and did not, since they began; Linux counts them."""
    waited_ns = 0
    for path in tasks.glob("*/schedstat"):
        # A thread may end meanwhile.
        with suppress(OSError, ValueError, IndexError):
            waited_ns += int(path.read_text().split()[1])
    return waited_ns / 1e9


def hardware(info: EngineInfo, cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """What an engine runs on, by which times are told apart: the GPU, or the CPU and its threads."""
    if info.device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(info.device)
    if info.device == "none":
        return "none"
    try:
        text = cpuinfo.read_text()
    except OSError:
        text = ""
    parts = [line.partition(":") for line in text.splitlines()]
    said = {name.strip(): value.strip() for name, _, value in parts}
    name = said.get("model name", "CPU of unknown make")
    # What virtual machines call a processor is often no more than its brand.
    numbers = f", family {said['cpu family']} model {said['model']}" if {"cpu family", "model"} <= said.keys() else ""
    return f"{name}{numbers}, {info.threads} threads"
