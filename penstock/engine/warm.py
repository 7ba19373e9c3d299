"""What steps cost here and now: a few measured ones, which also warm the engine up. For the first fit of a cost model.

Uses an engine's verbs alone, so it measures whatever implements them, and leaves it as empty as it was.
"""

import time
from collections.abc import Callable, Iterator
from functools import partial

from penstock.core.step import Features, Slice, StepPlan, features
from penstock.engine.base import Engine
from penstock.engine.params import Sampling

#: A step, and the seconds that it took.
Point = tuple[Features, float]

_REPEATS = 3
#: A step that takes longer is not measured again.
_LONG_S = 0.05
_PREFILLS = (8, 32, 128, 256, 512)
#: Far apart at first, in case time runs out.
_DECODES = (1, 8, 32, 2, 16, 64, 4, 128)
#: Blocks that decoding jobs have as context, so that the cost of context shows beside that of jobs.
_CONTEXT_BLOCKS = (1, 4)


def warm(engine: Engine, budget_s: float = 1.5) -> list[Point]:
    """Features of steps and the seconds that each took, the best of three; for about `budget_s` in all.

    Steps of several prompt lengths, then decode steps of several batches and contexts; what the engine's lengths and
    pages have no room for, or its time, is left out. The engine must be empty.
    """
    end_s = time.perf_counter() + budget_s
    bench = _Bench(engine)
    points: list[Point] = []
    for part_s, measured in ((budget_s / 2, bench.prefills()), (0.0, bench.decodes())):
        for point in measured:
            points.append(point)
            # The next one may take several times as long.
            if time.perf_counter() + 3 * point[1] > end_s - part_s:
                break
    bench.clear()
    return points


class _Bench:
    """Jobs and shared blocks of its own, with ids below zero."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.info = engine.info
        self.seq = 0
        self.jobs: list[int] = []
        self.keys: list[int] = []
        self.next_id = -1

    def prefills(self) -> Iterator[Point]:
        """Prompts of growing length, each in one step; then the longest again, in two."""
        lengths = [n for n in _PREFILLS if n < self.info.max_len and self._pages(n) <= self.info.pages]
        for length in lengths:
            yield _best(partial(self._prefill, length))
        if lengths[-1] >= 32:
            yield _best(partial(self._prefill, lengths[-1], lengths[-1] // 2))

    def decodes(self) -> Iterator[Point]:
        """Batches of jobs that decode after blocks that they share: context that costs no time to make."""
        for blocks in _CONTEXT_BLOCKS:
            context = blocks * self.info.block_tokens
            if context + 1 + _REPEATS > self.info.max_len or self._pages(context) >= self.info.pages:
                return
            keys = self._make_blocks(blocks)
            for batch in _DECODES:
                if self._pages(context) + batch * self._pages(_REPEATS + 1) > self.info.pages:
                    continue
                yield self._decode(batch, keys)
            self._evict()

    def _prefill(self, length: int, start: int = 0) -> Point:
        job = self._add(length, 1)
        self.engine.bind(job, ())
        if start:
            self._run([Slice(job, 0, start)])
        point = self._run([Slice(job, start, length - start)])
        self._release()
        return point

    def _decode(self, batch: int, keys: tuple[int, ...]) -> Point:
        context = len(keys) * self.info.block_tokens
        for _ in range(batch):
            self.engine.bind(self._add(context + 1, _REPEATS), keys)
        points = [self._run([Slice(job, context + i, 1) for job in self.jobs]) for i in range(_REPEATS)]
        self._release()
        return min(points, key=lambda point: point[1])

    def _make_blocks(self, blocks: int) -> tuple[int, ...]:
        job = self._add(blocks * self.info.block_tokens, 1)
        self.engine.bind(job, ())
        self._run([Slice(job, 0, blocks * self.info.block_tokens)])
        for _ in range(blocks):
            self.keys.append(self._id())
            self.engine.share(job, self.keys[-1])
        self._release()
        return tuple(self.keys)

    def _run(self, slices: list[Slice]) -> Point:
        plan = StepPlan(self.seq, slices)
        self.seq += 1
        start_s = time.perf_counter()
        self.engine.run(plan)
        return features(plan), time.perf_counter() - start_s

    def _add(self, prompt: int, new: int) -> int:
        job = self._id()
        tokens = [(7919 * i + job) % self.info.vocab for i in range(prompt)]
        self.engine.add(job, tokens, prompt, Sampling(max_tokens=new, temperature=0, ignore_eos=True))
        self.jobs.append(job)
        return job

    def _id(self) -> int:
        self.next_id -= 1
        return self.next_id

    def _pages(self, positions: int) -> int:
        return -(-positions // self.info.page_tokens)

    def _release(self) -> None:
        for job in self.jobs:
            self.engine.release(job, forget=True)
        self.jobs.clear()

    def _evict(self) -> None:
        for key in self.keys:
            self.engine.evict(key)
        self.keys.clear()

    def clear(self) -> None:
        """Undo what an iteration that was cut short left."""
        self._release()
        self._evict()


def _best(measure: Callable[[], Point]) -> Point:
    points = [measure()]
    while len(points) < _REPEATS and points[0][1] < _LONG_S:
        points.append(measure())
    return min(points, key=lambda point: point[1])
