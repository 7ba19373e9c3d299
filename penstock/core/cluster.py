"""The cluster: which instance takes a new job, where a job goes on, and what is to be rearranged. It owns no job.

A pure state machine like the instance. It knows instances by their reports and by its own ledger of what it decided
since, so that a stale report does not draw a whole burst to one instance. It never walks all instances at an event: a
policy ranks a report with one number, and the cluster keeps instances in that order.

    Arrived -> Dispatch, or held until an instance joins, or Refuse
    Asked   -> Order(Offload) to the best instance that has room, or held until one has
    Tick    -> what the policy's rebalancer wants: Order, Start, Retire
"""

from bisect import bisect_left, bisect_right, insort
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import msgspec

from penstock.core.commands import ClusterCommand, Dispatch, Lost, Order, Refuse, Retire, Start
from penstock.core.config import ClusterConfig
from penstock.core.events import (
    Arrived,
    Asked,
    ClusterEvent,
    Drain,
    Ended,
    Joined,
    Left,
    Load,
    Moved,
    NotStarted,
    Reported,
    Rerole,
)
from penstock.core.move import Assigned, Offload, Tick
from penstock.core.slo import MS, SECOND
from penstock.core.spec import JobSpec

Rank = Callable[[Load], float]

#: Jobs that a draining instance is told to move at a time, and how often.
_DRAIN_JOBS, _DRAIN_NS = 4, 50 * MS
#: Jobs of those that asked first, and instances of those ranked first, that are looked at when room has come: one that
#: needs much does not hold up the rest ...
_LOOK_AHEAD = 8
#: ... until so many have gone before it.
_OVERTAKEN_MOST = 32
#: Members that have changed, at most, before accounts of them follow: no event is to find many.
_LAG_MOST = 8
#: Jobs that are over, of which an instance may still ask: so many are remembered.
_OVER_MOST = 4096


