"""The simulated driver: the same cores and policies, on a heap instead of a clock.

Time is an integer of ns and jumps from event to event. All is ordered by (time, ends of steps before the rest, then
instance or order of scheduling), so the same input gives the same output to the byte. An engine is only how long its
steps take (`core.step.StepCost`). The true length of an answer is known here, never to a core.

While a core is steady (`Instance.stable_for`) its steps are not played one by one: their durations are computed in one
go, and the core leaps to where the stretch ends or an event cuts it short. The result is that of playing them all.

Models step times, pipelines, KV capacity, queues, messages, tokenization, start-up over a shared link, moves over a
shared network, failures, hang-ups and sessions, and a fleet that grows and shrinks. Knows no text.
"""

import gc
from array import array
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from heapq import heappop, heappush
from itertools import accumulate
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from penstock.core.cluster import Cluster
from penstock.core.commands import (
    Bind,
    ClusterCommand,
    Dispatch,
    End,
    Evict,
    InstanceCommand,
    Lost,
    Order,
    Refuse,
    Release,
    Report,
    Restore,
    Retire,
    Run,
    Share,
    Stow,
)
from penstock.core.commands import Start as StartCommand
from penstock.core.events import (
    Arrived,
    Asked,
    Cancelled,
    ClusterEvent,
    Drain,
    Ended,
    Executed,
    InstanceEvent,
    Joined,
    Left,
    Moved,
    Reported,
    StepDone,
    Submitted,
)
from penstock.core.features import features
from penstock.core.instance import Instance, Step
from penstock.core.job import Job
from penstock.core.move import (
    Adopt,
    Ask,
    Discard,
    MoveEnded,
    PeerLeft,
    Pull,
    Pulled,
    Receive,
    Switch,
    Switched,
    Tell,
    Tick,
)
from penstock.core.slo import SECOND
from penstock.core.spec import JobSpec, Unit
from penstock.core.step import Features, Slice, StepCost, StepPlan
from penstock.cost.base import Cost
from penstock.drivers.link import Link
from penstock.drivers.scenario import Failure, MemberConfig, SimConfig
from penstock.metrics.record import CANCELLED, COMPLETED, FAILED, REJECTED, Record
from penstock.policies.bundles import make_cluster, make_instance
from penstock.workload.trace import Request

#: Times in ns: a few, or many as int64.
Times = list[int] | npt.NDArray[np.int64]

#: Up to so many jobs a step, the times of steps that only decode are remembered.
_JOBS_REMEMBERED = 3

#: The most steps that are computed in one go: more would often be in vain, as an event cuts them short.
_STRETCH_MAX = 512


#: Commands that only an engine heeds.
_ENGINES = frozenset((Bind, Share, Evict, Release, Receive, Adopt, Discard))


class Observer(Protocol):
    """Who wants to see steps and moves."""

    def steps(self, instance: int, start_ns: int, ends_ns: Times, first: Features) -> None:
        """Steps that repeat one plan ended at these times; the first began at `start_ns` and had these features."""

    def moved(self, instance: int, to: int | None, ended: MoveEnded, now_ns: int) -> None:
        """A move from an instance is over by now; `to` is None where the other one is gone."""


class Handle(Protocol):
    """Feeds a core in its driver's place: who times, counts or logs what cores decide."""

    def __call__(self, core: Instance | Cluster, event: Any, now: int) -> list[Any]:
        """What `core.handle` returned."""


