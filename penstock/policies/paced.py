"""Chunks as long as the tightest TPOT allows: no step longer, by prediction, than the running streams can bear.

Sarathi-Serve (OSDI 2024) picks one token budget for a deployment, so that a step keeps the TPOT target; here the budget
is picked anew each step, from what this step would take. A thirty-second part of the promise is kept in reserve, since
steps vary and a chunk that fits to the microsecond would break half of the promises. Prompts always get a sixteenth of
the step, so that they get on even where decoding alone takes all the time. Without a promise, or a predictor, it is
fcfs. It knows nothing of TTFT.
"""

from collections.abc import Iterable, Sequence

from penstock.core.batch import Batch
from penstock.core.job import Job
from penstock.core.predict import Predictor
from penstock.core.slo import Target
from penstock.core.step import Features
from penstock.policies.fcfs import admit, go_on

#: One part in so many of a step's positions is for prompts in any case.
_LEAST = 16
#: One part in so many of the promised time is not planned with.
_RESERVE = 32


def paced(batch: Batch, now: int) -> None:
    predictor = batch.predictor
    decoding = [job for job in batch.running if job.planned + 1 >= job.known]
    bound_ns = tightest_ns(predictor, decoding) if predictor is not None else None
    if predictor is not None and bound_ns is not None:
        batch.budget = positions_within(batch, predictor, decoding, bound_ns)
    if go_on(batch):
        admit(batch)
    batch.steady = bound_ns is None


def tightest_ns(predictor: Predictor, decoding: Iterable[Job]) -> int | None:
    """The shortest time per token promised to one of these jobs, less the reserve; None: nothing is promised."""
    promised = [tpot_ns(predictor, job, target) for job in decoding if (target := job.spec.slo.tpot) is not None]
    return min(promised) * (_RESERVE - 1) // _RESERVE if promised else None


def tpot_ns(predictor: Predictor, job: Job, target: Target) -> int:
    """The job's promise, in ns; multiples are of a step of its own."""
    return target.ns or target.resolve(predictor.step_ns(Features(1, job.known, 1, job.known)))


def positions_within(batch: Batch, predictor: Predictor, decoding: Sequence[Job], bound_ns: int) -> int:
    """The most positions for which this step is predicted to keep the bound, by bisection; at least what prompts get
    in any case."""
    lengths = [job.planned + 1 for job in decoding]
    decodes, context = len(lengths), sum(lengths)
    prompts = prompts_ahead(batch)
    high = min(batch.budget - decodes, sum(most for _, most in prompts))
    low = min(max(batch.budget // _LEAST, 1), high)
    while low < high:
        count = (low + high + 1) // 2
        slices, area = dealt(prompts, count)
        if predictor.step_ns(Features(decodes + count, context + area, decodes, context, slices)) <= bound_ns:
            low = count
        else:
            high = count - 1
    return decodes + max(low, 0)


def prompts_ahead(batch: Batch) -> list[tuple[int, int]]:
    """(start, positions) of prompts in the order in which they get theirs, as many as could fill the step."""
    prompts: list[tuple[int, int]] = []
    left = batch.budget
    for job in (*batch.running, *batch.waiting[: max(batch.seats, 0)]):
        if left <= 0:
            break
        if job.planned + 1 < job.known:
            prompts.append((job.planned, job.known - job.planned))
            left -= job.known - job.planned
    return prompts


def dealt(prompts: Iterable[tuple[int, int]], count: int) -> tuple[int, int]:
    """How many prompts get some of `count` positions, and the sum of the contexts that these see."""
    slices = area = 0
    for start, most in prompts:
        if count <= 0:
            break
        got = min(count, most)
        slices, area = slices + 1, area + got * start + got * (got + 1) // 2
        count -= got
    return slices, area
