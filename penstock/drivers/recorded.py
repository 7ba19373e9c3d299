"""What the logs of a run say of its requests: when each came and with what, when its tokens came, how it ended; and the
same run as a simulator takes it.

Read from events and recorded commands alone, in one pass, never from a core: a log says the same whatever has become of
the scheduler since. Times are those at the cores: a token's is when its step was reported done. The true length of an
answer that was not finished is not in a log, so a simulated one goes on until it is cut where it was.
"""

import re
from array import array
from collections.abc import Callable, Iterable
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any

import msgspec

from penstock.core.commands import ClusterCommand, End, InstanceCommand, Lost, Refuse, Release, Run
from penstock.core.config import ClusterConfig
from penstock.core.events import (
    Arrived,
    Cancelled,
    Ended,
    Executed,
    InstanceEvent,
    Joined,
    Left,
    Named,
    StepDone,
    StepFailed,
    Submitted,
)
from penstock.core.move import Pull, Pulled
from penstock.core.slo import SECOND
from penstock.core.spec import JobSpec
from penstock.core.step import Slice, StepCost
from penstock.cost.models import Model
from penstock.drivers.log import ClusterEntry, Header, InstanceEntry, read
from penstock.drivers.scenario import Delays, Failure, MemberConfig, SimConfig
from penstock.drivers.sim import Simulation
from penstock.metrics.record import CANCELLED, COMPLETED, DROPPED, FAILED, REJECTED, Record
from penstock.workload.request import Request

#: How an `End` names what became of a job -> an outcome of a record.
_OUTCOMES = {"dropped": DROPPED, "rejected": REJECTED, "invalid": FAILED, "failed": FAILED}


class Recorded(msgspec.Struct, frozen=True, kw_only=True):
    """A run."""

    #: One each request, in order of arrival; times in ns after the first arrival.
    records: list[Record]
    #: The same requests for a simulator, in the same order.
    requests: list[Request]
    #: From a job's arrival at its home to the core, ns, each.
    delays: list[int]
    preemptions: int
    #: The recorded configuration. Instances that replaced one another are one that failed and came back.
    sim: SimConfig


class Part:
    """A job on one instance, under one epoch."""

    __slots__ = (
        "end_ns", "epoch", "error", "keys", "known", "outcome", "over", "seen_ns", "spec", "stale_before", "times_ns",
        "total", "void_before",
    )  # fmt: skip

    def __init__(self, spec: JobSpec, epoch: int, now: int) -> None:
        self.spec = spec
        self.epoch = epoch
        self.seen_ns = now
        self.keys = spec.keys
        #: Positions whose input exists, as in `core.job`.
        self.known = spec.known
        self.total = spec.total
        #: Whether it has ended: later steps that are in flight do nothing more for it.
        self.over = False
        #: When each token came.
        self.times_ns = array("q")
        #: Steps before this one were in flight when the job was preempted, ...
        self.stale_before = 0
        #: ... or when a step did not go as planned: what they do for it does not count.
        self.void_before = 0
        #: Empty while it goes on, or where the log ends before it does.
        self.outcome = self.error = ""
        self.end_ns = 0

    def end(self, outcome: str, error: str, now: int) -> None:
        self.outcome, self.error, self.end_ns = outcome, error, now
        self.over = True


