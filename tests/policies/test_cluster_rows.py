"""What rows decide for a cluster, worked out by hand: freeness and virtual usage, pairing, scaling, roles, turns."""

from typing import Any

import pytest

from penstock.core.cluster import Cluster
from penstock.core.commands import ClusterCommand, Dispatch, Order, Retire, Start
from penstock.core.config import Balance, ClusterConfig
from penstock.core.events import Arrived, Drain, Joined, Left, Load, NotStarted, Reported
from penstock.core.move import Assigned, Offload, Tick
from penstock.core.slo import MS, SECOND
from penstock.core.spec import JobSpec, Unit
from penstock.policies.bundles import make_cluster
from penstock.policies.llumnix import Virtual
from penstock.policies.place import freeness


def load(free: int, running: int = 0, *waiting: int, **more: Any) -> Load:
    """Of an instance of 1,000 tokens, `free` of them free, and jobs waiting with so many tokens each."""
    return Load(
        pages=1000, pages_free=free, running=running, waiting=len(waiting), waiting_tokens=sum(waiting),
        head_tokens=waiting[0] if waiting else 0, **more,
    )  # fmt: skip


def cluster(policy: str, loads: list[Load], roles: list[str] | None = None, **balance: Any) -> Cluster:
    made = make_cluster(ClusterConfig(policy=policy, balance=Balance(**balance)))
    for number, (here, role) in enumerate(zip(loads, roles or [""] * len(loads), strict=True)):
        made.handle(Joined(number, role, here), 0)
    return made


def spec(job: int, priority: int = 0, keys: tuple[int, ...] = ()) -> JobSpec:
    return JobSpec(id=job, units=(Unit("lm", 20),), known=10, arrival=job, priority=priority, keys=keys)


def place(made: Cluster, job: int, **more: Any) -> int:
    (command,) = made.handle(Arrived(spec(job, **more)), 0)
    assert isinstance(command, Dispatch)
    return command.instance


def tick(made: Cluster, now: int = 50 * MS) -> list[ClusterCommand]:
    return made.handle(Tick(), now)


# -- freeness and virtual usage --------------------------------------------------------------------------------

URGENT = Virtual(Balance(urgent_tokens=160))


@pytest.mark.parametrize(
    ("here", "pressure"),
    [
        (load(600, 4), 600 / 4),
        (load(600, 4, 100), (600 - 100) / 5),
        (load(600, 4, 100, 300, 200), (600 - 100) / 5),
        (load(50, 9, 500), (50 - 500) / 10),
        (load(600, 4, urgent=1), (600 - (1000 - 160)) / 4),
        (load(600, 4, urgent=3), (600 - (1000 - 160)) / 4),
        (load(1000), 1000.0),
        (load(1000, 0, 300), 700.0),
    ],
    ids=[
        "what is held", "the head of the queue, and a place for it", "none but the head", "more than there is",
        "an urgent job keeps its instance at a load", "several share that", "a new instance", "only a head",
    ],
)  # fmt: skip
def test_pressure_is_freeness_of_virtual_usage(here: Load, pressure: float) -> None:
    assert URGENT.pressure(here) == pytest.approx(pressure)


def test_without_defragmentation_the_queue_does_not_count() -> None:
    virtual = Virtual(Balance(defragmentation=False))
    assert virtual.pressure(load(600, 4, 500)) == 150.0


def test_new_jobs_count_all_that_wait() -> None:
    assert -URGENT.place(load(600, 4, 100, 200)) == (600 - 300) / 6
    assert freeness(load(600, 4, 100, 200)) == -(600 - 300) / 6


def test_new_jobs_take_what_is_kept_for_urgent_ones_only_before_they_would_wait() -> None:
    kept = [load(700, 9, urgent=1), load(500, 2, urgent=2)]
    ranked = [load(900, 1, urgent=1), load(600, 20), *kept, load(0, 5), load(100, 5, 50, 90), load(500, 1, 900)]
    ranks = [URGENT.place(here) for here in ranked]
    assert ranks == sorted(set(ranks))


def test_urgent_jobs_go_where_others_are_before_they_spoil_another_instance() -> None:
    others = [load(900, 2, urgent=1), load(600, 4, urgent=3)]
    ranked = [*others, load(950, 1), load(100, 9, urgent=9), load(700, 1), load(400, 4), load(0, 9, urgent=9)]
    ranks = [URGENT.place_urgent(here) for here in ranked]
    assert ranks == sorted(set(ranks))


