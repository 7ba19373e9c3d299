"""The cluster core: placement by rank, the ledger, bounds."""

import random

from penstock.core.cluster import Cluster
from penstock.core.commands import ClusterCommand, Dispatch, Lost, Order, Refuse, Retire
from penstock.core.config import Balance, ClusterConfig
from penstock.core.events import Arrived, Asked, Drain, Ended, Joined, Left, Load, Moved, Reported, Rerole
from penstock.core.move import Assigned, Offload, Tick
from penstock.core.slo import MS, SECOND
from penstock.core.spec import JobSpec, Unit
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


# -- the ledger ------------------------------------------------------------------------------------------------


def test_what_is_on_its_way_counts_with_its_tokens_until_a_report_has_seen_it() -> None:
    made = make_cluster(ClusterConfig(policy="infaas++"))
    for instance in range(2):
        made.handle(Joined(instance, load=Load(seen=40, pages=100, pages_free=100)), 0)
    long = JobSpec(id=0, units=(Unit("lm", 90),), known=80, arrival=0)
    assert where(made.handle(Arrived(long), 0)) == [0]
    # 20 tokens for each of one job there, 100 here.
    assert [where(made.handle(Arrived(spec(job)), 0)) for job in (1, 2)] == [[1], [1]]
    expected = made.members[0].expected
    assert (expected.seen, expected.waiting, expected.waiting_tokens) == (41, 1, 80)
    seen = Load(seen=41, running=1, pages=100, pages_free=100)
    made.handle(Reported(0, seen), 0)
    assert made.members[0].expected == seen


def test_a_job_that_ends_before_it_is_seen_is_no_longer_on_its_way() -> None:
    made = cluster(1)
    made.handle(Arrived(spec(0)), 0)
    made.handle(Ended(0), 0)
    assert made.members[0].expected == Load()


def test_a_job_that_moved_is_on_its_way_to_where_it_went() -> None:
    made = cluster(2)
    made.handle(Arrived(spec(0)), 0)
    made.handle(Reported(0, Load(seen=1, running=1)), 0)
    made.handle(Moved(0, 1), 0)
    assert made.members[1].expected.waiting == 1
    assert made.handle(Left(1), 0) == [Lost(0, 1)]


# -- jobs that go on -------------------------------------------------------------------------------------------


def pair(pages_free: int, decoders: int = 1) -> Cluster:
    """An instance for prompts, and some for decoding with so many pages of one token each."""
    made = make_cluster(ClusterConfig(policy="distserve"))
    made.handle(Joined(0, "prefill"), 0)
    for number in range(1, decoders + 1):
        made.handle(Joined(number, "decode", Load(pages=1000, pages_free=pages_free)), 0)
    return made


def ask(made: Cluster, job: int, known: int) -> list[ClusterCommand]:
    return made.handle(Asked(0, job, 1, known, known + 100), 0)


def sent_on(commands: list[ClusterCommand]) -> list[tuple[int | None, int]]:
    """(job, to)"""
    return [(c.event.job, c.event.to) for c in commands if isinstance(c, Order) and isinstance(c.event, Offload)]


def room(made: Cluster, pages: int, instance: int = 1) -> list[tuple[int | None, int]]:
    return sent_on(made.handle(Reported(instance, Load(pages=1000, pages_free=pages)), 0))


def test_room_is_promised_so_that_it_is_not_given_twice() -> None:
    made = pair(pages_free=100)
    assert sent_on(ask(made, 0, 60)) == [(0, 1)]
    assert made.members[1].expected.pages_free == 40
    assert sent_on(ask(made, 1, 60)) == []
    made.handle(Ended(0), 0)
    assert room(made, 100) == [(1, 1)]


def test_who_asks_for_a_job_that_has_ended_gets_no_promise() -> None:
    """The word of its end came before the question."""
    made = pair(pages_free=100)
    for job in range(100):
        made.handle(Arrived(spec(job)), 0)
        made.handle(Ended(job), 0)
        assert ask(made, job, 10) == []
    assert made.members[1].expected.pages_free == 100
    assert sent_on(ask(made, 100, 60)) == [(100, 1)], "one that it has never heard of is no such job"


def test_a_job_that_has_been_moved_asks_no_longer() -> None:
    made = pair(pages_free=0, decoders=2)
    assert ask(made, 0, 10) == []
    made.handle(Moved(0, 2), 0)
    assert room(made, 100) == []
    assert made.members[1].expected.pages_free == 100


def test_nobody_is_sent_where_too_many_arrive_already() -> None:
    made = pair(pages_free=100)

    def let_in(most: int, arriving: int) -> list[tuple[int | None, int]]:
        load = Load(pages=1000, pages_free=100, arriving=arriving, arriving_most=most)
        return sent_on(made.handle(Reported(1, load), 0))

    let_in(2, 0)
    assert [sent_on(ask(made, job, 1)) for job in range(4)] == [[(0, 1)], [(1, 1)], [], []]
    assert let_in(2, 2) == [], "they arrive, and are still promised"
    made.handle(Moved(0, 1), 0)
    assert let_in(2, 1) == [(2, 1)], "one is there: the next may come"
    made.handle(Moved(1, 1), 0)
    assert let_in(0, 1) == [], "no seat is free"
    assert let_in(2, 1) == [(3, 1)], "the one that arrives may be the one that was promised"
    assert sent_on(ask(made, 2, 1)) == [(2, 1)], "turned away after all, it asks again: its promise had been given back"


