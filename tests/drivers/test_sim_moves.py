"""Moves in the simulator: hand-off, rescheduling, draining, scaling; by hand where it can be said, and by law."""

import random
from pathlib import Path
from typing import Any

import msgspec
import pytest

from penstock.core import laws
from penstock.core.cluster import Cluster
from penstock.core.config import Balance, ClusterConfig, InstanceConfig, Limits, MoveLimits
from penstock.core.events import Drain
from penstock.core.instance import Instance
from penstock.core.move import Switch
from penstock.core.slo import MS, SECOND
from penstock.cost.linear import Linear
from penstock.drivers.log import ClusterEntry, Header, InstanceEntry, LogWriter, replay
from penstock.drivers.recorded import gather, paths_of
from penstock.drivers.scenario import Delays, Failure, MemberConfig, SimConfig
from penstock.drivers.sim import Simulation
from penstock.metrics.record import COMPLETED
from penstock.workload.trace import Request

#: 10 ms a step, 1 ms a prompt token.
COST = Linear(10e6, 1e6, 0.0, 0.0, 0.0)


def request(arrival_s: float, prompt: int, output: int, **more: object) -> Request:
    return Request(arrival_s=arrival_s, prompt_tokens=prompt, output_tokens=output, **more)  # type: ignore[arg-type]


def config(policy: str, roles: list[str], **more: object) -> SimConfig:
    members = [
        MemberConfig(instance=InstanceConfig(policy=policy, pages=1000, role=role), kv_bytes_per_token=1000)
        for role in roles
    ]
    return SimConfig(members=members, cluster=ClusterConfig(policy=policy), **more)  # type: ignore[arg-type]


def test_a_prompt_is_handed_off_and_decoding_goes_on_there() -> None:
    simulation = Simulation(config("distserve", ["prefill", "decode"]), COST)
    (record,) = simulation.run([request(0.0, 100, 4)])
    # 96 of the 100 positions fill pages; the rest is computed again, with the second token.
    first = 110 * MS
    assert list(record.times_ns) == [first, first + 15 * MS, first + 25 * MS, first + 35 * MS]
    assert simulation.moves == 1
    assert [m.core.counts["moved"] for m in simulation.members] == [1, 0]


def test_bytes_take_their_time_and_stream_while_the_prompt_is_computed() -> None:
    whole = config("distserve", ["prefill", "decode"], move_bytes_per_s=1e6)
    (record,) = Simulation(whole, COST).run([request(0.0, 96, 3)])
    # 96 positions of 1000 bytes at 1 MB/s: 96 ms after the prompt is done.
    assert record.times_ns[1] - record.times_ns[0] >= 96 * MS
    chunks = InstanceConfig(policy="distserve", pages=1000, role="prefill", limits=Limits(max_num_batched_tokens=16))
    members = [msgspec.structs.replace(whole.members[0], instance=chunks), whole.members[1]]
    (streamed,) = Simulation(msgspec.structs.replace(whole, members=members), COST).run([request(0.0, 96, 3)])
    assert streamed.times_ns[1] - streamed.times_ns[0] < 40 * MS


def test_a_request_of_one_token_never_crosses() -> None:
    simulation = Simulation(config("distserve", ["prefill", "decode"]), COST)
    (record,) = simulation.run([request(0.0, 100, 1)])
    assert record.outcome == COMPLETED
    assert simulation.moves == 0


def test_prompts_wait_where_they_are_while_no_decoder_has_room() -> None:
    small = config("distserve", ["prefill", "decode"])
    decode = InstanceConfig(policy="distserve", pages=8, role="decode")
    small = msgspec.structs.replace(
        small, members=[small.members[0], msgspec.structs.replace(small.members[1], instance=decode)]
    )
    simulation = Simulation(small, COST)
    records = simulation.run([request(0.0, 60, 20) for _ in range(4)])
    assert [r.outcome for r in records] == [COMPLETED] * 4
    assert simulation.moves >= 4


