"""What steps cost here and now: a few measured ones, which also warm the engine up. For a first fit of a cost."""

import time

from penstock.core.step import Features
from penstock.engine.base import Engine
from penstock.engine.measure import Bench, Group

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
    points: list[Point] = []
    # All jobs read the same context: there is no time to compute more.
    with Bench(engine, context_tokens=0) as bench:
        for part_s, steps in ((budget_s / 2, _prefills(bench)), (0.0, _decodes(engine.info.block_tokens))):
            for groups in steps:
                if not bench.fits(groups, _REPEATS - 1):
                    continue
                points.append(_best(bench, groups))
                # The next one may take several times as long.
                if time.perf_counter() + 3 * points[-1][1] > end_s - part_s:
                    break
    return points


def _prefills(bench: Bench) -> list[list[Group]]:
    """Prompts of growing length, each in one step; then the longest again, in two."""
    steps: list[list[Group]] = [[(1, 0, length)] for length in _PREFILLS if bench.fits([(1, 0, length)], _REPEATS - 1)]
    if steps and (longest := steps[-1][0][2]) >= 32:
        steps.append([(1, longest // 2, longest // 2)])
    return steps


def _decodes(block_tokens: int) -> list[list[Group]]:
    return [[(batch, blocks * block_tokens, 1)] for blocks in _CONTEXT_BLOCKS for batch in _DECODES]


def _best(bench: Bench, groups: list[Group]) -> Point:
    what, took = bench.measure(groups)
    if took[0].seconds < _LONG_S:
        took += bench.measure(groups, _REPEATS - 1)[1]
    return what, min(took).seconds
