"""Where much of the prompt is already: the instance that was last sent its longest known prefix, unless that one is
much busier than the least loaded. As SGLang's router does (Zheng et al., arXiv 2312.07104), over names of blocks.
"""

from penstock.core.cluster import Cluster
from penstock.core.spec import JobSpec

#: Names remembered; the oldest go first.
_NAMES_MOST = 1 << 18
#: A rank (see `place.least_loaded`) that is so much above the least is too busy, whatever is there.
_BUSIER = 16.0


class PrefixAware:
    """Remembers where blocks were sent. Holds that an instance keeps what it was sent; if it does not, that costs time,
    nothing else."""

    def __init__(self) -> None:
        #: Name of a block -> the instance that it was last sent to.
        self._where: dict[int, int] = {}

    def __call__(self, spec: JobSpec, cluster: Cluster) -> int | None:
        least = next(iter(cluster.entries), None)
        if least is None:
            return None
        chosen = self._holder(spec, cluster)
        rank = None if chosen is None else cluster.entries.of(chosen)
        if rank is None or rank > least[0] + _BUSIER:
            chosen = least[1]
        self._remember(spec, chosen)
        return chosen

    def _holder(self, spec: JobSpec, cluster: Cluster) -> int | None:
        """The instance that has the longest part of the prompt. A name stands for all before it: search by halves."""
        low, high, found = 0, len(spec.keys), None
        while low < high:
            middle = (low + high) // 2
            where = self._where.get(spec.keys[middle])
            if where is not None and where in cluster.members:
                low, found = middle + 1, where
            else:
                high = middle
        return found

    def _remember(self, spec: JobSpec, instance: int | None) -> None:
        if instance is None:
            return
        for key in spec.keys:
            self._where.pop(key, None)
            self._where[key] = instance
        while len(self._where) > _NAMES_MOST:
            del self._where[next(iter(self._where))]

    def left(self, instance: int) -> None:
        self._where = {key: where for key, where in self._where.items() if where != instance}
