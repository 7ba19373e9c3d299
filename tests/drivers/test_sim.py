"""The simulated driver: times worked out by hand, conservation, determinism, prefixes."""

import random
from itertools import accumulate

import msgspec
import pytest

from penstock.core import laws
from penstock.core.config import InstanceConfig, Limits
from penstock.core.features import repeated
from penstock.core.slo import MS
from penstock.core.step import Features
from penstock.cost.composed import compose
from penstock.cost.linear import Linear
from penstock.drivers.scenario import Delays, Failure, MemberConfig, SimConfig, alike
from penstock.drivers.sim import Simulation, _Pace
from penstock.metrics.record import CANCELLED, COMPLETED, FAILED, Record
from penstock.policies.bundles import ROWS
from penstock.workload.trace import Request

#: 10 ms a step and 1 ms a prompt token.
COST = Linear(10.0 * MS, 1.0 * MS, 0.0, 0.0, 0.0)


def simulate(requests: list[Request], instances: int = 1, delay_ns: int = 0, **config: object) -> list[Record]:
    chosen = InstanceConfig(**{"pages": 1000, **config})  # type: ignore[arg-type]
    simulation = Simulation(alike(chosen, instances, delays=Delays(dispatch=delay_ns, token=delay_ns)), COST)
    records = simulation.run(requests)
    for member in simulation.members:
        assert not member.core.jobs
        laws.check(member.core)
    return records


def request(arrival_s: float, prompt: int, output: int, **more: object) -> Request:
    return Request(arrival_s=arrival_s, prompt_tokens=prompt, output_tokens=output, **more)  # type: ignore[arg-type]


def test_one_request_takes_its_prompt_then_a_step_a_token() -> None:
    (record,) = simulate([request(1.0, 30, 4)])
    first = 1000 + 10 + 30
    assert list(record.times_ns) == [first * MS, (first + 10) * MS, (first + 20) * MS, (first + 30) * MS]
    assert record.outcome == COMPLETED


def test_a_second_request_waits_for_the_step_that_runs_and_shares_the_next() -> None:
    first, second = simulate([request(0.0, 30, 3), request(0.001, 5, 2)])
    assert list(first.times_ns) == [40 * MS, 55 * MS, 65 * MS]
    assert list(second.times_ns) == [55 * MS, 65 * MS]


def test_messages_take_their_time_both_ways() -> None:
    (late,) = simulate([request(0.0, 30, 2)], delay_ns=3 * MS)
    assert list(late.times_ns) == [46 * MS, 56 * MS]


def test_a_shared_prefix_is_computed_once() -> None:
    requests = [
        request(0.0, 130, 1, hash_ids=(7, 8), block_tokens=64),
        request(1.0, 130, 1, hash_ids=(7, 8), block_tokens=64),
    ]
    first, second = simulate(requests)
    assert first.ttft_ns == (10 + 130) * MS
    assert second.ttft_ns == (10 + 2) * MS


def test_what_can_never_fit_fails_and_harms_nobody() -> None:
    good, bad = simulate([request(0.0, 10, 2), request(0.0, 99999, 2)])
    assert good.outcome == COMPLETED
    assert bad.outcome == FAILED
    assert "KV cache" in bad.error


@pytest.mark.parametrize("policy", sorted(ROWS))
@pytest.mark.parametrize("instances", [1, 3])
def test_every_request_ends_once_with_all_its_tokens_and_twice_the_same(policy: str, instances: int) -> None:
    draw = random.Random(policy)
    requests = [
        request(draw.random() * 3, draw.randrange(1, 400), draw.randrange(1, 60), priority=draw.randrange(3))
        for _ in range(150)
    ]
    limits = Limits(max_num_seqs=8, max_num_batched_tokens=256)
    runs = [simulate(requests, instances, policy=policy, pages=60, limits=limits) for _ in range(2)]
    assert runs[0] == runs[1]
    for asked, record in zip(requests, runs[0], strict=True):
        assert record.outcome == COMPLETED
        assert len(record.times_ns) == asked.output_tokens
        assert list(record.times_ns) == sorted(record.times_ns)
        assert record.times_ns[0] >= record.scheduled_ns + 10 * MS