def test_who_takes_a_job_can_still_take_another_one() -> None:
    """A job of 300 leaves 300 for 4 and the new one: 60 each."""
    virtual = Virtual(Balance())
    assert virtual.room(load(600, 4), 60.0) == 300
    assert virtual.room(load(600, 4, 100), 60.0) == 600 - 100 - 6 * 60
    assert virtual.room(load(100, 4), 60.0) < 0
    assert URGENT.room(load(900, 1, urgent=1), 10.0) == 900 - 840 - 20


def test_llumnix_dispatches_to_the_freest_and_an_urgent_job_regardless_of_headroom() -> None:
    loads = [load(700, 2, urgent=1), load(500, 2), load(300, 2)]
    made = cluster("llumnix", loads, urgent_tokens=160)
    assert place(made, 0, priority=-1) == 0
    assert place(made, 1) == 1
    off = cluster("llumnix", loads, urgent_tokens=160, dispatch=False)
    assert off.entries is off.urgent, "least loaded, whatever the priority"


def test_a_new_instance_has_the_most_room() -> None:
    made = cluster("llumnix", [load(900, 1)])
    made.handle(Joined(1, "", load(1000)), 0)
    assert place(made, 0) == 1


# -- moving ----------------------------------------------------------------------------------------------------


def moves(commands: list[ClusterCommand]) -> list[tuple[int, int]]:
    return [(c.instance, c.event.to) for c in commands if isinstance(c, Order) and isinstance(c.event, Offload)]


def test_the_worst_gives_to_the_best_and_the_second_worst_to_the_second_best() -> None:
    made = cluster("llumnix", [load(900, 2), load(40, 4), load(800, 2), load(100, 4), load(300, 4)])
    out = tick(made)
    assert moves(out) == [(1, 0), (3, 2)]
    # 900 less 96 for each of two and the new one.
    assert out[0] == Order(1, Offload(0, None, 1, "balance", 900 - 3 * 96))


@pytest.mark.parametrize(
    ("giver", "taker"),
    [
        (load(200, 4), load(900, 2)),
        (load(40, 4), load(180, 2)),
        (load(40, 0, 500), load(900, 2)),
        (load(40, 4, leaving=1), load(900, 2)),
        (load(40, 4), load(900, 2, arriving=1)),
        (load(40, 4), load(220, 2)),
    ],
    ids=[
        "need not", "cannot", "nothing runs there", "one is leaving", "one is arriving",
        "could not take another one then",
    ],
)  # fmt: skip
def test_when_no_job_moves(giver: Load, taker: Load) -> None:
    assert moves(tick(cluster("llumnix", [giver, taker]))) == []


def test_a_queued_head_makes_others_move_away_and_defragmentation_can_be_switched_off() -> None:
    loads = [load(300, 4, 500), load(900, 2)]
    assert moves(tick(cluster("llumnix", loads))) == [(0, 1)]
    assert moves(tick(cluster("llumnix", loads, defragmentation=False))) == []
    assert moves(tick(cluster("llumnix", loads, migration=False))) == []


def test_one_that_was_told_to_move_jobs_is_told_again_only_once_it_has_reported() -> None:
    made = cluster("llumnix", [load(40, 4), load(900, 2)])
    assert moves(tick(made, 50 * MS)) == [(0, 1)]
    assert moves(tick(made, 100 * MS)) == []
    made.handle(Reported(0, load(40, 4)), 0)
    assert moves(tick(made, 150 * MS)) == [], "the other has not"
    made.handle(Reported(1, load(900, 2)), 0)
    assert moves(tick(made, 200 * MS)) == [(0, 1)]


# -- the size of the fleet -------------------------------------------------------------------------------------

SIZED = {"scaling": True, "low_tokens": 100.0, "high_tokens": 400.0, "instances_min": 2, "instances_max": 5}


@pytest.mark.parametrize("policy", ["llumnix", "infaas++"])
def test_as_many_start_as_bring_the_mean_freeness_to_its_bound(policy: str) -> None:
    # 30 jobs want 3,000 free and have 600: of 1,000 each, three more; one at a time is looked at each 10 s.
    made = cluster(policy, [load(300, 15), load(300, 15)], **SIZED)
    assert [c for c in tick(made) if isinstance(c, Start)] == [Start()] * 3
    assert made.starting == 3
    assert tick(made, 10 * SECOND) == [], "not yet time"
    assert not [c for c in tick(made, 11 * SECOND) if isinstance(c, Start)], "they are on their way"
    made.handle(NotStarted(), 0)
    assert [c for c in tick(made, 30 * SECOND) if isinstance(c, Start)] == [Start()]


