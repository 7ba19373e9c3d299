"""Prompts and decoding on instances of their own, or not: which gives more good requests a GPU?

    .venv/bin/python bench/cluster_disagg.py [--seconds 10] [--full] [--figure PNG]

Simulated: OPT-13B on six A100-80G, DistServe's published step times and KV capacities, the same for all rows. Three
loads: where DistServe (OSDI'24) says that it wins, chat (ShareGPT, TTFT 250 ms, TPOT 100 ms) and its figure 1 (prompts
of 512, answers of 64, 400 and 40 ms); and where it should not, short prompts under a loose promise. Copies of KV take
their time (NVLink: 300 GB/s a port), and decoding instances hold what their memory does. Prints the share of requests
that keep both promises by rate, and goodput: the rate a GPU up to which 90 % do. Three minutes on one core.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cluster_runs
from tqdm import tqdm

from penstock.core.slo import Slo
from penstock.cost.published import distserve
from penstock.drivers.deployment import DelaySpec, Deployment, PoolSpec, lay_out
from penstock.drivers.sim import Simulation
from penstock.metrics.curves import crossing
from penstock.workload import lengths
from penstock.workload.arrivals import arrivals
from penstock.workload.request import Request

GPUS = 6
TARGET = 0.9
#: The first part of a run, in which instances fill, is not counted.
WARMUP = 0.1


@dataclass(frozen=True)
class Row:
    """A way to use the GPUs: instances of (count, tp, role)."""

    label: str
    policy: str
    instances: tuple[tuple[int, int, str], ...]
    style: str
    move_gb_per_s: float = 300.0


@dataclass(frozen=True)
class Load:
    title: str
    lengths: str
    answers: str | None
    slo: Slo
    #: Of all GPUs together, requests/s/GPU.
    rates: tuple[float, ...]


ROWS = (
    Row("fcfs", "fcfs", ((6, 1, ""),), "#999999 o"),
    Row("fcfs, tp 2", "fcfs", ((3, 2, ""),), "#444444 o"),
    Row("prefill-first", "prefill-first", ((6, 1, ""),), "#e69f00 s"),
    Row("distserve 3:3", "distserve", ((3, 1, "prefill"), (3, 1, "decode")), "#0072b2 D"),
    Row("distserve 4:2", "distserve", ((4, 1, "prefill"), (2, 1, "decode")), "#009e73 v"),
    Row("distserve 2 x tp 2 : 2", "distserve", ((2, 2, "prefill"), (2, 1, "decode")), "#d55e00 P"),
    Row("3:3 over 25 Gb/s", "distserve", ((3, 1, "prefill"), (3, 1, "decode")), "#cc79a7 x", 3.125),
)
LOADS = (
    Load("chat: ShareGPT, 250/100 ms", "distserve:sharegpt", None, Slo.parse("ttft=250ms,tpot=100ms"), (1, 2, 3, 4, 5)),
    Load("512 in, 64 out, 400/40 ms", "fixed:512", "fixed:64", Slo.parse("ttft=400ms,tpot=40ms"), (2, 3, 4, 5, 6, 7)),
    Load("64 in, 256 out, 2 s/200 ms", "fixed:64", "fixed:256", Slo.parse("ttft=2s,tpot=200ms"), (4, 8, 12, 16, 20)),
)


def main() -> int:
    args = _parse()
    seconds = 120.0 if args.full else args.seconds
    runs = [(load, row, rate) for load in LOADS for row in ROWS for rate in load.rates]
    shares = {
        (load.title, row.label, rate): share(load, row, rate, seconds)
        for load, row, rate in tqdm(runs, unit="run", leave=False, disable=None)
    }
    for load in LOADS:
        print(f"\n{load.title}: requests that kept both promises, %, in {seconds:g} s of load\n")
        header = [f"{rate:g} req/s/GPU" for rate in load.rates]
        rows = []
        for row in ROWS:
            values = [shares[load.title, row.label, rate] for rate in load.rates]
            rows.append([row.label, *(f"{100 * value:.0f}" for value in values), edge(load.rates, values)])
        print(cluster_runs.table([load.title, *header, "goodput, req/s/GPU"], rows))
    figure, panels = cluster_runs.axes(len(LOADS))
    for axis, load in zip(panels, LOADS, strict=True):
        for row in ROWS:
            colour, mark = row.style.split()
            values = [100 * shares[load.title, row.label, rate] for rate in load.rates]
            axis.plot(load.rates, values, color=colour, marker=mark, markersize=4, label=row.label)
        axis.axhline(100 * TARGET, color="#444444", linestyle="--", linewidth=0.8)
        axis.set(title=load.title, xlabel="requests/s a GPU", ylim=(0, 103))
        axis.grid(alpha=0.3)
    panels[0].set_ylabel("kept both promises (%)")
    panels[0].legend(fontsize="x-small")
    cluster_runs.save(figure, args.figure)
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0, help="of load in each run")
    parser.add_argument("--full", action="store_true", help="two minutes of load")
    parser.add_argument("--figure", type=Path, default=Path("docs/figures/cluster_disagg.png"), metavar="PNG")
    return parser.parse_args()


def deployment(row: Row) -> Deployment:
    pools = [
        PoolSpec(
            instances=count, role=role, hardware="a100", tp=tp, cost=f"distserve/opt-13b/tp{tp}",
            kv_tokens=distserve.kv_tokens("opt-13b", tp, 1), max_num_seqs=1024,
            max_num_queued_reqs=cluster_runs.NO_LIMIT,
        )
        for count, tp, role in row.instances
    ]  # fmt: skip
    assert sum(pool.instances * pool.tp for pool in pools) == GPUS
    delays = DelaySpec(dispatch_ms=0.3, token_ms=0.3, report_ms=0.3, peer_ms=0.3, pull_ms=1.0)
    return Deployment(
        model="opt-13b", policy=row.policy, pools=pools, delays=delays, move_gb_per_s=row.move_gb_per_s
    )  # fmt: skip


def share(load: Load, row: Row, rate: float, seconds: float) -> float:
    """Of requests that kept both promises; the same requests for each row."""
    count = round(rate * GPUS * seconds)
    prompts, answers = lengths.draw(load.lengths, count, outputs=load.answers)
    times_s = arrivals("poisson", count, rate * GPUS)
    asked = [
        Request(arrival_s=at, prompt_tokens=prompt, output_tokens=answer)
        for at, prompt, answer in zip(times_s.tolist(), prompts.tolist(), answers.tolist(), strict=True)
    ]
    laid = lay_out(deployment(row))
    records = Simulation(laid.sim, laid.costs).run(asked)[round(WARMUP * count) :]
    return sum(record.good(load.slo) for record in records) / len(records)


def edge(rates: Sequence[float], values: Sequence[float]) -> str:
    at = crossing(list(zip(rates, values, strict=True)), TARGET)
    if at is not None:
        return f"{at:.2f}"
    return f"below {rates[0]:g}" if values[0] < TARGET else f"above {rates[-1]:g}"


if __name__ == "__main__":
    sys.exit(main())
