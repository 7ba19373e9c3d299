"""The meter: numbers worked out by hand, and that leaping measures what stepping measures."""

import random

import msgspec
import pytest

from penstock.core.config import Balance, ClusterConfig, InstanceConfig, Limits
from penstock.core.slo import MS, SECOND
from penstock.cost.linear import Linear
from penstock.drivers.deployment import LaidPool
from penstock.drivers.meter import Meter, Use
from penstock.drivers.scenario import MemberConfig, SimConfig, alike
from penstock.drivers.sim import Simulation
from penstock.metrics.record import Record
from penstock.workload.trace import Request

COST = Linear(10.0 * MS, 1.0 * MS, 0.0, 0.0, 0.0)


def metered(
    requests: list[Request], instances: int = 1, stepping: bool = False, **config: object
) -> tuple[Use, float, list[Record]]:
    """Use of all instances, share of prompt tokens found, records."""
    instance = InstanceConfig(**{"pages": 100, **config})  # type: ignore[arg-type]
    meter = Meter()
    simulation = Simulation(alike(instance, instances, stepping=stepping), COST, meter)
    meter.watch(simulation.members)
    records = simulation.run(requests)
    window = min(r.sent_ns for r in records), max(r.end_ns for r in records)
    pool = LaidPool("", 0, instances, instance.pages * instance.page_tokens)
    return meter.use(pool, *window), meter.found(records), records


def test_one_request_by_hand() -> None:
    """Prefill of 30 ms for 20 tokens on two pages, then two decodes of 10 ms; then nothing for 30 ms, and again."""
    lone = Request(arrival_s=0.0, prompt_tokens=20, output_tokens=3)
    again = msgspec.structs.replace(lone, arrival_s=0.08)
    use, found, _ = metered([lone, again], instances=2)
    assert use.stepping == pytest.approx((50 + 50) / (2 * 130))
    assert use.kv_mean == pytest.approx(2 * 100 / (2 * 130) / 100)
    assert (use.kv_max, use.waiting_max, found) == (0.02, 0, 0.0)


def test_who_finds_no_seat_waits() -> None:
    asked = [Request(arrival_s=0.0, prompt_tokens=10, output_tokens=1)] * 3
    use, _, _ = metered(asked, limits=Limits(max_num_seqs=1))
    assert use.waiting_max == 2
    assert use.waiting_mean == pytest.approx((2 + 1 + 0) / 3)


def test_what_is_found_is_not_computed() -> None:
    asked = [
        Request(arrival_s=float(i), prompt_tokens=130, output_tokens=4, hash_ids=(7, 8), block_tokens=64)
        for i in range(4)
    ]
    _, found, _ = metered(asked)
    assert found == pytest.approx(3 * 128 / (4 * 130))


@pytest.mark.parametrize("seed", range(6))
def test_leaping_measures_what_stepping_measures(seed: int) -> None:
    draw = random.Random(seed)
    asked = [
        Request(arrival_s=draw.random() * 3, prompt_tokens=draw.randrange(1, 300), output_tokens=draw.randrange(1, 120))
        for _ in range(60)
    ]
    limits = Limits(max_num_seqs=8, max_num_batched_tokens=draw.choice((64, 256)))
    runs = [metered(asked, 2, stepping, limits=limits, pages=150) for stepping in (True, False)]
    (stepped, _, theirs), (leapt, _, ours) = runs
    assert theirs == ours
    assert (stepped.stepping, stepped.kv_max) == (leapt.stepping, leapt.kv_max)
    assert (stepped.waiting_mean, stepped.waiting_max) == (leapt.waiting_mean, leapt.waiting_max)
    # Between two steps, pages are counted by the position.
    assert leapt.kv_mean == pytest.approx(stepped.kv_mean, abs=0.005)


def test_instances_that_are_added_count_from_when_they_begin_to_start() -> None:
    balance = Balance(scaling=True, instances_max=3, low_tokens=100.0, high_tokens=400.0, scale_ns=SECOND)
    member = MemberConfig(instance=InstanceConfig(policy="llumnix", pages=100), start_ns=2 * SECOND)
    meter = Meter()
    config = SimConfig(members=[member], cluster=ClusterConfig(policy="llumnix", balance=balance))
    simulation = Simulation(config, COST, meter)
    meter.watch(simulation.members)
    records = simulation.run([Request(arrival_s=i * 0.5, prompt_tokens=200, output_tokens=200) for i in range(100)])
    end = max(record.end_ns for record in records)
    assert len(simulation.members) > 1
    stays = [list(member.stays) for member in simulation.members]
    assert stays[0][0] == 0
    joined = [came for came, *_ in stays[1:]]
    assert all(came % SECOND == 50 * MS for came in joined), "decided at a look, there from then on"
    use = meter.use(LaidPool("", 0, 1, 1600), 0, end)
    there = sum((stay[1] if len(stay) > 1 else end) - stay[0] for stay in stays)
    assert use.instances == pytest.approx(there / end)
    assert simulation.instance_ns(0, end) == there
    assert 0.3 < use.stepping < 1.0


def test_a_move_that_comes_to_nothing_is_counted_once() -> None:
    """The second answer finds no room on the other instance when it is told to go there."""
    members = [MemberConfig(instance=InstanceConfig(policy="flood", pages=pages)) for pages in (100, 8)]
    meter = Meter()
    simulation = Simulation(SimConfig(members=members, cluster=ClusterConfig(policy="flood")), COST, meter)
    meter.watch(simulation.members)
    simulation.run([Request(arrival_s=0.0, prompt_tokens=200, output_tokens=20)])
    assert not simulation.moves
    refused = meter.all_moves().aborts
    assert set(refused) == {"too large"}
    # 20 steps of 10 ms and a prompt of 200 ms; a look each 50 ms.
    assert refused["too large"] <= 410 / 50


def test_what_is_copied_is_counted_in_bytes() -> None:
    members = [
        MemberConfig(instance=InstanceConfig(policy="distserve", pages=100, role=role), kv_bytes_per_token=1000)
        for role in ("prefill", "decode")
    ]
    meter = Meter()
    simulation = Simulation(SimConfig(members=members, cluster=ClusterConfig(policy="distserve")), COST, meter)
    meter.watch(simulation.members)
    simulation.run([Request(arrival_s=0.0, prompt_tokens=100, output_tokens=4)])
    # 96 positions fill pages, the rest is computed again.
    assert (meter.all_moves().kv_bytes, meter.all_moves().aborts) == (96_000, {})
