"""A fixed token budget a step, prompts split and fused to fill it, as DeepSpeed-FastGen's SplitFuse and LightLLM do.

Admission is LightLLM's: a job starts only if the most pages that all running jobs can ever hold together, each going to
its limit, are there. So nothing is ever preempted, at the price of jobs that wait although there is room now.
"""

from collections.abc import Iterable

from penstock.core.batch import Batch
from penstock.core.job import Job
from penstock.policies.fcfs import go_on


def splitfuse(batch: Batch, now: int) -> None:
    go_on(batch)
    while batch.waiting:
        job = batch.waiting[0]
        if not fits(batch, job):
            batch.reason = "the running jobs, each at its limit, may need the pages that are free"
            break
        if not batch.admit(job, batch.budget):
            break
    # Whether the next one fits depends on what each running job has left, so it may fit at any step.
    batch.steady = not batch.waiting or not batch.budget or not batch.seats


def fits(batch: Batch, job: Job) -> bool:
    """Whether the peak of all running jobs and this one fits into the pool. Alone, any job does."""
    return not batch.running or peak_pages([*batch.running, job], batch.pages.page_tokens) <= batch.pages.pages


def peak_pages(jobs: Iterable[Job], page_tokens: int) -> int:
    """The most pages that jobs hold at one time if each goes to its limit, one position a step.

    LightLLM's estimate. Just before the job with the i-th most left ends, the i jobs that are still there hold what
    they hold now and have each grown by what that one has left now. A page more for each covers partly filled ones.
    """
    peak = held = 0
    for count, job in enumerate(sorted(jobs, key=remaining, reverse=True), start=1):
        held += max(job.known, job.planned)
        peak = max(peak, -(-(held + remaining(job) * count) // page_tokens) + count)
    return peak


def remaining(job: Job) -> int:
    return job.total - max(job.known, job.planned)
