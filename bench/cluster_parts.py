"""Llumnix with one of its parts left out, in the twin: what does each contribute?

    .venv/bin/python bench/cluster_parts.py [--requests 2500] [--rates 3.0 3.2] [--sizes L-L]

The deployment of row llumnix in `penstock reproduce llumnix/fig11-l-l` (LLaMA-7B on sixteen A10s), whole, and then with
its dispatch, its migration, its defragmentation switched off; the same requests for all. Some minutes of one core.
"""

import argparse
import sys
from typing import Any

import msgspec
from tqdm import tqdm

from penstock.core.slo import Slo
from penstock.reproduce import figure, twin

FIGURE = "llumnix/fig11-l-l"
PARTS: dict[str, dict[str, Any]] = {
    "llumnix": {},
    "without its dispatch": {"dispatch": False},
    "without migration": {"migration": False},
    "without defragmentation": {"defragmentation": False},
}
COLUMNS = {
    "TTFT mean, s": "ttft_mean_s", "P99, s": "ttft_p99_s", "decode mean, ms": "tpot_mean_ms", "P99, ms": "tpot_p99_ms",
    "request mean, s": "e2e_mean_s", "preemption loss, s": "loss_s", "preemptions": "preemptions", "moves": "moves",
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=2500)
    parser.add_argument("--rates", type=float, nargs="+", default=[3.0, 3.2])
    parser.add_argument("--sizes", default="L-L", help="S-S, M-M, L-L, S-L or L-S")
    args = parser.parse_args()
    paper = figure.load(FIGURE)
    load = msgspec.structs.replace(paper.load, lengths=f"llumnix:{args.sizes}")
    whole = paper.deployment("llumnix", {})
    print(f"| {args.sizes} | req/s | " + " | ".join(COLUMNS) + " |")
    print("|" + "---|" * (2 + len(COLUMNS)))
    for rate in tqdm(args.rates, leave=False, disable=None):
        asked = twin.requests(load, rate, args.requests, load.cv, load.seed)
        for name, knobs in PARTS.items():
            balance = msgspec.structs.replace(whole.balance, **knobs)
            found = twin.run(msgspec.structs.replace(whole, balance=balance), asked, Slo()).values
            said = (f"{found[key]:.3g}" if found[key] < 1000 else f"{found[key]:.0f}" for key in COLUMNS.values())
            print(f"| {name} | {rate:g} | " + " | ".join(said) + " |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