def test_more_instances_serve_a_burst_sooner() -> None:
    burst = [request(0.0, 100, 20) for _ in range(40)]
    ends = [max(r.end_ns for r in simulate(burst, n)) for n in (1, 2, 4)]
    assert ends[0] > ends[1] > ends[2]


def random_requests(draw: random.Random, count: int) -> list[Request]:
    """Shared prefixes, priorities, early ends, hang-ups and sessions among them."""
    made = []
    for number in range(count):
        family, blocks = draw.randrange(4), draw.randrange(0, 6)
        ids = tuple(range(family * 1000, family * 1000 + blocks)) + (10**6 + number,) * (blocks > 0)
        session = f"s{draw.randrange(8)}" if draw.random() < 0.3 else ""
        output = draw.randrange(1, 90)
        made.append(
            request(
                draw.random() * 4, blocks * 64 + draw.randrange(1, 300), output, priority=draw.randrange(3),
                hash_ids=ids, block_tokens=64, session=session, think_s=0.05 if session else None,
                cancel_s=draw.random() * 3 if draw.random() < 0.1 else None,
                limit_tokens=output + draw.randrange(40) if draw.random() < 0.3 else None,
            )
        )  # fmt: skip
    return made


@pytest.mark.parametrize("policy", sorted(ROWS))
@pytest.mark.parametrize("seed", range(12))
def test_leaping_over_quiet_stretches_gives_what_stepping_gives(policy: str, seed: int) -> None:
    draw = random.Random(f"{policy}{seed}")
    requests = random_requests(draw, 120)
    limits = Limits(max_num_seqs=draw.choice((4, 16)), max_num_batched_tokens=draw.choice((64, 256)))
    stages = draw.choice((1, 1, 1, 2))
    instance = InstanceConfig(
        policy=policy, pages=draw.choice((60, 200, 1000)), limits=limits, stages=stages, depth=draw.choice((1, 1, 2))
    )
    delays = draw.choice((Delays(), Delays(front=MS, front_per_token=100.0, dispatch=MS, token=2 * MS, report=3 * MS)))
    costs = (Linear(3.1 * MS, 7123.4, 11.7, 4321.5, 17.9), compose("a100", "llama-3.1-8b").cost)
    cost = costs[seed % 2]
    failures = [Failure(instance=0, at_ns=900 * MS, down_ns=draw.choice((None, 300 * MS)))] * draw.randrange(2)
    config = msgspec.structs.replace(alike(instance, draw.choice((1, 3)), delays=delays), failures=failures)
    ran = []
    for stepping in (True, False):
        simulation = Simulation(msgspec.structs.replace(config, stepping=stepping), cost)
        records = simulation.run(requests)
        state = [(m.core.load, m.core.next_step, list(m.ends), m.core.pages.free) for m in simulation.members]
        for member in simulation.members:
            laws.check(member.core)
        ran.append((records, state))
        assert sorted(record.id for record in simulation.over) == list(range(len(requests))), "each is over once"
    assert ran[0] == ran[1]
    assert any(r.outcome == COMPLETED for r in ran[0][0])


def test_remembered_times_are_those_of_each_step_however_far_they_go() -> None:
    cost = compose("a100", "llama-3.1-8b").cost
    pace = _Pace(cost.ready())
    for jobs, context in ((1, 100), (2, 9001), (1, 9000), (2, 50_001), (1, 30_000), (3, 70_000), (4, 70_000)):
        first = Features(jobs, context, jobs, context)
        stretch = pace.stretch(0, 7, first, 40)
        each = accumulate(map(cost.step_ns, repeated(first, jobs, 40)), initial=7)
        assert [stretch.end(step) for step in range(40)] == list(each)[1:]


def test_a_hang_up_ends_a_request_where_it_stands() -> None:
    (record,) = simulate([request(0.0, 30, 100, cancel_s=0.065)])
    assert record.outcome == CANCELLED
    assert list(record.times_ns) == [40 * MS, 50 * MS, 60 * MS]
    assert record.end_ns == 65 * MS


def test_a_turn_is_sent_when_the_one_before_was_answered_and_thought_about() -> None:
    first, second = simulate(
        [request(0.0, 30, 2, session="a", think_s=0.1), request(0.0, 40, 1, session="a", think_s=0.1)]
    )
    assert second.sent_ns == first.end_ns + 100 * MS
    assert list(second.times_ns) == [first.end_ns + 150 * MS]