class _Track:
    """What the driver knows of a job on an instance: how long its answer is, and when its tokens came."""

    __slots__ = ("ends", "epoch", "first", "first_ns", "last_ns", "left", "limited", "member", "past", "tokens", "upto")

    def __init__(self, request: Request, member: "_Member") -> None:
        self.member = member
        #: As its home has raised it.
        self.epoch = 0
        #: Tokens of the whole answer.
        self.tokens = request.output_tokens
        #: Tokens still to come.
        self.left = request.output_tokens
        #: Whether the core ends it, at its limit.
        self.limited = _limit(request) == self.left
        #: When the first token and the last so far came.
        self.first_ns = self.last_ns = -1
        #: Where every token's time is kept, the run of tokens, one a step, that goes on: ends of an instance's steps,
        #: the first, the one after the last.
        self.ends: array[int] | None = None
        self.first = self.upto = 0
        #: Those before it.
        self.past: list[tuple[array[int], int, int]] = []

    @property
    def emitted(self) -> int:
        """Tokens so far."""
        return self.tokens - self.left

    def keep(self, seq: int, count: int, ends: "array[int]") -> None:
        """A token came at the end of each of `count` steps from `seq` on; `ends`: those of the instance."""
        if self.upto != seq or self.ends is not ends:
            if self.ends is not None:
                self.past.append((self.ends, self.first, self.upto))
            self.ends, self.first = ends, seq
        self.upto = seq + count

    def times_ns(self) -> "array[int]":
        """Of every token."""
        times = array("q")
        for ends, first, upto in self.past:
            times.extend(ends[first:upto])
        if self.ends is not None:
            times.extend(self.ends[self.first : self.upto])
        return times


class _Stretch:
    """Steps in a row, from `seq` on, that will end at `base` and these times, unless an event cuts it short."""

    __slots__ = ("alive", "base", "first", "seq", "start", "times")

    def __init__(self, seq: int, start: int, base: int, times: Times, first: Features) -> None:
        self.seq = seq
        self.start = start
        self.base = base
        self.times = times
        self.first = first
        self.alive = True

    def end(self, step: int) -> int:
        """When a step of it ends, the first being 0."""
        return self.base + int(self.times[step])

    def ends(self, count: int) -> Times:
        """When the first `count` steps end."""
        times = self.times[:count]
        return [self.base + time for time in times] if isinstance(times, list) else times + self.base


