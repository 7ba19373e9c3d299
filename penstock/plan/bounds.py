"""Between which rates the answer lies, by arithmetic: what spares the twin most of its runs. Simulates nothing.

From above, for a run of so many requests, which come within a time and may take some more (`_by_work`):

    prompts     the cheapest of them, as many as must keep the SLO, in their most efficient batches
    decoding    the same for tokens, at the largest batch whose step keeps TPOT
    KV          positions x time that those hold, against the positions that there are
    transfer    their KV, through the ports of the narrower side
    queue       the run's own prompts at its own gaps, through one server as fast as all instances together on the most
                efficient batches: the share that waits no longer than TTFT leaves (`_waits_s`)

From below, and where the answer is expected (only where prompts have instances of their own): M/G/1 with prompts alone
in their steps; half the misses allowed, and decodes at the batch that Little's law gives for TPOT, with room to spare.

M/G/1 is Pollaczek and Khinchine's mean wait, W = rate E[S²] / (2 (1 - rate E[S])), which for equal prompts is the M/D/1
of DistServe's section 3.1, times (CV² + CVs²) / (1 + CVs²) for other arrivals (Kingman), with an exponential tail.
"""

from collections.abc import Callable, Sequence
from functools import cached_property

import msgspec
import numpy as np
import numpy.typing as npt

from penstock.core.step import Features
from penstock.drivers.deployment import Laid, LaidPool
from penstock.plan.space import Option
from penstock.plan.trial import Goal, Load
from penstock.workload.describe import seen_and_new

Array = npt.NDArray[np.float64]

NS = 1e9
#: Prompt lengths at which costs are asked for; between them they are straight.
_LENGTHS = 24
_BATCHES = (1, 2, 4, 8, 16, 32, 64)
#: Work is counted a little short, and the share that keeps TTFT may be better by so much: bounds are not estimates.
_SHORT = 0.95
_SLACK = 0.02
#: Of what TPOT, KV and ports allow, a rate that is taken for safe uses this much.
_SAFE = 0.6
#: A rate that is no bound.
FREE = 1e9


class Bounds(msgspec.Struct, frozen=True):
    """Requests/s in all. Up to `low` a deployment carries, above `high` it does not, for the reason `limit`."""

    low: float
    high: float
    limit: str
    #: Where the answer is expected.
    likely: float


class _Side:
    """Instances that do one phase, or both."""

    def __init__(self, laid: Laid, pool: LaidPool) -> None:
        config = laid.sim.members[pool.first].instance
        self.cost, self.instances, self.pp = laid.costs[pool.first], pool.instances, config.stages
        self.kv_tokens, self.seats = pool.kv_tokens, config.limits.max_num_seqs

    def prompts_s(self, prompts: Array, count: int) -> tuple[Array, Array]:
        """(Step, interval) of so many prompts of each of these lengths, s."""
        steps = [_prompt(int(length), count) for length in prompts]
        step = [self.cost.step_ns(features) / NS for features in steps]
        return np.array(step), np.array([self.cost.interval_ns(features) / NS for features in steps])

    def decodes_s(self, jobs: int, context: float) -> tuple[float, float]:
        """(Step, interval) of so many decodes, s."""
        features = Features(jobs, int(jobs * context), jobs, int(jobs * context))
        return self.cost.step_ns(features) / NS, self.cost.interval_ns(features) / NS


