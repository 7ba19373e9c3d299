"""A cell of a figure in the twin: its requests, its deployment, and the numbers of the run."""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import numpy as np

from penstock.core.cluster import Cluster
from penstock.core.commands import Release, Run
from penstock.core.instance import Instance
from penstock.core.move import MoveEnded, Pull, Pulled
from penstock.core.slo import MS, SECOND, Slo
from penstock.core.step import Features
from penstock.drivers.deployment import Deployment, lay_out
from penstock.drivers.sim import Simulation, Times
from penstock.metrics.record import COMPLETED, Record
from penstock.reproduce.figure import LoadSpec
from penstock.reproduce.numbers import Numbers, latencies, of_records, quantiles
from penstock.workload import lengths
from penstock.workload.arrivals import arrivals
from penstock.workload.request import Request

#: Keeps the draw of who is urgent apart from the others.
_URGENT = 3
#: Time between two looks at how KV is scattered.
_LOOK_NS = SECOND // 2
STAGES = ("prefill_queue", "prefill", "transfer", "decode_queue", "decode")


def requests(load: LoadSpec, rate: float, count: int, cv: float, seed: int) -> list[Request]:
    """`count` requests at `rate` requests/s in all."""
    prompts, answers = lengths.draw(load.lengths, count, outputs=load.output_lengths, seed=seed)
    times_s = arrivals(load.arrival, count, rate, cv=cv, seed=seed)
    urgent = np.random.default_rng([seed, _URGENT]).random(count) < load.urgent
    return [
        Request(arrival_s=at, prompt_tokens=prompt, output_tokens=answer, priority=-1 if first else 0)
        for at, prompt, answer, first in zip(times_s.tolist(), prompts.tolist(), answers.tolist(), urgent, strict=True)
    ]


def run(
    deployment: Deployment,
    asked: Sequence[Request],
    slo: Slo,
    scales: Sequence[float] = (),
    stages: bool = False,
    *,
    blind: bool = False,
) -> Numbers:
    """Serve them in the twin. `blind`: it is not told who is urgent."""
    watched = Watched(deployment, stages)
    alike = [msgspec.structs.replace(request, priority=0) for request in asked] if blind else asked
    records = watched.simulation.run(alike)
    found = of_records(records, slo, scales)
    end_ns = round(asked[-1].arrival_s * SECOND) or 1
    values = found.values | {
        "preemptions": float(len(watched.preempted)),
        "loss_s": watched.loss_ns(records) / SECOND / len(records),
        "moves": float(watched.simulation.moves),
        "instances": watched.simulation.instance_ns(0, end_ns) / end_ns,
        "fragmented_mean": watched.seen.fragmented,
        "steps": float(watched.seen.count),
    }
    values |= watched.halts(records)
    if any(request.priority for request in asked):
        classes = {"urgent_": True, "normal_": False}
        for prefix, urgent in classes.items():
            values |= latencies(
                [r for r, a in zip(records, asked, strict=True) if (a.priority == -1) == urgent], prefix
            )
    kept = found.quantiles
    if stages:
        shares, transfers = watched.stages(records)
        values |= shares
        if transfers:
            kept = kept | {"transfer_ms": quantiles(transfers)}
            values["transfer_p95_ms"] = float(np.percentile(transfers, 95))
    return Numbers(values=values, scales=found.scales, quantiles=kept)


class _Seen:
    """Looks at how KV is scattered from time to time, and at what moves took (`sim.Observer`)."""

    def __init__(self) -> None:
        self.members: Sequence[Any] = ()
        self.count = 0
        #: Jobs that went on elsewhere, copied or not.
        self.switched: set[int] = set()
        self._looked_ns = 0
        self._shares: list[float] = []

    @property
    def fragmented(self) -> float:
        """On average."""
        return float(np.mean(self._shares)) if self._shares else 0.0

    def steps(self, instance: int, start_ns: int, ends_ns: Times, first: Features) -> None:
        """See `sim.Observer`."""
        self.count += len(ends_ns)
        now = int(ends_ns[-1])
        if now - self._looked_ns >= _LOOK_NS:
            self._looked_ns = now
            self._shares.append(self._fragmented())

    def _fragmented(self) -> float:
        """Free pages that heads of queues would have if all free pages were in one place, as a share of all."""
        cores = [member.core for member in self.members]
        free = sum(core.pages.available for core in cores)
        wanted = 0
        for need in sorted(core.pages.missing(core.waiting.jobs[0], core.waiting.jobs[0].known)
                           for core in cores if core.waiting.jobs):  # fmt: skip
            if wanted + need > free:
                break
            wanted += need
        return float(wanted / sum(core.pages.pages for core in cores))

    def moved(self, instance: int, to: int | None, ended: MoveEnded, now_ns: int) -> None:
        """See `sim.Observer`."""
        if not ended.reason:
            self.switched.add(ended.job)


