"""Llumnix: running jobs move between instances (Sun et al., OSDI'24). Virtual usage makes one number of every goal.

An instance's freeness is how many steps it can go on until it is full: (M - sum of virtual usages) / batch, in tokens
for each job. A job's virtual usage is what it holds, and
    the head of the queue   what it needs: so that room is made for it (defragmentation)
    an urgent job           a share of what keeps the instance at a target load (priority)
    on a draining instance  infinite: everything moves away (scaling down; the cluster does that by itself)
A new instance has the most room, so jobs move to it. What differs from the paper: jobs of a draining instance are moved
by the cluster; between giving and taking there is a gap, and who takes a job must still be able to take another one
then, so that jobs do not go back and forth; and where nothing is free elsewhere, an ordinary job takes what is kept for
urgent ones: by a negative freeness for each job, an instance with a long queue would come before it.
"""

from collections.abc import Iterator

from penstock.core.cluster import Cluster
from penstock.core.commands import ClusterCommand, Order
from penstock.core.config import Balance
from penstock.core.events import Load
from penstock.core.move import Offload
from penstock.policies.scaling import Scaling


class Virtual:
    """The ranks, by what the balance says."""

    def __init__(self, balance: Balance) -> None:
        self._balance = balance

    def _kept(self, load: Load, keep: bool) -> int:
        """Tokens that are kept free for urgent jobs, where any are."""
        return max(0, load.pages * load.page_tokens - self._balance.urgent_tokens) if keep else 0

    def pressure(self, load: Load) -> float:
        """For moves: freeness, the head of the queue counted as if it ran. Least first gives away first."""
        free = load.pages_free * load.page_tokens - self._kept(load, load.urgent > 0)
        if not self._balance.defragmentation:
            return free / max(1, load.running)
        return (free - load.head_tokens) / max(1, load.running + bool(load.waiting))

    def room(self, load: Load, tokens: float) -> int:
        """The longest job that may come so that each still has so many tokens then."""
        free = load.pages_free * load.page_tokens - self._kept(load, load.urgent > 0) - load.head_tokens
        return int(free - tokens * (load.running + bool(load.waiting) + 1))

    def place(self, load: Load) -> float:
        """For new jobs: all that wait counts, and what is kept free for urgent jobs only where nothing else is."""
        return _place(load, self._kept(load, load.urgent > 0))

    def place_urgent(self, load: Load) -> float:
        """For urgent jobs: first where others are, so that few instances are kept free and the rest is for ordinary
        jobs."""
        return _place(load, self._kept(load, not load.urgent))


def _place(load: Load, kept: int) -> float:
    """By what is free for each job; next where only what is `kept` (tokens) is free; last where jobs would wait."""
    free = load.pages_free * load.page_tokens - load.waiting_tokens
    jobs = max(1, load.running + load.waiting + load.arriving)
    if free <= 0:
        return 1 - free / jobs
    return (kept - free) / (jobs if free > kept else load.pages * load.page_tokens)


class Llumnix:
    """Pairs instances that should give with those that can take, and sizes the fleet."""

    def __init__(self, balance: Balance) -> None:
        self._balance = balance
        self._virtual = Virtual(balance)
        self._scaling = Scaling(balance)

    def rank(self, load: Load) -> float:
        return self._virtual.pressure(load)

    def __call__(self, cluster: Cluster, now: int) -> list[ClusterCommand]:
        out: list[ClusterCommand] = []
        if self._balance.migration:
            out += self._pair(cluster)
        return out + self._scaling(cluster, now)

    def _pair(self, cluster: Cluster) -> Iterator[ClusterCommand]:
        """The worst with the best, the second worst with the second best, until one need not or cannot."""
        balance = self._balance
        givers, takers = iter(cluster.pressed), reversed(cluster.pressed)
        for (low, source), (high, to) in zip(givers, takers, strict=True):
            if source == to or low >= balance.out_tokens or high < balance.in_tokens:
                return
            giver, taker = cluster.members[source], cluster.members[to]
            if giver.ordered or giver.load.leaving or not giver.load.running or taker.ordered or taker.load.arriving:
                continue
            most = self._virtual.room(taker.expected, balance.in_tokens)
            if most > 0:
                giver.ordered = taker.ordered = True
                yield Order(source, Offload(to, None, 1, "balance", most))