class Filter:
    """Bounds for options under one workload and goal. Raises ValueError for an SLO without TTFT."""

    def __init__(self, load: Load, goal: Goal, seeds: Sequence[int]) -> None:
        if not goal.slo.ttft:
            raise ValueError("planning needs an SLO for TTFT at least, as in ttft=500ms,tpot=50ms")
        self._load, self._goal = load, goal
        drawn = [load.requests(FREE, seed) for seed in seeds]
        self._prompts = np.array([r.prompt_tokens for run in drawn for r in run], float)
        self._outputs = np.array([r.output_tokens for run in drawn for r in run], float)
        #: What is promised, s; of TPOT the same to all, and None where that is nothing.
        self._first_s = np.array([(goal.bounds(int(p)).ttft_ns or 0) / NS for p in self._prompts])
        tpot_ns = goal.bounds(1).tpot_ns
        self._tpot_s = None if tpot_ns is None else tpot_ns / NS
        #: Of prompts, what even an endless cache does not have: all, where nothing is shared.
        found = [seen for run in drawn for seen, _, _ in seen_and_new(run)]
        self._new = np.maximum(1.0, self._prompts - np.array(found, float))
        self._runs = len(drawn)
        #: From each request to the next, at 1 request/s.
        self._gaps = [FREE * np.diff([r.arrival_s for r in run], append=run[-1].arrival_s) for run in drawn]
        #: Step times that were asked for, by what the pool says of itself.
        self._curves: dict[tuple[object, ...], _Curves] = {}

    def bounds(self, option: Option) -> Bounds:
        laid = option.lay_out()
        sides = [_Side(laid, pool) for pool in laid.pools]
        first, last = sides[0], sides[-1]
        curves = self._curve(option, first)
        caps = self._impossible(first, last, curves)
        if not caps:
            caps = [
                self._prompt_work(first, curves),
                self._decode_work(last),
                self._kv(last),
                self._transfer(option, laid.sim.move_bytes_per_s, laid.sim.members[0].kv_bytes_per_token),
                (self._crowded(first, curves), "prefill queue" if option.split else "queue"),
            ]
        high, limit = min(caps)
        if not high:
            return Bounds(0.0, 0.0, limit, 0.0)
        prompts, decodes = self._queue(first, curves, 0.0), self._steady(last, 1.0)
        if option.split:
            return Bounds(min(_SAFE * high, self._safe(first, last, curves)), high, limit, min(high, prompts, decodes))
        # Both take their part of the time.
        return Bounds(0.0, high, limit, min(high, prompts * decodes / (prompts + decodes)))

    # -- from above --------------------------------------------------------------------------------------------

    def _impossible(self, first: _Side, last: _Side, curves: "_Curves") -> list[tuple[float, str]]:
        """What even a lone request does not keep."""
        found = []
        must = self._goal.target - _SLACK
        longest = self._prompts + self._outputs > min(first.kv_tokens, last.kv_tokens)
        if 1 - longest.mean() < must:
            found.append((0.0, "KV of an instance is less than a request needs"))
        if (_SHORT * curves.alone_s <= self._first_s).mean() < must:
            found.append((0.0, "prompt time: TTFT is missed on an idle instance"))
        if self._tpot_s is not None:
            several = self._outputs > 1
            pace, _ = last.decodes_s(1, float(np.median(self._prompts)))
            if 1 - (several & (_SHORT * pace > self._tpot_s)).mean() < must:
                found.append((0.0, "TPOT: missed on an idle instance"))
        return found

    def _prompt_work(self, first: _Side, curves: "_Curves") -> tuple[float, str]:
        return self._by_work(curves.best_s, first.instances, self._last_s()), "prefill time"

    def _decode_work(self, last: _Side) -> tuple[float, str]:
        tokens_per_s = max((rate for _, rate in self._batches(last, 0.8)), default=0.0)
        if not tokens_per_s:
            return FREE, ""
        return self._by_work((self._outputs - 1) / tokens_per_s, last.instances, self._whole_s()), "TPOT: decode steps"

    def _kv(self, last: _Side) -> tuple[float, str]:
        """A request holds its positions for as long as its decoding takes at the least."""
        pace, _ = last.decodes_s(1, 1.0)
        held = (self._new + self._outputs / 2) * (self._outputs - 1) * pace
        return self._by_work(held / last.kv_tokens, last.instances, self._whole_s()), "decode KV"

    def _transfer(self, option: Option, bytes_per_s: float, token_bytes: int) -> tuple[float, str]:
        if not option.split or not bytes_per_s:
            return FREE, ""
        ports = min(pool.instances for pool in option.deployment.pools)
        return self._by_work(self._new * token_bytes / bytes_per_s, ports, self._whole_s()), "transfer"

    def _by_work(self, work_s: Array, servers: int, later_s: float) -> float:
        """The rate at which the cheapest work, as much as must be done, fills the time from first arrival to `later_s`
        after the last."""
        must = len(work_s) - self._goal.allowed(len(work_s))
        each_s = _SHORT * float(np.sort(work_s)[:must].sum()) / len(work_s) / servers
        least, duration_s = self._load.num_prompts, self._load.duration_s
        rate = least / (least * each_s - later_s) if least * each_s > later_s else FREE
        if not duration_s or rate * duration_s <= least:
            return rate
        # At such a rate runs last for their time; but they have an end too.
        most = self._load.most
        longest = most / (most * each_s - later_s) if most * each_s > later_s else FREE
        rate = (duration_s + later_s) / duration_s / each_s
        return rate if rate * duration_s <= most else longest

    def _last_s(self) -> float:
        """How long after the last arrival first tokens may still come in time."""
        return float(self._first_s.max())

    def _whole_s(self) -> float:
        return FREE if self._tpot_s is None else self._last_s() + float(self._outputs.max()) * self._tpot_s

    def _crowded(self, first: _Side, curves: "_Curves") -> float:
        """The rate at which too many prompts wait too long, even if all instances were one that never batches badly."""
        service_s = np.split(_SHORT * curves.best_s / first.instances, self._runs)
        left_s = np.split(self._first_s - _SHORT * curves.alone_s, self._runs)

        def kept(rate: float) -> float:
            n, runs = self._load.count(rate), zip(self._gaps, service_s, left_s, strict=True)
            paced = [(self._paced(gaps, n) / rate, s[:n], left[:n]) for gaps, s, left in runs]
            return float(np.mean([(_waits_s(gaps, s) <= left).mean() for gaps, s, left in paced]))

        high = 1.0
        while high < FREE and kept(high) >= self._goal.target - _SLACK:
            high *= 2
        return _root(0.0, high, lambda rate: kept(rate) >= self._goal.target - _SLACK) if high < FREE else FREE

    def _paced(self, gaps: Array, n: int) -> Array:
        """The first gaps at 1 request/s; those of a trace have that mean in any run, whatever its length."""
        span = float(gaps[: n - 1].sum())
        return gaps[:n] * ((n - 1) / span) if self._load.trace and span else gaps[:n]

    # -- from below --------------------------------------------------------------------------------------------

    def _safe(self, first: _Side, last: _Side, curves: "_Curves") -> float:
        """A rate that is carried even if nothing is batched and decodes are as slow as TPOT allows."""
        if self._tpot_s is None:
            return 0.0
        half = (1 - self._goal.target) / 2
        prefill = self._queue(first, curves, half)
        jobs = max((jobs for jobs, _ in self._batches(last, 1 / _SAFE)), default=0)
        # Little: so many decode at a time, each for its tokens x TPOT.
        decode = last.instances * jobs / (float(self._outputs.mean()) * self._tpot_s)
        return _SAFE * min(prefill, decode)

    def _steady(self, last: _Side, times: float) -> float:
        """The rate at which decoding just keeps up, for ever."""
        tokens_per_s = max((rate for _, rate in self._batches(last, times)), default=0.0)
        return last.instances * tokens_per_s / float(self._outputs.mean())

    def _queue(self, first: _Side, curves: "_Curves", better: float) -> float:
        """The rate up to which, by the formula, the share that keeps TTFT is at least the target plus `better`."""
        service_s, left_s = curves.apart_s, self._first_s - curves.alone_s
        target = self._goal.target + better
        return _root(
            0.0,
            first.instances / float(service_s.mean()),
            lambda rate: _kept(rate / first.instances, service_s, left_s, self._cv) >= target,
        )

    # -- step times --------------------------------------------------------------------------------------------

    @property
    def _cv(self) -> float:
        if self._load.trace:
            return float(np.mean([gaps.std() / gaps.mean() if gaps.any() else 0.0 for gaps in self._gaps]))
        return 0.0 if self._load.arrival == "constant" else self._load.cv if self._load.arrival != "poisson" else 1.0

    @property
    def _context(self) -> float:
        """Of a decode, on average."""
        tokens = self._outputs
        return float(((self._prompts + tokens / 2) * tokens).sum() / tokens.sum())

    def _batches(self, side: _Side, times: float) -> list[tuple[int, float]]:
        """(Jobs on an instance, tokens/s) for the batches that TPOT, seats and KV allow, contexts `times` theirs."""
        context, bound_s = times * self._context, self._tpot_s
        most = min(side.seats, side.kv_tokens / context)
        found, jobs = [], 1.0
        while jobs * side.pp <= max(most, side.pp):
            step_s, interval_s = side.decodes_s(int(jobs), context)
            if bound_s is None or step_s * min(1.0, times) <= bound_s:
                found.append((int(jobs) * side.pp, int(jobs) / interval_s))
            jobs *= 1.3 if jobs > 3 else 2
        return found

    def _curve(self, option: Option, side: _Side) -> "_Curves":
        spec = option.deployment.pools[0]
        key = (spec.cost, spec.hardware, spec.tp, spec.pp)
        if key not in self._curves:
            self._curves[key] = _Curves(side, self._new, self._last_s())
        return self._curves[key]


