"""One instance of this checkout beside one of an older commit: the same requests, in turns. Is it slower?

    python bench/against_commit.py COMMIT [--rounds 5] [--json FILE]

Two servers with the demo model on all cores, and two with an engine that takes no time, so that only our own part is
left. Each round starts them anew, in turns too, since two starts of one server differ by a tenth; one is driven while
the other idles: requests one at a time, and 32 at once (prompts of 128 tokens, answers of 64). Prints medians over
rounds, and ratios of each round's pair; a machine that others use changes its speed between rounds, less so within one.
Needs git; the older commit is checked out into a folder of its own for the run.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from server_process import ServerProcess

ROOT = Path(__file__).parents[1]
ENGINES = {"demo model": [], "no engine": ["--engine", "null", "--null-cost", "0,0,0", "--max-model-len", "4096"]}
LOADS = {"one at a time": ["--max-concurrency", "1"], "32 at once": ["--max-concurrency", "32"]}
#: Runs of a second are luck.
COUNTS = {
    "demo model": {"one at a time": 8, "32 at once": 64},
    "no engine": {"one at a time": 60, "32 at once": 640},
}
NUMBERS = ("ttft_p50_ms", "tpot_p50_ms", "output_tokens_per_s")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    found: dict[str, list[dict[str, dict[str, float]]]] = {}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        older = Path(folder) / "older"
        git("worktree", "add", "--detach", str(older), args.commit)
        stack.callback(git, "worktree", "remove", "--force", str(older))
        for number in range(args.rounds):
            for engine, flags in ENGINES.items():
                roots = {"now": ROOT, "then": older}
                order = sorted(roots, reverse=number % 2 == 0)
                with ExitStack() as servers:
                    urls = {
                        name: servers.enter_context(
                            ServerProcess(*flags, env={"PYTHONPATH": str(roots[name]), "PYTHONSAFEPATH": "1"})
                        ).url
                        for name in order
                    }
                    for load in LOADS:
                        count = COUNTS[engine][load]
                        pair = {name: drive(urls[name], load, count, number, Path(folder)) for name in order}
                        found.setdefault(f"{engine}, {load}", []).append(pair)
    for title, pairs in found.items():
        print(f"\n{title}, medians of {args.rounds} rounds")
        for name in NUMBERS:
            now, then = (median(pair[when][name] for pair in pairs) for when in ("now", "then"))
            ratio = median(pair["now"][name] / pair["then"][name] for pair in pairs)
            print(f"  {name:22}now {now:9.3f}   then {then:9.3f}   ratio {ratio:.3f}")
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))
    return 0


def git(*args: str) -> None:
    subprocess.run(("git", "-C", str(ROOT), *args), check=True, capture_output=True)


def drive(url: str, load: str, count: int, seed: int, folder: Path) -> dict[str, float]:
    """A run of the load client; prompts are new to the server."""
    path = folder / "result.json"
    command = (
        sys.executable, "-m", "penstock.cli.main", "bench", "serve", "--base-url", url, "--dataset-name", "random",
        "--random-input-len", "128", "--random-output-len", "64", "--num-prompts", str(count), "--ignore-eos",
        "--request-rate", "inf", *LOADS[load], "--seed", str(seed), "--save-result", "--result-filename", str(path),
        "--disable-tqdm",
    )  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    summary = json.loads(path.read_text())["summary"]
    return {
        "ttft_p50_ms": summary["latency"]["ttft"]["percentiles_ms"]["50.0"],
        "tpot_p50_ms": summary["latency"]["tpot"]["percentiles_ms"]["50.0"],
        "output_tokens_per_s": summary["output_tokens_per_s"],
    }


if __name__ == "__main__":
    sys.exit(main())