class Watched:
    """A run of which is noted when jobs are preempted, and where they are."""

    def __init__(self, deployment: Deployment, stages: bool = False) -> None:
        laid = lay_out(deployment)
        self.seen = _Seen()
        self.simulation = Simulation(laid.sim, laid.costs, self.seen, self._handle)
        self.seen.members = self.simulation.members
        #: (job, when).
        self.preempted: list[tuple[int, int]] = []
        self._stages = stages
        #: Job -> instances that had it in a step, and from when on.
        self._begun: dict[int, dict[int, int]] = {}
        #: (who pulls, its move) -> the job and since when; and job -> times in which its KV was on the way.
        self._pulling: dict[tuple[int, int], tuple[int, int]] = {}
        self.pulled: dict[int, list[tuple[int, int]]] = {}

    def _handle(self, core: Instance | Cluster, event: Any, now: int) -> list[Any]:
        """See `sim.Handle`."""
        commands: list[Any] = core.handle(event, now)
        if isinstance(core, Cluster):
            return commands
        if self._stages and isinstance(event, Pulled):
            job, since = self._pulling.pop((core.number, event.move))
            self.pulled.setdefault(job, []).append((since, now))
        for command in commands:
            if isinstance(command, Release) and not command.forget:
                self.preempted.append((command.job, now))
            elif self._stages and isinstance(command, Pull):
                self._pulling[core.number, command.move] = command.job, now
            elif self._stages and isinstance(command, Run):
                member = next(member for member in self.simulation.members if member.core is core)
                start = max(now, member.free_at)
                for piece in command.plan.slices:
                    self._begun.setdefault(piece.job, {}).setdefault(member.index, start)
        return commands

    def loss_ns(self, records: Sequence[Record]) -> int:
        """What preemptions cost, over all requests."""
        times: dict[int, list[int]] = {}
        for job, at in self.preempted:
            times.setdefault(job, []).append(at)
        return sum(lost_ns(at, records[job].times_ns) for job, at in times.items())

    def halts(self, records: Sequence[Record]) -> dict[str, float]:
        """Of requests that moved while they ran."""
        found = []
        for job in sorted(self.seen.switched):
            gaps = np.diff(records[job].times_ns)
            if len(gaps) > 2:
                found.append((gaps.max() - np.median(gaps)) / MS)
        return {"halt_mean_ms": float(np.mean(found)), "halt_p50_ms": float(np.median(found))} if found else {}

    def stages(self, records: Sequence[Record]) -> tuple[dict[str, float], list[float]]:
        """Where requests spent their time, as shares of all of it and as the mean of each request's shares (`each_*`):
        DistServe's figure 10. And for how long KV was on the way, ms, a number a request that was handed over."""
        rows, transfers = [], []
        for record in records:
            if record.outcome != COMPLETED or not record.times_ns:
                continue
            begun = sorted(self._begun[record.id].values())
            first, last = record.times_ns[0], record.times_ns[-1]
            going = min((at for at in begun[1:] if at >= first), default=first)
            pulls = self.pulled.get(record.id, [])
            # What is copied while the prompt is computed, nobody waits for.
            copying = sum(max(0, min(end, going) - max(start, first)) for start, end in pulls)
            rows.append(
                (begun[0] - record.sent_ns, first - begun[0], copying, going - first - copying, max(0, last - going))
            )
            transfers += [sum(end - start for start, end in pulls) / MS] * bool(pulls)
        spent = np.array(rows, float)
        shares = spent.sum(axis=0) / max(1.0, spent.sum())
        each = (spent / np.maximum(1.0, spent.sum(axis=1, keepdims=True))).mean(axis=0)
        named = {f"stage_{name}": float(share) for name, share in zip(STAGES, shares, strict=True)}
        return named | {f"each_{name}": float(share) for name, share in zip(STAGES, each, strict=True)}, transfers


def lost_ns(preempted: Iterable[int], times_ns: Sequence[int]) -> int:
    """From a preemption to the next token, less the gap before: what a step would have taken. Another one before that
    token costs nothing of its own."""
    total = 0
    for following, at in {bisect_right(times_ns, at): at for at in sorted(preempted, reverse=True)}.items():
        if 0 < following < len(times_ns):
            usual = times_ns[following - 1] - times_ns[following - 2] if following > 1 else 0
            total += max(0, times_ns[following] - at - usual)
    return total
