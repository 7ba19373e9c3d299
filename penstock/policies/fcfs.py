"""First come, first served: continuous batching with chunked prefill, as in Sarathi-Serve (OSDI'24) and vLLM.

Running jobs go on first, one token each; what is left of the token budget goes to prompts, in order of arrival, cut to
fit. A prompt starts once there are pages for all of it. A running job that finds no page takes those of the job that
was admitted last, which will recompute.
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
    """Let waiting jobs in by order, until one does not fit: all of its prompt, not only the chunk that is next. Else
    the rest of it finds no page, and it is put out again, for as long as others hold them."""
    while batch.waiting and batch.budget and fits(batch, batch.waiting[0]):
        if not batch.admit(batch.waiting[0], batch.budget):
            break


def fits(batch: Batch, job: Job) -> bool:
    """Whether there are pages for all that is known of the job. Where nobody runs it need not wait for them."""
    pages = batch.pages
    if not batch.slices:
        return True
    blocks, held = pages.match(job)
    need = job.known - blocks * pages.block_tokens
    return pages.available - held >= -(-need // pages.page_tokens)
