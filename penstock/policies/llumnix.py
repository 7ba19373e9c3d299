"""Llumnix: running jobs move between instances (Sun et al., OSDI'24). Virtual usage makes one number of every goal.

An instance's freeness is how many steps it can go on until it is full: (M - sum of virtual usages) / batch, in tokens
for each job. A job's virtual usage is what it holds, and
    the head of the queue   what it needs: so that room is made for it (defragmentation)
    an urgent job           a share of what keeps the instance at a target load (priority)
    on a draining instance  infinite: everything moves away (scaling down; the cluster does that by itself)
A new instance has the most room, so jobs move to it. What differs from the paper: jobs of a draining instance are moved
by the cluster, and between giving and taking there is a gap, so that jobs do not go back and forth.
"""

from collections.abc import Iterator

from penstock.core.cluster import Balance, Cluster, Sums
from penstock.core.commands import ClusterCommand, Order, Start
from penstock.core.events import Load
from penstock.core.move import Offload


def headroom(load: Load, tokens: int) -> int:
    """Tokens that are kept free for urgent jobs, where there are any."""
    return max(0, load.pages * load.page_tokens - tokens) if load.urgent else 0


class Virtual:
    """The ranks, by what the balance says."""

    def __init__(self, balance: Balance) -> None:
        self._balance = balance

    def pressure(self, load: Load) -> float:
        """For moves: freeness, the head of the queue counted as if it ran. Least first gives away first."""
        free = load.pages_free * load.page_tokens - headroom(load, self._balance.urgent_tokens)
        if not self._balance.defragmentation:
            return free / max(1, load.running)
        return (free - load.head_tokens) / max(1, load.running + bool(load.waiting))

    def place(self, load: Load) -> float:
        """For new jobs: all that wait counts, and urgent jobs are kept apart."""
        free = load.pages_free * load.page_tokens - load.waiting_tokens
        return -(free - headroom(load, self._balance.urgent_tokens)) / _jobs(load)

    def place_urgent(self, load: Load) -> float:
        """For urgent jobs, whose own headroom does not bar them."""
        return -(load.pages_free * load.page_tokens - load.waiting_tokens) / _jobs(load)


def _jobs(load: Load) -> int:
    return max(1, load.running + load.waiting + load.arriving)


class Llumnix:
    """Pairs instances that should give with those that can take, and sizes the fleet."""

    def __init__(self, balance: Balance) -> None:
        self._balance = balance
        self._virtual = Virtual(balance)
        #: Preemptions that each instance had reported when it was last looked at.
        self._preempted: dict[int, int] = {}
        self._look_at = 0
        #: Looks in a row that found the fleet too small (positive) or too large.
        self._looks = 0

    def rank(self, load: Load) -> float:
        return self._virtual.pressure(load)

    def __call__(self, cluster: Cluster, now: int) -> list[ClusterCommand]:
        out: list[ClusterCommand] = []
        if self._balance.migration:
            out += self._pair(cluster)
        if self._balance.scaling:
            out += self._scale(cluster, now)
        return out

    # -- migration ---------------------------------------------------------------------------------------------

    def _pair(self, cluster: Cluster) -> Iterator[ClusterCommand]:
        """The worst with the best, the second worst with the second best, until one need not or cannot."""
        givers, takers = iter(cluster.pressed), reversed(cluster.pressed)
        for (low, source), (high, to) in zip(givers, takers, strict=False):
            if low >= high or source == to or high < self._balance.in_tokens:
                return
            giver, taker = cluster.members[source], cluster.members[to]
            if low >= self._balance.out_tokens and not self._was_preempted(source, giver.load):
                return
            if giver.draining or giver.ordered or giver.load.leaving or not giver.takes_over or not giver.load.running:
                continue
            if not taker.takes_over or taker.ordered or taker.load.arriving:
                continue
            giver.ordered = taker.ordered = True
            yield Order(source, Offload(to, None, 1, "balance"))

    def _was_preempted(self, instance: int, load: Load) -> bool:
        """Whether jobs were preempted there since the last look, and still wait."""
        before = self._preempted.get(instance, 0)
        self._preempted[instance] = load.preemptions
        return load.preemptions > before and load.waiting > 0

    # -- size --------------------------------------------------------------------------------------------------

    def _scale(self, cluster: Cluster, now: int) -> list[ClusterCommand]:
        """Keep the mean freeness within its bounds: one more, or one less if the others would still have enough."""
        balance = self._balance
        if now < self._look_at:
            return []
        self._look_at = now + balance.scale_ns
        total = cluster.total
        small, large = total.freeness < balance.low_tokens, total.freeness > balance.high_tokens
        self._looks = max(1, self._looks + 1) if small else min(-1, self._looks - 1) if large else 0
        if abs(self._looks) < balance.scale_looks:
            return []
        if small and total.members + cluster.starting < balance.instances_max:
            return [Start()]
        if large and not cluster.starting and total.members > balance.instances_min:
            return self._shrink(cluster, total)
        return []

    def _shrink(self, cluster: Cluster, total: Sums) -> list[ClusterCommand]:
        """Drain the instance with the most room."""
        for _, instance in reversed(cluster.pressed):
            member = cluster.members[instance]
            if not member.draining:
                room = total.free_tokens - total.waiting_tokens - member.expected.pages * member.expected.page_tokens
                return cluster.drain(instance) if room / max(1, total.jobs) > self._balance.high_tokens else []
        return []
