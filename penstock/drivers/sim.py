"""The simulated driver: the same cores and policies, on a heap instead of a clock.

Time is an integer of ns and jumps from event to event. All is ordered by (time, ends of steps before the rest, then
instance or order of scheduling), so the same input gives the same output to the byte. An engine is only how long its
steps take (`core.step.StepCost`). The true length of an answer is known here, never to a core.

While a core is steady (`Instance.stable_for`) its steps are not played one by one: their durations are computed in one
go, and the core leaps to where the stretch ends or an event cuts it short. The result is that of playing them all.

Models step times, pipelines, KV capacity, queues, messages, tokenization, start-up over a shared link, failures,
hang-ups and sessions. Knows no text, and no network beyond that.
"""

import gc
from array import array
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from heapq import heappop, heappush
from itertools import chain, islice, repeat
from typing import Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from penstock.core.cluster import ClusterConfig
from penstock.core.commands import Dispatch, End, Lost, Refuse, Report, Run
from penstock.core.events import (
    Arrived,
    Cancelled,
    ClusterEvent,
    Ended,
    Executed,
    InstanceEvent,
    Joined,
    Left,
    Reported,
    StepDone,
    Submitted,
)
from penstock.core.instance import Instance, InstanceConfig, Step
from penstock.core.job import JobSpec, Unit
from penstock.core.slo import SECOND, Slo
from penstock.core.step import Features, StepCost, StepPlan, features
from penstock.cost.models import Model
from penstock.drivers.link import Link
from penstock.metrics.record import CANCELLED, COMPLETED, FAILED, REJECTED, Record
from penstock.policies.bundles import make_cluster, make_instance
from penstock.workload.trace import Request

#: Times in ns: one, or many as int64.
Times = Sequence[int] | npt.NDArray[np.int64]

#: Up to so many jobs a step, the times of steps that only decode are remembered.
_JOBS_REMEMBERED = 8

#: The most steps that are computed in one go: more would often be in vain, as an event cuts them short.
_STRETCH_MAX = 512


class MemberConfig(msgspec.Struct, frozen=True, kw_only=True):
    """An instance that is simulated."""

    instance: InstanceConfig
    #: What its policy reckons with; None: with what steps do cost.
    predictor: Model | None = None
    #: Weights that it reads over the link before it is ready, and what else its start takes.
    load_bytes: int = 0
    start_ns: int = 0


class Delays(msgspec.Struct, frozen=True, kw_only=True):
    """What messages and the front take, in ns."""

    #: From sending a request to its dispatch (HTTP, JSON), and for each prompt token (tokenization).
    front: int = 0
    front_per_token: float = 0.0
    #: From the home to an instance's core.
    dispatch: int = 0
    #: From the end of a step to its tokens at the client.
    token: int = 0
    #: From an instance to the cluster.
    report: int = 0


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """An instance is gone at `at_ns` with all that it held, and starts again `down_ns` later; None: never."""

    instance: int
    at_ns: int
    down_ns: int | None = None


class SimConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What is simulated."""

    members: list[MemberConfig]
    cluster: ClusterConfig = ClusterConfig()
    #: Promised to requests that bring none of their own.
    slo: Slo = Slo()
    delays: Delays = Delays()
    #: Bandwidth, in bytes/s, that all instances share when they load their weights; 0: loading takes no time.
    load_bytes_per_s: float = 0.0
    #: Instances are ready when the run begins; else they start then.
    warm: bool = True
    failures: list[Failure] = []
    #: Keep when each token came; else of the first and the last only, for runs of many millions.
    every_token: bool = True
    #: Play every step by itself: slow, for those who do not believe.
    stepping: bool = False


def alike(instance: InstanceConfig, count: int = 1, *, delays: Delays = Delays(), stepping: bool = False) -> SimConfig:
    """So many instances of one kind."""
    cluster = ClusterConfig(policy=instance.policy, max_num_queued=instance.limits.max_num_queued)
    members = [MemberConfig(instance=instance) for _ in range(count)]
    return SimConfig(members=members, cluster=cluster, delays=delays, stepping=stepping)


class Observer(Protocol):
    """Who wants to see steps."""

    def steps(self, instance: int, start_ns: int, ends_ns: Times, first: Features) -> None:
        """Steps that repeat one plan ended at these times; the first began at `start_ns` and had these features."""


class _Track:
    """What the driver knows of a job on an instance: how long its answer is, and when its tokens came."""

    __slots__ = ("left", "limited", "member", "runs")

    def __init__(self, request: Request, member: "_Member") -> None:
        self.member = member
        #: Tokens still to come.
        self.left = request.output_tokens
        #: Whether the core ends it, at its limit.
        self.limited = _limit(request) == self.left
        #: Runs of tokens, one a step: (ends of an instance's steps, the first, how many).
        self.runs: list[tuple[array[int], int, int]] = []

    def emit(self, seq: int, count: int = 1) -> None:
        """A token at the end of each of `count` steps from `seq` on."""
        self.left -= count
        ends = self.member.ends
        if self.runs:
            last, first, so_far = self.runs[-1]
            if first + so_far == seq and last is ends:
                self.runs[-1] = (ends, first, so_far + count)
                return
        self.runs.append((ends, seq, count))


class _Stretch:
    """Steps in a row, from `seq` on, that will end at these times unless an event cuts it short."""

    __slots__ = ("alive", "ends", "first", "seq", "start")

    def __init__(self, seq: int, start: int, ends: Times, first: Features) -> None:
        self.seq = seq
        self.start = start
        self.ends = ends
        self.first = first
        self.alive = True


class _Pace:
    """When the steps of a stretch end. Those that only decode are remembered: few jobs with as many tokens of context
    take as long whoever they are, and the next step has one token more of each."""

    def __init__(self, cost: StepCost) -> None:
        self._cost = cost
        #: (jobs, context modulo jobs) -> time from no context to so many steps later.
        self._totals: dict[tuple[int, int], npt.NDArray[np.int64]] = {}

    def ends(self, first: Features, count: int, start: int) -> npt.NDArray[np.int64]:
        """Ends of `count` steps, of which at most one slice is a part of a prompt."""
        ends: npt.NDArray[np.int64]
        jobs = first.decodes
        if first.new > jobs or jobs > _JOBS_REMEMBERED:
            durations = self._cost.steps_ns(first, jobs + (first.new - jobs) ** 2, count)
            ends = durations.cumsum() + start
            return ends
        before, odd = divmod(first.decode_context, jobs)
        totals = self._totals.get((jobs, odd))
        if totals is None or len(totals) <= before + count:
            room = max(4096, 2 * (before + count))
            durations = self._cost.steps_ns(Features(jobs, odd, jobs, odd), jobs, room)
            totals = self._totals[jobs, odd] = np.concatenate([[0], durations.cumsum()])
        ends = totals[before + 1 : before + count + 1] + (start - totals[before])
        return ends


class _Member:
    """A simulated instance: its core, and when its steps end."""

    def __init__(self, index: int, config: MemberConfig, cost: StepCost, pace: _Pace) -> None:
        self.index = index
        self.config = config
        self.cost = cost
        self.pace = pace
        #: What the cluster calls it; -1 until it is up.
        self.name = -1
        #: Of cores before the present one.
        self.preemptions = 0
        self.reset()

    def reset(self) -> None:
        """As it is after a start."""
        self.core: Instance = make_instance(self.config.instance, self.config.predictor or self.cost)
        #: When each step ended, by number.
        self.ends: array[int] = array("q")
        self.flights: deque[_Stretch] = deque()
        #: When the first stage is free, and when the last step so far ends.
        self.free_at = self.last_end = 0


class Simulation:
    """One run. `run` may be called once."""

    def __init__(
        self, config: SimConfig, costs: StepCost | Sequence[StepCost], observer: Observer | None = None
    ) -> None:
        """`costs`: how long steps take on each member, or on all."""
        self._config = config
        each = list(costs) if isinstance(costs, Sequence) else [costs] * len(config.members)
        self._cluster = make_cluster(config.cluster)
        paces = {id(cost): _Pace(cost) for cost in each}
        self.members = [
            _Member(i, c, cost, paces[id(cost)]) for i, (c, cost) in enumerate(zip(config.members, each, strict=True))
        ]
        self._observer = observer
        self._link = Link(config.load_bytes_per_s)
        self._requests: Sequence[Request] = ()
        self._on_arrival: Callable[[], object] = lambda: None
        self._records: list[Record] = []
        self._arrivals: Iterator[int] = iter(())
        #: Session -> its later turns, each of which waits for the one before.
        self._turns: dict[str, deque[int]] = {}
        #: Requests that are neither over nor still to come.
        self._open: dict[int, None] = {}
        #: Those of them that are on an instance.
        self._tracks: dict[int, _Track] = {}
        #: What the cluster calls an instance, which has a new name after each start.
        self._named: dict[int, _Member] = {}
        self._gone = 0
        #: (time, 0, instance, first step, the stretch that ends) or (time, 1, number in order, 0, what is to be done)
        self._heap: list[tuple[int, int, int, int, _Stretch | Callable[[], None]]] = []
        self._sequence = 0
        self.now = 0

    def run(self, requests: Sequence[Request], on_arrival: Callable[[], object] = lambda: None) -> list[Record]:
        """Serve the requests; one record each, in the same order. `on_arrival` is called at each."""
        self._requests, self._on_arrival = requests, on_arrival
        self._records = [_unserved(number, request) for number, request in enumerate(requests)]
        for member in self.members:
            if self._config.warm:
                self._join(member)
            else:
                self._load(member)
        for failure in self._config.failures:
            self._at(failure.at_ns, partial(self._fail, failure))
        self._arrivals = iter(sorted(self._firsts(), key=lambda n: (self._records[n].sent_ns, n)))
        self._await_arrival()
        collecting = gc.isenabled()
        gc.disable()  # Nothing here makes cycles that are to be collected.
        try:
            self._play()
            while self._open:
                for job in list(self._open):
                    self._close(job, FAILED, "no instance was left to serve it")
                self._play()
        finally:
            if collecting:
                gc.enable()
        return self._records

    def _play(self) -> None:
        heap = self._heap
        while heap:
            self.now, _, index, _, what = heappop(heap)
            if not isinstance(what, _Stretch):
                what()
            elif what.alive:
                self._end_stretch(self.members[index], what)

    def _at(self, time: int, act: Callable[[], None]) -> None:
        self._sequence += 1
        heappush(self._heap, (time, 1, self._sequence, 0, act))

    # -- requests ----------------------------------------------------------------------------------------------

    def _firsts(self) -> Iterator[int]:
        """Requests that come at a time of their own; other turns of a session wait for the one before."""
        for number, request in enumerate(self._requests):
            if not request.session or request.think_s is None:
                yield number
            elif request.session in self._turns:
                self._turns[request.session].append(number)
            else:
                yield number
            if request.session:
                self._turns.setdefault(request.session, deque())

    def _await_arrival(self) -> None:
        number = next(self._arrivals, None)
        if number is not None:
            self._at(self._records[number].sent_ns, partial(self._arrive, number, True))

    def _arrive(self, number: int, first: bool) -> None:
        if first:
            self._await_arrival()
        self._on_arrival()
        request, delays = self._requests[number], self._config.delays
        self._open[number] = None
        spec = JobSpec(
            id=number,
            units=(Unit("lm", request.prompt_tokens + _limit(request) - 1),),
            known=request.prompt_tokens,
            arrival=self.now,
            keys=_keys(request, self._config.members[0].instance.block_tokens),
            priority=request.priority or 0,
            slo=request.slo or self._config.slo,
            adapter=request.adapter,
        )
        if request.cancel_s is not None:
            self._at(self.now + round(request.cancel_s * SECOND), partial(self._hang_up, number))
        front = delays.front + round(delays.front_per_token * request.prompt_tokens)
        if front:
            self._at(self.now + front, partial(self._place, spec))
        else:
            self._place(spec)

    def _place(self, spec: JobSpec) -> None:
        if spec.id in self._open:
            self._feed_cluster(Arrived(spec))

    def _feed_cluster(self, event: ClusterEvent) -> None:
        for command in self._cluster.handle(event, self.now):
            match command:
                case Dispatch(spec, instance) if self._config.delays.dispatch:
                    self._at(self.now + self._config.delays.dispatch, partial(self._submit, instance, spec))
                case Dispatch(spec, instance):
                    self._submit(instance, spec)
                case Refuse(job, reason, _):
                    self._close(job, REJECTED, reason)
                case Lost(job, _):
                    self._close(job, FAILED, "its instance failed")

    def _submit(self, instance: int, spec: JobSpec) -> None:
        """A dispatch arrives. One to an instance that is gone is lost, with the job; one whose client has hung up
        meanwhile is followed by that."""
        member = self._named.get(instance)
        if member is None:
            return
        self._tracks[spec.id] = _Track(self._requests[spec.id], member)
        self._feed(member, Submitted(spec, 1))
        if spec.id not in self._open and spec.id in self._tracks:
            del self._tracks[spec.id]
            self._feed(member, Cancelled(spec.id, 1))

    def _hang_up(self, job: int) -> None:
        if job not in self._open:
            return
        track = self._tracks.get(job)
        if track is not None:
            self._catch_up(track.member)
        self._close(job, CANCELLED)
        if track is not None:
            self._feed(track.member, Cancelled(job, 1))
        self._cluster.handle(Ended(job), self.now)

    def _close(self, job: int, outcome: str, error: str = "", delay: int = 0) -> None:
        """A request is over: write its record, and let its session go on."""
        del self._open[job]
        track, record = self._tracks.pop(job, None), self._records[job]
        record.outcome, record.error, record.end_ns = outcome, error, self.now + delay
        if track is not None and track.runs:
            self._write_times(record, track)
        session = self._requests[job].session
        if session and self._turns[session]:
            number = self._turns[session].popleft()
            following, think_s = self._records[number], self._requests[number].think_s or 0.0
            at = record.end_ns + round(think_s * SECOND)
            following.scheduled_ns = following.sent_ns = at
            self._at(at, partial(self._arrive, number, False))

    def _write_times(self, record: Record, track: _Track) -> None:
        delay, runs = self._config.delays.token, track.runs
        if self._config.every_token:
            parts = [ends[first : first + count] for ends, first, count in runs]
            times = parts[0] if len(parts) == 1 else array("q", chain.from_iterable(parts))
            record.times_ns = (np.frombuffer(times, np.int64) + delay).tolist() if delay else times.tolist()
            return
        tokens = sum(count for _, _, count in runs)
        (first_ends, first, _), (last_ends, last, count) = runs[0], runs[-1]
        record.times_ns = [first_ends[first] + delay, last_ends[last + count - 1] + delay][:tokens]
        record.counts = [1, tokens - 1][:tokens]

    # -- instances ---------------------------------------------------------------------------------------------

    def _load(self, member: _Member) -> None:
        """Begin to start: read the weights first."""
        self._link.begin(member.index, member.config.load_bytes, self.now)
        self._await_link()

    def _await_link(self) -> None:
        due = self._link.due()
        if due is not None:
            self._at(due, self._on_loaded)

    def _on_loaded(self) -> None:
        ended = self._link.ended(self.now)
        for index in ended:
            member = self.members[index]
            self._at(self.now + member.config.start_ns, partial(self._join, member))
        if ended:
            self._await_link()

    def _join(self, member: _Member) -> None:
        member.name = len(self._named) + self._gone
        self._named[member.name] = member
        self._feed_cluster(Joined(member.name))

    def _fail(self, failure: Failure) -> None:
        member = self.members[failure.instance]
        if self._named.pop(member.name, None) is None:
            return
        self._gone += 1
        self._catch_up(member)
        for stretch in member.flights:
            stretch.alive = False
        self._feed_cluster(Left(member.name))
        member.preemptions += member.core.preemptions
        member.reset()
        if failure.down_ns is not None:
            self._at(self.now + failure.down_ns, partial(self._load, member))

    def _feed(self, member: _Member, event: InstanceEvent) -> None:
        self._catch_up(member)
        for command in member.core.handle(event, self.now):
            # The rest is for engines.
            if isinstance(command, Run):
                self._begin_step(member, command.plan)
            elif isinstance(command, Report):
                self._report(Reported(member.name, command.load))
            elif isinstance(command, End) and command.job in self._open:
                self._close(command.job, FAILED if command.outcome == "invalid" else command.outcome, command.reason)
                self._cluster.handle(Ended(command.job), self.now)

    def _report(self, event: Reported) -> None:
        if self._config.delays.report:
            self._at(self.now + self._config.delays.report, partial(self._feed_cluster, event))
        else:
            self._cluster.handle(event, self.now)

    # -- steps -------------------------------------------------------------------------------------------------

    def _begin_step(self, member: _Member, plan: StepPlan) -> None:
        """Work out when it ends, and, while the core is steady, those after it."""
        found, core = features(plan), member.core
        start = max(self.now, member.free_at)
        steps = 1 if self._config.stepping else min(core.stable_for, _STRETCH_MAX)
        if steps > 1:
            steps = min(steps, self._soonest_end(core.steps[plan.seq]))
        if steps > 1:
            ends = member.pace.ends(found, steps, start)
            member.free_at = int(ends[-1])
            self._fly(member, _Stretch(plan.seq, start, ends, found))
        else:
            end = max(member.last_end, start + member.cost.step_ns(found))
            member.free_at = start + member.cost.interval_ns(found)
            self._fly(member, _Stretch(plan.seq, start, [end], found))

    def _soonest_end(self, step: Step) -> int:
        """How many steps like this one until an answer ends."""
        soonest = _STRETCH_MAX
        for job, piece in zip(step.jobs, step.slices, strict=True):
            if piece.start + piece.count >= job.known:
                soonest = min(soonest, self._tracks[job.id].left)
        return soonest

    def _fly(self, member: _Member, stretch: _Stretch) -> None:
        member.flights.append(stretch)
        member.last_end = int(stretch.ends[-1])
        heappush(self._heap, (member.last_end, 0, member.index, stretch.seq, stretch))

    def _catch_up(self, member: _Member) -> None:
        """Bring the core to now and cut its stretch short: of what is to come, only the step in flight is sure."""
        if not member.flights or len(member.flights[0].ends) == 1:
            return
        stretch = member.flights.popleft()
        stretch.alive = False
        through = min(bisect_right(stretch.ends, self.now), len(stretch.ends) - 1)
        rest = self._leap(member, stretch, through)
        member.free_at = int(rest.ends[0])
        self._fly(member, _Stretch(rest.seq, rest.start, rest.ends[:1], rest.first))

    def _leap(self, member: _Member, stretch: _Stretch, count: int) -> _Stretch:
        """The first `count` steps of a stretch are through. What is left of it."""
        if not count:
            return stretch
        step = member.core.steps[stretch.seq]
        for job, piece in zip(step.jobs, step.slices, strict=True):
            if piece.start + piece.count >= job.known:
                self._emit(job.id, stretch.seq, count)
        ends = stretch.ends[:count]
        member.ends.frombytes(np.asarray(ends).tobytes())
        self._see(member, stretch, ends)
        member.core.leap(count)
        first = features(StepPlan(0, step.slices)) if self._observer is not None else stretch.first
        return _Stretch(stretch.seq + count, int(ends[-1]), stretch.ends[count:], first)

    def _end_stretch(self, member: _Member, stretch: _Stretch) -> None:
        member.flights.popleft()
        stretch = self._leap(member, stretch, len(stretch.ends) - 1)
        seq = stretch.seq
        step = member.core.steps[seq]
        member.ends.append(self.now)
        self._see(member, stretch, stretch.ends)
        exceptions: list[Executed] = []
        ended: list[int] = []
        for job, piece in chain(zip(step.jobs, step.slices, strict=True), step.stale.items()):
            if piece.start + piece.count >= job.known:
                track = self._emit(job.id, seq)
                if not track.left:
                    ended.append(job.id)
                    if not track.limited:
                        exceptions.append(Executed(job.id, piece.count, 1, "stop"))
        for number in ended:
            self._close(number, COMPLETED, delay=self._config.delays.token)
            self._cluster.handle(Ended(number), self.now)
        self._feed(member, StepDone(seq, exceptions, self.now - stretch.start))

    def _emit(self, job: int, seq: int, count: int = 1) -> _Track:
        track = self._tracks[job]
        track.emit(seq, count)
        return track

    def _see(self, member: _Member, stretch: _Stretch, ends: Times) -> None:
        """The first steps of a stretch are through."""
        if self._observer is not None:
            self._observer.steps(member.index, stretch.start, ends, stretch.first)


def _unserved(number: int, request: Request) -> Record:
    sent = round(request.arrival_s * SECOND)
    return Record(
        id=number, scheduled_ns=sent, sent_ns=sent, end_ns=sent, prompt_tokens=request.prompt_tokens, outcome=FAILED,
        slo=request.slo,
    )  # fmt: skip


def _limit(request: Request) -> int:
    """The most tokens that the answer may have."""
    return max(request.output_tokens, request.limit_tokens or 0)


def _keys(request: Request, block_tokens: int) -> tuple[int, ...]:
    """Names of the prompt's blocks at the instance's granularity: a trace's block, cut into parts."""
    parts, rest = divmod(request.block_tokens, block_tokens)
    if not request.hash_ids or rest:
        return ()
    blocks = request.prompt_tokens // block_tokens
    if parts == 1:
        return request.hash_ids[:blocks]
    return tuple(islice(chain.from_iterable(map(_parts, request.hash_ids, repeat(parts))), blocks))


@lru_cache(1 << 16)
def _parts(block: int, parts: int) -> tuple[int, ...]:
    """A block's parts; many requests begin with the same blocks."""
    return tuple(range(block * parts, (block + 1) * parts))
