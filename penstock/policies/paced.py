"""Chunks as long as the tightest TPOT allows: no step longer, by prediction, than the running streams can bear.

Sarathi-Serve (OSDI 2024) picks one token budget for a deployment so that a step keeps the TPOT target; here the budget
is picked anew each step, from what the step would take. A prompt always gets a sixteenth of the step, so that it gets
on even where decoding alone takes all the time. Without a promise, or a predictor, it is fcfs.
"""

from penstock.core.batch import Batch
from penstock.core.job import Job
from penstock.core.slo import Target
from penstock.core.step import Features
from penstock.policies.fcfs import admit, go_on

#: Part of a step's tokens that prompts get in any case.
_LEAST = 16


def paced(batch: Batch, now: int) -> None:
    bound_ns = tightest_ns(batch)
    if bound_ns is not None:
        batch.budget = positions_within(batch, bound_ns)
    if go_on(batch):
        admit(batch)
    batch.steady = bound_ns is None


def tightest_ns(batch: Batch) -> int | None:
    """The shortest time per token promised to a job that is decoding; None: nothing is promised."""
    if batch.predictor is None:
        return None
    bounds = [tpot_ns(batch, job, target) for job in batch.running if (target := job.spec.slo.tpot) and decodes(job)]
    return min(bounds, default=None)


def tpot_ns(batch: Batch, job: Job, target: Target) -> int:
    """The job's promise, in ns; multiples are of a step of its own."""
    if target.ns or batch.predictor is None:
        return target.ns
    return target.resolve(batch.predictor.step_ns(Features(1, job.known, 1, job.known)))


def decodes(job: Job) -> bool:
    return job.planned + 1 >= job.known


def positions_within(batch: Batch, bound_ns: int) -> int:
    """The most positions for which this step is predicted to keep the bound, by bisection."""
    assert batch.predictor is not None
    lengths = [job.planned + 1 for job in batch.running if decodes(job)]
    decoding, context = len(lengths), sum(lengths)
    prompt = next((job for job in batch.running if not decodes(job)), None) or next(iter(batch.waiting), None)
    if prompt is None:
        return batch.budget
    start, prompts = prompt.planned, batch.budget - decoding
    low, high = min(batch.budget // _LEAST, prompts), prompts
    while low < high:
        count = (low + high + 1) // 2
        area = count * start + count * (count + 1) // 2
        features = Features(decoding + count, context + area, decoding, context, 1)
        if batch.predictor.step_ns(features) <= bound_ns:
            low = count
        else:
            high = count - 1
    return decoding + max(low, 1)