def test_an_answer_may_end_before_its_limit() -> None:
    (record,) = simulate([request(0.0, 30, 3, limit_tokens=50)])
    assert len(record.times_ns) == 3
    assert record.outcome == COMPLETED


def test_what_a_failed_instance_had_goes_on_where_it_stood() -> None:
    instance = InstanceConfig(pages=1000)
    config = msgspec.structs.replace(
        alike(instance), failures=[Failure(instance=0, at_ns=55 * MS, down_ns=100 * MS)],
        members=[MemberConfig(instance=instance, load_bytes=10**6, start_ns=20 * MS)], load_bytes_per_s=1e8,
    )  # fmt: skip
    lost, held = Simulation(config, COST).run([request(0.0, 30, 50), request(0.1, 10, 1)])
    back = (55 + 100 + 10 + 20) * MS
    # Its prompt and the two tokens that were delivered are computed again; then comes the other's prompt.
    first = back + (10 + 32) * MS
    second = first + (10 + 10) * MS
    assert list(held.times_ns) == [second]
    assert list(lost.times_ns) == [40 * MS, 50 * MS, first, *(second + i * 10 * MS for i in range(47))]
    assert lost.outcome == COMPLETED


def test_instances_that_start_together_share_the_link() -> None:
    instance = InstanceConfig(pages=1000)
    members = [MemberConfig(instance=instance, load_bytes=10**8)] * 2
    config = SimConfig(members=members, load_bytes_per_s=1e8, warm=False)
    first, second = Simulation(config, COST).run([request(0.0, 10, 1), request(0.0, 10, 1)])
    assert list(first.times_ns) == [2020 * MS]
    assert second.outcome == COMPLETED


def test_ends_only_keeps_every_latency() -> None:
    requests = [request(i / 10, 50, 1 + i % 7) for i in range(20)]
    full = Simulation(alike(InstanceConfig(pages=1000)), COST).run(requests)
    config = msgspec.structs.replace(alike(InstanceConfig(pages=1000)), every_token=False)
    for ours, theirs in zip(full, Simulation(config, COST).run(requests), strict=True):
        assert (ours.ttft_ns, ours.e2e_ns, ours.output_tokens) == (theirs.ttft_ns, theirs.e2e_ns, theirs.output_tokens)
        assert ours.tpot_ns == pytest.approx(theirs.tpot_ns) if ours.tpot_ns else theirs.tpot_ns is None


def test_later_turns_of_a_session_end_too_when_no_instance_is_left() -> None:
    config = msgspec.structs.replace(alike(InstanceConfig(pages=100)), failures=[Failure(instance=0, at_ns=50 * MS)])
    turns = [request(0.1, 5, 1, session="a", think_s=1.0)] * 3
    for record in Simulation(config, COST).run(turns):
        assert record.end_ns >= record.sent_ns
        assert record.error


def test_a_hang_up_on_the_way_to_an_instance_is_seen_there() -> None:
    requests = [request(i / 100, 5, 1, cancel_s=0.001) for i in range(20)] + [request(1.0, 5, 1)]
    simulation = Simulation(alike(InstanceConfig(pages=1000), delays=Delays(dispatch=5 * MS)), COST)
    records = simulation.run(requests)
    assert [r.outcome for r in records] == [CANCELLED] * 20 + [COMPLETED]
    assert simulation.members[0].core.counts["seen"] == 21


def test_a_report_from_before_a_restart_does_not_speak_for_the_instance_after_it() -> None:
    config = alike(InstanceConfig(pages=1000), 2, delays=Delays(report=50 * MS))
    config = msgspec.structs.replace(config, failures=[Failure(instance=0, at_ns=500 * MS, down_ns=MS)])
    simulation = Simulation(config, COST)
    cluster = simulation._cluster
    simulation.run([request(i / 100, 5, 3) for i in range(60)])
    for member in cluster.members.values():
        (simulated,) = (m for m in simulation.members if m.name == member.id)
        assert member.load.seen == simulated.core.counts["seen"]
        assert not member.coming
