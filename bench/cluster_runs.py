"""What the cluster benchmarks share: loads of the papers, runs in the twin, their numbers, tables and axes."""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from penstock.core.commands import InstanceCommand, Release
from penstock.core.slo import SECOND
from penstock.cost.published import llumnix
from penstock.drivers.deployment import BalanceSpec, DelaySpec, Deployment, PoolSpec, lay_out
from penstock.drivers.sim import Simulation
from penstock.metrics.record import COMPLETED, Record
from penstock.workload import lengths
from penstock.workload.arrivals import arrivals
from penstock.workload.published import LLUMNIX_SEED
from penstock.workload.request import Request

#: Tokens that a step may prefill in Llumnix's runs: it decides how much memory is left for KV.
PREFILL_TOKENS = 12000
NO_LIMIT = 1_000_000
#: Rows that the papers' figures compare, and how they are drawn.
STYLES = {"round-robin": "#999999 o", "infaas++": "#e69f00 s", "llumnix": "#0072b2 D"}


def llumnix_load(
    sizes: str, rate: float, count: int, *, cv: float = 1.0, urgent: float = 0.0, seed: int = LLUMNIX_SEED
) -> list[Request]:
    """Requests of Llumnix's generator such as `M-M`, its own draw; a share of them urgent, drawn apart."""
    prompts, answers = lengths.draw(f"llumnix:{sizes}", count, seed=seed)
    times_s = arrivals("llumnix", count, rate, cv=cv, seed=seed)
    high = np.random.default_rng([seed, 3]).random(count) < urgent
    return [
        Request(arrival_s=at, prompt_tokens=prompt, output_tokens=answer, priority=-1 if first else 0)
        for at, prompt, answer, first in zip(times_s.tolist(), prompts.tolist(), answers.tolist(), high, strict=True)
    ]


def a10s(policy: str, instances: int = 16, start_s: float = 0.0, **balance: Any) -> Deployment:
    """LLaMA-7B on A10s as Llumnix ran it: its step times, KV capacity, and copies at 2.4 GB/s after 15 ms."""
    pool = PoolSpec(
        instances=instances,
        hardware="a10",
        cost="llumnix/llama-7b",
        kv_tokens=llumnix.kv_tokens(PREFILL_TOKENS),
        start_s=start_s,
        max_num_queued_reqs=NO_LIMIT,
    )
    delays = DelaySpec(dispatch_ms=1.0, report_ms=1.0, peer_ms=1.0, pull_ms=llumnix.COPY_FIT_MS["llama-7b"][0])
    return Deployment(
        model="llama-7b", policy=policy, pools=[pool], delays=delays, move_gb_per_s=2.4, balance=BalanceSpec(**balance)
    )


class Watched(Simulation):
    """A run that notes when jobs are preempted."""

    def __init__(self, deployment: Deployment) -> None:
        laid = lay_out(deployment)
        super().__init__(laid.sim, laid.costs)
        #: (job, when).
        self.preempted: list[tuple[int, int]] = []

    def _carry_on(self, member: Any, command: InstanceCommand) -> None:
        if isinstance(command, Release) and not command.forget:
            self.preempted.append((command.job, self.now))
        super()._carry_on(member, command)


@dataclass(frozen=True)
class Outcome:
    """A run in numbers: times in s, decode in ms a token."""

    records: list[Record]
    ttft: np.ndarray[Any, Any]
    #: Each request's mean time between tokens.
    decode: np.ndarray[Any, Any]
    e2e: np.ndarray[Any, Any]
    #: What preemptions cost: from each to the next token, added up, over all requests.
    loss_s: float
    preemptions: int
    moves: int
    #: Instances that were there on average, starting ones too, while requests came.
    instances: float

    @property
    def ttft_p99(self) -> float:
        return float(np.percentile(self.ttft, 99))

    @property
    def decode_p99(self) -> float:
        return float(np.percentile(self.decode, 99))

    def row(self) -> list[str]:
        return [
            f"{self.ttft.mean():.3f}", f"{self.ttft_p99:.2f}", f"{self.decode.mean():.1f}", f"{self.decode_p99:.0f}",
            f"{self.e2e.mean():.2f}", f"{np.percentile(self.e2e, 99):.0f}", f"{self.loss_s:.3f}",
            f"{self.preemptions}", f"{self.moves}",
        ]  # fmt: skip


COLUMNS = [
    "TTFT mean, s", "P99, s", "decode mean, ms", "P99, ms", "request mean, s", "P99, s", "preemption loss, s",
    "preemptions", "moves",
]  # fmt: skip


def run(deployment: Deployment, requests: Sequence[Request]) -> Outcome:
    """All requests must complete."""
    simulation = Watched(deployment)
    records = simulation.run(requests)
    assert all(record.outcome == COMPLETED for record in records), [r.error for r in records if r.error][:3]
    return outcome(simulation, records, requests[-1].arrival_s)


def outcome(simulation: Watched, records: list[Record], until_s: float, only: Iterable[int] | None = None) -> Outcome:
    """Of all requests, or of some."""
    chosen = [records[number] for number in (only if only is not None else range(len(records)))]
    times: dict[int, list[int]] = {}
    for job, at in simulation.preempted:
        times.setdefault(job, []).append(at)
    lost_ns = sum(lost(times[record.id], record.times_ns) for record in chosen if record.id in times)
    end_ns = round(until_s * SECOND)
    return Outcome(
        records=chosen,
        ttft=np.array([record.ttft_ns or 0 for record in chosen]) / 1e9,
        decode=np.array([tpot / 1e6 for record in chosen if (tpot := record.tpot_ns) is not None]),
        e2e=np.array([record.e2e_ns or 0 for record in chosen]) / 1e9,
        loss_s=lost_ns / 1e9 / len(chosen),
        preemptions=len(simulation.preempted),
        moves=simulation.moves,
        instances=simulation.instance_ns(0, end_ns) / end_ns,
    )


def lost(preempted: Iterable[int], times_ns: Sequence[int]) -> int:
    """From a preemption to the next token, less the gap before: what a step would have taken. Another one before that
    token costs nothing of its own."""
    total = 0
    for following, at in {bisect_right(times_ns, at): at for at in sorted(preempted, reverse=True)}.items():
        if 0 < following < len(times_ns):
            usual = times_ns[following - 1] - times_ns[following - 2] if following > 1 else 0
            total += max(0, times_ns[following] - at - usual)
    return total


def without(deployment: Deployment, **balance: Any) -> Deployment:
    """With other knobs of balance."""
    return msgspec.structs.replace(deployment, balance=msgspec.structs.replace(deployment.balance, **balance))


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """In Markdown."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def axes(panels: int, width: float = 4.2) -> tuple[Any, Any]:
    """A figure of panels in a row."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * panels, 3.6), layout="constrained")
    return figure, figure.subplots(1, panels, squeeze=False)[0]


def save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    print(f"\nThe figure is {path}")
