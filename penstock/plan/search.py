"""The highest rate that each option carries, by bisection in the twin; what cannot win is not searched to the end.

Rates are per GPU and lie on one grid, [0, `rate_max`] halved again and again, so that options are tried at the same
rates with the same requests. Bounds (`bounds`) answer where they can; a rate that only a bound has called safe is run
before it is given as the answer. Options go in waves, the most promising first: one that fails at the rate of the best
so far is left there. A rate is run seed by seed until the verdict is sure. Every run is a file, and is not run again.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from penstock.metrics import layout
from penstock.metrics.confidence import wilson
from penstock.metrics.layout import Cell
from penstock.plan.bounds import Bounds
from penstock.plan.space import Option
from penstock.plan.trial import Goal, Load, Tally, trial

#: A rate is taken for carried before all seeds have run when it is so sure; in a queue, requests are not independent.
CONFIDENCE = 0.999
#: Options that are searched at the same time, at the least: their answers do not help one another.
WAVE = 8


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """How to search."""

    goal: Goal
    load: Load
    seeds: Sequence[int] = (0, 1, 2)
    #: Requests/s a GPU: the end of the grid, and how near both ends must come: as a share of the upper, and as such.
    rate_max: float
    precision: float = 0.05
    step: float
    #: So many of the best are searched to the end.
    best: int = 3


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What was found of an option. Rates are requests/s a GPU."""

    option: Option
    #: Carried, as the twin has shown; 0: none was.
    rate: float = 0.0
    #: Not carried, nor is more.
    above: float = 0.0
    #: At `rate`.
    tally: Tally | None = None
    limit: str = ""
    #: It was left there because another is better.
    left: bool = False

    @property
    def order(self) -> tuple[float, int, str]:
        """The best first."""
        return -self.rate, self.option.gpus, self.option.name


class Trials:
    """An option in the twin, at any rate."""

    def __init__(self, option: Option, terms: Terms, folder: Path | None) -> None:
        self._option, self._terms, self._folder = option, terms, folder
        #: Rate -> verdict, and what it is from.
        self.ran: dict[float, tuple[bool, Tally]] = {}

    def carries(self, rate: float) -> bool:
        """Whether enough requests keep the SLO at `rate` requests/s a GPU."""
        if rate not in self.ran:
            self.ran[rate] = self._run(rate)
        return self.ran[rate][0]

    def _run(self, rate: float) -> tuple[bool, Tally]:
        terms, goal = self._terms, self._terms.goal
        total = Tally(requests=0)
        whole = terms.load.count(rate * self._option.gpus) * len(terms.seeds)
        allowed = goal.allowed(whole)
        for repeat in range(len(terms.seeds)):
            total = total.plus(self._one(rate, repeat, partial(_enough, total, goal, whole)))
            if total.missed(goal) > allowed:
                return False, total
            low = wilson(total.judged - total.missed(goal), total.judged, CONFIDENCE).low
            if low is not None and low >= goal.target:
                break
        return True, total

    def _one(self, rate: float, repeat: int, enough: Callable[[Tally], bool]) -> Tally:
        terms, folder = self._terms, self._folder
        cell = Cell(rate, num_prompts=terms.load.count(rate * self._option.gpus))
        path = layout.path_of(folder / self._option.name, cell, repeat) if folder is not None else None
        if path is not None and path.exists():
            return msgspec.json.decode(path.read_bytes(), type=Tally)
        tally, _ = trial(self._option, terms.load, terms.goal, rate * self._option.gpus, terms.seeds[repeat], enough)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            layout.partial(path).write_bytes(msgspec.json.encode(tally))
            os.replace(layout.partial(path), path)
        return tally


def _enough(before: Tally, goal: Goal, whole: int, tally: Tally) -> bool:
    """Whether nothing that may come changes the verdict."""
    known = before.plus(tally)
    missed, allowed = known.missed(goal), goal.allowed(whole)
    return missed > allowed or known.judged - missed >= whole - allowed


def find(option: Option, bounds: Bounds, cutoff: float, *, terms: Terms, folder: Path | None = None) -> Answer:
    """The highest rate that it carries, unless that is below `cutoff` (a rate of the grid)."""
    trials = Trials(option, terms, folder)
    most, safe = bounds.high / option.gpus, max(cutoff, bounds.low / option.gpus)
    if most <= cutoff or (cutoff and not trials.carries(cutoff)):
        tally = trials.ran[cutoff][1] if cutoff in trials.ran else None
        above, limit = (cutoff, tally.limit) if tally else (most, bounds.limit)
        return Answer(option=option, above=above, limit=limit, left=bool(cutoff))

    def carries(rate: float) -> bool:
        return rate <= safe or (rate < most and trials.carries(rate))

    low, high = _bisect(0.0, terms.rate_max, carries, terms)
    if low and not trials.carries(low):  # A bound has called it safe, and it is not.
        low, high = _bisect(0.0, terms.rate_max, trials.carries, terms)
    failed = trials.ran.get(high)
    limit = failed[1].limit if failed else bounds.limit
    return Answer(option=option, rate=low, above=high, tally=trials.ran[low][1] if low else None, limit=limit)


def _bisect(low: float, high: float, carries: Callable[[float], bool], terms: Terms) -> tuple[float, float]:
    while high - low > max(terms.step, terms.precision * high):
        middle = (low + high) / 2
        low, high = (middle, high) if carries(middle) else (low, middle)
    return low, high


def search(
    options: Sequence[tuple[Option, Bounds]],
    terms: Terms,
    folder: Path | None = None,
    jobs: int = 1,
    on_answer: Callable[[Answer], object] = lambda answer: None,
) -> list[Answer]:
    """All answers, the best first. `jobs`: processes; 1: none but this."""
    waiting = sorted(options, key=lambda one: (-one[1].likely / one[0].gpus, one[0].gpus, one[0].name))
    found: list[Answer] = []
    with processes(jobs) as run:
        while waiting:
            count = max(WAVE, jobs) if len(found) >= terms.best else terms.best
            wave, waiting = waiting[:count], waiting[count:]
            best = sorted(answer.rate for answer in found)[-terms.best :]
            cutoff = best[0] if len(best) == terms.best else 0.0
            task = partial(_find, cutoff=cutoff, terms=terms, folder=folder)
            for answer in run(task, wave):
                found.append(answer)
                on_answer(answer)
    return sorted(found, key=lambda answer: answer.order)


def _find(one: tuple[Option, Bounds], *, cutoff: float, terms: Terms, folder: Path | None) -> Answer:
    return find(*one, cutoff, terms=terms, folder=folder)


class processes:
    """`map`, here or in other processes."""

    def __init__(self, jobs: int) -> None:
        self._pool = ProcessPoolExecutor(jobs) if jobs > 1 else None

    def __enter__(self) -> Callable[..., Iterable[Any]]:
        return self._pool.map if self._pool is not None else map

    def __exit__(self, *error: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


def grid_max(options: Iterable[tuple[Option, Bounds]]) -> float:
    """A power of two above what any option could carry, requests/s a GPU. Raises ValueError where none carries any."""
    most = max((bounds.high / option.gpus for option, bounds in options), default=0.0)
    if not most:
        raise ValueError("nothing can keep this SLO, whatever the rate: the reasons are above")
    rate = 1.0
    while rate < most:
        rate *= 2
    while rate / 2 >= most:
        rate /= 2
    return rate
