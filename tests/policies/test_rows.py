"""What each policy row decides, step by step, on small cases worked out by hand."""

import pytest

from penstock.core import laws
from penstock.core.commands import Bind, Release, Run
from penstock.core.config import InstanceConfig, Limits
from penstock.core.events import StepDone, Submitted
from penstock.core.features import features
from penstock.core.instance import Instance
from penstock.core.job import Job
from penstock.core.slo import MS, Slo
from penstock.core.spec import JobSpec, Unit
from penstock.cost.linear import Linear
from penstock.policies.bundles import make_instance, row
from penstock.policies.splitfuse import peak_pages


class Bench:
    """An instance whose steps are always executed as planned."""

    def __init__(
        self, policy: str, *, pages: int = 100, seats: int = 10, budget: int = 20, cost: Linear | None = None
    ) -> None:
        limits = Limits(max_num_seqs=seats, max_num_batched_tokens=budget)
        config = InstanceConfig(policy=policy, pages=pages, page_tokens=4, block_tokens=8, limits=limits)
        self.instance: Instance = make_instance(config, cost)
        self.plan: dict[int, int] = {}
        self.preempted: list[int] = []
        self.bound: dict[int, int] = {}
        self._seq = -1
        self._now = 0

    def submit(
        self, job: int, prompt: int, new: int, priority: int = 0, keys: tuple[int, ...] = (), slo: str = ""
    ) -> None:
        unit = Unit("lm", prompt + new - 1)
        spec = JobSpec(
            id=job, units=(unit,), known=prompt, arrival=job, priority=priority, keys=keys, slo=Slo.parse(slo)
        )
        self._take(Submitted(spec, 0))

    def step(self, took: float = 0.0) -> dict[int, int]:
        """Finish the step in flight, which took so many times what `COST` says; the next one as {job: positions}."""
        flying = self.instance.steps[self._seq]
        took_ns = round(took * COST.step_ns(features(flying.slices)))
        self.plan = {}
        self._now += took_ns
        self._take(StepDone(self._seq))
        return self.plan

    def _take(self, event: Submitted | StepDone) -> None:
        for command in self.instance.handle(event, self._now):
            if isinstance(command, Run):
                self._seq = command.plan.seq
                self.plan = {piece.job: piece.count for piece in command.plan.slices}
            elif isinstance(command, Release) and not command.forget:
                self.preempted.append(command.job)
            elif isinstance(command, Bind):
                self.bound[command.job] = len(command.keys)
        laws.check(self.instance)


def test_fcfs_decodes_first_and_fills_the_budget_with_prompt_chunks() -> None:
    bench = Bench("fcfs", budget=20)
    bench.submit(0, prompt=10, new=5)
    assert bench.plan == {0: 10}
    bench.submit(1, prompt=50, new=5)
    bench.submit(2, prompt=3, new=5)
    assert bench.step() == {0: 1, 1: 19}
    assert bench.step() == {0: 1, 1: 19}
    assert bench.step() == {0: 1, 1: 12, 2: 3}
    assert bench.step() == {0: 1, 1: 1, 2: 1}


def test_fcfs_preempts_the_last_admitted_and_lets_nobody_in_meanwhile() -> None:
    bench = Bench("fcfs", pages=6, budget=20)
    bench.submit(0, prompt=12, new=12)
    bench.submit(1, prompt=8, new=12)
    assert bench.step() == {0: 1, 1: 8}, "4 pages to the first, the two that are left to the second"
    bench.submit(2, prompt=1, new=2)
    assert bench.step() == {0: 1}, "the second finds no page, and being the last admitted gives up its own"
    assert bench.preempted == [1]
    assert bench.step() == {0: 1}, "which are not enough to let it in again; and 2 waits behind it"


def test_fcfs_lets_a_prompt_in_once_there_are_pages_for_all_of_it() -> None:
    """Its first chunk alone would fit at once, and be put out again."""
    bench = Bench("fcfs", pages=8, budget=12)
    bench.submit(0, prompt=12, new=3)
    bench.submit(1, prompt=24, new=2)
    assert [bench.step() for _ in range(2)] == [{0: 1}, {0: 1}], "three pages, then a fourth: four are left of six"
    assert bench.step() == {1: 12}
    assert bench.step() == {1: 12}
    assert not bench.preempted


