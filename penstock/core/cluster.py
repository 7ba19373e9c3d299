"""The cluster: which instance takes a new job. Knows instances by their reports and its own ledger, owns no job.

A pure state machine like the instance. It never walks all instances at an event: the policy ranks a report with one
number, and the cluster keeps instances in that order. Between two reports it counts what it has dispatched itself, so
that a stale report does not draw a whole burst to one instance.
"""

from bisect import bisect_left, insort
from collections.abc import Callable

import msgspec

from penstock.core.commands import ClusterCommand, Dispatch, Lost, Refuse
from penstock.core.events import Arrived, ClusterEvent, Ended, Joined, Left, Load, Reported
from penstock.core.job import JobSpec
from penstock.core.slo import SECOND

Rank = Callable[[Load], float]


class ClusterConfig(msgspec.Struct, frozen=True, kw_only=True):
    """All that decides how the cluster behaves; opens its log."""

    policy: str = "fcfs"
    #: Jobs that wait, here or on an instance, at most; per instance.
    max_num_queued: int = 1024


class Member:
    """An instance, as the cluster sees it."""

    __slots__ = ("id", "joined", "load", "rank", "sent")

    def __init__(self, instance: int, now: int) -> None:
        self.id = instance
        self.joined = now
        #: Jobs dispatched to it since it joined.
        self.sent = 0
        self.load = Load()
        self.rank = 0.0

    @property
    def under_way(self) -> int:
        """Jobs dispatched that the latest report has not seen."""
        return self.sent - self.load.seen

    @property
    def expected(self) -> Load:
        """The latest report, plus what is under way to it."""
        if self.sent == self.load.seen:
            return self.load
        return msgspec.structs.replace(self.load, waiting=self.load.waiting + self.under_way)


class Cluster:
    """See the module's docstring."""

    def __init__(self, config: ClusterConfig, rank: Rank) -> None:
        self.config = config
        self._rank = rank
        self.members: dict[int, Member] = {}
        #: (rank, instance), least first.
        self._order: list[tuple[float, int]] = []
        #: The ledger: job -> instance (None: held here until an instance joins).
        self.ledger: dict[int, int | None] = {}
        self._held: dict[int, JobSpec] = {}

    def handle(self, event: ClusterEvent, now: int) -> list[ClusterCommand]:
        """The one way in. Returns what is to be done, in order."""
        match event:
            case Arrived():
                return self._place(event.spec, now)
            case Ended():
                self.ledger.pop(event.job, None)
                self._held.pop(event.job, None)
            case Reported():
                member = self.members.get(event.instance)
                if member is not None:
                    member.load = event.load
                    self._rerank(member)
            case Joined():
                return self._on_joined(event, now)
            case Left():
                return self._on_left(event)
        return []

    def _place(self, spec: JobSpec, now: int) -> list[ClusterCommand]:
        if not self._order:
            if len(self._held) >= self.config.max_num_queued:
                return [Refuse(spec.id, "no instance is up and the queue is full", SECOND)]
            self._held[spec.id] = spec
            self.ledger[spec.id] = None
            return []
        member = self.members[self._order[0][1]]
        load = member.expected
        if load.waiting >= self.config.max_num_queued:
            return [Refuse(spec.id, "queue full", self._retry_ns(member, now))]
        member.sent += 1
        self.ledger[spec.id] = member.id
        self._rerank(member)
        return [Dispatch(spec, member.id)]

    def _retry_ns(self, member: Member, now: int) -> int:
        """When a tenth of the queue should be gone, at the rate at which jobs have ended so far; 1 s to 60 s."""
        ended = max(1, member.load.ended)
        gone = (now - member.joined) * member.load.waiting // (10 * ended)
        return min(max(gone, SECOND), 60 * SECOND)

    def _on_joined(self, event: Joined, now: int) -> list[ClusterCommand]:
        member = self.members[event.instance] = Member(event.instance, now)
        insort(self._order, (member.rank, member.id))
        self._rerank(member)
        held, self._held = self._held, {}
        return [command for spec in held.values() for command in self._place(spec, now)]

    def _on_left(self, event: Left) -> list[ClusterCommand]:
        member = self.members.pop(event.instance, None)
        if member is None:
            return []
        self._order.remove((member.rank, member.id))
        lost = [job for job, instance in self.ledger.items() if instance == event.instance]
        for job in lost:
            del self.ledger[job]
        return [Lost(job, event.instance) for job in lost]

    def _rerank(self, member: Member) -> None:
        rank = self._rank(member.expected)
        if rank == member.rank:
            return
        del self._order[bisect_left(self._order, (member.rank, member.id))]
        member.rank = rank
        insort(self._order, (member.rank, member.id))
