"""What a decision of the cluster core takes as the fleet grows: it must stay flat.

    .venv/bin/python bench/cluster_scale.py [--seconds 0.5] [--full] [--figure PNG]

The simulator drives 16, 64, 256 and 1,024 instances under row llumnix, at a rate that grows with them to 50,000
requests/s: steps that cost next to nothing, prompts of 64 and answers of 32 tokens. Each call of `Cluster.handle` is
timed from outside, in CPU time, by kind of event: median and P99 in microseconds, and the sum of all for a request. Two
minutes on one core; --full simulates five seconds of load.
"""

import argparse
import gc
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from penstock.core.cluster import Cluster
from penstock.core.config import ClusterConfig, InstanceConfig
from penstock.core.instance import Instance
from penstock.core.slo import MS
from penstock.cost.linear import Linear
from penstock.drivers.scenario import Delays, MemberConfig, SimConfig
from penstock.drivers.sim import Simulation
from penstock.workload.arrivals import arrivals
from penstock.workload.request import Request

SIZES = (16, 64, 256, 1024)
#: Of the largest fleet; the others' rates are in proportion.
RATE = 50_000
#: 10 ms a step, and little for what is in it.
COST = Linear(10e6, 1e3, 0.0, 1e3, 0.0)
POLICY = "llumnix"
NO_LIMIT = 1_000_000


def main() -> int:
    args = _parse()
    seconds = 5.0 if args.full else args.seconds
    found = {size: timed(size, seconds) for size in tqdm(SIZES, leave=False, disable=None)}
    kinds = sorted({kind for times in found.values() for kind in times})
    print(f"Cluster.handle under {POLICY}: median and P99, us (number of events)\n")
    print("| event | " + " | ".join(f"{size} instances, {RATE * size // SIZES[-1]:,} req/s" for size in SIZES) + " |")
    print("|" + "---|" * (1 + len(SIZES)))
    for kind in kinds:
        print(f"| {kind} | " + " | ".join(_said(found[size].get(kind)) for size in SIZES) + " |")
    each = [sum(map(sum, times.values())) / len(times["Arrived"]) / 1000 for times in found.values()]
    print("| all, for each request | " + " | ".join(f"{us:.0f}" for us in each) + " |")
    draw(found, kinds, args.figure)
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=0.5, help="of load, simulated")
    parser.add_argument("--full", action="store_true", help="five seconds")
    parser.add_argument("--figure", type=Path, default=Path("docs/figures/cluster_scale.png"), metavar="PNG")
    return parser.parse_args()


def timed(size: int, seconds: float) -> dict[str, list[int]]:
    """Kind of event -> what each took, ns."""
    rate = RATE * size / SIZES[-1]
    instance = InstanceConfig(policy=POLICY, pages=2048)
    config = SimConfig(
        members=[MemberConfig(instance=instance)] * size,
        cluster=ClusterConfig(policy=POLICY, max_num_queued=NO_LIMIT),
        delays=Delays(dispatch=MS, report=MS, peer=MS),
        every_token=False,
    )
    times: dict[str, list[int]] = defaultdict(list)

    def watched(core: Instance | Cluster, event: Any, now: int) -> list[Any]:
        began = time.thread_time_ns()
        commands: list[Any] = core.handle(event, now)
        if isinstance(core, Cluster):
            times[type(event).__name__].append(time.thread_time_ns() - began)
        return commands

    simulation = Simulation(config, COST, handle=watched)
    at = arrivals("poisson", round(rate * seconds), rate).tolist()
    simulation.run([Request(arrival_s=t, prompt_tokens=64, output_tokens=32) for t in at])
    gc.collect()
    return times


def _said(times_ns: list[int] | None) -> str:
    if not times_ns:
        return "none"
    median, p99 = np.percentile(times_ns, (50, 99)) / 1000
    return f"{median:.1f}, {p99:.1f} ({len(times_ns):,})"


def draw(found: dict[int, dict[str, list[int]]], kinds: list[str], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.6), layout="constrained")
    panels = figure.subplots(1, 2)
    for axis, level in zip(panels, (50, 99), strict=True):
        for kind in kinds:
            points = [(size, np.percentile(found[size][kind], level) / 1000) for size in SIZES if found[size].get(kind)]
            axis.plot(*zip(*points, strict=True), marker="o", label=kind)
        axis.set(title=f"{'median' if level == 50 else 'P99'} of a decision (us)", xlabel="instances", xscale="log")
        axis.set(yscale="log", xticks=SIZES, xticklabels=[str(size) for size in SIZES])
        axis.grid(alpha=0.3)
    panels[0].legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    print(f"\nThe figure is {path}")


if __name__ == "__main__":
    sys.exit(main())
