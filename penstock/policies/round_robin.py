"""New jobs in turn, whatever the load: the baseline that every other dispatch is measured against."""

from penstock.core.cluster import Cluster
from penstock.core.events import Load
from penstock.core.spec import JobSpec


def anywhere(load: Load) -> float:
    """All alike: instances stay in order of their numbers."""
    return 0.0


class RoundRobin:
    """Remembers whose turn it was."""

    def __init__(self) -> None:
        self._last = -1

    def __call__(self, spec: JobSpec, cluster: Cluster) -> int | None:
        chosen = cluster.entries.after(0.0, self._last)
        self._last = -1 if chosen is None else chosen
        return chosen

    def left(self, instance: int) -> None:
        """The next one's turn comes as it would have."""
