"""The more urgent first, and it preempts: lower numbers are more urgent, as in vLLM; ties by arrival.

Unlike vLLM, where a priority only matters once pages run out, a waiting job takes the seat and the pages of the least
urgent running jobs at once, as long as those are strictly less urgent than itself.
"""

from penstock.core.batch import Batch
from penstock.core.job import Job


def order(job: Job) -> tuple[int, ...]:
    return (job.spec.priority, *job.order)


def priority(batch: Batch, now: int) -> None:
    for job in batch.advance():
        while batch.holds(job) and batch.budget > 0 and not batch.add(job, batch.budget):
            batch.preempt(least_urgent(batch))
    while batch.waiting and batch.budget > 0:
        job = batch.waiting[0]
        if batch.admit(job, batch.budget):
            continue
        victim = least_urgent(batch) if batch.running else None
        if victim is None or victim.spec.priority <= job.spec.priority or not batch.may_admit(job):
            break
        batch.preempt(victim)
    batch.steady = True


def least_urgent(batch: Batch) -> Job:
    return max(batch.running, key=order)
