"""The best options looked at closely: whole runs of every seed at rates around the one found, the whole of a trace,
and the load asked for.

Runs are saved as those of a sweep are (`metrics.layout`), so that `penstock bench report` reads them.
"""

import os
from collections.abc import Callable, Sequence
from functools import partial
from heapq import heappop, heappush
from itertools import product
from math import ceil
from pathlib import Path

import msgspec

import penstock
from penstock.metrics import curves, layout, result
from penstock.metrics.curves import Judged, Point, Series
from penstock.metrics.layout import Cell, Origin
from penstock.plan.bounds import Filter
from penstock.plan.search import Answer, Terms, Trials, processes, search
from penstock.plan.space import Option, as_one
from penstock.plan.trial import Load, Tally, trial

#: Of the rate that was found.
AROUND = (0.5, 0.75, 1.0, 1.1, 1.25, 1.5)

#: An option, a rate in requests/s a GPU, and a repeat.
_Run = tuple[Option, float, int]


def over_rate(
    answers: Sequence[Answer],
    terms: Terms,
    folder: Path,
    jobs: int = 1,
    on_run: Callable[[], object] = lambda: None,
) -> list[Series]:
    """Share that keeps the SLO, both of its times, over rate a GPU: a curve each."""
    runs: list[_Run] = [
        (answer.option, answer.rate * share, repeat)
        for answer, share, repeat in product(answers, AROUND, range(len(terms.seeds)))
    ]
    judged: dict[tuple[str, float], list[Judged]] = {}
    with processes(jobs) as run:
        for (option, rate, _), one in zip(runs, run(partial(_judged, terms=terms, folder=folder), runs), strict=True):
            judged.setdefault((option.name, rate), []).append(one)
            on_run()
    return [
        Series(answer.option.name, terms.goal.slo, tuple(
            Point(Cell(rate), tuple(ones)) for (name, rate), ones in judged.items() if name == answer.option.name
        ))
        for answer in answers
    ]  # fmt: skip


def on_the_whole(
    answers: Sequence[Answer],
    terms: Terms,
    folder: Path,
    jobs: int = 1,
    on_answer: Callable[[Answer], object] = lambda answer: None,
) -> list[Answer]:
    """The rates that these options carry over a whole trace, the best first; `terms` with the whole as the load. Half
    of what short runs have found is taken for safe, as a bound is."""
    sieve = Filter(terms.load, terms.goal, terms.seeds)
    options = []
    for answer in answers:
        bounds, rate = sieve.bounds(answer.option), answer.rate * answer.option.gpus
        low = min(max(bounds.low, rate / 2), bounds.high)
        options.append((answer.option, msgspec.structs.replace(bounds, low=low, likely=rate)))
    return search(options, msgspec.structs.replace(terms, best=len(options)), folder, jobs, on_answer)


def _judged(run: _Run, *, terms: Terms, folder: Path) -> Judged:
    option, rate, repeat = run
    cell = Cell(rate, num_prompts=terms.load.count(rate * option.gpus))
    path = layout.path_of(folder / option.name, cell, repeat)
    if path.exists():
        return curves.judge(result.load(path).records, terms.goal.slo)
    seed = terms.seeds[repeat]
    _, records = trial(option, terms.load, terms.goal, rate * option.gpus, seed)
    judged = curves.judge(records, terms.goal.slo)
    origin = msgspec.to_builtins(Origin(cell, repeat, seed, penstock.__version__))
    result.save(
        result.Result(run={"simulated": True, layout.ORIGIN: origin}, summary=judged.summary, records=records),
        layout.partial(path),
    )
    os.replace(layout.partial(path), path)
    return judged


def cheapest(
    answers: Sequence[Answer], rate: float, gpus_max: int, terms: Terms, folder: Path | None = None
) -> tuple[Option, int] | None:
    """The unit, and how many of it, that carries `rate` requests/s in all on the fewest GPUs; shown in the twin as one
    deployment. None where `gpus_max` are not enough."""
    waiting: list[tuple[int, float, str, int, Option]] = []
    for answer in answers:
        if answer.rate:
            units = ceil(rate / (answer.rate * answer.option.gpus) - 1e-9)
            heappush(waiting, (units * answer.option.gpus, -answer.rate, answer.option.name, units, answer.option))
    while waiting:
        gpus, order, name, units, option = heappop(waiting)
        if gpus > gpus_max:
            return None
        if _carries(option, units, rate, terms, folder):
            return option, units
        heappush(waiting, (gpus + option.gpus, order, name, units + 1, option))
    return None


def attained(option: Option, units: int, rate: float, terms: Terms) -> float:
    """The share of requests that so many units keep the SLO of at `rate` requests/s in all, over whole runs of every
    seed."""
    whole, load = _whole(option, units, terms)
    total = Tally(requests=0)
    for seed in terms.seeds:
        total = total.plus(trial(whole, load, terms.goal, rate, seed)[0])
    return total.share(terms.goal)


def _carries(option: Option, units: int, rate: float, terms: Terms, folder: Path | None) -> bool:
    whole, load = _whole(option, units, terms)
    trials = Trials(whole, msgspec.structs.replace(terms, load=load), folder)
    return trials.carries(rate / whole.gpus)


def _whole(option: Option, units: int, terms: Terms) -> tuple[Option, Load]:
    """Units as one option; and as many requests a unit as one of them was tried with."""
    return as_one(option, units), msgspec.structs.replace(terms.load, num_prompts=units * terms.load.num_prompts)
