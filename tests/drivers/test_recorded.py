"""What logs say of requests: against runs worked out by hand, and against the core itself over random ones."""

import random
from heapq import heappop, heappush
from itertools import count
from pathlib import Path

import pytest
from msgspec import structs

from penstock.core.commands import Run
from penstock.core.config import ClusterConfig, InstanceConfig, Limits
from penstock.core.events import (
    Arrived,
    Cancelled,
    ClusterEvent,
    Ended,
    Executed,
    InstanceEvent,
    Joined,
    Left,
    Load,
    Named,
    Reported,
    StepDone,
    StepFailed,
    Submitted,
)
from penstock.core.features import features
from penstock.core.instance import Instance
from penstock.core.job import Job
from penstock.core.slo import MS, Slo
from penstock.core.spec import JobSpec, Unit
from penstock.core.step import Slice
from penstock.cost.linear import Linear
from penstock.drivers.log import ClusterEntry, Header, InstanceEntry, LogWriter
from penstock.drivers.recorded import closed_loop, gather, paths_of, set_idle, simulate
from penstock.drivers.scenario import alike
from penstock.drivers.sim import Simulation
from penstock.metrics.record import CANCELLED, COMPLETED, DROPPED, FAILED, REJECTED, Record
from penstock.metrics.summary import peak_concurrency
from penstock.policies.bundles import ROWS, make_cluster, make_instance
from penstock.workload.request import Request

CONFIG = InstanceConfig(pages=50)
#: 5 ms a step, whatever is in it.
COST = Linear(5.0 * MS, 0.0, 0.0, 0.0, 0.0)


def spec(number: int, arrival_ms: float = 0.0, known: int = 10, tokens: int = 3, **more: object) -> JobSpec:
    """A job of so many prompt tokens, and of so many output tokens at most."""
    units = (Unit("lm", known + tokens - 1),)
    return JobSpec(id=number, units=units, known=known, arrival=round(arrival_ms * MS), **more)  # type: ignore[arg-type]


def write(path: Path, events: list[tuple[float, InstanceEvent]], config: InstanceConfig = CONFIG) -> Path:
    """The log of an instance to which these happened, at so many ms."""
    core, writer = make_instance(config), LogWriter(path, Header(instance=config))
    for at_ms, event in events:
        writer.write(InstanceEntry(round(at_ms * MS), event, core.handle(event, round(at_ms * MS))))
    writer.close()
    return path


def write_cluster(path: Path, events: list[tuple[float, ClusterEvent]]) -> Path:
    config = ClusterConfig(max_num_queued=1)
    core, writer = make_cluster(config), LogWriter(path, Header(cluster=config))
    for at_ms, event in events:
        writer.write(ClusterEntry(round(at_ms * MS), event, core.handle(event, round(at_ms * MS))))
    writer.close()
    return path


def times_ms(record: Record) -> list[float]:
    return [at / MS for at in record.times_ns]


# -- by hand ---------------------------------------------------------------------------------------------------------


def test_a_request_is_what_its_job_said_and_its_tokens_came_when_its_steps_ended(tmp_path: Path) -> None:
    slo = Slo.parse("ttft=100ms")
    keys = tuple(range(100, 102))
    events = [
        (103.0, Submitted(spec(7, 100.0, known=130, keys=keys, slo=slo, priority=2), 1)),
        (110.0, StepDone(0)),
        (115.0, StepDone(1)),
        (115.5, Named(7, (102,))),
        (120.0, StepDone(2)),
    ]
    run = gather([write(tmp_path / "log", events)])
    (record,), (request,) = run.records, run.requests
    assert (record.id, record.sent_ns, record.prompt_tokens, record.slo) == (7, 0, 130, slo)
    assert (times_ms(record), record.end_ns, record.outcome) == ([10.0, 15.0, 20.0], 20 * MS, COMPLETED)
    assert (request.arrival_s, request.prompt_tokens, request.output_tokens) == (0.0, 130, 3)
    assert (request.limit_tokens, request.priority, request.slo, request.cancel_s) == (3, 2, slo, None)
    assert (request.hash_ids, request.block_tokens) == ((100, 101, 102), 64)
    assert run.delays == [3 * MS]


