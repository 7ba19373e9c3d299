"""The least latency at a given rate: each option as often as the cluster holds it, in whole runs of the same requests.

One run of each option, all runs of the best of these. An option cannot be where it does not keep up (answers under way
become more and more), or where too few requests keep the SLO, if there is one.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from math import sqrt
from pathlib import Path

import msgspec
import numpy as np

from penstock.metrics import layout
from penstock.metrics.layout import Cell
from penstock.metrics.record import COMPLETED, Record
from penstock.plan.search import Terms, processes
from penstock.plan.space import Option
from penstock.plan.trial import Tally, trial

METRICS = ("ttft", "tpot", "e2e")
#: It does not keep up where in the later half of the arrivals so large a part of them is left over, and that is more
#: than so many standard deviations of what is under way by chance.
_LEFT_OVER = 0.1
_SURE = 3


class Aim(msgspec.Struct, frozen=True):
    """What is to be least: a percentile of one of `METRICS`, at `rate` requests/s."""

    rate: float
    metric: str = "e2e"
    percentile: float = 90.0

    def __str__(self) -> str:
        return f"P{self.percentile:g} {self.metric.upper()}"


class Run(msgspec.Struct, frozen=True):
    """One run."""

    #: ms, of requests that have this latency; None where there was no answer.
    values: list[float | None]
    tally: Tally
    #: Requests of the later half of the arrivals; answers under way at its begin and at its end.
    later: int
    before: int
    after: int


class Timed(msgspec.Struct, frozen=True, kw_only=True):
    """What was found of an option, as one deployment of all its units."""

    option: Option
    runs: list[Run]

    def ms(self, aim: Aim) -> float:
        """Over the requests of all runs; infinite where too many were not answered."""
        values = [np.inf if value is None else value for run in self.runs for value in run.values]
        return float(np.percentile(values, aim.percentile, method="higher")) if values else np.inf

    @property
    def tally(self) -> Tally:
        total = Tally(requests=0)
        for run in self.runs:
            total = total.plus(run.tally)
        return total

    def reason(self, terms: Terms) -> str:
        """Why it cannot be; empty where it can."""
        tally, goal = self.tally, terms.goal
        if goal.slo and tally.missed(goal) > goal.allowed(tally.requests):
            return f"fewer than {100 * goal.target:g} % keep {goal.slo}: {tally.limit}"
        later, before, after = (sum(getattr(run, name) for run in self.runs) for name in ("later", "before", "after"))
        if after - before > max(_LEFT_OVER * later, _SURE * sqrt(before + after)):
            return f"does not keep up: of {later} requests {after - before} are left over"
        return ""


def least(
    options: Sequence[Option],
    aim: Aim,
    terms: Terms,
    finals: Terms,
    folder: Path | None = None,
    jobs: int = 1,
    on_run: Callable[[], object] = lambda: None,
) -> list[Timed]:
    """All, the best first and those that cannot be last. `terms` are of the first look, `finals` of the second."""
    kept: list[Timed] = []
    failed: list[Timed] = []
    with processes(jobs) as run:
        ranked = _timed(options, [0], aim, terms, folder and folder / "first", run, on_run, early=True)
        ranked.sort(key=lambda one: (bool(one.reason(terms)), *_order(one, aim)))
        able = sum(not one.reason(terms) for one in ranked)
        at = 0
        while not kept and at < able:
            best = [one.option for one in ranked[at : min(at + terms.best, able)]]
            repeats = range(len(finals.seeds))
            looked = _timed(best, repeats, aim, finals, folder and folder / "second", run, on_run, early=False)
            kept = sorted((one for one in looked if not one.reason(finals)), key=lambda one: _order(one, aim))
            failed += [one for one in looked if one.reason(finals)]
            at += len(best)
    return kept + ranked[at:] + failed


def _order(one: Timed, aim: Aim) -> tuple[float, int, str]:
    return one.ms(aim), one.option.gpus, one.option.name


def _timed(
    options: Sequence[Option],
    repeats: Sequence[int],
    aim: Aim,
    terms: Terms,
    folder: Path | None,
    run: Callable[..., Iterable[Run]],
    on_run: Callable[[], object],
    early: bool,
) -> list[Timed]:
    tasks = [(option, repeat) for option in options for repeat in repeats]
    found: dict[str, list[Run]] = {option.name: [] for option in options}
    results = run(partial(_one, aim=aim, terms=terms, folder=folder, early=early), tasks)
    for (option, _), one in zip(tasks, results, strict=True):
        found[option.name].append(one)
        on_run()
    return [Timed(option=option, runs=found[option.name]) for option in options]


def _one(task: tuple[Option, int], *, aim: Aim, terms: Terms, folder: Path | None, early: bool) -> Run:
    """`early`: it ends as soon as too many have missed the SLO."""
    option, repeat = task
    cell = Cell(aim.rate, num_prompts=terms.load.count(aim.rate))
    path = layout.path_of(folder / option.name, cell, repeat) if folder is not None else None
    if path is not None and path.exists():
        return msgspec.json.decode(path.read_bytes(), type=Run)
    goal = terms.goal

    def lost(tally: Tally) -> bool:
        return early and bool(goal.slo) and tally.missed(goal) > goal.allowed(tally.requests)

    tally, records = trial(option, terms.load, goal, aim.rate, terms.seeds[repeat], lost)
    found = _run(tally, records, aim.metric)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        layout.partial(path).write_bytes(msgspec.json.encode(found))
        layout.partial(path).rename(path)
    return found


def _run(tally: Tally, records: Sequence[Record], metric: str) -> Run:
    answered = [getattr(r, f"{metric}_ns") for r in records if r.outcome == COMPLETED]
    lost = sum(r.outcome != COMPLETED for r in records)
    middle_ns, last_ns = records[len(records) // 2].sent_ns, records[-1].sent_ns

    def under_way(now_ns: int) -> int:
        return sum(r.sent_ns <= now_ns < r.end_ns for r in records)

    return Run(
        values=[ns / 1e6 for ns in answered if ns is not None] + [None] * lost,
        tally=tally,
        later=sum(middle_ns < r.sent_ns <= last_ns for r in records),
        before=under_way(middle_ns),
        after=under_way(last_ns),
    )