def test_answers_that_outgrow_their_instance_move_to_one_with_room() -> None:
    balance = Balance(out_tokens=200.0, in_tokens=400.0)
    members = [MemberConfig(instance=InstanceConfig(policy="llumnix", pages=100, number=n)) for n in range(2)]
    cluster = ClusterConfig(policy="llumnix", balance=balance)
    simulation = Simulation(SimConfig(members=members, cluster=cluster), COST)
    # Two long answers are on one instance, and the other has long been empty.
    requests = [request(0.0, 100, 900), request(0.001, 100, 5), request(0.002, 100, 900), request(0.003, 100, 5)]
    records = simulation.run(requests)
    assert [r.outcome for r in records] == [COMPLETED] * 4
    assert simulation.moves > 0
    assert sum(m.core.preemptions for m in simulation.members) == 0


def test_a_fleet_grows_under_load_and_shrinks_after() -> None:
    balance = Balance(
        scaling=True, instances_min=1, instances_max=4, low_tokens=100.0, high_tokens=400.0, scale_ns=SECOND
    )
    member = MemberConfig(instance=InstanceConfig(policy="llumnix", pages=100), start_ns=2 * SECOND)
    cluster = ClusterConfig(policy="llumnix", balance=balance)
    simulation = Simulation(SimConfig(members=[member], cluster=cluster), COST)
    busy = [request(i * 0.5, 200, 200) for i in range(200)]
    quiet = [request(110.0 + i * 5, 20, 20) for i in range(20)]
    records = simulation.run([*busy, *quiet])
    assert all(r.outcome == COMPLETED for r in records)
    assert len(simulation.members) > 1, "it grew"
    assert len(simulation._named) < len(simulation.members), "and shrank"
    assert simulation.instance_ns(0, simulation.now) < len(simulation.members) * simulation.now


POLICIES = ["llumnix", "distserve", "adaptive-pd", "flood", "round-robin", "infaas++", "prefix-aware", "priority"]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("seed", range(6))
def test_every_request_gets_its_tokens_and_every_page_comes_back(policy: str, seed: int) -> None:
    draw = random.Random(f"{policy}{seed}")
    roles = (
        [draw.choice(("prefill", "decode", "")) for _ in range(4)]
        if policy in ("distserve", "adaptive-pd")
        else [""] * 4
    )
    members = [
        MemberConfig(
            instance=InstanceConfig(
                policy=policy, pages=draw.choice((40, 200)), role=role, depth=draw.choice((1, 2)),
                limits=Limits(max_num_seqs=draw.choice((3, 50)), max_num_batched_tokens=draw.choice((32, 512))),
                moves=MoveLimits(copies=draw.random() < 0.8, compute_position_ns=draw.choice((0.0, 1e6)), copy_ns=1e6),
            ),
            kv_bytes_per_token=1000,
        )
        for role in roles
    ]  # fmt: skip
    delays = Delays(dispatch=draw.choice((0, MS)), report=draw.choice((0, 20 * MS)), peer=draw.choice((0, MS)))
    failures = [Failure(instance=draw.randrange(4), at_ns=draw.randrange(3) * SECOND, down_ns=SECOND)]
    chosen = SimConfig(
        members=members, cluster=ClusterConfig(policy=policy, balance=Balance(out_tokens=100, in_tokens=150)),
        delays=delays, failures=failures, move_bytes_per_s=draw.choice((0.0, 1e6)),
    )  # fmt: skip
    requests = [
        request(
            draw.random() * 5, draw.randrange(1, 200), draw.randrange(1, 100), priority=draw.choice((0, 0, -1)),
            hash_ids=(draw.randrange(3),), block_tokens=64,
        )
        for _ in range(60)
    ]  # fmt: skip
    requests.sort(key=lambda r: r.arrival_s)
    simulation = Simulation(chosen, COST)
    for record, wanted in zip(simulation.run(requests), requests, strict=True):
        assert record.outcome == COMPLETED, record.error
        assert len(record.times_ns) == wanted.output_tokens
        assert sorted(record.times_ns) == list(record.times_ns)
    for member in simulation.members:
        assert not member.core.jobs
        laws.check(member.core)
    again = Simulation(chosen, COST).run(requests)
    assert [r.times_ns for r in again] == [r.times_ns for r in simulation._records]


