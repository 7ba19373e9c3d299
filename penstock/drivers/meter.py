"""What limits a simulated system: how long instances step, how full their KV is, who waits, what moves.

An observer (`sim.Observer`) that reads the core at each step. Knows requests only by their records. Instances that
are added while it runs belong to the pool that they are alike.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Protocol

import msgspec

from penstock.core.instance import Instance
from penstock.core.move import MoveEnded
from penstock.core.step import Features
from penstock.drivers.deployment import LaidPool
from penstock.drivers.scenario import MemberConfig
from penstock.drivers.sim import Observer, Times
from penstock.metrics.record import COMPLETED, Record


class Metered(Protocol):
    """A simulated instance."""

    core: Instance
    #: That and those that it had before it failed.
    cores: list[Instance]
    #: The same object for all that were made alike.
    config: MemberConfig

    def there_ns(self, begin: int, end: int) -> int:
        """For how long between two times it was there: starting, or up."""


class _Gauge:
    """Of one instance; sums over time in ns."""

    __slots__ = ("busy_ns", "last_end", "pages_max", "pages_ns", "waiting_max", "waiting_ns")

    def __init__(self) -> None:
        self.last_end = self.busy_ns = self.waiting_ns = self.pages_max = self.waiting_max = 0
        self.pages_ns = 0.0


class Use(msgspec.Struct, frozen=True, kw_only=True):
    """Of the instances of one pool. Shares are of 1; means are over the time that its instances were there."""

    #: How many were there, on average over the run.
    instances: float
    #: Time during which a step was under way.
    stepping: float
    #: Pages that jobs hold; at most: of any instance. Where a hang-up or a failure cuts a quiet stretch short, the
    #: pages that it took last, less than a 64th of all, are not seen.
    kv_mean: float
    kv_max: float
    #: Requests that wait on an instance for a seat or for pages.
    waiting_mean: float
    waiting_max: int
    preemptions: int


class Moved(msgspec.Struct, frozen=True, kw_only=True):
    """What moved between instances."""

    #: KV that was copied, for moves that came to nothing too.
    kv_bytes: int
    #: Why moves came to nothing -> how many.
    aborts: dict[str, int]


class Meter:
    """Hand it to a `Simulation` and then tell it whose cores to read (`watch`). It passes on what it sees to
    `then`."""

    def __init__(self, then: Observer | None = None) -> None:
        self._then = then
        self._members: Sequence[Metered] = ()
        self._gauges: dict[int, _Gauge] = defaultdict(_Gauge)
        #: Positions that were computed, on all instances.
        self.positions = 0
        self._kv_bytes = 0
        self._aborts: Counter[str] = Counter()

    def watch(self, members: Sequence[Metered]) -> None:
        """The instances, by number; there may be more of them later."""
        self._members = members

    def steps(self, instance: int, start_ns: int, ends_ns: Times, first: Features) -> None:
        """See `sim.Observer`."""
        gauge, core = self._gauges[instance], self._members[instance].core
        count, end = len(ends_ns), int(ends_ns[-1])
        # Steps of a pipeline overlap.
        span = end - max(start_ns, gauge.last_end)
        pages, waiting = core.pages.used, len(core.waiting)
        gauge.last_end = end
        gauge.busy_ns += span
        gauge.waiting_ns += waiting * span
        # From step to step, positions are added to the pages.
        gauge.pages_ns += (pages + first.new * (count - 1) / (2 * core.pages.page_tokens)) * span
        gauge.pages_max = max(gauge.pages_max, pages)
        gauge.waiting_max = max(gauge.waiting_max, waiting)
        self.positions += first.new * count
        if self._then is not None:
            self._then.steps(instance, start_ns, ends_ns, first)

    def moved(self, instance: int, to: int | None, ended: MoveEnded, now_ns: int) -> None:
        """See `sim.Observer`."""
        self._kv_bytes += ended.copied * self._members[instance].config.kv_bytes_per_token
        if ended.reason:
            self._aborts[ended.reason] += 1
        if self._then is not None:
            self._then.moved(instance, to, ended, now_ns)

    def use(self, pool: LaidPool, begin_ns: int, end_ns: int) -> Use:
        """Of a pool, over a run between these times."""
        kinds = {id(member.config) for member in self._members[pool.first : pool.first + pool.instances]}
        numbers = [number for number, member in enumerate(self._members) if id(member.config) in kinds]
        gauges = [self._gauges[number] for number in numbers]
        pages = self._members[pool.first].core.pages.pages
        whole = max(1, sum(self._members[number].there_ns(begin_ns, end_ns) for number in numbers))
        return Use(
            instances=whole / max(1, end_ns - begin_ns),
            stepping=sum(gauge.busy_ns for gauge in gauges) / whole,
            kv_mean=sum(gauge.pages_ns for gauge in gauges) / whole / pages,
            kv_max=max(gauge.pages_max for gauge in gauges) / pages,
            waiting_mean=sum(gauge.waiting_ns for gauge in gauges) / whole,
            waiting_max=max(gauge.waiting_max for gauge in gauges),
            preemptions=sum(core.preemptions for number in numbers for core in self._members[number].cores),
        )

    def all_moves(self) -> Moved:
        """Over the whole run."""
        return Moved(kv_bytes=self._kv_bytes, aborts=dict(self._aborts.most_common()))

    def found(self, records: Sequence[Record]) -> float:
        """The share of prompt tokens that were found in the prefix cache, at the least: what was computed twice, or for
        requests that were not completed, counts against it."""
        done = [record for record in records if record.outcome == COMPLETED]
        prompts = sum(record.prompt_tokens for record in done)
        asked = prompts + sum(record.output_tokens - 1 for record in done)
        return max(0.0, (asked - self.positions) / prompts) if prompts else 0.0
