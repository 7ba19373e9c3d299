"""How many instances? The fleet grows and shrinks so that the mean freeness stays within bounds, as in Llumnix.

Freeness is free tokens for each job, what waits counted against them. Below the lower bound as many instances start as
would bring it there; one that is being emptied is kept instead. Above the upper bound one is emptied, if the others
alone would still be above: so that what one look does the next does not undo.
"""

from math import ceil

from penstock.core.cluster import Cluster, Sums
from penstock.core.commands import ClusterCommand, Start
from penstock.core.config import Balance
from penstock.core.events import Load
from penstock.policies.place import freeness


class Scaling:
    """A rebalancer that moves nothing, for rows that only place."""

    def __init__(self, balance: Balance) -> None:
        self._balance = balance
        self._look_at = 0
        #: Looks in a row that found the fleet too small (positive) or too large.
        self._looks = 0

    def rank(self, load: Load) -> float:
        """Least room first."""
        return -freeness(load)

    def __call__(self, cluster: Cluster, now: int) -> list[ClusterCommand]:
        balance, total = self._balance, cluster.total
        if not balance.scaling or now < self._look_at:
            return []
        self._look_at = now + balance.scale_ns
        small, large = total.freeness < balance.low_tokens, total.freeness > balance.high_tokens
        self._looks = max(1, self._looks + 1) if small else min(-1, self._looks - 1) if large else 0
        if abs(self._looks) < balance.scale_looks:
            return []
        if small:
            return self._grow(cluster, total)
        if large and not cluster.starting and total.members > balance.instances_min:
            return self._shrink(cluster, total, now)
        return []

    def _grow(self, cluster: Cluster, total: Sums) -> list[ClusterCommand]:
        """As many as are missing, those that start already and those that drain among them."""
        balance = self._balance
        each = total.capacity_tokens / max(1, total.members)
        short = balance.low_tokens * total.jobs - (total.free_tokens - total.waiting_tokens)
        missing = min(
            max(1, ceil(short / each)) - cluster.starting if each else 1,
            balance.instances_max - total.members - cluster.starting,
        )
        kept = cluster.draining[::-1][: max(0, missing)]
        for member in kept:
            cluster.keep(member)
        # One that drains still takes a place until it is empty.
        room = balance.instances_max - len(cluster.members) - cluster.starting
        return [Start()] * max(0, min(missing - len(kept), room))

    def _shrink(self, cluster: Cluster, total: Sums, now: int) -> list[ClusterCommand]:
        """Drain the instance with the most room."""
        instance = next((instance for _, instance in reversed(cluster.pressed)), None)
        if instance is None:
            return []
        load = cluster.members[instance].expected
        room = total.free_tokens - total.waiting_tokens - load.pages * load.page_tokens
        return cluster.drain(instance, now) if room / max(1, total.jobs) > self._balance.high_tokens else []