class InstanceReader:
    """Follows the log of one instance: what its core knew of progress, worked out from what went in and came out."""

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self.delays: list[int] = []
        self.preemptions = 0
        self.last_ns = 0
        self._jobs: dict[int, Part] = {}
        #: Steps in flight, oldest first.
        self._steps: dict[int, list[tuple[Part, Slice]]] = {}
        #: Reports that came before that of an older step.
        self._reports: dict[int, StepDone | StepFailed] = {}
        self._next_step = 0
        #: Moves whose pages are on their way: since when, and positions; and what those that came took.
        self._pulls: dict[int, tuple[int, int]] = {}
        self.pulls: list[tuple[int, int]] = []

    def feed(self, entry: InstanceEntry) -> None:
        """Take the next entry."""
        self.last_ns = now = entry.now
        event, commands = entry.event, entry.commands
        match event:
            case StepDone() | StepFailed():
                self._on_report(event, now)
            case Submitted():
                commands = self._on_submitted(event, commands, now)
            case Named(job, keys) if job in self._jobs:
                self._jobs[job].keys += keys
            case Pulled(move) if move in self._pulls:
                began, positions = self._pulls.pop(move)
                if not event.error:
                    self.pulls.append((positions, now - began))
        for command in commands:
            match command:
                case Pull(move, _, _, start, end):
                    self._pulls[move] = (now, end - start)
                case Run(plan):
                    self._next_step = plan.seq + 1
                    self._steps[plan.seq] = [(self._jobs[piece.job], piece) for piece in plan.slices]
                case End(job, _, "dropped" | "failed" as outcome, reason):
                    self._jobs[job].end(_OUTCOMES[outcome], reason, now)
                case Release(job, True) if job in self._jobs:
                    self._on_end(self._jobs.pop(job), event, now)
                case Release(job, False):
                    self.preemptions += 1
                    self._jobs[job].stale_before = self._next_step

    def _on_submitted(self, event: Submitted, commands: list[InstanceCommand], now: int) -> list[InstanceCommand]:
        """The commands that are left to be looked at."""
        spec, here = event.spec, self._jobs.get(event.spec.id)
        self.delays.append(max(0, now - spec.arrival))
        if here is not None:
            if event.epoch <= here.epoch:
                return commands
            # The first command releases the earlier epoch.
            here.end(CANCELLED, "", now)
            commands = commands[1:]
        part = Part(spec, event.epoch, now)
        self.parts.append(part)
        self._jobs[spec.id] = part
        if commands and isinstance(first := commands[0], End) and first.outcome in ("rejected", "invalid"):
            part.end(_OUTCOMES[first.outcome], first.reason, now)
            del self._jobs[spec.id]
        return commands

    def _on_report(self, event: StepDone | StepFailed, now: int) -> None:
        """Reports take effect in the order of the steps."""
        if event.seq not in self._steps or event.seq in self._reports:
            return
        self._reports[event.seq] = event
        while self._steps and (report := self._reports.pop(next(iter(self._steps)), None)) is not None:
            step = self._steps.pop(report.seq)
            if isinstance(report, StepDone):
                self._settle(step, report, now)
            else:
                self._fail(step, report)

    def _settle(self, step: list[tuple[Part, Slice]], report: StepDone, now: int) -> None:
        results = {result.job: result for result in report.except_for}
        for part, piece in step:
            if part.over or report.seq < part.void_before:
                continue
            result = results.get(piece.job)
            if result is not None:
                self._settle_exception(part, piece, result, report.seq, now)
            elif piece.start + piece.count >= part.known:
                part.known = piece.start + piece.count + 1
                part.times_ns.append(now)
            part.over |= part.known > part.total

    def _fail(self, step: list[tuple[Part, Slice]], report: StepFailed) -> None:
        """Its jobs are over; a command says how."""
        for part, _ in step:
            part.over |= report.seq >= part.void_before

    def _settle_exception(self, part: Part, piece: Slice, result: Executed, seq: int, now: int) -> None:
        if seq < part.stale_before:
            part.known += result.emitted
        else:
            if result.emitted:
                part.known = max(part.known, piece.start + result.executed + 1)
            if result.executed != piece.count:
                part.void_before = self._next_step
        part.times_ns.extend([now] * result.emitted)
        part.over |= result.finish is not None
        if result.finish is not None and result.finish.startswith("error"):
            part.end(FAILED, result.finish.removeprefix("error:"), now)

    def _on_end(self, part: Part, event: InstanceEvent, now: int) -> None:
        """The job has given up its pages. Unless it was cancelled or a step ended it, it has moved on."""
        if part.outcome:
            return
        if isinstance(event, StepDone | StepFailed):
            part.end(COMPLETED, "", now)
        elif isinstance(event, Cancelled) and event.job == part.spec.id:
            part.end(CANCELLED, "", now)
        else:
            part.over = True


class ClusterReader:
    """Follows the log of the cluster: requests that never got to an instance, and instances that came and went."""

    def __init__(self) -> None:
        self.config: ClusterConfig | None = None
        self.specs: dict[int, JobSpec] = {}
        #: Job -> when and how it ended, where no instance says so.
        self.ends: dict[int, tuple[int, str, str]] = {}
        #: One an instance's place: (instance, joined, left), of one after the other.
        self.places: list[list[tuple[int, int, int | None]]] = []
        self.last_ns = 0

    def feed(self, entry: ClusterEntry) -> None:
        """Take the next entry."""
        self.last_ns = now = entry.now
        match entry.event:
            case Arrived(spec):
                # A job whose instance was lost comes again.
                self.specs.setdefault(spec.id, spec)
                self.ends.pop(spec.id, None)
            case Ended(job):
                self.ends.setdefault(job, (now, CANCELLED, ""))
            case Joined(instance):
                free = next((place for place in self.places if place[-1][2] is not None), None)
                if free is None:
                    self.places.append(free := [])
                free.append((instance, now, None))
            case Left(instance):
                for place in self.places:
                    if place[-1][0] == instance:
                        place[-1] = (instance, place[-1][1], now)
        for command in entry.commands:
            self._take(command, now)

    def _take(self, command: ClusterCommand, now: int) -> None:
        match command:
            case Refuse(job, reason, _):
                self.ends[job] = (now, REJECTED, reason)
            case Lost(job, _):
                self.ends[job] = (now, FAILED, "its instance failed")

    def failures(self, start_ns: int) -> list[Failure]:
        """When no instance was in a place, from the first arrival at `start_ns` on."""
        found = []
        for number, place in enumerate(self.places):
            gone: list[int | None] = [start_ns, *(left for _, _, left in place)]
            back: list[int | None] = [*(joined for _, joined, _ in place), None]
            for left, joined in zip(gone, back, strict=True):
                if left is None or (joined is not None and joined <= start_ns):
                    continue
                at = max(left, start_ns)
                down_ns = None if joined is None else joined - at
                found.append(Failure(instance=number, at_ns=at - start_ns, down_ns=down_ns))
        return found


