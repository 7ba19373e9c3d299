"""First come, first served: continuous batching with chunked prefill, as in Sarathi-Serve (OSDI'24) and vLLM.

Running jobs go on first, one token each; what is left of the token budget goes to prompts, in order of arrival, cut to
fit. A running job that finds no page takes those of the job admitted last, which will recompute.
"""

from penstock.core.batch import Batch
from penstock.core.job import Job


def order(job: Job) -> tuple[int, ...]:
    return job.order


def fcfs(batch: Batch, now: int) -> None:
    if go_on(batch):
        admit(batch)
    batch.steady = True


def go_on(batch: Batch) -> bool:
    """Give every running job its positions. False if that took a preemption: then there is no room for new jobs."""
    preempted = False
    for job in batch.advance():
        while batch.holds(job) and batch.budget > 0 and not batch.add(job, batch.budget):
            batch.preempt(batch.last())
            preempted = True
    return not preempted


def admit(batch: Batch) -> None:
    """Let waiting jobs in by order, until one does not fit."""
    while batch.waiting and batch.admit(batch.waiting[0], batch.budget):
        pass
