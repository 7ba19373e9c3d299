"""For tests: everything moves, all the time. Each instance gives jobs to the next one at every look."""

from penstock.core.cluster import Cluster
from penstock.core.commands import ClusterCommand, Order
from penstock.core.config import Balance
from penstock.core.events import Load
from penstock.core.move import Offload


class Flood:
    """See the module's docstring."""

    def __init__(self, balance: Balance) -> None:
        pass

    def rank(self, load: Load) -> float:
        return float(-load.running)

    def __call__(self, cluster: Cluster, now: int) -> list[ClusterCommand]:
        ring = sorted(cluster.members)
        return [
            Order(source, Offload(to, None, 2, "flood"))
            for source, to in zip(ring, ring[1:] + ring[:1], strict=True)
            if source != to
        ]
