"""One deployment at one rate with one seed, in the twin: how many requests kept the SLO, and what stood in the way.

A trial ends as soon as nothing that may still come can change the verdict. Knows no search and no files.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from math import ceil, floor

import msgspec

from penstock.core.move import MoveEnded
from penstock.core.slo import SECOND, Bounds, Slo, Target
from penstock.core.step import Features
from penstock.drivers.deployment import Laid
from penstock.drivers.meter import Meter, Use
from penstock.drivers.sim import Simulation, Times
from penstock.metrics.idle import Idle
from penstock.metrics.record import COMPLETED, Record
from penstock.plan import stretch
from penstock.plan.space import Option
from penstock.workload import trace
from penstock.workload.compose import Plan, synthesize
from penstock.workload.request import Request

#: From here on a pool's KV is what limits; and the network, where moves begin to wait for one another.
_FULL = 0.9
_BUSY = 0.5
#: Requests of the longest run.
_MOST = 8192
#: Steps between two looks at what is over.
_LOOK = 32


class Goal(msgspec.Struct, frozen=True):
    """What a deployment must do for a rate to count."""

    slo: Slo
    #: Share of requests that must keep the SLO.
    target: float = 0.9
    #: TTFT and TPOT are judged apart, each with the target share, as DistServe's search does; else both of a request.
    marginal: bool = False
    #: What multiples are of, the same for every option.
    idle: Idle | None = None

    def __post_init__(self) -> None:
        if self.slo.relative and self.idle is None:
            raise ValueError(f"the SLO {self.slo}: what is an idle TTFT? Multiples need the times that they are of")
        if not 0 < self.target < 1:
            raise ValueError(f"the target share {self.target:g} must be between 0 and 1")

    def bounds(self, prompt_tokens: int, output_tokens: int = 1) -> Bounds:
        """What is promised to such a request."""
        if self.idle is None:
            return self.slo.resolve()
        first = self.idle.ttft_base_ns + self.idle.ttft_token_ns * prompt_tokens
        pace = self.idle.tpot_ns
        return self.slo.resolve(round(first), round(pace), round(first + (output_tokens - 1) * pace))

    def promised(self, requests: list[Request]) -> list[Request]:
        """Multiples as times, which everyone who sees a request then reads alike."""
        if not self.slo.relative:
            return requests
        return [msgspec.structs.replace(r, slo=_times(self.bounds(r.prompt_tokens, r.output_tokens))) for r in requests]

    def allowed(self, requests: int) -> int:
        """How many of so many may miss."""
        return floor((1 - self.target) * requests + 1e-9)


class Tally(msgspec.Struct, frozen=True, kw_only=True):
    """What became of requests. Those not over when a trial ended early are not among the judged."""

    requests: int
    judged: int = 0
    #: Missed anything, TTFT, TPOT; without an answer: all three.
    late: int = 0
    ttft: int = 0
    tpot: int = 0
    #: What stood in the way of most that were late.
    limit: str = ""

    def missed(self, goal: Goal) -> int:
        return max(self.ttft, self.tpot) if goal.marginal else self.late

    def share(self, goal: Goal) -> float:
        """Of the judged, those that kept the SLO."""
        return 1 - self.missed(goal) / self.judged if self.judged else 0.0

    def plus(self, other: "Tally") -> "Tally":
        """Both together; what limits is what the one with more misses says."""
        counts = {name: getattr(self, name) + getattr(other, name) for name in _COUNTS}
        return Tally(**counts, limit=(self if self.late >= other.late else other).limit)


def _times(bounds: Bounds) -> Slo:
    """Each at least 1 ns, which is a bound; none is no promise."""
    return Slo(*(None if ns is None else Target(ns=max(1, ns)) for ns in msgspec.structs.astuple(bounds)))


_COUNTS = ("requests", "judged", "late", "ttft", "tpot")


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """The workload, but for its rate. Seeds are common random numbers: at any rate, for any deployment, a run has the
    first requests of one long draw, its gaps stretched by the rate. Of a trace, a seed is where in it a run begins."""

    #: As in `penstock trace synth` (`workload.lengths`); empty: those of the trace.
    lengths: str = ""
    output_lengths: str | None = None
    arrival: str = "poisson"
    cv: float = 1.0
    #: Requests of a run, at the least, and as many as come in so long: a short run is over before queues and KV fill.
    num_prompts: int = 300
    duration_s: float = 60.0
    #: A file of requests that have arrivals of their own; its path.
    trace: str = ""

    def __post_init__(self) -> None:
        if bool(self.trace) == bool(self.lengths):
            raise ValueError("say what requests are like: give --lengths, or a --trace with arrivals of its own")

    @property
    def most(self) -> int:
        """The longest run."""
        most = max(self.num_prompts, _MOST) if self.duration_s else self.num_prompts
        return min(most, len(stretch.whole(self.trace))) if self.trace else most

    @property
    def whole(self) -> "Load":
        """All of the trace in each run, from its start where the seed is 0."""
        return msgspec.structs.replace(self, num_prompts=len(stretch.whole(self.trace)), duration_s=0.0)

    @property
    def said(self) -> str:
        """In a few words."""
        return f"{self.trace}, its own arrivals" if self.trace else f"{self.lengths}, {self.arrival} arrivals"

    def count(self, rate: float) -> int:
        """Requests of a run at `rate` requests/s."""
        return min(self.most, max(self.num_prompts, ceil(rate * self.duration_s)))

    def requests(self, rate: float, seed: int) -> list[Request]:
        """At `rate` requests/s."""
        drawn = _drawn(self, seed)[: self.count(rate)]
        if self.trace:
            return trace.to_rate(drawn, rate)
        return [msgspec.structs.replace(request, arrival_s=request.arrival_s / rate) for request in drawn]


@lru_cache(16)
def _drawn(load: Load, seed: int) -> list[Request]:
    """At 1 request/s; of a trace, at its own rate."""
    if load.trace:
        return stretch.of(load.trace, seed, load.most)
    return synthesize(
        Plan(
            lengths=load.lengths, output_lengths=load.output_lengths, arrival=load.arrival, cv=load.cv,
            count=load.most, rate=1.0, seed=seed,
        )
    )  # fmt: skip


class _Sure(Exception):
    """The verdict is known."""


class _Watch:
    """Counts what is over while the simulation runs (`sim.Observer`), and ends it when there is no more to learn."""

    def __init__(self, goal: Goal, requests: int, enough: Callable[[Tally], bool]) -> None:
        self.meter = Meter()
        self.tally = Tally(requests=requests)
        self.now = 0
        self._goal, self._enough = goal, enough
        self._over: Sequence[Record] = ()
        self._calls = 0

    def watch(self, simulation: Simulation) -> None:
        self.meter.watch(simulation.members)
        self._over = simulation.over

    def steps(self, instance: int, start_ns: int, ends_ns: Times, first: Features) -> None:
        """See `sim.Observer`."""
        self.meter.steps(instance, start_ns, ends_ns, first)
        self.now = max(self.now, int(ends_ns[-1]))
        self._calls += 1
        if self._calls % _LOOK == 0:
            self.look()
            if self._enough(self.tally):
                raise _Sure

    def moved(self, instance: int, to: int | None, ended: MoveEnded, now_ns: int) -> None:
        """See `sim.Observer`."""
        self.meter.moved(instance, to, ended, now_ns)

    def look(self) -> None:
        """Judge those that are over since."""
        self.tally = self.tally.plus(_judge(self._over[self.tally.judged :], self._goal))


def trial(
    option: Option,
    load: Load,
    goal: Goal,
    rate: float,
    seed: int,
    enough: Callable[[Tally], bool] = lambda tally: False,
) -> tuple[Tally, list[Record]]:
    """`rate`: requests/s in all. Ends as soon as `enough` says so of what is known; the records are then those of an
    unfinished run."""
    laid, requests = option.lay_out(), goal.promised(load.requests(rate, seed))
    watch = _Watch(goal, len(requests), enough)
    config = msgspec.structs.replace(laid.sim, slo=goal.slo, every_token=False)
    simulation = Simulation(config, laid.costs, watch)
    watch.watch(simulation)
    try:
        records = simulation.run(requests)
        watch.look()
    except _Sure:
        records = list(simulation.records)
    limit = _limit(watch, laid, goal, records) if watch.tally.late else ""
    return msgspec.structs.replace(watch.tally, limit=limit), records


def _judge(ended: Sequence[Record], goal: Goal) -> Tally:
    late, ttft, tpot = 0, 0, 0
    for record in ended:
        bounds = record.bounds(goal.slo)
        first, pace = record.ttft_ns, record.tpot_ns
        answered = record.outcome == COMPLETED and first is not None
        slow = not answered or (bounds.ttft_ns is not None and (first or 0) > bounds.ttft_ns)
        halting = not answered or (bounds.tpot_ns is not None and pace is not None and pace > bounds.tpot_ns)
        ttft += slow
        tpot += halting
        late += not record.good(goal.slo)
    return Tally(requests=0, judged=len(ended), late=late, ttft=ttft, tpot=tpot)


def _limit(watch: _Watch, laid: Laid, goal: Goal, records: Sequence[Record]) -> str:
    """What stands in the way, in a few words."""
    end, tally = max(1, watch.now), watch.tally
    uses = [watch.meter.use(pool, 0, end) for pool in laid.pools]
    first, last = uses[0], uses[-1]
    split = len(uses) > 1
    if last.kv_max > _FULL and (last.preemptions or last.waiting_max or (split and first.kv_max > _FULL)):
        return "decode KV" if split else "KV"
    if split and _network_use(watch, laid, records) > _BUSY:
        return "transfer"
    if tally.tpot > tally.ttft:
        return "TPOT: decode steps" if split else "TPOT: steps with prompts in them"
    return _slow_start(goal, laid, first, records)


def _slow_start(goal: Goal, laid: Laid, first: Use, records: Sequence[Record]) -> str:
    """Why first tokens are late: most late prompts would have been late on an idle instance too, or they queued."""
    bounds = [(r, r.bounds(goal.slo).ttft_ns or 0) for r in records]
    late = [(r, bound) for r, bound in bounds if r.ttft_ns is not None and r.ttft_ns > bound]
    alone = [laid.costs[0].request_ns(r.prompt_tokens, 1)[0] > bound for r, bound in late]
    if late and 2 * sum(alone) > len(late):
        return "prompt time"
    return "prefill queue" if len(laid.pools) > 1 else "queue"


def _network_use(watch: _Watch, laid: Laid, records: Sequence[Record]) -> float:
    """Of the ports of the narrower side, while requests come."""
    coming_s = min(watch.now, records[-1].sent_ns) / SECOND
    bytes_max = laid.sim.move_bytes_per_s * min(pool.instances for pool in laid.pools) * coming_s
    return watch.meter.all_moves().kv_bytes / bytes_max if bytes_max else 0.0
