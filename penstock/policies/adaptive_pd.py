"""Disaggregation whose roles follow the load, with rescheduling among those that decode.

Prompts and decoding have instances of their own, as in DistServe, and jobs that decode are balanced, as in Llumnix; an
instance changes sides when one side is short and the other has room to spare. Its jobs then move, as after any prompt.
Published evidence that this beats each alone: the second Llumnix (its "adaptive PD" figures on Qwen3-32B), which
decides by predicted latencies; here loads decide.
"""

from penstock.core.cluster import Cluster, Sums
from penstock.core.commands import ClusterCommand
from penstock.core.config import Balance
from penstock.core.events import Load
from penstock.core.slo import SECOND
from penstock.policies.llumnix import Llumnix

#: An instance changes sides no sooner than this after another did.
_PAUSE_NS = 2 * SECOND
#: Prompts are short of instances when so many tokens wait for each, and have some to spare below the second.
_QUEUE_LONG, _QUEUE_SHORT = 8192, 1024
#: Decoding is short of room when less than this share of its pages is free, and has some to spare above the second.
_ROOM_SHORT, _ROOM_LONG = 0.15, 0.5


class AdaptivePd:
    """Llumnix's rebalancing, and roles."""

    def __init__(self, balance: Balance) -> None:
        self._llumnix = Llumnix(balance)
        self._next_at = 0

    def rank(self, load: Load) -> float:
        return self._llumnix.rank(load)

    def __call__(self, cluster: Cluster, now: int) -> list[ClusterCommand]:
        out = self._llumnix(cluster, now)
        if now >= self._next_at and (changed := self._change(cluster)):
            self._next_at = now + _PAUSE_NS
            out += changed
        return out

    def _change(self, cluster: Cluster) -> list[ClusterCommand]:
        prompts, decodes = cluster.sums.get("prefill", Sums()), cluster.sums.get("decode", Sums())
        if not prompts.members or not decodes.members:
            return []
        queue = prompts.waiting_tokens / prompts.members
        room = decodes.free_tokens / max(1, decodes.capacity_tokens)
        if queue > _QUEUE_LONG and room > _ROOM_LONG and decodes.members > 1:
            return cluster.assign(next(iter(cluster.onward))[1], "prefill")
        if room < _ROOM_SHORT and queue < _QUEUE_SHORT and prompts.members > 1:
            return cluster.assign(next(iter(cluster.entries))[1], "decode")
        return []