class Logged:
    """Writes the log of every core, as live drivers do. One that starts anew after a failure has a log of its own."""

    def __init__(self, config: SimConfig, folder: Path) -> None:
        self.folder = folder
        self.writers: dict[Instance | Cluster, LogWriter] = {}
        self._cluster = config.cluster

    def __call__(self, core: Instance | Cluster, event: Any, now: int) -> Any:
        if (writer := self.writers.get(core)) is None:
            path, header = self.folder / "log", Header(cluster=self._cluster)
            if isinstance(core, Instance):
                path = self.folder / f"log.instance{core.number}"
                header = Header(instance=msgspec.structs.replace(core.config, number=core.number))
            writer = self.writers[core] = LogWriter(path, header)
        commands = core.handle(event, now)
        writer.write((InstanceEntry if isinstance(core, Instance) else ClusterEntry)(now, event, commands))
        return commands


@pytest.mark.parametrize("policy", ["flood", "distserve", "llumnix"])
def test_logs_of_jobs_that_moved_tell_the_run_and_replay_to_the_same_commands(policy: str, tmp_path: Path) -> None:
    draw = random.Random(policy)
    chosen = config(policy, ["prefill", "decode", "decode"] if policy == "distserve" else [""] * 3)
    chosen = msgspec.structs.replace(
        chosen,
        failures=[Failure(instance=2, at_ns=SECOND, down_ns=SECOND)],
        cluster=ClusterConfig(policy=policy, balance=Balance(out_tokens=3e3, in_tokens=3.5e3)),
        stepping=True,
        move_bytes_per_s=1e6,
    )
    requests = [request(i * 0.05, draw.randrange(1, 150), draw.randrange(1, 80)) for i in range(60)]
    logged = Logged(chosen, tmp_path)
    simulation = Simulation(chosen, COST, handle=logged)
    records = simulation.run(requests)
    assert simulation.moves > 0
    for writer in logged.writers.values():
        writer.close()
    for path in paths_of(tmp_path / "log"):
        assert replay(path).difference is None
    run = gather(paths_of(tmp_path / "log"))
    assert [r.outcome for r in run.records] == [COMPLETED] * len(requests)
    assert [[at + run.records[0].sent_ns for at in r.times_ns] for r in run.records] == [
        list(r.times_ns) for r in records
    ]


@pytest.mark.parametrize("seed", range(6))
def test_no_job_goes_back_and_forth(seed: int) -> None:
    """Under random loads that keep instances nearly full, no job returns to an instance within a second."""
    draw = random.Random(seed)
    member = MemberConfig(instance=InstanceConfig(policy="llumnix", pages=draw.choice((60, 120))))
    switched: list[tuple[int, int, int, int]] = []

    def handle(core: Instance | Cluster, event: Any, now: int) -> list[Any]:
        commands = core.handle(event, now)
        switched.extend((now, c.job, core.number, c.to) for c in commands if isinstance(c, Switch))
        return commands

    chosen = SimConfig(members=[member] * 4, cluster=ClusterConfig(policy="llumnix"))
    simulation = Simulation(chosen, COST, handle=handle)
    length = [draw.choice((10, 50, 300)) for _ in range(200)]
    simulation.run([request(i * 0.15, n, draw.choice((20, 100, 400))) for i, n in enumerate(length)])
    last: dict[tuple[int, int], int] = {}
    for at, job, source, to in switched:
        left = last.get((job, to))
        assert left is None or at - left > SECOND, f"job {job} was back on {to} after {(at - left) / MS:.0f} ms"
        last[job, source] = at
    assert switched


def test_a_draining_instance_whose_jobs_nobody_takes_finishes_them() -> None:
    """It is refused each time, without end at one moment: so orders come at intervals."""
    members = [
        MemberConfig(instance=InstanceConfig(policy="fcfs", pages=100, limits=Limits(max_num_seqs=seats)))
        for seats in (50, 1)
    ]
    simulation = Simulation(SimConfig(members=members, cluster=ClusterConfig(policy="fcfs")), COST)
    simulation._at(200 * MS, lambda: simulation._feed_cluster(Drain(0)))
    records = simulation.run([request(0.0, 50, 40) for _ in range(10)])
    assert [r.outcome for r in records] == [COMPLETED] * 10
    assert list(simulation._named) == [1], "and is gone then"


def test_prompts_go_on_where_they_are_if_nobody_decodes() -> None:
    simulation = Simulation(config("distserve", ["prefill"]), COST)
    (record,) = simulation.run([request(0.0, 100, 4)])
    assert (record.outcome, len(record.times_ns)) == (COMPLETED, 4)
