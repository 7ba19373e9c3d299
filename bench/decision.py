"""How long the scheduler thinks: the time of one step's decision with everything accounted for, by jobs that run.

    python bench/decision.py

One decision is `handle(StepDone)`: settle the step before, compose the next one, return the commands. Decoding jobs at
random contexts, so that in each step some of them need a page and some share a block. Target: 0.15 ms at 256 jobs.
"""

import random
import time

from penstock.core.config import InstanceConfig, Limits
from penstock.core.events import StepDone, Submitted
from penstock.core.instance import Instance
from penstock.core.spec import JobSpec, Unit
from penstock.policies.bundles import ROWS, make_instance

STEPS, ROUNDS = 2000, 10


def busy_instance(policy: str, jobs: int) -> tuple[Instance, int]:
    """An instance on which so many jobs decode, and the number of its next step."""
    limits = Limits(max_num_seqs=jobs, max_num_batched_tokens=8192)
    instance = make_instance(InstanceConfig(policy=policy, pages=jobs * 1400, limits=limits))
    draw = random.Random(0)
    for job in range(jobs):
        prompt = draw.randrange(50, 500)
        keys = tuple(job * 10_000 + block for block in range(prompt // 64))
        spec = JobSpec(id=job, units=(Unit("lm", prompt + 5 * STEPS),), known=prompt, arrival=job, keys=keys)
        instance.handle(Submitted(spec, 0), 0)
    step = 0
    while any(job.done < job.spec.known for job in instance.jobs.values()):
        instance.handle(StepDone(step), 0)
        step += 1
    return instance, step


def decision_ms(instance: Instance, first: int) -> list[float]:
    """The times of the next decisions."""
    times = []
    for step in range(first, first + STEPS // ROUNDS):
        began = time.perf_counter_ns()
        instance.handle(StepDone(step), step)
        times.append((time.perf_counter_ns() - began) / 1e6)
    return times


def main() -> None:
    """In turns, so that a machine that is slow for a while is slow for all."""
    cells = {(policy, jobs): busy_instance(policy, jobs) for policy in ROWS for jobs in (1, 32, 256, 1024)}
    times: dict[tuple[str, int], list[float]] = {cell: [] for cell in cells}
    for turn in range(ROUNDS):
        for cell, (instance, first) in cells.items():
            times[cell] += decision_ms(instance, first + turn * (STEPS // ROUNDS))
    print(f"{'policy':14} {'running':>8} {'P10 ms':>8} {'median ms':>10} {'P90 ms':>8} {'us a job':>9}")
    for (policy, jobs), all_ms in times.items():
        p10, middle, p90 = (sorted(all_ms)[len(all_ms) * n // 10] for n in (1, 5, 9))
        print(f"{policy:14} {jobs:8} {p10:8.3f} {middle:10.3f} {p90:8.3f} {1000 * middle / jobs:9.2f}")


if __name__ == "__main__":
    main()
