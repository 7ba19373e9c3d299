"""Llumnix's rescheduling beside round-robin and INFaaS++: its figure 11, in the twin, and each of its parts left out.

    .venv/bin/python bench/cluster_resched.py [--requests 1200] [--full] [--figure PNG]

Simulated: LLaMA-7B on sixteen A10s, step times, KV capacity and copies as published, lengths and arrivals from the
artifact's generator. Means and P99, what preemptions cost (from each to the next token, less a step, over all
requests), and how often jobs moved; then Llumnix with its dispatch, its migration, its defragmentation switched off.
Three minutes on one core; --full takes the artifact's 10,000 requests and M-M too.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import cluster_runs
from cluster_runs import COLUMNS, STYLES, Outcome, a10s, llumnix_load, run, table, without
from tqdm import tqdm

Loads = dict[str, tuple[float, ...]]

#: Sizes -> rates; the last one is where parts are left out.
LOADS: Loads = {"L-L": (3.0, 4.2, 4.8)}
FULL: Loads = {"L-L": (2.6, 2.8, 3.0, 4.2, 4.8), "M-M": (7.4, 7.6, 7.8, 10.0, 12.0)}
#: Published: (sizes, rate) -> row -> TTFT mean and P99 (s), decode P99 (ms), preemption loss (s).
PAPER: dict[tuple[str, float], dict[str, tuple[float, ...]]] = {
    ("L-L", 2.6): {"infaas++": (0.628, 2.81, 119, 0.693), "llumnix": (0.303, 2.49, 109, 0.001)},
    ("L-L", 2.8): {"infaas++": (0.975, 10.6, 137, 1.15), "llumnix": (0.328, 2.93, 125, 0.063)},
    ("L-L", 3.0): {"infaas++": (1.44, 41.2, 155, 1.90), "llumnix": (0.339, 2.78, 121, 0.056)},
    ("M-M", 7.4): {"infaas++": (0.466, 5.75, 115, 0.584), "llumnix": (0.252, 2.67, 100, 0.0)},
    ("M-M", 7.6): {"infaas++": (1.58, 49.0, 123, 0.814), "llumnix": (0.342, 4.28, 105, 0.089)},
    ("M-M", 7.8): {"infaas++": (5.91, 240.0, 152, 1.41), "llumnix": (0.762, 18.1, 117, 0.329)},
}
PARTS: dict[str, dict[str, bool]] = {
    "llumnix": {},
    "without its dispatch": {"dispatch": False},
    "without migration": {"migration": False},
    "without defragmentation": {"defragmentation": False},
}


def main() -> int:
    args = _parse()
    loads, count = (FULL, 10_000) if args.full else (LOADS, args.requests)
    found: dict[tuple[str, float], dict[str, Outcome]] = {}
    for sizes, rate in tqdm([(s, r) for s, rates in loads.items() for r in rates], leave=False, disable=None):
        requests = llumnix_load(sizes, rate, count)
        found[sizes, rate] = {row: run(a10s(row), requests) for row in STYLES}
    for (sizes, rate), rows in found.items():
        print(f"\n{sizes} at {rate:g} req/s, {count} requests\n")
        print(table(["", *COLUMNS], ([row, *out.row()] for row, out in rows.items())))
        print(_beside(rows, PAPER.get((sizes, rate))))
    parts(loads, count)
    draw(loads, found, args.figure)
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1200, help="of each run")
    parser.add_argument("--full", action="store_true", help="10,000 requests a run, more rates, and M-M")
    parser.add_argument("--figure", type=Path, default=Path("docs/figures/cluster_resched.png"), metavar="PNG")
    return parser.parse_args()


def _beside(rows: dict[str, Outcome], paper: dict[str, tuple[float, ...]] | None) -> str:
    """INFaaS++ over Llumnix, here and as published."""
    theirs, ours = rows["infaas++"], rows["llumnix"]
    here = (
        theirs.ttft.mean() / ours.ttft.mean(),
        theirs.ttft_p99 / ours.ttft_p99,
        theirs.decode_p99 / ours.decode_p99,
    )
    said = "infaas++ / llumnix: TTFT mean {:.1f}, P99 {:.1f}, decode P99 {:.2f}".format(*here)
    if paper is None:
        return f"\n{said}."
    (mean, p99, decode, loss), (mean_l, p99_l, decode_l, loss_l) = paper["infaas++"], paper["llumnix"]
    published = f"published {mean / mean_l:.1f}, {p99 / p99_l:.1f}, {decode / decode_l:.2f}"
    return f"\n{said}; {published} (preemption loss {loss:g} and {loss_l:g} s)."


def parts(loads: Loads, count: int) -> None:
    """Each part of Llumnix left out, at the highest rate."""
    for sizes, rates in loads.items():
        requests = llumnix_load(sizes, rates[-1], count)
        outcomes = {name: run(without(a10s("llumnix"), **knobs), requests) for name, knobs in PARTS.items()}
        print(f"\nParts of llumnix, {sizes} at {rates[-1]:g} req/s\n")
        print(table(["", *COLUMNS], ([name, *out.row()] for name, out in outcomes.items())))


def draw(loads: Loads, found: dict[tuple[str, float], dict[str, Outcome]], path: Path) -> None:
    """For the first sizes."""
    sizes, rates = next(iter(loads.items()))
    figure, panels = cluster_runs.axes(3)
    numbers: dict[str, Callable[[Outcome], float]] = {
        "TTFT P99 (s)": lambda out: out.ttft_p99,
        "decode P99 (ms a token)": lambda out: out.decode_p99,
        "preemption loss (s a request)": lambda out: max(out.loss_s, 1e-4),
    }
    for axis, (title, number) in zip(panels, numbers.items(), strict=True):
        for row, style in STYLES.items():
            colour, mark = style.split()
            axis.plot(rates, [number(found[sizes, r][row]) for r in rates], color=colour, marker=mark, label=row)
        axis.set(title=title, xlabel=f"req/s ({sizes})", yscale="log")
        axis.grid(alpha=0.3)
    panels[0].legend(fontsize="small")
    cluster_runs.save(figure, path)


if __name__ == "__main__":
    sys.exit(main())