class _Curves:
    """What each prompt takes."""

    def __init__(self, side: _Side, prompts: Array, most_s: float) -> None:
        self._side, self._prompts, self._most_s = side, prompts, most_s
        self._at = np.unique(np.quantile(prompts, np.linspace(0, 1, _LENGTHS)).round())

    @cached_property
    def alone_s(self) -> Array:
        """In a step of its own."""
        return np.interp(self._prompts, self._at, self._side.prompts_s(self._at, 1)[0])

    @cached_property
    def apart_s(self) -> Array:
        """From its start to that of the next, each in a step of its own."""
        return np.interp(self._prompts, self._at, self._side.prompts_s(self._at, 1)[1])

    @cached_property
    def best_s(self) -> Array:
        """Its part of the most efficient batch of its like that keeps TTFT."""
        best: Array = np.full(len(self._at), FREE)
        for count in _BATCHES:
            step, interval = self._side.prompts_s(self._at, count)
            kept = (step <= self._most_s) | (count == 1)
            best = np.where(kept, np.minimum(best, interval / count), best)
        parts: Array = np.interp(self._prompts, self._at, best)
        return parts


def _root(low: float, high: float, holds: Callable[[float], bool]) -> float:
    """Where it holds no longer."""
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return high


def _waits_s(gaps_s: Array, service_s: Array) -> Array:
    """What each waits for a server that takes these times, first come first served (Lindley's recursion)."""
    ahead = np.concatenate([[0.0], np.cumsum(service_s - gaps_s)[:-1]])
    waits: Array = ahead - np.minimum.accumulate(ahead)
    return waits


def mean_wait_s(rate: float, service_s: Array, cv: float = 1.0) -> float:
    """In a queue with one server that takes these times, first come first served. Infinite at saturation."""
    mean, square = float(service_s.mean()), float((service_s**2).mean())
    if rate * mean >= 1:
        return float("inf")
    spread = max(0.0, square / mean**2 - 1)
    return rate * square / (2 * (1 - rate * mean)) * (cv**2 + spread) / (1 + spread)


def _kept(rate: float, service_s: Array, left_s: Array, cv: float) -> float:
    """Share that waits no longer than its prompt leaves of TTFT."""
    wait, load = mean_wait_s(rate, service_s, cv), rate * float(service_s.mean())
    if wait == 0:
        return float((left_s >= 0).mean())
    late = load * np.exp(-np.maximum(left_s, 0) * load / wait) if wait < float("inf") else np.ones(len(left_s))
    return float(np.where(left_s < 0, 0.0, 1 - late).mean())


def _prompt(length: int, count: int) -> Features:
    if length == 1:
        return Features(count, count, count, count)
    return Features(count * length, count * (length * (length + 1) // 2), 0, 0, count)