def test_steps_may_be_those_of_another_row() -> None:
    limits = Limits(max_num_seqs=10, max_num_batched_tokens=20)
    config = InstanceConfig(policy="llumnix", compose="prefill-first", pages=100, limits=limits)
    instance = make_instance(config)
    assert instance.compose is row("prefill-first").compose
    assert instance.waiting.order is row("llumnix").order, "who comes first is still the policy's matter"


def test_prefill_first_stalls_decodes_for_whole_prompts() -> None:
    bench = Bench("prefill-first", budget=20)
    bench.submit(0, prompt=10, new=5)
    bench.submit(1, prompt=12, new=5)
    bench.submit(2, prompt=8, new=5)
    bench.submit(3, prompt=70, new=5)
    assert bench.step() == {1: 12, 2: 8}
    assert bench.step() == {3: 70}, "longer than the budget: alone"
    assert bench.step() == {0: 1, 1: 1, 2: 1, 3: 1}


def test_splitfuse_never_preempts_because_it_admits_by_the_peak() -> None:
    bench = Bench("splitfuse", pages=8, budget=8)
    bench.submit(0, prompt=8, new=13)
    bench.submit(1, prompt=8, new=13)
    assert bench.step() == {0: 1}, "both would need ten pages in the end"
    assert bench.instance.reason
    for _ in range(12):
        bench.step()
    assert bench.plan == {1: 8}
    assert not bench.preempted


def test_splitfuse_peak_is_that_of_stepping_through_time() -> None:
    def job(number: int, known: int, left: int) -> Job:
        made = Job(JobSpec(id=number, units=(Unit("lm", known + left),), known=known, arrival=0), 0)
        made.planned = known
        return made

    def plain(jobs: list[Job]) -> int:
        sizes = [(j.known, j.total - j.known) for j in jobs]
        horizon = max(left for _, left in sizes)
        return max(sum(known + t + 1 for known, left in sizes if left >= t) for t in range(horizon + 1))

    for shape in ([(5, 3)], [(5, 9), (50, 2)], [(5, 9), (9, 9), (3, 1)], [(1, 30), (20, 10), (40, 5)]):
        jobs = [job(i, known, left) for i, (known, left) in enumerate(shape)]
        assert peak_pages(jobs, 1) == plain(jobs)


def test_priority_takes_seat_and_pages_from_the_least_urgent() -> None:
    bench = Bench("priority", seats=2, budget=20)
    bench.submit(0, prompt=4, new=9, priority=5)
    bench.submit(1, prompt=4, new=9, priority=7)
    bench.step()
    bench.submit(2, prompt=4, new=9, priority=5)
    bench.submit(3, prompt=4, new=9, priority=1)
    assert bench.step() == {0: 1, 3: 4}, "3 is the most urgent, 1 the least; 2 does not preempt its equal 0"
    assert bench.preempted == [1]


@pytest.mark.parametrize("policy", ["fcfs", "prefill-first", "splitfuse", "priority"])
def test_a_prefix_that_was_computed_is_not_computed_again(policy: str) -> None:
    bench = Bench(policy, budget=50)
    bench.submit(0, prompt=20, new=2, keys=(1, 2))
    bench.step()
    bench.submit(1, prompt=20, new=2, keys=(1, 2))
    bench.submit(2, prompt=16, new=2, keys=(1, 2))
    bench.submit(3, prompt=20, new=2, keys=(1, 9))
    bench.step()
    assert bench.plan == {1: 4, 2: 8, 3: 12}, "the last position of a prompt is always executed"
    assert bench.bound == {0: 0, 1: 2, 2: 1, 3: 1}


def test_an_unknown_row_is_named_with_those_that_exist() -> None:
    with pytest.raises(ValueError, match=r"fcfs.*priority"):
        row("best")


#: 10 ms a step, 1 ms a prompt position, 2 ms a decode.
COST = Linear(10.0 * MS, 1.0 * MS, 0.0, 2.0 * MS, 0.0)