def test_chunks_of_a_prompt_emit_nothing_but_the_last(tmp_path: Path) -> None:
    config = InstanceConfig(pages=50, limits=Limits(max_num_batched_tokens=4))
    steps = [(10.0 + n, StepDone(n)) for n in range(5)]
    run = gather([write(tmp_path / "log", [(0.0, Submitted(spec(0), 1)), *steps], config)])
    assert times_ms(run.records[0]) == [12.0, 13.0, 14.0]


def test_a_stop_before_the_limit_several_tokens_at_once_and_an_error_are_in_the_exceptions(tmp_path: Path) -> None:
    events = [
        (0.0, Submitted(spec(0, tokens=9), 1)),
        (0.0, Submitted(spec(1, tokens=9), 1)),
        (0.0, Submitted(spec(2, tokens=9), 1)),
        (5.0, StepDone(0)),
        (10.0, StepDone(1)),
        (15.0, StepDone(2, [Executed(0, 1, 2), Executed(1, 1, 1, "stop:2"), Executed(2, 1, 0, "error:no such token")])),
    ]
    run = gather([write(tmp_path / "log", events)])
    several, stopped, failed = run.records
    assert (times_ms(several), several.counts, several.outcome) == ([5.0, 10.0, 15.0], [1, 1, 2], FAILED)
    assert (times_ms(stopped), stopped.outcome) == ([10.0, 15.0], COMPLETED)
    assert (run.requests[1].output_tokens, run.requests[1].limit_tokens) == (2, 9)
    assert (times_ms(failed), failed.outcome, failed.error) == ([10.0], FAILED, "no such token")


def test_how_requests_end_otherwise(tmp_path: Path) -> None:
    config = InstanceConfig(pages=50, limits=Limits(max_num_seqs=1, max_num_queued=2))
    events = [
        (0.0, Submitted(spec(0, tokens=50), 1)),
        (1.0, Submitted(spec(1, 0.5, deadline=7 * MS), 1)),
        (2.0, Submitted(spec(2, 1.5), 1)),
        (3.0, Submitted(spec(3, 2.5), 1)),
        (4.0, Submitted(spec(4, 3.5, known=99999), 1)),
        (5.0, StepDone(0)),
        (10.0, Cancelled(0, 1)),
        (11.0, StepDone(1)),
        (16.0, StepFailed(2, "out of memory")),
        (17.0, Submitted(spec(5, 16.5), 1)),
    ]
    run = gather([write(tmp_path / "log", events, config)])
    assert [record.outcome for record in run.records] == [CANCELLED, DROPPED, FAILED, REJECTED, FAILED, FAILED]
    assert [record.end_ns / MS for record in run.records] == [10.0, 11.0, 16.0, 3.0, 4.0, 17.0]
    errors = [record.error for record in run.records]
    assert errors[:4] == ["", "dropped: its deadline passed while it waited", "out of memory", "queue full"]
    assert "KV cache" in errors[4]
    assert errors[5] == "the log ends before it did"
    assert times_ms(run.records[0]) == [5.0]
    # What did not end by itself is cut where it was; nobody knows how long the answer would have been.
    assert [(r.output_tokens, r.cancel_s) for r in run.requests] == [
        (50, 0.01), (3, 0.0105), (3, 0.0145), (3, None), (3, 0.0005), (3, 0.0005)
    ]  # fmt: skip


