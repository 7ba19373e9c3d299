"""Prompts and decoding apart, or both everywhere: two live instances either way, the same requests, in turns.

    python bench/live_disagg.py [--rounds 3] [--seconds 60] [--model FOLDER]

One server with `--prefill 1 --decode 1 --policy distserve`, one with `--instances 2`, the demo model, one thread an
instance; one is driven by `penstock bench serve` while the other idles. Loads, with Poisson arrivals:

    balanced prompts of 400 tokens, answers of 128: about as much work each here; TTFT within 10 times, TPOT within 2
             times that of an idle instance
    long     prompts of 1,500 tokens, answers of 48; the same targets: nearly all work is one side's
    short    prompts of 64 tokens, answers of 96; TTFT and TPOT within 20 times

Targets and rates come from this machine: requests are sent one at a time first. The rate is such that a single instance
would be busy with prompts and decoding for `--use` of the time. A round's requests are the same for both. Medians over
rounds. This is a measurement, not a promise: it ends with status 1 only where requests are lost.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from live_cluster import unwind_on_sigterm
from server_process import ServerProcess

SERVERS = {
    "apart": ["--prefill", "1", "--decode", "1", "--policy", "distserve"],
    "mixed": ["--instances", "2", "--policy", "least-loaded"],
}


@dataclass(frozen=True)
class Load:
    """Lengths in tokens, targets as multiples of an idle instance's time."""

    prompt: int
    answer: int
    ttft: float
    tpot: float


LOADS = {"balanced": Load(400, 128, 10, 2), "long": Load(1500, 48, 10, 2), "short": Load(64, 96, 20, 20)}
#: Decoding so many together costs about what decoding one does.
TOGETHER = 8
#: What is read of each run: name -> (metric, percentile).
METRICS = {"TTFT P50": ("ttft", 50), "TTFT P99": ("ttft", 99), "TPOT P50": ("tpot", 50), "TPOT P99": ("tpot", 99)}

Numbers = dict[str, float]


def main() -> int:
    args = _parse()
    unwind_on_sigterm()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        shared = ["--quiet", "--threads", "1", "--served-model-name", "m", *([args.model] if args.model else [])]
        urls = {name: stack.enter_context(ServerProcess(*flags, *shared)).url for name, flags in SERVERS.items()}
        lost = sum(compare(args, name, use, urls, folder) for name in args.loads.split(",") for use in args.use)
    print(f"{lost} requests were lost" if lost else "every request was answered")
    return 1 if lost else 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=60.0, help="of arrivals in a run (default: %(default)s)")
    parser.add_argument("--use", type=float, nargs="+", default=[0.8, 1.6], help="see above (default: 0.8 1.6)")
    parser.add_argument("--loads", default="balanced,short", help="balanced, long, short (default: %(default)s)")
    parser.add_argument("--model", default="", help="a model folder instead of the demo model")
    return parser.parse_args()


def compare(args: argparse.Namespace, name: str, use: float, urls: dict[str, str], folder: Path) -> int:
    """Both servers under one load, printed; how many requests were lost."""
    load = LOADS[name]
    # No run finds the prompts of another in a cache.
    seed = round(1e6 * use)
    alone = ["--arrival", "closed", "--max-concurrency", 1, "--seed", seed]
    idle = drive(urls["mixed"], load, folder / "idle.json", alone, 6)
    ttft_ms, tpot_ms = idle["TTFT P50"], idle["TPOT P50"]
    rate = use / (ttft_ms + tpot_ms * load.answer / TOGETHER) * 1e3
    targets = [f"ttft:{load.ttft * ttft_ms:.0f}", f"tpot:{load.tpot * tpot_ms:.1f}"]
    print(f"\n{name}: {load.prompt} tokens in, {load.answer} out; ", end="")
    print(f"alone TTFT {ttft_ms:.0f} ms, TPOT {tpot_ms:.1f} ms; ", end="")
    print(f"{rate:.2f} requests/s (use {use:g}) for {args.seconds:g} s, ", end="")
    print(f"good: {' ms, '.join(targets)} ms; {args.rounds} rounds")
    found: dict[str, list[Numbers]] = {server: [] for server in urls}
    for number in range(args.rounds):
        for server in list(urls)[:: 1 if number % 2 == 0 else -1]:
            how = ["--arrival", "poisson", "--request-rate", rate, "--goodput", *targets, "--seed", seed + 1 + number]
            count = max(4, round(rate * args.seconds))
            found[server].append(drive(urls[server], load, folder / f"{server}{number}.json", how, count))
    _print(found)
    return round(sum(run["lost"] for runs in found.values() for run in runs))


def drive(url: str, load: Load, path: Path, how: list[Any], count: int) -> Numbers:
    """Load a server with `penstock bench serve` and read what it saved; times in ms."""
    command = [
        sys.executable, "-m", "penstock.cli.main", "bench", "serve", "--base-url", url, "--model", "m",
        "--dataset-name", "random", "--random-input-len", load.prompt, "--random-output-len", load.answer,
        "--num-prompts", count, "--ignore-eos", "--temperature", 0, "--num-warmups", 1, "--disable-tqdm",
        "--save-result", "--result-dir", path.parent, "--result-filename", path.name, *how,
    ]  # fmt: skip
    subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)
    summary = msgspec.json.decode(path.read_bytes())["summary"]
    numbers = {name: summary["latency"][m]["percentiles_ms"][f"{p}.0"] for name, (m, p) in METRICS.items()}
    good = summary["goodput"] or {}
    numbers |= {"good": 100 * good.get("share", 0.0), "good/s": good.get("requests_per_s", 0.0)}
    return numbers | {"lost": count - summary["outcomes"]["completed"]}


def _print(found: dict[str, list[Numbers]]) -> None:
    print(f"{'':6} {'good':>7} {'least':>6} {'most':>6} {'good/s':>7} " + " ".join(f"{m + ' ms':>11}" for m in METRICS))
    for server, runs in found.items():
        middle = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
        good = [run["good"] for run in runs]
        times = " ".join(f"{middle[name]:11.1f}" for name in METRICS)
        print(f"{server:6} {middle['good']:5.1f} % {min(good):6.1f} {max(good):6.1f} {middle['good/s']:7.2f} {times}")


if __name__ == "__main__":
    sys.exit(main())