def paths_of(log: Path) -> list[Path]:
    """The log itself and those of the instances beside it, in the order of their numbers."""
    beside = log.parent.glob(f"{log.name}.instance*")
    return [log, *sorted((path for path in beside if _number(path)[0]), key=lambda path: _number(path)[1])]


def _number(path: Path) -> tuple[bool, int]:
    match = re.search(r"\.instance(\d+)$", path.name)
    return (True, int(match[1])) if match else (False, 0)


class Job:
    """A request, of what all logs say of it."""

    def __init__(self, spec: JobSpec, end: tuple[int, str, str] | None) -> None:
        self.spec = spec
        #: One for each epoch, ascending.
        self.parts: list[Part] = []
        #: As the cluster saw it, if it did.
        self._end = end

    @property
    def limit(self) -> int:
        """The most tokens that the answer may have."""
        return self.spec.total - self.spec.known + 1

    def tokens(self) -> list[int]:
        """When each token came. A later epoch starts at the token that it was told to: of those before it, what came
        later does not count, and what is missing had come by then."""
        times: list[int] = []
        for part in self.parts:
            start = part.spec.known - self.spec.known
            del times[start:]
            times.extend([part.seen_ns] * (start - len(times)))
            times.extend(part.times_ns)
        return times

    def end(self, last_ns: int) -> tuple[int, str, str]:
        """When it was over, its outcome and error; `last_ns`: the last thing that the logs tell."""
        if self.parts and (last := self.parts[-1]).outcome:
            return last.end_ns, last.outcome, last.error
        if self._end is None:
            return last_ns, FAILED, "the log ends before it did"
        at, outcome, error = self._end
        if self.parts and outcome == CANCELLED:
            return at, FAILED, "its end is missing in the log of its instance"
        return at, outcome, error

    def record(self, start_ns: int, last_ns: int) -> Record:
        """As the cores saw it, in ns after `start_ns`."""
        sent = self.spec.arrival - start_ns
        steps = [(at - start_ns, len(list(same))) for at, same in groupby(self.tokens())]
        several = any(count > 1 for _, count in steps)
        end_ns, outcome, error = self.end(last_ns)
        return Record(
            id=self.spec.id,
            scheduled_ns=sent,
            sent_ns=sent,
            end_ns=end_ns - start_ns,
            prompt_tokens=self.spec.known,
            times_ns=[at for at, _ in steps],
            counts=[count for _, count in steps] if several else [],
            outcome=outcome,
            error=error,
            slo=self.spec.slo or None,
        )

    def request(self, record: Record, block_tokens: int) -> Request:
        """For a simulator. What did not end by itself is cut where it was."""
        completed = record.outcome == COMPLETED
        cut = not completed and record.outcome != REJECTED
        return Request(
            arrival_s=record.sent_ns / SECOND,
            prompt_tokens=self.spec.known,
            output_tokens=max(1, record.output_tokens) if completed else self.limit,
            limit_tokens=self.limit,
            hash_ids=max((part.keys for part in self.parts), key=len, default=self.spec.keys),
            block_tokens=block_tokens,
            priority=self.spec.priority or None,
            slo=record.slo,
            adapter=self.spec.adapter,
            cancel_s=max(0, record.end_ns - record.sent_ns) / SECOND if cut else None,
        )


def gather(paths: Iterable[Path]) -> Recorded:
    """Read the logs of one run. Raises ValueError where there is no instance's log, or no request, among them."""
    cluster, instances, headers = ClusterReader(), list[InstanceReader](), dict[int, Header]()
    for path in paths:
        header, entries = read(path)
        reader: Any = cluster
        if header.instance is not None:
            headers[_number(path)[1]] = header
            instances.append(reader := InstanceReader())
        else:
            cluster.config = header.cluster
        for entry in entries:
            reader.feed(entry)
    if not instances:
        raise ValueError("the logs of its instances (.instance0, ...) are not there: they have the steps and tokens")
    jobs = jobs_of(instances, cluster)
    if not jobs:
        raise ValueError("no request came while this was recorded")
    start_ns = min(job.spec.arrival for job in jobs)
    last_ns = max([cluster.last_ns, *(instance.last_ns for instance in instances)])
    delays = [delay for instance in instances for delay in instance.delays]
    sim = _sim_config(headers, cluster, start_ns, round(median(delays)) if delays else 0)
    sim = msgspec.structs.replace(sim, move_bytes_per_s=_positions_per_s(instances))
    records = [job.record(start_ns, last_ns) for job in jobs]
    block_tokens = sim.members[0].instance.block_tokens
    return Recorded(
        records=records,
        requests=[job.request(record, block_tokens) for job, record in zip(jobs, records, strict=True)],
        delays=delays,
        preemptions=sum(instance.preemptions for instance in instances),
        sim=sim,
    )


