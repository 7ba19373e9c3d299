"""A fleet that follows the load: latency against the instances it takes, Llumnix's figures 14 and 15 in the twin.

    .venv/bin/python bench/cluster_scaling.py [--requests 500] [--full] [--figure PNG]

Simulated: LLaMA-7B on A10s as in `cluster_resched.py`, L-L lengths, 8 instances at the start, 1 to 16 later, a start
takes 5 s. The mean freeness is kept in [x, x + 50] blocks of 16 tokens a request. Two comparisons of llumnix and
infaas++ (which sizes its fleet by the same rule, and waits for an instance to empty by itself): over rates and
burstiness at x = 10, and over x at one load. Three minutes on one core.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import cluster_runs
from cluster_runs import STYLES, Outcome, a10s, llumnix_load, run, table
from tqdm import tqdm

from penstock.drivers.deployment import Deployment

ROWS = ("infaas++", "llumnix")
POISSON = (2.0, 2.4, 2.8)
BURSTY = (2.0, 4.0, 6.0)
XS = (5, 25, 45, 65, 85)
#: Gamma arrivals of this rate and CV, for fig. 15.
AT = (2.0, 2.0)
BLOCK = 16
#: Published, P99 of TTFT (s) and mean instances: fig. 14 Poisson by rate, gamma by CV, and fig. 15 by x.
POISSON_PAPER = {
    "llumnix": {2.0: (4.09, 10.54), 2.4: (3.63, 12.53), 2.8: (3.89, 14.57)},
    "infaas++": {2.0: (9.05, 11.63), 2.4: (11.7, 13.77), 2.8: (28.5, 15.05)},
}
BURSTY_PAPER = {
    "llumnix": {2.0: (9.5, 10.68), 4.0: (12.7, 11.01), 6.0: (19.4, 11.12)},
    "infaas++": {2.0: (55.0, 11.70), 4.0: (86.9, 12.10), 6.0: (214.0, 12.87)},
}
X_PAPER = {
    "llumnix": {5: (11.4, 10.44), 25: (4.05, 11.39), 45: (3.66, 12.3), 65: (3.51, 13.3), 85: (2.95, 14.06)},
    "infaas++": {5: (40.1, 11.61), 25: (21.5, 12.61), 45: (14.3, 13.33), 65: (4.59, 14.25), 85: (3.42, 15.1)},
}


def main() -> int:
    args = _parse()
    count = 10_000 if args.full else args.requests
    with tqdm(total=len(ROWS) * (len(POISSON) + len(BURSTY) + len(XS)), leave=False, disable=None) as bar:

        def served(row: str, x: float, rate: float, cv: float) -> Outcome:
            bar.update()
            return run(fleet(row, x), llumnix_load("L-L", rate, count, cv=cv))

        by_rate = {row: [served(row, 10, rate, 1.0) for rate in POISSON] for row in ROWS}
        by_cv = {row: [served(row, 10, 2.0, cv) for cv in BURSTY] for row in ROWS}
        by_x = {row: [served(row, x, *AT) for x in XS] for row in ROWS}
    print(f"L-L, {count} requests; published numbers in brackets")
    print(_said("Poisson, req/s", POISSON, by_rate, POISSON_PAPER))
    print(_said("gamma at 2 req/s, CV", BURSTY, by_cv, BURSTY_PAPER))
    print(_said("gamma at 2 req/s, CV 2, x", XS, by_x, X_PAPER))
    draw(by_rate, by_x, args.figure)
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=500, help="of each run")
    parser.add_argument("--full", action="store_true", help="10,000 requests a run")
    parser.add_argument("--figure", type=Path, default=Path("docs/figures/cluster_scaling.png"), metavar="PNG")
    return parser.parse_args()


def fleet(row: str, x: float) -> Deployment:
    bounds = {"low_tokens": x * BLOCK, "high_tokens": (x + 50) * BLOCK}
    return a10s(
        row, 8, 5.0, scaling=True, instances_min=1, instances_max=16, migration=row == "llumnix", **bounds
    )  # fmt: skip


def _said(
    title: str,
    places: Sequence[float],
    found: dict[str, list[Outcome]],
    paper: dict[str, dict[float, tuple[float, float]]] | dict[str, dict[int, tuple[float, float]]],
) -> str:
    rows = []
    for row, outcomes in found.items():
        for place, out in zip(places, outcomes, strict=True):
            p99, instances = paper[row][place]  # type: ignore[index]
            rows.append([
                row, f"{place:g}", f"{out.ttft_p99:.2f} ({p99:g})", f"{out.ttft.mean():.3f}", f"{out.decode_p99:.0f}",
                f"{out.instances:.2f} ({instances:g})", str(out.moves),
            ])  # fmt: skip
    columns = ["", title, "TTFT P99, s", "TTFT mean, s", "decode P99, ms", "instances on average", "moves"]
    return "\n" + table(columns, rows)


def draw(by_rate: dict[str, list[Outcome]], by_x: dict[str, list[Outcome]], path: Path) -> None:
    figure, (left, right) = cluster_runs.axes(2, 5.0)
    for row in ROWS:
        colour, mark = STYLES[row].split()
        left.plot(POISSON, [out.ttft_p99 for out in by_rate[row]], color=colour, marker=mark, label=row)
        spot = [(out.instances, out.ttft_p99) for out in by_x[row]]
        right.plot(*zip(*spot, strict=True), color=colour, marker=mark, label=f"{row}, here")
        paper = X_PAPER[row].values()
        right.plot([n for _, n in paper], [p for p, _ in paper], ":", color=colour, marker=mark, markerfacecolor="none",
                   label=f"{row}, published")  # fmt: skip
    left.set(title="x = 10", xlabel="req/s (L-L, Poisson)", ylabel="TTFT P99 (s)", yscale="log")
    right.set(title="x = 5 to 85", xlabel="instances on average (gamma, CV 2)", yscale="log")
    for axis in (left, right):
        axis.grid(alpha=0.3)
        axis.legend(fontsize="small")
    cluster_runs.save(figure, path)


if __name__ == "__main__":
    sys.exit(main())