class Member:
    """An instance, as the cluster sees it."""

    __slots__ = ("_expected", "coming", "draining", "id", "joined", "load", "ordered", "promised", "role")

    def __init__(self, instance: int, role: str, load: Load, now: int) -> None:
        self.id = instance
        self.role = role
        self.joined = now
        self.draining = False
        self.load = load
        #: Jobs on their way there, which its report has not seen -> their positions, in order.
        self.coming: dict[int, int] = {}
        #: Jobs that were told to go on here -> their positions.
        self.promised: dict[int, int] = {}
        #: It was told to move jobs and has not reported since.
        self.ordered = False
        self._expected: Load | None = None

    @property
    def takes_new(self) -> bool:
        return not self.draining and self.role != "decode"

    @property
    def takes_over(self) -> bool:
        return not self.draining and self.role != "prefill"

    @property
    def lets_in(self) -> bool:
        """Whether one job more may arrive from elsewhere now: it would turn others away."""
        # Those that were promised are also among the arriving, once it has heard of them.
        return max(len(self.promised), self.load.arriving) < self.load.arriving_most

    def report(self, load: Load) -> None:
        """It says how it is: of those on their way, it has seen the first so many."""
        if self.coming:
            for job in list(islice(self.coming, max(0, load.seen - self.load.seen))):
                del self.coming[job]
        self.load = load

    def changed(self) -> None:
        """What is expected of it is to be worked out anew."""
        self._expected = None

    @property
    def expected(self) -> Load:
        """The latest report, plus what is under way."""
        if self._expected is None:
            self._expected = self._reckon() if self.coming or self.promised else self.load
        return self._expected

    def _reckon(self) -> Load:
        load, coming = self.load, self.coming
        pages = sum([-(-tokens // load.page_tokens) for tokens in self.promised.values()])
        return msgspec.structs.replace(
            load,
            seen=load.seen + len(coming),
            waiting=load.waiting + len(coming),
            waiting_tokens=load.waiting_tokens + sum(coming.values()),
            arriving=load.arriving + len(self.promised),
            pages_free=load.pages_free - pages,
        )


class Sums:
    """Loads of several members, added up."""

    __slots__ = ("capacity_tokens", "free_tokens", "jobs", "members", "waiting_tokens")

    def __init__(self) -> None:
        self.members = self.jobs = self.free_tokens = self.waiting_tokens = self.capacity_tokens = 0

    def add(self, load: Load, sign: int = 1) -> None:
        """Add a member's load, or take it away."""
        self.members += sign
        self.jobs += sign * (load.running + load.waiting)
        self.free_tokens += sign * load.pages_free * load.page_tokens
        self.capacity_tokens += sign * load.pages * load.page_tokens
        self.waiting_tokens += sign * load.waiting_tokens

    def merge(self, other: "Sums") -> None:
        self.members += other.members
        self.jobs += other.jobs
        self.free_tokens += other.free_tokens
        self.capacity_tokens += other.capacity_tokens
        self.waiting_tokens += other.waiting_tokens

    @property
    def freeness(self) -> float:
        """Free tokens for each job, less what waits."""
        return (self.free_tokens - self.waiting_tokens) / max(1, self.jobs)


class Ranking:
    """Members in order of a rank, least first; ties by number. Kept when it is read, or when it lags: most changes are
    followed by another one of the same member."""

    def __init__(self, rank: Rank, takes: Callable[[Member], bool]) -> None:
        self._rank = rank
        self._takes = takes
        self._order: list[tuple[float, int]] = []
        self._ranks: dict[int, float] = {}
        #: Members that have changed since it was read.
        self._changed: dict[int, Member] = {}

    def update(self, member: Member) -> None:
        """The member is new, or has changed."""
        self._changed[member.id] = member
        if len(self._changed) > _LAG_MOST:
            self._settle()

    def remove(self, instance: int) -> None:
        self._changed.pop(instance, None)
        self._drop(instance)

    def _drop(self, instance: int) -> None:
        old = self._ranks.pop(instance, None)
        if old is not None:
            del self._order[bisect_left(self._order, (old, instance))]

    def _settle(self) -> list[tuple[float, int]]:
        for instance, member in self._changed.items():
            new = self._rank(member.expected) if self._takes(member) else None
            if self._ranks.get(instance) != new:
                self._drop(instance)
                if new is not None:
                    self._ranks[instance] = new
                    insort(self._order, (new, instance))
        self._changed.clear()
        return self._order

    def __len__(self) -> int:
        return len(self._settle())

    def __iter__(self) -> Iterator[tuple[float, int]]:
        return iter(self._settle())

    def __reversed__(self) -> Iterator[tuple[float, int]]:
        return reversed(self._settle())

    def first(self) -> int | None:
        """The instance of the least rank."""
        order = self._settle()
        return order[0][1] if order else None

    def after(self, rank: float, instance: int) -> int | None:
        """Of those that follow this place, the first one's instance; after the last comes the first."""
        order = self._settle()
        return order[bisect_right(order, (rank, instance)) % len(order)][1] if order else None

    def of(self, instance: int) -> float | None:
        """The rank of an instance, if it is among these."""
        self._settle()
        return self._ranks.get(instance)


class Rebalancer(Protocol):
    """A policy for what is already placed. Its state is core state: driven by events and time alone."""

    def rank(self, load: Load) -> float:
        """Orders instances, those that should give away first."""

    def __call__(self, cluster: "Cluster", now: int) -> list[ClusterCommand]:
        """Called each `Balance.period_ns` while instances are up."""


class Chooser(Protocol):
    """A policy that looks at the job, not at loads alone."""

    def __call__(self, spec: JobSpec, cluster: "Cluster") -> int | None:
        """The instance for a new job, one of `cluster.entries`; None: the least of those."""

    def left(self, instance: int) -> None:
        """The instance is gone."""


@dataclass(frozen=True)
class Placement:
    """The answers of a policy row that concern the cluster."""

    #: For new jobs, for urgent ones (None: the same), and for jobs that go on after their prompt; least first.
    place: Rank
    place_urgent: Rank | None = None
    onward: Rank | None = None
    choose: Chooser | None = None
    rebalance: Rebalancer | None = None


class Cluster:
    """See the module's docstring. Public attributes are for policies to read."""

    def __init__(self, config: ClusterConfig, placement: Placement) -> None:
        self.config = config
        self.members: dict[int, Member] = {}
        self._choose = placement.choose
        self._rebalance = placement.rebalance
        #: Members that take new jobs, the next one first; the same for urgent jobs, and for jobs after their prompt.
        self.entries = Ranking(placement.place, _takes_new)
        self.urgent = (
            Ranking(placement.place_urgent, _takes_new) if placement.place_urgent is not None else self.entries
        )
        self.onward = Ranking(placement.onward or placement.place, _takes_over)
        self._rankings = [self.entries, self.onward]
        if self.urgent is not self.entries:
            self._rankings.append(self.urgent)
        #: Members where jobs decode by how much they should give away, first those that should; empty without a
        #: rebalancer.
        self.pressed = Ranking(_nought, _takes_over)
        if self._rebalance is not None:
            self.pressed = Ranking(self._rebalance.rank, _takes_over)
            self._rankings.append(self.pressed)
        #: See `sums`; which members it has changed since, and what it has of each.
        self._sums: dict[str, Sums] = {}
        self._changed: dict[int, Member] = {}
        self._counted: dict[int, tuple[str, Load]] = {}
        #: Instances that were told to start and have not joined.
        self.starting = 0
        #: The ledger: job -> instance (None: held here until an instance joins).
        self.ledger: dict[int, int | None] = {}
        self._held: dict[int, JobSpec] = {}
        #: Jobs that were told to go on elsewhere -> where.
        self._promises: dict[int, Member] = {}
        #: Jobs that want to go on elsewhere and found no room, in order; and how many went before the first of them.
        self._asks: dict[int, Asked] = {}
        #: Jobs that ended last.
        self._over: OrderedDict[int, None] = OrderedDict()
        self._overtaken = 0
        #: Those that are to be emptied.
        self._draining: dict[int, Member] = {}
        #: When to rebalance next, and when to empty; None: there is nothing to do.
        self._rebalance_at: int | None = None
        self._empty_at: int | None = None

    @property
    def due(self) -> int | None:
        """When the driver is to feed a Tick, ns; None: not at all."""
        at, empty_at = self._rebalance_at, self._empty_at
        if at is None or empty_at is None:
            return at if empty_at is None else empty_at
        return min(at, empty_at)

    @property
    def jobs(self) -> list[int]:
        """All that it knows of, also by what others said."""
        return list(dict.fromkeys([*self.ledger, *self._asks, *self._promises]))

    def handle(self, event: ClusterEvent, now: int) -> list[ClusterCommand]:
        """The one way in. Returns what is to be done, in order."""
        match event:
            case Arrived():
                return self._place(event.spec, event.again, now)
            case Ended():
                self._on_ended(event)
            case Reported():
                return self._on_reported(event)
            case Asked():
                return self._on_asked(event)
            case Moved():
                self._on_moved(event)
            case Joined():
                return self._on_joined(event, now)
            case Left():
                return self._on_left(event)
            case Rerole(instance, role):
                return self.assign(instance, role)
            case Drain(instance):
                return self.drain(instance, now)
            case NotStarted():
                self.starting = max(0, self.starting - 1)
            case Tick():
                return self._on_tick(now)
        return []

    # -- new jobs ----------------------------------------------------------------------------------------------

    def _place(self, spec: JobSpec, again: bool, now: int) -> list[ClusterCommand]:
        if spec.id in self.ledger:
            self._forget(spec.id)
        # Roles and draining are wishes: where nobody else is up, who is up takes the job.
        member = self._best(spec) or next(iter(self.members.values()), None)
        if member is None:
            if len(self._held) >= self.config.max_num_queued and not again:
                return [Refuse(spec.id, "no instance is up and the queue is full", SECOND)]
            self._held[spec.id] = spec
            self.ledger[spec.id] = None
            return []
        if member.expected.waiting >= self.config.max_num_queued and not again:
            return [Refuse(spec.id, "queue full", self._retry_ns(member, now))]
        member.coming[spec.id] = spec.known
        self.ledger[spec.id] = member.id
        self._update(member)
        return [Dispatch(spec, member.id)]

    def _best(self, spec: JobSpec) -> Member | None:
        if self._choose is not None and (chosen := self._choose(spec, self)) is not None:
            return self.members[chosen]
        least = (self.urgent if spec.priority < 0 else self.entries).first()
        return None if least is None else self.members[least]

    def _retry_ns(self, member: Member, now: int) -> int:
        """When a tenth of the queue should be gone, at the rate at which jobs have ended so far; 1 s to 60 s."""
        ended = max(1, member.load.ended)
        gone = (now - member.joined) * member.load.waiting // (10 * ended)
        return min(max(gone, SECOND), 60 * SECOND)

    # -- jobs that go on ---------------------------------------------------------------------------------------

    def _on_asked(self, event: Asked) -> list[ClusterCommand]:
        if event.instance not in self.members or event.job in self._over:
            return []
        self._forget(event.job)
        self._asks[event.job] = event
        return self._answer()

    def _answer(self) -> list[ClusterCommand]:
        """Send on those that asked, in order, as far as there is room."""
        out: list[ClusterCommand] = []
        for asked in list(islice(self._asks.values(), _LOOK_AHEAD)):
            first = asked.job == next(iter(self._asks))
            to = self._roomy(asked)
            if to is None:
                if self._overtaken >= _OVERTAKEN_MOST:
                    break
                continue
            self._overtaken = 0 if first else self._overtaken + 1
            del self._asks[asked.job]
            if to.id != asked.instance:
                to.promised[asked.job] = asked.known
                self._promises[asked.job] = to
                self._update(to)
            out.append(Order(asked.instance, Offload(to.id, asked.job, why="hand-off")))
        return out

    def _roomy(self, asked: Asked) -> Member | None:
        """The best instance with room for the job. Where no instance takes such jobs it goes on where it is."""
        if not self.onward:
            return self.members.get(asked.instance)
        for _, instance in islice(self.onward, _LOOK_AHEAD):
            member = self.members[instance]
            load = member.expected
            # An instance that has not reported yet has all its pages free.
            if not load.pages or (member.lets_in and load.pages_free * load.page_tokens > asked.known):
                return member
        return None

    def _on_moved(self, event: Moved) -> None:
        if event.job in self._over:
            return
        if (asked := self._asks.get(event.job)) is not None and asked.instance != event.instance:
            self._unask(event.job)
        promised = self._promises.get(event.job)
        known = promised.promised.get(event.job, 0) if promised is not None else 0
        self._forget(event.job)
        if event.job in self.ledger:
            self.ledger[event.job] = event.instance
        member = self.members.get(event.instance)
        if member is not None:
            member.coming[event.job] = known
            self._update(member)

    def _forget(self, job: int) -> None:
        """The job is no longer on its way to where it was sent or was to go on."""
        for member in (self._promises.pop(job, None), self.members.get(self._where(job))):
            if member is None or member.id not in self.members:
                continue
            if member.promised.pop(job, None) is not None or member.coming.pop(job, None) is not None:
                self._update(member)

    def _where(self, job: int) -> int:
        """The instance that it was sent to; -1: none."""
        instance = self.ledger.get(job)
        return -1 if instance is None else instance

    def _on_ended(self, event: Ended) -> None:
        self._forget(event.job)
        self._unask(event.job)
        self.ledger.pop(event.job, None)
        self._held.pop(event.job, None)
        self._over[event.job] = None
        if len(self._over) > _OVER_MOST:
            self._over.popitem(last=False)

    def _unask(self, job: int) -> None:
        if self._asks and job == next(iter(self._asks)):
            self._overtaken = 0
        self._asks.pop(job, None)

    # -- instances ---------------------------------------------------------------------------------------------

    def _on_reported(self, event: Reported) -> list[ClusterCommand]:
        member = self.members.get(event.instance)
        if member is None:
            return []
        member.report(event.load)
        member.ordered = False
        self._update(member)
        out = self._answer() if self._asks else []
        if member.draining and _is_empty(member):
            out.append(Retire(member.id))
        return out

    def _on_joined(self, event: Joined, now: int) -> list[ClusterCommand]:
        if event.instance in self.members:
            self._remove(self.members[event.instance])
        member = self.members[event.instance] = Member(event.instance, event.role, event.load, now)
        self._update(member)
        self.starting = max(0, self.starting - 1)
        if self._rebalance is not None and self._rebalance_at is None:
            self._rebalance_at = now + self.config.balance.period_ns
        held, self._held = self._held, {}
        return [command for spec in held.values() for command in self._place(spec, True, now)] + self._answer()

    def _on_left(self, event: Left) -> list[ClusterCommand]:
        member = self.members.get(event.instance)
        if member is None:
            return []
        self._remove(member)
        if self._choose is not None:
            self._choose.left(member.id)
        lost = [job for job, instance in self.ledger.items() if instance == event.instance]
        for job in lost:
            self._forget(job)
            self._unask(job)
            del self.ledger[job]
        return [*(Lost(job, event.instance) for job in lost), *self._answer()]

    def _remove(self, member: Member) -> None:
        del self.members[member.id]
        self._changed[member.id] = member
        self._draining.pop(member.id, None)
        for job in member.promised:
            del self._promises[job]
        for ranking in self._rankings:
            ranking.remove(member.id)
        for job in [job for job, asked in self._asks.items() if asked.instance == member.id]:
            self._unask(job)

    def assign(self, instance: int, role: str) -> list[ClusterCommand]:
        """Give an instance another role."""
        member = self.members.get(instance)
        if member is None or member.role == role:
            return []
        member.role = role
        self._update(member)
        return [Order(instance, Assigned(role)), *self._answer()]

    def drain(self, instance: int, now: int) -> list[ClusterCommand]:
        """Nothing new goes there, and what is there moves away as others have room."""
        member = self.members.get(instance)
        if member is None or member.draining:
            return []
        self._set_draining(member, True)
        if _is_empty(member):
            return [Retire(instance)]
        self._empty_at = now + _DRAIN_NS if self._empty_at is None else self._empty_at
        return self._empty(member)

    def keep(self, member: Member) -> None:
        """An instance that was to drain stays."""
        self._set_draining(member, False)

    def _set_draining(self, member: Member, draining: bool) -> None:
        member.draining = draining
        if draining:
            self._draining[member.id] = member
        else:
            del self._draining[member.id]
        self._update(member)

    @property
    def draining(self) -> "list[Member]":
        """Those that are to be emptied, in the order in which that was decided."""
        return list(self._draining.values())

    def _empty(self, member: Member) -> list[ClusterCommand]:
        """Tell a draining instance to move some of its jobs to the best other one."""
        if not self.config.balance.migration or member.load.leaving >= _DRAIN_JOBS:
            return []
        to = self.onward.first()
        return [] if to is None else [Order(member.id, Offload(to, None, _DRAIN_JOBS, "drain"))]

    def _on_tick(self, now: int) -> list[ClusterCommand]:
        out: list[ClusterCommand] = []
        if self._empty_at is not None and now >= self._empty_at:
            out += [command for member in self._draining.values() for command in self._empty(member)]
            self._empty_at = now + _DRAIN_NS if self._draining else None
        if self._rebalance is not None and self._rebalance_at is not None and now >= self._rebalance_at:
            self._rebalance_at = now + self.config.balance.period_ns if self.members else None
            if self.members:
                out += self._rebalance(self, now)
        self.starting += sum(isinstance(command, Start) for command in out)
        return out

    # -- accounts ----------------------------------------------------------------------------------------------

    def _update(self, member: Member) -> None:
        member.changed()
        self._changed[member.id] = member
        if len(self._changed) > _LAG_MOST:
            self._add_up()
        for ranking in self._rankings:
            ranking.update(member)

    @property
    def sums(self) -> dict[str, "Sums"]:
        """What is expected of all members of a role that do not drain, together. Kept like rankings."""
        self._add_up()
        return self._sums

    def _add_up(self) -> None:
        for instance in self._changed:
            if (counted := self._counted.pop(instance, None)) is not None:
                self._sums[counted[0]].add(counted[1], -1)
            member = self.members.get(instance)
            if member is not None and not member.draining:
                self._counted[instance] = member.role, member.expected
                self._sums.setdefault(member.role, Sums()).add(member.expected)
        self._changed.clear()

    @property
    def total(self) -> "Sums":
        """The sums over all roles."""
        total = Sums()
        for part in self.sums.values():
            total.merge(part)
        return total


def _is_empty(member: Member) -> bool:
    load = member.expected
    return not load.waiting + load.running + load.arriving + load.leaving


def _takes_new(member: Member) -> bool:
    return member.takes_new


def _takes_over(member: Member) -> bool:
    return member.takes_over


def _nought(load: Load) -> float:
    return 0.0