def jobs_of(instances: Iterable[InstanceReader], cluster: ClusterReader) -> list[Job]:
    """In order of arrival."""
    jobs = {number: Job(spec, cluster.ends.get(number)) for number, spec in cluster.specs.items()}
    parts = (part for instance in instances for part in instance.parts)
    for part in sorted(parts, key=lambda part: (part.epoch, part.seen_ns)):
        number = part.spec.id
        if number not in jobs:
            jobs[number] = Job(part.spec, cluster.ends.get(number))
        jobs[number].parts.append(part)
    return sorted(jobs.values(), key=lambda job: (job.spec.arrival, job.spec.id))


def _sim_config(headers: dict[int, Header], cluster: ClusterReader, start_ns: int, delay_ns: int) -> SimConfig:
    """A member for each place of an instance; without a log of the cluster, for each log."""
    places = [place[0][0] for place in cluster.places] or list(headers)
    anyone = next(iter(headers.values()))
    members = [_member(headers.get(number, anyone)) for number in places]
    first = members[0].instance
    return SimConfig(
        members=members,
        cluster=cluster.config or ClusterConfig(policy=first.policy, max_num_queued=first.limits.max_num_queued),
        delays=Delays(dispatch=delay_ns, report=delay_ns, peer=delay_ns),
        failures=cluster.failures(start_ns),
    )


def _member(header: Header) -> MemberConfig:
    """A position counts as one byte: how many it has is not in a log, and only the time that they take matters."""
    assert header.instance is not None
    return MemberConfig(instance=header.instance, predictor=header.predictor, kv_bytes_per_token=1)


def _positions_per_s(instances: Iterable[InstanceReader]) -> float:
    """How fast moves copied; 0 where none did."""
    pulls = [pull for instance in instances for pull in instance.pulls]
    took_ns = sum(ns for _, ns in pulls)
    return SECOND * sum(positions for positions, _ in pulls) / took_ns if took_ns else 0.0


def closed_loop(run: Recorded) -> Recorded:
    """The run as one of clients that wait for their answers: each request is sent so long after the one that ended last
    before it came as it was then, instead of when it came. Which client sent what is not in a log, and need not be."""
    ends = sorted((record.end_ns, number) for number, record in enumerate(run.records))
    ended, waiting = 0, list[int]()
    sessions, requests = dict[int, str](), list[Request]()
    for number, (record, request) in enumerate(zip(run.records, run.requests, strict=True)):
        while ended < len(ends) and ends[ended][0] < record.sent_ns:
            waiting.append(ends[ended][1])
            ended += 1
        before = waiting.pop() if waiting else None
        sessions[number] = str(number) if before is None else sessions[before]
        think_s = None if before is None else (record.sent_ns - run.records[before].end_ns) / SECOND
        requests.append(msgspec.structs.replace(request, session=sessions[number], think_s=think_s))
    return msgspec.structs.replace(run, requests=requests)


def simulate(
    recorded: Recorded, cost: StepCost, on_arrival: Callable[[], object] = lambda: None
) -> tuple[list[Record], int]:
    """The run again, with steps that take what `cost` says: its records, in the same order, and its preemptions.

    A request that was cut where the recorded one failed or was dropped has that outcome, too. `on_arrival` is called at
    each.
    """
    simulation = Simulation(recorded.sim, cost)
    records = simulation.run(recorded.requests, on_arrival)
    for twin, live in zip(records, recorded.records, strict=True):
        if twin.outcome == CANCELLED and live.outcome in (FAILED, DROPPED):
            twin.outcome = live.outcome
    return records, sum(member.preemptions for member in simulation.members)


def set_idle(records: Iterable[Record], recorded: Recorded, cost: Model) -> None:
    """What each of these requests would take on an idle instance, for SLOs like `3x`: by what the server reckoned with,
    as far as it is recorded, else by `cost`."""
    reckoned = recorded.sim.members[0].predictor or cost
    for record in records:
        record.idle_ttft_ns, record.idle_tpot_ns = reckoned.request_ns(record.prompt_tokens, record.output_tokens)
