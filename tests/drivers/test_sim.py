"""The simulated driver: times worked out by hand, conservation, determinism, prefixes."""

import random

import pytest

from penstock.core import laws
from penstock.core.batch import Limits
from penstock.core.instance import InstanceConfig
from penstock.core.slo import MS
from penstock.cost.linear import Linear
from penstock.drivers.sim import SimConfig, Simulation
from penstock.metrics.record import COMPLETED, FAILED, Record
from penstock.policies.bundles import ROWS
from penstock.workload.trace import Request

#: 10 ms a step and 1 ms a prompt token.
COST = Linear(10.0 * MS, 1.0 * MS, 0.0, 0.0, 0.0)


def simulate(requests: list[Request], instances: int = 1, delay_ns: int = 0, **config: object) -> list[Record]:
    chosen = InstanceConfig(**{"pages": 1000, **config})  # type: ignore[arg-type]
    simulation = Simulation(SimConfig(instance=chosen, instances=instances, delay_ns=delay_ns), COST)
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
    assert record.times_ns == [first * MS, (first + 10) * MS, (first + 20) * MS, (first + 30) * MS]
    assert record.outcome == COMPLETED


def test_a_second_request_waits_for_the_step_that_runs_and_shares_the_next() -> None:
    first, second = simulate([request(0.0, 30, 3), request(0.001, 5, 2)])
    assert first.times_ns == [40 * MS, 55 * MS, 65 * MS]
    assert second.times_ns == [55 * MS, 65 * MS]


def test_messages_take_their_time_both_ways() -> None:
    (late,) = simulate([request(0.0, 30, 2)], delay_ns=3 * MS)
    assert late.times_ns == [46 * MS, 56 * MS]


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
        assert record.times_ns == sorted(record.times_ns)
        assert record.times_ns[0] >= record.scheduled_ns + 10 * MS


def test_more_instances_serve_a_burst_sooner() -> None:
    burst = [request(0.0, 100, 20) for _ in range(40)]
    ends = [max(r.end_ns for r in simulate(burst, n)) for n in (1, 2, 4)]
    assert ends[0] > ends[1] > ends[2]
