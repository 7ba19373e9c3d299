"""The cluster core: placement by rank, the ledger, bounds."""

from penstock.core.cluster import Cluster, ClusterConfig
from penstock.core.commands import ClusterCommand, Dispatch, Lost, Refuse
from penstock.core.events import Arrived, Ended, Joined, Left, Load, Reported
from penstock.core.job import JobSpec, Unit
from penstock.core.slo import SECOND
from penstock.policies.bundles import make_cluster


def spec(job: int) -> JobSpec:
    return JobSpec(id=job, units=(Unit("lm", 20),), known=10, arrival=job)


def cluster(instances: int, max_num_queued: int = 100) -> Cluster:
    made = make_cluster(ClusterConfig(max_num_queued=max_num_queued))
    for instance in range(instances):
        made.handle(Joined(instance), 0)
    return made


def where(commands: list[ClusterCommand]) -> list[int]:
    return [c.instance for c in commands if isinstance(c, Dispatch)]


def test_a_burst_between_two_reports_is_spread_by_the_ledger() -> None:
    made = cluster(4)
    placed = [where(made.handle(Arrived(spec(job)), 0)) for job in range(8)]
    assert sorted(instance for (instance,) in placed) == [0, 0, 1, 1, 2, 2, 3, 3]


def test_the_least_loaded_by_its_report_gets_the_next_job() -> None:
    made = cluster(3)
    for instance, waiting in enumerate((5, 1, 3)):
        made.handle(Reported(instance, Load(waiting=waiting)), 0)
    assert where(made.handle(Arrived(spec(0)), 0)) == [1]


def test_a_report_that_has_seen_the_dispatch_does_not_count_it_twice() -> None:
    made = cluster(1, max_num_queued=2)
    assert where(made.handle(Arrived(spec(0)), 0)) == [0]
    assert where(made.handle(Arrived(spec(1)), 0)) == [0]
    assert isinstance(made.handle(Arrived(spec(2)), 0)[0], Refuse)
    made.handle(Reported(0, Load(seen=2, running=2)), 0)
    assert where(made.handle(Arrived(spec(3)), 0)) == [0]


def test_jobs_wait_for_the_first_instance_within_bounds_and_keep_their_order() -> None:
    made = cluster(0, max_num_queued=2)
    assert made.handle(Arrived(spec(0)), 0) == []
    assert made.handle(Arrived(spec(1)), 0) == []
    (refusal,) = made.handle(Arrived(spec(2)), 0)
    assert isinstance(refusal, Refuse)
    assert refusal.retry_ns >= SECOND
    made.handle(Ended(0), 0)
    commands = made.handle(Joined(0), 0)
    assert [c.spec.id for c in commands if isinstance(c, Dispatch)] == [1]


def test_an_instance_that_leaves_loses_its_jobs_once() -> None:
    made = cluster(2)
    for job in range(4):
        made.handle(Arrived(spec(job)), 0)
    made.handle(Ended(0), 0)
    lost = made.handle(Left(0), 0)
    assert lost == [Lost(2, 0)]
    assert made.handle(Left(0), 0) == []
    assert where(made.handle(Arrived(spec(9)), 0)) == [1]


def test_retry_is_longer_the_slower_the_queue() -> None:
    def retry(ended: int) -> int:
        made = cluster(1, max_num_queued=50)
        made.handle(Reported(0, Load(waiting=50, ended=ended)), 0)
        (refusal,) = made.handle(Arrived(spec(0)), 100 * SECOND)
        assert isinstance(refusal, Refuse)
        return refusal.retry_ns

    assert retry(1000) == SECOND
    assert retry(100) == 5 * SECOND
    assert retry(0) == 60 * SECOND
