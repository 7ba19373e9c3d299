"""How long a step waits for its scheduler: one core an instance, or one for all of them. Llumnix's figure 16.

Instances are simulated, so their steps take no time of this machine; the scheduling cores are the real ones, and the
CPU time of each of their decisions is measured. With a core an instance, a step waits for that decision. With one for
all, decisions queue: the measured ones are put through a single queue in the order in which they came.
"""

import time
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from penstock.core.cluster import Cluster
from penstock.core.events import StepDone
from penstock.core.instance import Instance
from penstock.drivers.deployment import Deployment, lay_out
from penstock.drivers.sim import Simulation
from penstock.reproduce import twin
from penstock.reproduce.figure import Figure, merged
from penstock.reproduce.numbers import Numbers

#: The first part of a run, in which instances fill.
_WARM = 0.3


def measure(figure: Figure, row: str, change: Mapping[str, Any], seed: int) -> Numbers:
    """`change` says `load`; a row whose deployment has `central: true` has one scheduler for all."""
    raw = dict(figure.rows[row].deployment)
    central = raw.pop("central", False)
    deployment = msgspec.convert(merged(raw, change.get("deployment", {})), Deployment)
    load = figure.load_of(row, change)
    asked = twin.requests(load, load.rate, load.requests, load.cv, seed)
    laid = lay_out(deployment)
    timer = _Timer()
    config = msgspec.structs.replace(laid.sim, stepping=True, every_token=False)
    Simulation(config, laid.costs, handle=timer).run(asked)
    began_ns = round(_WARM * asked[-1].arrival_s * 1e9)
    until_ns = round(asked[-1].arrival_s * 1e9)
    took = [(at, ns) for at, ns in timer.took if began_ns <= at <= until_ns]
    stalls = _queued(took) if central else [ns for _, ns in took]
    busy = sum(ns for _, ns in took) / max(1, until_ns - began_ns)
    return Numbers(
        values={
            "stall_mean_ms": float(np.mean(stalls)) / 1e6,
            "stall_p50_ms": float(np.median(stalls)) / 1e6,
            "stall_p99_ms": float(np.percentile(stalls, 99)) / 1e6,
            "decision_p50_us": float(np.median([ns for _, ns in took])) / 1e3,
            "cores_busy": busy,
            "steps": float(len(took)),
            "cluster_us_per_request": timer.cluster_ns / 1e3 / len(asked),
        }
    )


def _queued(took: list[tuple[int, int]]) -> list[int]:
    """From asking for a decision to having it, where one thread makes them all."""
    free, stalls = 0, []
    for at, ns in took:
        free = max(free, at) + ns
        stalls.append(free - at)
    return stalls


class _Timer:
    """Feeds cores and notes the CPU time of their decisions: (when, ns) for those of instances that follow a step."""

    def __init__(self) -> None:
        self.took: list[tuple[int, int]] = []
        self.cluster_ns = 0

    def __call__(self, core: Instance | Cluster, event: Any, now: int) -> list[Any]:
        """See `sim.Handle`."""
        began = time.thread_time_ns()
        commands = core.handle(event, now)
        ns = time.thread_time_ns() - began
        if isinstance(core, Cluster):
            self.cluster_ns += ns
        elif isinstance(event, StepDone):
            self.took.append((now, ns))
        return commands