def test_a_later_epoch_on_another_instance_starts_where_it_was_told_to(tmp_path: Path) -> None:
    """The first instance emits five tokens; the home had three of them when it gave up on it, and knows a fourth."""
    first = [(1.0, Submitted(spec(0, tokens=9), 1)), *((5.0 * n + 5, StepDone(n)) for n in range(5))]
    second = [
        (40.0, Submitted(JobSpec(id=0, units=(Unit("lm", 18),), known=14, arrival=0), 2)),
        *((50.0 + 5 * n, StepDone(n)) for n in range(5)),
    ]
    late = gather([write(tmp_path / "a.instance0", first), write(tmp_path / "a.instance1", second)])
    (record,), (request,) = late.records, late.requests
    assert times_ms(record) == [5.0, 10.0, 15.0, 20.0, 50.0, 55.0, 60.0, 65.0, 70.0]
    assert (record.outcome, record.prompt_tokens, request.output_tokens) == (COMPLETED, 10, 9)
    # Had the first log been cut off after two tokens, the others had come by the time that the second epoch began.
    cut = gather([write(tmp_path / "b.instance0", first[:3]), tmp_path / "a.instance1"])
    assert times_ms(cut.records[0]) == [5.0, 10.0, 40.0, 50.0, 55.0, 60.0, 65.0, 70.0]
    assert cut.records[0].counts == [1, 1, 2, 1, 1, 1, 1, 1]


def test_a_job_that_is_submitted_again_replaces_itself_and_an_old_epoch_is_ignored(tmp_path: Path) -> None:
    config = InstanceConfig(pages=50, depth=2)
    events = [
        (0.0, Submitted(spec(0), 2)),
        (5.0, StepDone(0)),
        (6.0, Submitted(spec(0), 1)),
        (7.0, Submitted(spec(0), 3)),
        (10.0, StepDone(1)),
        (15.0, StepDone(2)),
        (20.0, StepDone(3)),
        (25.0, StepDone(4)),
        (30.0, StepDone(5)),
    ]
    (record,) = gather([write(tmp_path / "log", events, config)]).records
    core = make_instance(config)
    for at, event in events:
        core.handle(event, round(at * MS))
    assert not core.jobs
    assert (len(record.times_ns), record.outcome) == (3, COMPLETED)
    assert times_ms(record)[0] > 7.0


# -- against the core ------------------------------------------------------------------------------------------------


class Scribe:
    """Feeds a core, writes its log, and notes what tokens came when from the core's own counters."""

    def __init__(self, path: Path, config: InstanceConfig) -> None:
        self.core: Instance = make_instance(config, COST)
        self._writer = LogWriter(path, Header(instance=config, predictor=COST))
        self.tokens: dict[tuple[int, int], list[int]] = {}
        #: Steps in flight as they were composed.
        self.flying: dict[int, list[Slice]] = {}
        self._all: dict[Job, int] = {}

    def feed(self, event: InstanceEvent, now: int) -> None:
        commands = self.core.handle(event, now)
        self._writer.write(InstanceEntry(now, event, commands))
        for job in self.core.jobs.values():
            self._all.setdefault(job, job.spec.known)
        for job, before in self._all.items():
            times = self.tokens.setdefault((job.id, job.epoch), [])
            times.extend([now] * (job.known - before))
            self._all[job] = job.known
        for command in commands:
            if isinstance(command, Run):
                self.flying[command.plan.seq] = command.plan.slices

    def close(self) -> None:
        self._writer.close()


def live(scribe: Scribe, draw: random.Random, jobs: int) -> None:
    """Jobs come, end early, are cancelled, submitted again and preempted; steps are reported in any order."""
    now, ids, epochs = 0, count(), dict[int, int]()
    while len(epochs) < jobs or scribe.core.jobs:
        now += draw.randrange(1, 1000)
        if len(epochs) < jobs and (draw.random() < 0.3 or not scribe.flying):
            number = next(ids)
            epochs[number] = 1
            scribe.feed(Submitted(random_spec(draw, number, now), 1), now)
        elif scribe.core.jobs and draw.random() < 0.03:
            job = draw.choice(list(scribe.core.jobs.values()))
            scribe.feed(Cancelled(job.id, job.epoch), now)
        elif scribe.core.jobs and draw.random() < 0.03:
            again(scribe, draw, now)
        elif scribe.flying:
            seq = draw.choice(list(scribe.flying))
            pieces = scribe.flying.pop(seq)
            if draw.random() < 0.01:
                scribe.feed(StepFailed(seq, "broken"), now)
            else:
                scribe.feed(StepDone(seq, exceptions(scribe, draw, pieces)), now)


