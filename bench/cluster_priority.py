"""Urgent requests under bursts: Llumnix with priorities and without, its figure 13 in the twin.

    .venv/bin/python bench/cluster_priority.py [--requests 2500] [--full] [--figure PNG]

Simulated: LLaMA-7B on sixteen A10s as in `cluster_resched.py`, S-S lengths, gamma arrivals of growing burstiness (CV),
a tenth of the requests urgent. The base is the same without priorities: it migrates, and takes all requests for alike.
Times of urgent and of normal requests; ratios beside the published ones. Two minutes on one core.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import cluster_runs
import msgspec
import numpy as np
from cluster_runs import Outcome, Watched, a10s, llumnix_load, outcome, table
from tqdm import tqdm

from penstock.workload.request import Request

#: The published runs are at 26 req/s; these step times carry more before they are as loaded.
RATE, URGENT = 42.0, 0.1
CVS = (2.0, 4.0, 6.0, 8.0)
#: Published, base over llumnix for urgent requests: request mean, TTFT mean, TTFT P99, decode mean.
PAPER = {2: (1.16, 2.9, 3.6, 1.17), 4: (1.27, 5.8, 8.7, 1.30), 6: (1.41, 8.5, 11.3, 1.45), 8: (1.50, 8.4, 9.9, 1.54)}
#: And llumnix over base for normal ones: request mean, TTFT mean.
PAPER_NORMAL = {2: (1.03, 0.97), 4: (1.02, 1.03), 6: (0.99, 0.95), 8: (1.05, 1.15)}

#: How the four of a run are drawn.
LINES = {
    "urgent, no priorities": "#d55e00 : o", "normal, no priorities": "#999999 : s",
    "urgent": "#d55e00 - o", "normal": "#999999 - s",
}  # fmt: skip

Four = tuple[Outcome, Outcome, Outcome, Outcome]


def main() -> int:
    args = _parse()
    count = 10_000 if args.full else args.requests
    found = {cv: four(cv, args.rate, count) for cv in tqdm(CVS, leave=False, disable=None)}
    print(f"S-S at {args.rate:g} req/s, {count} requests, a tenth of them urgent\n")
    columns = ["CV", "", "urgent: request mean, s", "TTFT mean, s", "TTFT P99, s", "decode mean, ms"]
    columns += ["normal: request mean, s", "TTFT mean, s", "TTFT P99, s", "decode mean, ms", "moves"]
    rows = []
    for cv, (base_high, base, high, normal) in found.items():
        rows.append([f"{cv:g}", "without priorities", *_four(base_high), *_four(base), str(base.moves)])
        rows.append([f"{cv:g}", "llumnix", *_four(high), *_four(normal), str(normal.moves)])
    print(table(columns, rows))
    print("\nRatios, published ones in brackets\n")
    columns = ["CV", "urgent faster: request", "TTFT mean", "TTFT P99", "decode", "normal slower: request", "TTFT mean"]
    print(table(columns, (_ratios(cv, *outcomes) for cv, outcomes in found.items())))
    draw(found, args.figure)
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=2500, help="of each run")
    parser.add_argument("--rate", type=float, default=RATE, help="requests/s")
    parser.add_argument("--full", action="store_true", help="10,000 requests a run")
    parser.add_argument("--figure", type=Path, default=Path("docs/figures/cluster_priority.png"), metavar="PNG")
    return parser.parse_args()


def four(cv: float, rate: float, count: int) -> Four:
    """Urgent and normal requests, without priorities and with."""
    requests = llumnix_load("S-S", rate, count, cv=cv, urgent=URGENT)
    alike = [msgspec.structs.replace(request, priority=0) for request in requests]
    high = [number for number, request in enumerate(requests) if request.priority]
    return (*split(alike, high), *split(requests, high))


def split(requests: list[Request], high: list[int]) -> tuple[Outcome, Outcome]:
    simulation = Watched(a10s("llumnix"))
    records = simulation.run(requests)
    chosen = set(high)
    normal = [number for number in range(len(requests)) if number not in chosen]
    until_s = requests[-1].arrival_s
    return outcome(simulation, records, until_s, high), outcome(simulation, records, until_s, normal)


def _four(out: Outcome) -> list[str]:
    return [f"{out.e2e.mean():.2f}", f"{out.ttft.mean():.3f}", f"{out.ttft_p99:.2f}", f"{out.decode.mean():.1f}"]


def _ratios(cv: float, base_high: Outcome, base: Outcome, high: Outcome, normal: Outcome) -> list[str]:
    ours = [
        base_high.e2e.mean() / high.e2e.mean(), base_high.ttft.mean() / high.ttft.mean(),
        base_high.ttft_p99 / high.ttft_p99, base_high.decode.mean() / high.decode.mean(),
        normal.e2e.mean() / base.e2e.mean(), normal.ttft.mean() / base.ttft.mean(),
    ]  # fmt: skip
    theirs = PAPER[round(cv)] + PAPER_NORMAL[round(cv)]
    return [f"{cv:g}", *(f"{a:.2f} ({b:g})" for a, b in zip(ours, theirs, strict=True))]


def draw(found: dict[float, Four], path: Path) -> None:
    figure, panels = cluster_runs.axes(3)
    numbers: dict[str, Any] = {
        "request mean (s)": lambda out: float(np.mean(out.e2e)),
        "TTFT P99 (s)": lambda out: out.ttft_p99,
        "decode mean (ms a token)": lambda out: float(np.mean(out.decode)),
    }
    for axis, (title, number) in zip(panels, numbers.items(), strict=True):
        for at, (name, style) in enumerate(LINES.items()):
            colour, dashes, mark = style.split()
            values = [number(outcomes[at]) for outcomes in found.values()]
            axis.plot(CVS, values, color=colour, linestyle=dashes, marker=mark, label=name)
        axis.set(title=title, xlabel="CV of arrivals")
        axis.grid(alpha=0.3)
    panels[0].legend(fontsize="small")
    cluster_runs.save(figure, path)


if __name__ == "__main__":
    sys.exit(main())