class _Pace:
    """When the steps of a stretch end. Those that only decode are remembered: few jobs with as many tokens of context
    take as long whoever they are, and the next step has one token more of each."""

    def __init__(self, cost: StepCost) -> None:
        self._cost = cost
        #: (jobs, context modulo jobs) -> time from no context to so many steps later.
        self._totals: dict[tuple[int, int], npt.NDArray[np.int64]] = {}

    def stretch(self, seq: int, start: int, first: Features, count: int) -> _Stretch:
        """Of `count` steps, of which at most one slice is a part of a prompt."""
        jobs = first.decodes
        if first.new > jobs or jobs > _JOBS_REMEMBERED:
            durations = self._cost.steps_ns(first, jobs + (first.new - jobs) ** 2, count)
            times = list(accumulate(durations)) if isinstance(durations, list) else durations.cumsum()
            return _Stretch(seq, start, start, times, first)
        before, odd = divmod(first.decode_context, jobs)
        totals = self._totals.get((jobs, odd))
        if totals is None:
            totals = np.zeros(1, np.int64)
        if len(totals) <= before + count:
            known = len(totals) - 1
            context = odd + known * jobs
            more = max(4096, known // 2, before + count - known)
            durations = self._cost.steps_ns(Features(jobs, context, jobs, context), jobs, more)
            totals = self._totals[jobs, odd] = np.concatenate([totals, totals[-1] + np.cumsum(durations)])
        return _Stretch(seq, start, start - totals.item(before), totals[before + 1 : before + count + 1], first)


class _Member:
    """A simulated instance: its core, and when its steps end."""

    def __init__(self, index: int, config: MemberConfig, cost: StepCost, pace: _Pace) -> None:
        self.index = index
        self.config = config
        self.cost = cost
        self.pace = pace
        self.pipelined = config.instance.stages > 1
        #: What the cluster calls it; -1 until it is up.
        self.name = -1
        #: When it began to start and when it was gone, in pairs; what began last has no end while it is there.
        self.stays: list[int] = []
        #: When a Tick is due that the heap knows of.
        self.tick_at: int | None = None
        #: Those that it had before it failed, and the present one last.
        self.cores: list[Instance] = []
        self.reset()

    def reset(self) -> None:
        """As it is after a start."""
        self.core: Instance = make_instance(self.config.instance, self.config.predictor or self.cost)
        self.cores.append(self.core)
        #: When each step ended, by number.
        self.ends: array[int] = array("q")
        self.flights: deque[_Stretch] = deque()
        #: When the first stage is free, and when the last step so far ends.
        self.free_at = self.last_end = 0

    @property
    def preemptions(self) -> int:
        """Of all its cores."""
        return sum(core.preemptions for core in self.cores)

    def there_ns(self, begin: int, end: int) -> int:
        """For how long between two times it was there: starting, or up."""
        stays = [*self.stays, end] if len(self.stays) % 2 else self.stays
        return sum(
            max(0, min(gone, end) - max(came, begin)) for came, gone in zip(stays[::2], stays[1::2], strict=True)
        )


class Simulation:
    """One run. `run` may be called once."""

    def __init__(
        self,
        config: SimConfig,
        costs: StepCost | Sequence[StepCost],
        observer: Observer | None = None,
        handle: Handle | None = None,
    ) -> None:
        """`costs`: how long steps take on each member, or on all. `handle`: see there; a leap over a quiet stretch does
        not go through it."""
        self._handle = handle
        self._config = config
        self._delays, self._every_token = config.delays, config.every_token
        each = list(costs) if isinstance(costs, Sequence) else [costs] * len(config.members)
        each = [cost.ready() if isinstance(cost, Cost) else cost for cost in each]
        self._cluster = make_cluster(config.cluster)
        self._network = Link(config.move_bytes_per_s)
        #: Pulls under way, by number: who pulls, and what.
        self._pulls: dict[int, tuple[int, Pull]] = {}
        self._pulled = 0
        self._cluster_tick_at: int | None = None
        #: Requests that are still to come at a time of their own.
        self._coming = 0
        #: Moves that were switched.
        self.moves = 0
        paces = {id(cost): _Pace(cost) for cost in each}
        self.members = [
            _Member(i, c, cost, paces[id(cost)]) for i, (c, cost) in enumerate(zip(config.members, each, strict=True))
        ]
        self._observer = observer
        self._link = Link(config.load_bytes_per_s)
        self._requests: Sequence[Request] = ()
        self._on_arrival: Callable[[], object] = lambda: None
        self._records: list[Record] = []
        #: Of requests that are over, in that order. Grows while it runs.
        self.over: list[Record] = []
        self._arrivals: Iterator[int] = iter(())
        #: Session -> its later turns, each of which waits for the one before.
        self._turns: dict[str, deque[int]] = {}
        #: Requests that are neither over nor still to come.
        self._open: dict[int, None] = {}
        #: Those of them that are on an instance.
        self._tracks: dict[int, _Track] = {}
        #: What the cluster calls an instance, which has a new name after each start.
        self._named: dict[int, _Member] = {}
        self._names = 0
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
                member.stays.append(0)
                self._join(member)
            else:
                self._load(member)
        for failure in self._config.failures:
            self._at(failure.at_ns, partial(self._fail, failure))
        firsts = sorted(self._firsts(), key=lambda n: (self._records[n].sent_ns, n))
        self._arrivals, self._coming = iter(firsts), len(firsts)
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

    @property
    def records(self) -> list[Record]:
        """Of all requests, as far as they are known by now: one that is not over is failed, and ended when sent."""
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
            self._coming -= 1
            self._await_arrival()
        self._on_arrival()
        request, delays = self._requests[number], self._delays
        self._open[number] = None
        self._records[number].sent_ns = self.now
        spec = self._spec(number)
        if request.cancel_s is not None:
            self._at(self.now + round(request.cancel_s * SECOND), partial(self._hang_up, number))
        front = delays.front + round(delays.front_per_token * request.prompt_tokens)
        if front:
            self._at(self.now + front, partial(self._place, spec))
        else:
            self._place(spec)

    def _spec(self, number: int) -> JobSpec:
        """The job as its home knows it now."""
        request, track = self._requests[number], self._tracks.get(number)
        return JobSpec(
            id=number,
            units=(Unit("lm", request.prompt_tokens + _limit(request) - 1),),
            known=request.prompt_tokens + (track.emitted if track is not None else 0),
            arrival=self._records[number].sent_ns,
            keys=_keys(request, self._config.members[0].instance.block_tokens),
            priority=request.priority or 0,
            slo=request.slo or self._config.slo,
            adapter=request.adapter,
        )

    def _place(self, spec: JobSpec) -> None:
        if spec.id in self._open:
            self._feed_cluster(Arrived(spec))

    def _later(self, delay: int, act: Callable[[], None]) -> None:
        if delay:
            self._at(self.now + delay, act)
        else:
            act()

    def _ask_cluster(self, event: ClusterEvent) -> list[ClusterCommand]:
        if self._handle is not None:
            return self._handle(self._cluster, event, self.now)
        return self._cluster.handle(event, self.now)

    def _feed_cluster(self, event: ClusterEvent) -> None:
        for command in self._ask_cluster(event):
            self._carry_out(command)
        due = self._cluster.due
        busy = bool(self._open or self._coming)
        if due is not None and busy and (self._cluster_tick_at is None or due < self._cluster_tick_at):
            self._cluster_tick_at = due
            self._at(due, self._tick_cluster)

    def _tick_cluster(self) -> None:
        self._cluster_tick_at = None
        self._feed_cluster(Tick())

    def _carry_out(self, command: ClusterCommand) -> None:
        if isinstance(command, Dispatch):
            return self._dispatch(command.spec, command.instance, 0)
        delay = self._delays.dispatch
        match command:
            case Refuse(job, reason, _):
                self._close(job, REJECTED, reason)
            case Lost(job, _):
                self._replay(job)
            case Order(instance, event):
                self._later(delay, partial(self._bring, instance, event))
            case StartCommand(role):
                self._grow(role)
            case Retire(instance):
                self._later(delay, partial(self._retire, instance))

    def _bring(self, instance: int, event: InstanceEvent) -> None:
        """An event reaches an instance, if that is still there."""
        member = self._named.get(instance)
        if member is not None:
            self._feed(member, event)

    def _dispatch(self, spec: JobSpec, instance: int, move: int) -> None:
        """The home raises the epoch and submits."""
        track = self._tracks.get(spec.id)
        if track is None:
            track = self._tracks[spec.id] = _Track(self._requests[spec.id], self._named[instance])
        track.epoch += 1
        track.member = self._named[instance]
        event = Submitted(spec, track.epoch, move)
        self._later(self._delays.dispatch, partial(self._submit, instance, event))

    def _submit(self, instance: int, event: Submitted) -> None:
        """A submission arrives. One to an instance that is gone is lost, and made up for when the cluster says so; one
        whose client has hung up meanwhile is followed by that."""
        member, job = self._named.get(instance), event.spec.id
        if member is None:
            return
        self._feed(member, event)
        if job not in self._open:
            self._feed(member, Cancelled(job, event.epoch))

    def _replay(self, job: int) -> None:
        """Its instance is gone: what was delivered is known, the rest is computed again elsewhere."""
        if job in self._open:
            self._feed_cluster(Arrived(self._spec(job), again=True))

    def _switch(self, source: int, command: Switch) -> None:
        """The home is asked to give the job to another instance."""
        job, track = command.job, self._tracks.get(command.job)
        if job not in self._open or track is None or track.epoch != command.epoch:
            return self._bring(source, Cancelled(job, command.epoch))
        word: InstanceEvent = Switched(job, command.epoch)
        if command.to in self._named:
            self.moves += 1
            self._ask_cluster(Moved(job, command.to))
            self._dispatch(self._spec(job), command.to, command.move)
        else:
            word = Cancelled(job, command.epoch)
            self._replay(job)
        self._later(self._delays.dispatch, partial(self._bring, source, word))

    def _hang_up(self, job: int) -> None:
        if job not in self._open:
            return
        track = self._tracks.get(job)
        if track is not None:
            self._catch_up(track.member)
            if job not in self._open:
                return
        self._close(job, CANCELLED)
        if track is not None:
            self._feed(track.member, Cancelled(job, track.epoch))
        self._end(job)

    def _close(self, job: int, outcome: str, error: str = "", delay: int = 0) -> None:
        """A request is over: write its record, and let its session go on."""
        del self._open[job]
        track, record = self._tracks.pop(job, None), self._records[job]
        record.outcome, record.error, record.end_ns = outcome, error, self.now + delay
        self.over.append(record)
        if track is not None and track.emitted:
            self._write_times(record, track)
        session = self._requests[job].session
        if session and self._turns[session]:
            number = self._turns[session].popleft()
            following, think_s = self._records[number], self._requests[number].think_s or 0.0
            at = record.end_ns + round(think_s * SECOND)
            following.scheduled_ns = following.sent_ns = at
            self._at(at, partial(self._arrive, number, False))

    def _write_times(self, record: Record, track: _Track) -> None:
        delay = self._delays.token
        if self._every_token:
            times = track.times_ns()
            record.times_ns = array("q", (np.asarray(times) + delay).tobytes()) if delay else times
        elif track.emitted > 1:
            record.times_ns = [track.first_ns + delay, track.last_ns + delay]
            record.counts = [1, track.emitted - 1]
        else:
            record.times_ns, record.counts = [track.first_ns + delay], [1]

    # -- instances ---------------------------------------------------------------------------------------------

    def _load(self, member: _Member) -> None:
        """Begin to start: read the weights first."""
        member.stays.append(self.now)
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
        member.name, self._names = self._names, self._names + 1
        member.core.number = member.name
        self._named[member.name] = member
        self._feed_cluster(Joined(member.name, member.core.role, member.core.load))

    def _grow(self, role: str) -> None:
        """Another instance, like the first of its role, begins to start."""
        alike = next((m for m in self.members if m.config.instance.role == role), self.members[0])
        member = _Member(len(self.members), alike.config, alike.cost, alike.pace)
        self.members.append(member)
        self._load(member)

    def _retire(self, instance: int) -> None:
        """An instance that has drained ends; one that got a job on the way does not."""
        member = self._named.get(instance)
        if member is None or member.core.jobs or member.core.moves.active:
            return
        self._leave(member)

    def _leave(self, member: _Member) -> None:
        del self._named[member.name]
        member.stays.append(self.now)
        for number, (puller, _) in list(self._pulls.items()):
            if puller == member.name:
                del self._pulls[number]
        self._feed_cluster(Left(member.name))
        for other in list(self._named.values()):
            self._later(self._delays.report, partial(self._bring, other.name, PeerLeft(member.name)))

    def instance_ns(self, begin: int, end: int) -> int:
        """The time that instances were there between two times, added up."""
        return sum(member.there_ns(begin, end) for member in self.members)

    def _fail(self, failure: Failure) -> None:
        member = self.members[failure.instance]
        if self._named.get(member.name) is not member:
            return
        if failure.drain:
            return self._feed_cluster(Drain(member.name))
        self._catch_up(member)
        for stretch in member.flights:
            stretch.alive = False
        self._leave(member)
        member.reset()
        if failure.down_ns is not None:
            self._at(self.now + failure.down_ns, partial(self._load, member))

    def _feed(self, member: _Member, event: InstanceEvent) -> None:
        self._catch_up(member)
        core = member.core
        commands = core.handle(event, self.now) if self._handle is None else self._handle(core, event, self.now)
        for command in commands:
            if type(command) in _ENGINES:
                continue
            if isinstance(command, Run):
                self._begin_step(member, command.plan)
            elif isinstance(command, Report):
                self._tell_cluster(Reported(member.name, command.load))
            else:
                self._carry_on(member, command)
        due = core.due
        if due is not None and (member.tick_at is None or due < member.tick_at):
            member.tick_at = due
            self._at(due, partial(self._tick, member, member.name))

    def _carry_on(self, member: _Member, command: InstanceCommand) -> None:
        """What is rare."""
        delays = self._delays
        match command:
            case End(job, epoch, outcome, reason) if job in self._open and self._tracks[job].epoch == epoch:
                self._close(job, FAILED if outcome == "invalid" else outcome, reason)
                self._end(job)
            case Stow(_, upto) | Restore(_, upto) if member.config.swap_bytes_per_s:
                # The engine copies before the next step.
                size = upto * member.config.kv_bytes_per_token
                took_ns = round(size / member.config.swap_bytes_per_s * SECOND)
                member.free_at = max(self.now, member.free_at) + took_ns
            case Tell(instance, event):
                # Even without delay not at once: the commands after this one come first.
                self._at(self.now + delays.peer, partial(self._bring, instance, event))
            case Pull():
                self._at(self.now + delays.pull, partial(self._begin_pull, member.name, command))
            case MoveEnded() if self._observer is not None:
                to = self._named.get(command.to)
                self._observer.moved(member.index, None if to is None else to.index, command, self.now)
            case Switch():
                self._at(self.now + delays.dispatch, partial(self._switch, member.name, command))
            case Ask(job, epoch, known, total):
                self._tell_cluster(Asked(member.name, job, epoch, known, total))

    def _tick(self, member: _Member, name: int) -> None:
        member.tick_at = None
        if member.name == name and name in self._named:
            self._feed(member, Tick())

    def _tell_cluster(self, event: ClusterEvent) -> None:
        if self._delays.report:
            self._at(self.now + self._delays.report, partial(self._feed_cluster, event))
        else:
            self._feed_cluster(event)

    def _end(self, job: int) -> None:
        for command in self._ask_cluster(Ended(job)):
            self._carry_out(command)

    def _begin_pull(self, puller: int, pull: Pull) -> None:
        """Bytes begin to flow, through the ports of both instances."""
        member = self._named.get(puller)
        if member is None:
            return
        if pull.source not in self._named:
            return self._feed(member, Pulled(pull.move, pull.start, "the source is gone"))
        number, self._pulled = self._pulled, self._pulled + 1
        self._pulls[number] = (puller, pull)
        size = (pull.end - pull.start) * member.config.kv_bytes_per_token
        self._network.begin(number, size, self.now, (2 * pull.source, 2 * puller + 1))
        self._await_network()

    def _await_network(self) -> None:
        due = self._network.due()
        if due is not None:
            self._at(due, self._on_pulled)

    def _on_pulled(self) -> None:
        ended = self._network.ended(self.now)
        for number in ended:
            puller, pull = self._pulls.pop(number, (-1, None))
            if pull is not None:
                gone = "" if pull.source in self._named else "the source is gone"
                self._bring(puller, Pulled(pull.move, pull.end, gone))
        if ended:
            self._await_network()

    # -- steps -------------------------------------------------------------------------------------------------

    def _begin_step(self, member: _Member, plan: StepPlan) -> None:
        """Work out when it ends, and, while the core is steady, those after it."""
        found, core = features(plan.slices), member.core
        start = max(self.now, member.free_at)
        steps = 1 if self._config.stepping else min(core.stable_for, _STRETCH_MAX)
        if steps > 1:
            steps = min(steps, self._soonest_end(core.steps[plan.seq]))
        if steps > 1:
            self._fly(member, member.pace.stretch(plan.seq, start, found, steps))
            member.free_at = member.last_end
        else:
            step_ns = member.cost.step_ns(found)
            end = max(member.last_end, start + step_ns)
            member.free_at = start + (member.cost.interval_ns(found) if member.pipelined else step_ns)
            self._fly(member, _Stretch(plan.seq, start, end, [0], found))

    def _soonest_end(self, step: Step) -> int:
        """How many steps like this one until an answer ends."""
        soonest = _STRETCH_MAX
        for at, piece in enumerate(step.slices):
            job = step.jobs[at]
            if piece.start + piece.count >= job.known:
                track = self._tracks.get(job.id)
                if track is not None and track.left < soonest:
                    soonest = track.left
        return soonest

    def _fly(self, member: _Member, stretch: _Stretch) -> None:
        member.flights.append(stretch)
        member.last_end = stretch.end(-1)
        heappush(self._heap, (member.last_end, 0, member.index, stretch.seq, stretch))

    def _catch_up(self, member: _Member) -> None:
        """Bring the core to now and cut its stretch short: of what is to come, only the step in flight is sure."""
        if not member.flights or len(member.flights[0].times) == 1:
            return
        stretch = member.flights.popleft()
        stretch.alive = False
        times = stretch.times
        through = min(bisect_right(times, self.now - stretch.base), len(times) - 1)
        seq, start, first = stretch.seq, stretch.start, stretch.first
        if through:
            self._emit(member, stretch, through)
            self._leap(member, stretch, through)
            seq, start = seq + through, stretch.end(through - 1)
            if self._observer is not None:
                first = features(member.core.steps[seq].slices)
        end = member.free_at = stretch.end(through)
        self._fly(member, _Stretch(seq, start, end, [0], first))

    def _end_stretch(self, member: _Member, stretch: _Stretch) -> None:
        member.flights.popleft()
        last = len(stretch.times) - 1
        whole = self._emit(member, stretch, last + 1)
        seq, began = stretch.seq + last, stretch.start
        if last:
            self._leap(member, stretch, last)
            began = stretch.end(last - 1)
        if self._observer is not None:
            self._observer.steps(member.index, began, [self.now], features(member.core.steps[seq].slices))
        exceptions: list[Executed] = []
        for track, piece in whole:
            if not track.limited:
                exceptions.append(Executed(piece.job, piece.count, 1, "stop"))
            self._close(piece.job, COMPLETED, delay=self._delays.token)
            self._end(piece.job)
        self._feed(member, StepDone(seq, exceptions, self.now - began))

    def _leap(self, member: _Member, stretch: _Stretch, count: int) -> None:
        """Bring the core to where the first `count` steps of a stretch are through."""
        if self._observer is not None:
            self._observer.steps(member.index, stretch.start, stretch.ends(count), stretch.first)
        member.core.leap(count)

    def _emit(self, member: _Member, stretch: _Stretch, count: int) -> list[tuple[_Track, Slice]]:
        """The first `count` steps of a stretch are through: their tokens come. The answers that are whole with that."""
        whole: list[tuple[_Track, Slice]] = []
        step, last_ns = member.core.steps[stretch.seq], stretch.end(count - 1)
        jobs, slices = step.jobs, step.slices
        if step.stale:
            jobs, slices = [*jobs, *step.stale], [*slices, *step.stale.values()]
        for at, piece in enumerate(slices):
            job, tokens = jobs[at], count
            if piece.start + piece.count < job.known:  # of a prompt, the last step alone may emit
                if piece.start + count * piece.count < job.known:
                    continue
                tokens = 1
            track = self._track(member, job)
            if track is None:
                continue
            if track.first_ns < 0:
                track.first_ns = stretch.end(count - tokens)
            track.last_ns = last_ns
            track.left -= tokens
            if self._every_token:
                track.keep(stretch.seq + count - tokens, tokens, member.ends)
            if not track.left:
                whole.append((track, piece))
        if self._every_token:
            ends = stretch.ends(count)
            if isinstance(ends, list):
                member.ends.extend(ends)
            else:
                member.ends.frombytes(ends.tobytes())
        return whole

    def _track(self, member: _Member, job: Job) -> _Track | None:
        """The job's track, if what this instance says of it counts: the home takes tokens of its epoch alone."""
        track = self._tracks.get(job.id)
        return track if track is not None and track.member is member and track.epoch == job.epoch else None


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
    names = [name for block in request.hash_ids for name in range(block * parts, (block + 1) * parts)]
    return tuple(names[:blocks])