def test_those_that_wait_for_room_go_in_order_and_a_large_one_holds_up_nobody_who_fits() -> None:
    made = pair(pages_free=0)
    for job, known in enumerate((500, 30, 40)):
        assert ask(made, job, known) == []
    assert room(made, 60) == [(1, 1)], "the first does not fit, the third not beside the second"
    assert room(made, 1000) == [(0, 1), (2, 1)]


def test_a_large_one_is_not_overtaken_for_ever() -> None:
    made = pair(pages_free=0)
    ask(made, 0, 500)
    overtook = 0
    for job in range(1, 200):
        for gone, _ in sent_on(ask(made, job, 30)) + room(made, 60):
            overtook += 1
            made.handle(Ended(gone or 0), 0)
    assert overtook == 32
    assert room(made, 1000)[0] == (0, 1)


def test_an_instance_without_room_does_not_bar_the_next_one() -> None:
    """The fewest jobs are on the first, which they fill."""
    made = pair(pages_free=500, decoders=2)
    made.handle(Reported(1, Load(running=1, pages=1000, pages_free=10)), 0)
    made.handle(Reported(2, Load(running=2, pages=1000, pages_free=500)), 0)
    assert sent_on(ask(made, 0, 100)) == [(0, 2)]


def test_where_nobody_decodes_a_job_goes_on_where_it_is() -> None:
    made = pair(pages_free=100, decoders=0)
    assert sent_on(ask(made, 0, 60)) == [(0, 0)]
    assert not made._promises


def test_an_instance_that_leaves_takes_promises_with_it() -> None:
    made = pair(pages_free=100)
    made.handle(Arrived(spec(0)), 0)
    ask(made, 0, 60)
    made.handle(Left(0), 0)
    assert not made._promises
    assert made.members[1].expected.pages_free == 100


# -- draining and roles ----------------------------------------------------------------------------------------


def test_draining_ends_in_retire_once_empty_and_not_before() -> None:
    made = cluster(3)
    made.handle(Reported(0, Load(seen=2, running=2)), 0)
    made.handle(Reported(1, Load(seen=5, running=5)), 0)
    (order,) = made.handle(Drain(0), 0)
    assert order == Order(0, Offload(2, None, 4, "drain"))
    assert made.handle(Drain(0), 0) == []
    assert made.handle(Reported(0, Load(seen=2, running=1, leaving=1)), 0) == []
    assert made.handle(Reported(0, Load(seen=2, leaving=1)), 0) == []
    assert made.handle(Reported(0, Load(seen=2)), 0) == [Retire(0)]


def test_an_empty_instance_is_retired_at_once() -> None:
    assert cluster(2).handle(Drain(1), 0) == [Retire(1)]


def test_nothing_new_goes_to_a_draining_instance_while_another_is_up() -> None:
    made = cluster(2)
    made.handle(Reported(0, Load(seen=1, running=1)), 0)
    made.handle(Reported(1, Load(seen=90, running=90)), 0)
    made.handle(Drain(0), 0)
    assert [where(made.handle(Arrived(spec(job)), 0)) for job in range(3)] == [[1]] * 3
    made.handle(Left(1), 0)
    assert where(made.handle(Arrived(spec(9)), 0)) == [0], "better there than nowhere"


def test_orders_to_a_draining_instance_come_at_intervals_whatever_it_reports() -> None:
    """Else one that is refused everywhere would be told again at each refusal."""
    made = cluster(2)
    made.handle(Reported(0, Load(seen=9, running=9)), 0)
    assert len(made.handle(Drain(0), 0)) == 1
    for leaving in (4, 0, 4, 0):
        assert made.handle(Reported(0, Load(seen=9, running=9 - leaving, leaving=leaving)), MS) == []
    assert made.due == 50 * MS
    assert made.handle(Tick(), 50 * MS) == [Order(0, Offload(1, None, 4, "drain"))]
    assert made.due == 100 * MS


def test_without_migration_a_draining_instance_waits_for_its_jobs() -> None:
    made = make_cluster(ClusterConfig(balance=Balance(migration=False)))
    for number in range(2):
        made.handle(Joined(number), 0)
    made.handle(Reported(0, Load(seen=1, running=1)), 0)
    assert made.handle(Drain(0), 0) == []
    assert made.handle(Tick(), SECOND) == []
    assert made.handle(Reported(0, Load(seen=1)), 0) == [Retire(0)]


def test_an_instance_changes_its_role() -> None:
    made = pair(pages_free=100)
    ask(made, 0, 60)
    assert made.sums["decode"].members == 1
    assert made.handle(Rerole(0, "prefill"), 0) == [], "it has it"
    assert made.handle(Rerole(1, "prefill"), 0) == [Order(1, Assigned("prefill"))]
    assert made.sums["decode"].members == 0
    assert sent_on(made.handle(Asked(0, 1, 1, 60, 100), 0)) == [(1, 0)], "nobody decodes any more"


def test_an_instance_that_joins_again_is_counted_once() -> None:
    made = cluster(2)
    made.handle(Joined(1, "decode", Load(running=3)), 0)
    assert (made.sums[""].members, made.sums["decode"].members, made.total.jobs) == (1, 1, 3)
    assert [instance for _, instance in made.entries] == [0]


def test_many_reports_before_an_order_is_read() -> None:
    made, draw = cluster(40), random.Random(7)
    expected: dict[int, float] = dict.fromkeys(range(40), 0.0)
    for _ in range(500):
        instance, running = draw.randrange(40), draw.randrange(9)
        made.handle(Reported(instance, Load(running=running)), 0)
        expected[instance] = float(running)
    assert list(made.entries) == sorted((rank, instance) for instance, rank in expected.items())
    assert (made.total.members, made.total.jobs) == (40, sum(expected.values()))