def random_spec(draw: random.Random, number: int, now: int) -> JobSpec:
    known = draw.randrange(1, 200)
    return JobSpec(
        id=number, units=(Unit("lm", known + draw.randrange(40)),), known=known, arrival=now - draw.randrange(500),
        keys=tuple(range(draw.randrange(3) * 100, 1000))[: known // 64], priority=draw.randrange(3),
        deadline=now + draw.randrange(20_000) if draw.random() < 0.2 else None,
    )  # fmt: skip


def again(scribe: Scribe, draw: random.Random, now: int) -> None:
    """A job under its next epoch, from the token on that its home has got to; or a message that comes too late."""
    job = draw.choice(list(scribe.core.jobs.values()))
    old = job.spec
    if job.known <= job.total and len(scribe.core.waiting) < scribe.core.config.limits.max_num_queued:
        unit = (Unit("lm", old.total),)
        newer = JobSpec(id=job.id, units=unit, known=draw.randrange(old.known, job.known + 1), arrival=old.arrival)
        scribe.feed(Submitted(newer, job.epoch + draw.choice((-1, 0, 1, 1))), now)


def exceptions(scribe: Scribe, draw: random.Random, pieces: list[Slice]) -> list[Executed]:
    """Answers that end here, and slices that were cut short; but not of a job that was preempted, whose later slices in
    flight an engine would then skip, which this one does not."""
    found = []
    for piece in pieces:
        job = scribe.core.jobs.get(piece.job)
        reaches = job is not None and piece.start + piece.count >= job.known
        if reaches and draw.random() < 0.05:
            found.append(Executed(piece.job, piece.count, 1, draw.choice(("stop", "stop:3", "error:x"))))
        elif piece.count > 1 and piece.job not in scribe.core.settling and draw.random() < 0.05:
            found.append(Executed(piece.job, draw.randrange(piece.count), 0))
    return found


@pytest.mark.parametrize("policy", sorted(ROWS))
@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("seed", range(4))
def test_tokens_and_ends_are_those_that_the_core_counted(tmp_path: Path, policy: str, depth: int, seed: int) -> None:
    draw = random.Random(f"{policy}{depth}{seed}")
    limits = Limits(max_num_seqs=draw.choice((3, 8)), max_num_batched_tokens=draw.choice((32, 256)), max_num_queued=6)
    config = InstanceConfig(policy=policy, pages=30, depth=depth, limits=limits)
    scribe = Scribe(tmp_path / "log", config)
    live(scribe, draw, 60)
    scribe.close()
    run = gather([tmp_path / "log"])
    start = min(job.spec.arrival for job in scribe._all)
    for record in run.records:
        epochs = {epoch: times for (job, epoch), times in scribe.tokens.items() if job == record.id}
        found = [
            at + start for at, n in zip(record.times_ns, record.counts or [1] * 999, strict=False) for _ in range(n)
        ]
        assert found == told(scribe, record, epochs)
    counts = scribe.core.counts
    last = [record.outcome for record in run.records]
    assert last.count(COMPLETED) == counts["finished"]
    assert run.preemptions == scribe.core.preemptions
    assert last.count(DROPPED) == counts["dropped"]


def told(scribe: Scribe, record: Record, epochs: dict[int, list[int]]) -> list[int]:
    """The times of a request's tokens by its epochs, each of which overrides the one before from its start on."""
    times: list[int] = []
    for job in (job for job in scribe._all if job.id == record.id):
        times = times[: job.spec.known - record.prompt_tokens] + epochs[job.epoch]
    return times


# -- the twin --------------------------------------------------------------------------------------------------------


def play(path: Path, config: InstanceConfig, specs: list[JobSpec], leave_ns: dict[int, int], cost: Linear) -> None:
    """Serve these jobs in made-up time: steps take what `cost` says, and some clients leave."""
    core, writer = make_instance(config, cost), LogWriter(path, Header(instance=config, predictor=cost))
    todo: list[tuple[int, int, InstanceEvent]] = []
    for job in specs:
        heappush(todo, (job.arrival, 1 + job.id, Submitted(job, 1)))
        if job.id in leave_ns:
            heappush(todo, (leave_ns[job.id], 1 + job.id, Cancelled(job.id, 1)))
    free_at = 0
    while todo:
        now, _, event = heappop(todo)
        commands = core.handle(event, now)
        writer.write(InstanceEntry(now, event, commands))
        for command in commands:
            if isinstance(command, Run):
                start, free_at = max(now, free_at), max(now, free_at) + cost.step_ns(features(command.plan.slices))
                heappush(todo, (free_at, 0, StepDone(command.plan.seq, [], free_at - start)))
    writer.close()


@pytest.mark.parametrize("policy", sorted(ROWS))
@pytest.mark.parametrize("depth", [1, 2])
def test_with_the_true_step_times_the_twin_is_the_run(tmp_path: Path, policy: str, depth: int) -> None:
    draw = random.Random(f"{policy}{depth}")
    cost = Linear(3.1 * MS, 7123.4, 11.7, 4321.5, 17.9)
    config = InstanceConfig(policy=policy, pages=40, depth=depth, limits=Limits(max_num_seqs=8))
    specs = [
        spec(
            number, draw.random() * 900, draw.randrange(1, 300), draw.randrange(1, 40), priority=draw.randrange(3),
            keys=tuple(range(number % 3 * 100, number % 3 * 100 + 4)),
        )
        for number in range(80)
    ]  # fmt: skip
    specs = [structs.replace(job, keys=job.keys[: job.known // 64]) for job in specs]
    leave = {job.id: job.arrival + draw.randrange(300 * MS) for job in specs if draw.random() < 0.2}
    play(tmp_path / "log", config, specs, leave, cost)
    run = gather([tmp_path / "log"])
    twin, preemptions = simulate(run, cost)
    for number, (live, simulated) in enumerate(zip(run.records, twin, strict=True)):
        assert structs.replace(live, id=number) == structs.replace(simulated, times_ns=list(simulated.times_ns))
    assert preemptions == run.preemptions
    assert {record.outcome for record in twin} == {COMPLETED, CANCELLED}
    assert policy in ("splitfuse", "prefill-first") or preemptions


def test_in_a_closed_loop_a_slower_twin_is_sent_requests_later(tmp_path: Path) -> None:
    """Three clients that think a little after each answer: as many are at it in the twin."""
    draw = random.Random(0)
    cost, slow = Linear(5.0 * MS, 7123.4, 11.7, 4321.5, 17.9), Linear(10.0 * MS, 9e4, 0.0, 0.0, 0.0)
    asked = [
        Request(
            arrival_s=0.001 * n, prompt_tokens=draw.randrange(1, 99), output_tokens=draw.randrange(1, 30),
            session=f"{n % 3}", think_s=draw.random() / 100,
        )
        for n in range(30)
    ]  # fmt: skip
    sent = Simulation(alike(CONFIG), cost).run(asked)
    specs = [spec(r.id, r.sent_ns / MS, r.prompt_tokens, r.output_tokens) for r in sent]
    play(tmp_path / "log", CONFIG, specs, {}, cost)
    open_run = gather([tmp_path / "log"])
    run = closed_loop(open_run)
    assert len({request.session for request in run.requests}) == 3
    assert simulate(run, cost) == simulate(open_run, cost)
    twin, _ = simulate(run, slow)
    ends: dict[str, int] = {}
    for request, record in zip(run.requests, twin, strict=True):
        if request.think_s is not None:
            assert record.sent_ns == ends[request.session] + round(request.think_s * 1e9)
        ends[request.session] = record.end_ns
    assert peak_concurrency(simulate(open_run, slow)[0]) > 3 >= peak_concurrency(twin)


def test_the_clusters_log_tells_of_those_who_never_got_to_an_instance_and_of_instances(tmp_path: Path) -> None:
    """The instance dies with a job; of those that come while there is none, one leaves, one is refused, one waits."""
    one, two, left, refused, held = (spec(n, at) for n, at in enumerate((100.0, 102.0, 121.0, 123.0, 124.0)))
    write(tmp_path / "log.instance0", [(100.5, Submitted(one, 1)), (102.5, Submitted(two, 1)), (105.5, StepDone(0))])
    write(
        tmp_path / "log.instance1",
        [(150.0, Submitted(held, 1)), (155.0, StepDone(0)), (160.0, StepDone(1)), (165.0, StepDone(2))],
    )
    log = write_cluster(
        tmp_path / "log",
        [
            (50.0, Joined(0)), (100.0, Arrived(one)), (100.6, Reported(0, Load(seen=1, running=1))),
            (102.0, Arrived(two)), (120.0, Left(0)), (121.0, Arrived(left)), (123.0, Arrived(refused)),
            (123.5, Ended(2)), (124.0, Arrived(held)), (149.0, Joined(1)), (165.2, Ended(4)),
        ],
    )  # fmt: skip
    assert [path.name for path in paths_of(log)] == ["log", "log.instance0", "log.instance1"]
    run = gather(paths_of(log))
    assert [record.outcome for record in run.records] == [FAILED, FAILED, CANCELLED, REJECTED, COMPLETED]
    assert [record.end_ns / MS for record in run.records] == [20.0, 20.0, 23.5, 23.0, 65.0]
    assert [record.error for record in run.records[:2]] == ["its instance failed"] * 2
    assert len(run.sim.members) == 1
    (failure,) = run.sim.failures
    assert (failure.instance, failure.at_ns, failure.down_ns) == (0, 20 * MS, 29 * MS)
    twin, _ = simulate(run, Linear(10.0 * MS, 0.0, 0.0, 0.0, 0.0))
    assert [record.outcome for record in twin] == [FAILED, FAILED, CANCELLED, REJECTED, COMPLETED]
    # At 49 ms there is an instance again; a message takes the median of what messages took.
    delay_ms = sorted(run.delays)[1] / MS
    assert times_ms(twin[4]) == [49 + delay_ms + 10 * n for n in (1, 2, 3)]


def test_instances_side_by_side_take_their_own_places(tmp_path: Path) -> None:
    """Three at once, the second of which is there from 30 ms on only and is replaced at 60 ms."""
    for number in range(4):
        write(tmp_path / f"log.instance{number}", [])
    events = [(0.0, Joined(0)), (5.0, Joined(1)), (10.0, Arrived(spec(0, 10.0))), (30.0, Joined(2)), (50.0, Left(2))]
    run = gather(paths_of(write_cluster(tmp_path / "log", [*events, (60.0, Joined(3)), (61.0, Ended(0))])))
    assert len(run.sim.members) == 3
    down = [(failure.instance, failure.at_ns / MS, (failure.down_ns or 0) / MS) for failure in run.sim.failures]
    assert down == [(2, 0.0, 20.0), (2, 40.0, 10.0)]


def test_an_slo_in_multiples_is_judged_by_what_the_server_reckoned_with(tmp_path: Path) -> None:
    log = tmp_path / "log"
    play(log, CONFIG, [spec(0, slo=Slo.parse("ttft=3x"))], {}, COST)
    run = gather([log])
    set_idle(run.records, run, Linear(1.0, 0.0, 0.0, 0.0, 0.0))
    assert (run.records[0].idle_ttft_ns, run.records[0].idle_tpot_ns) == (5 * MS, 5 * MS)
    assert run.records[0].good(Slo())


def test_a_run_without_instances_or_requests_is_refused(tmp_path: Path) -> None:
    log = write_cluster(tmp_path / "log", [(1.0, Joined(0))])
    with pytest.raises(ValueError, match="instance0"):
        gather([log])
    with pytest.raises(ValueError, match="no request"):
        gather([log, write(tmp_path / "log.instance0", [])])


def test_ten_instances_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number in range(11):
        (tmp_path / f"log.instance{number}").touch()
    (tmp_path / "log.instance0.json").touch()
    assert [path.name[12:] for path in paths_of(tmp_path / "log")[1:]] == [str(number) for number in range(11)]