def test_the_fleet_stays_within_its_bounds() -> None:
    crowded = cluster("llumnix", [load(0, 50)] * 4, **SIZED)
    assert [c for c in tick(crowded) if isinstance(c, Start)] == [Start()]
    crowded.handle(Joined(4, "", load(0, 50)), 0)
    assert not [c for c in tick(crowded, 60 * SECOND) if isinstance(c, Start)]
    idle = cluster("llumnix", [load(1000)] * 3, **SIZED)
    assert tick(idle) == [Retire(2)]
    assert tick(idle, 60 * SECOND) == [], "two are the least, one of three is on its way out"


def test_one_is_emptied_only_if_the_others_alone_have_room_enough() -> None:
    # 4 jobs: 450 each; without one instance 2,800 - 1,000 for 4: 450 > 400.
    made = cluster("llumnix", [load(900, 2), load(900, 2), load(1000)], **SIZED)
    assert tick(made) == [Retire(2)]
    made = cluster("llumnix", [load(900, 2), load(900, 2), load(900, 2)], **SIZED)
    # 2,700 for 6 are 450, 1,700 for 6 are not.
    assert tick(made) == []


def test_one_that_drains_is_kept_when_it_is_needed_again() -> None:
    made = cluster("llumnix", [load(100, 10), load(100, 10), load(900, 1)], **SIZED | {"migration": False})
    made.handle(Drain(2), 0)
    # 20 jobs want 2,000 and have 200: two; one of them is still there.
    assert tick(made) == [Start()]
    assert not made.draining
    assert place(made, 0) == 2


def test_looks_must_agree() -> None:
    made = cluster("llumnix", [load(0, 50)] * 2, **SIZED, scale_looks=3)
    starts = [bool([c for c in tick(made, (1 + 10 * look) * SECOND) if isinstance(c, Start)]) for look in range(4)]
    assert starts == [False, False, True, False]


# -- roles -----------------------------------------------------------------------------------------------------


def assigned(commands: list[ClusterCommand]) -> list[tuple[int, str]]:
    return [(c.instance, c.event.role) for c in commands if isinstance(c, Order) and isinstance(c.event, Assigned)]


ROLES = ["prefill", "prefill", "decode", "decode"]


def test_roles_follow_the_load_one_at_a_time() -> None:
    queued = [load(1000, 1, 9000), load(1000, 1, 9000), load(800, 1), load(900, 0)]
    made = cluster("adaptive-pd", queued, ROLES)
    assert assigned(tick(made)) == [(3, "prefill")]
    assert assigned(tick(made, 1 * SECOND)) == [], "a pause, to see what came of it"
    full = [load(1000, 1), load(1000), load(50, 20), load(100, 20)]
    assert assigned(tick(cluster("adaptive-pd", full, ROLES))) == [(1, "decode")]


def test_one_of_each_role_stays() -> None:
    queued = [load(1000, 1, 90000), load(1000)]
    assert assigned(tick(cluster("adaptive-pd", queued, ["prefill", "decode"]))) == []
    full = [load(1000), load(0, 90)]
    assert assigned(tick(cluster("adaptive-pd", full, ["prefill", "decode"]))) == []


# -- turns and prefixes ----------------------------------------------------------------------------------------


def test_round_robin_takes_turns_whatever_the_load_and_whoever_joins_or_leaves() -> None:
    made = cluster("round-robin", [load(0, 90), load(1000), load(500, 1)])
    assert [place(made, job) for job in range(5)] == [0, 1, 2, 0, 1]
    made.handle(Joined(3, "", load(1000)), 0)
    assert [place(made, job) for job in range(5, 9)] == [2, 3, 0, 1], "one that is new gets no more than its turn"
    made.handle(Left(2), 0)
    assert [place(made, job) for job in range(9, 12)] == [3, 0, 1]


def test_prefix_aware_sends_on_to_where_the_longest_part_of_the_prompt_went() -> None:
    made = cluster("prefix-aware", [load(1000)] * 3)
    first = place(made, 0, keys=(1, 2, 3))
    other = place(made, 1, keys=(7, 8))
    assert first != other
    assert place(made, 2, keys=(1, 2, 9)) == first
    assert place(made, 3, keys=(7,)) == other
    assert place(made, 4, keys=(5,)) not in (first, other), "nobody has it: the least loaded"


def test_prefix_aware_leaves_one_that_is_much_busier_and_one_that_is_gone() -> None:
    made = cluster("prefix-aware", [load(1000)] * 2)
    first = place(made, 0, keys=(1, 2))
    made.handle(Reported(first, load(1000, 17)), 0)
    assert place(made, 1, keys=(1, 2)) != first
    made = cluster("prefix-aware", [load(1000)] * 2)
    first = place(made, 0, keys=(1, 2))
    made.handle(Left(first), 0)
    assert place(made, 1, keys=(1, 2)) == 1 - first
