"""Whole prompts before any decoding, as in vLLM 0.2: the classic baseline.

A step is either prompts only, as many whole ones as the token budget holds (a longer one goes alone), or one token of
every running job. New prompts therefore stall all running streams.
"""

from penstock.core.batch import Batch
from penstock.policies.fcfs import go_on


def prefill_first(batch: Batch, now: int) -> None:
    while batch.waiting:
        job = batch.waiting[0]
        if not batch.slices:
            batch.budget = max(batch.budget, job.known)
        if not batch.admit(job, job.known, whole=True):
            break
    if not batch.slices:
        go_on(batch)
        # A prompt that waits for pages may need fewer at any step, as others compute what it has in common with them.
        batch.steady = not batch.waiting or not batch.seats
