"""DistServe's example, 1 node x 4 GPUs with OPT-13B: what `penstock plan` answers draw by draw, and in what CPU time.

    python bench/plan_distserve.py [--seeds 8]

One run of 300 requests decides there, so the answer depends on the draw: each seed is a search of its own. Then what
its simulator leaves out is put in, one thing after another, under the same draws. Some minutes of one core.
"""

import argparse
import csv
import tempfile
import time
from collections import Counter
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from statistics import fmean

from penstock.cli.main import main as penstock

RULES = ["--like", "distserve-simulator"]
MACHINE = ["--like", "distserve"]
#: What is asked, and flags. 25 Gb/s is the network between nodes in the paper's evaluation.
CASES = {
    "its rules": RULES,
    "both times of a request, room for KV, NVLink": MACHINE,
    "the same, KV over 25 Gb/s": [*MACHINE, "--move-gb-per-s", "3.125"],
    "its rules, TTFT 1 s": [*RULES, "--slo", "ttft=1s,tpot=100ms"],
    "both times, room for KV, NVLink, TTFT 1 s": [*MACHINE, "--slo", "ttft=1s,tpot=100ms"],
}


def answer(flags: list[str], seed: int) -> tuple[str, float, str, float]:
    """Winner, requests/s a GPU, what limits it, and CPU s."""
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(StringIO()):
        path, began = Path(folder) / "all.csv", time.process_time()
        fixed = ["--jobs", "1", "--disable-tqdm", "--seed", str(seed), "--csv", str(path)]
        penstock(["plan", *flags, *fixed])
        took_s = time.process_time() - began
        best = next(csv.DictReader(path.read_text().splitlines()))
        return best["option"], float(best["goodput_req_per_s_per_gpu"]), best["limit"], took_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=8)
    args = parser.parse_args()
    for said, flags in CASES.items():
        found = [answer(flags, seed) for seed in range(args.seeds)]
        rates = [rate for _, rate, _, _ in found]
        print(f"{said}: mean {fmean(rates):.2f} req/s a GPU; {' '.join(f'{rate:.4g}' for rate in rates)}")
        for name, count in Counter((option, limit) for option, _, limit, _ in found).most_common():
            print(f"  {count} x {name[0]}, {name[1]}")
        print(f"  CPU time of a search: mean {fmean(s for *_, s in found):.1f} s", flush=True)


if __name__ == "__main__":
    main()
