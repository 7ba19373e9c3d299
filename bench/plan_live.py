"""Does a plan keep its word? The demo model on this machine: plan, serve as planned, load, and compare.

    python bench/plan_live.py [--rate R] [--slo ttft=200ms,tpot=20ms] [--seconds 30] [--profile SQLITE]

A profile and a recorded load, from idle to too much, say what steps and messages take here. With that `penstock plan`
searches policies and step sizes for one instance; without --rate the planned rate is the highest that the best carries.
`penstock serve --plan` serves it. Then come the requests of the planned workload at that rate and at 1.2 times it, each
seed twice: the second time is the noise of the machine. Predicted is what the twin attains with the very same requests.
The bar is 5 points of attainment.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from itertools import product
from pathlib import Path

import numpy as np
import twin
from server_process import ServerProcess

from penstock.core.slo import Slo
from penstock.cost.fitting import of_steps
from penstock.cost.models import CostFile, save
from penstock.drivers.deployment import Deployment
from penstock.drivers.scenario import Delays
from penstock.engine.hub import DEMO
from penstock.metrics import result
from penstock.metrics.record import Record
from penstock.metrics.summary import summarize
from penstock.plan.space import Option
from penstock.plan.trial import Goal, Load, trial
from penstock.workload import trace

OUT = Path("results/plan_live")
PENSTOCK = [sys.executable, "-m", "penstock.cli.main"]
#: Tokens of prompts and answers.
PROMPTS, ANSWERS = "uniform:40-360", "uniform:8-72"
#: Requests/s of the load that steps and messages are learnt from, of which it takes parts (`twin.PARTS`).
LEARN_RATE = 20.0
#: Seconds of each part, and how often all of them come.
LEARN_S, LEARN_TURNS = 6.0, 2
TIMES = (1.0, 1.2)
BAR = 0.05


def main() -> int:
    args = _parse()
    OUT.mkdir(parents=True, exist_ok=True)
    if not args.planned:
        delays, kv_tokens = learn(args.profile)
        plan(delays, kv_tokens, args)
    rows = serve(args)
    print(f"load averages of the machine: {os.getloadavg()}")
    print("\n" + table(rows))
    args.json.write_text(json.dumps({"bar": BAR, "plan": (OUT / "plan.yaml").read_text(), "runs": rows}, indent=1))
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slo", default="ttft=200ms,tpot=20ms")
    parser.add_argument("--rate", type=float, help="requests/s; default: the most that the plan carries")
    parser.add_argument("--seconds", type=float, default=30.0, help="of each live run (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument(
        "--profile", type=Path, metavar="SQLITE", help="of the demo model, made here; default: make one"
    )
    parser.add_argument("--planned", action="store_true", help="serve the plan that is there")
    parser.add_argument("--json", type=Path, default=Path("results/plan_live.json"))
    return parser.parse_args()


def learn(profile: Path | None) -> tuple[Delays, int]:
    """What steps take, into a file; what messages take; and tokens of KV."""
    if profile is None:
        profile = OUT / "demo.sqlite"
        subprocess.run([*PENSTOCK, "profile", "--grid", "coarse", "--out", str(profile)], check=True)
    log = OUT / "learn.log"
    windows = []
    with ServerProcess("--served-model-name", "m", "--record", str(log), "--quiet") as server:
        for turn in range(LEARN_TURNS):
            start_ns = time.monotonic_ns()
            records = bench(server.url, learning(turn), f"learn-{turn}", turn)
            windows.append(twin.Window(start_ns, time.monotonic_ns(), records, sum(learn_counts()[: twin.BEARABLE])))
        time.sleep(1.5)  # The log is flushed once a second.
    seen = twin.read(log.with_name(log.name + ".instance0"))
    fitted = of_steps(seen.between(*((w.start_ns, w.end_ns) for w in windows)), twin.measured(profile))
    save(CostFile(cost=fitted.cost, provenance={"from": "bench/plan_live.py"}), OUT / "cost.json")
    delays, about = twin.messages(seen, windows)
    print(f"learnt from {fitted.steps} steps; {about}", flush=True)
    return delays, seen.config.pages * seen.config.page_tokens


def learn_counts() -> list[int]:
    """Requests of each part of that load."""
    return [round(LEARN_RATE * part * LEARN_S) for part in twin.PARTS]


def learning(turn: int) -> Path:
    """A trace of another load than the one that is judged: from idle to too much."""
    rng = np.random.default_rng([turn, 21])
    gaps = [rng.exponential(1 / (LEARN_RATE * part), n) for part, n in zip(twin.PARTS, learn_counts(), strict=True)]
    rows = [f"{at:.4f},{rng.integers(8, 400)},{rng.integers(2, 80)}" for at in np.concatenate(gaps).cumsum().tolist()]
    path = OUT / f"learn-{turn}.csv"
    path.write_text("\n".join(["arrival_s,prompt_tokens,output_tokens", *rows]))
    return path


def plan(delays: Delays, kv_tokens: int, args: argparse.Namespace) -> None:
    said = (
        f"front_ms={delays.front / 1e6:.4f},dispatch_ms={delays.dispatch / 1e6:.4f},token_ms={delays.token / 1e6:.4f}"
    )
    rate = ["--rate", str(args.rate)] if args.rate else []
    command = [
        *PENSTOCK, "plan", "--model", str(DEMO), "--hardware", "cpu:1", "--cost", str(OUT / "cost.json"),
        "--policies", "fcfs", "prefill-first", "splitfuse", "--knob", f"kv_tokens={kv_tokens}", "--knob",
        "max_num_batched_tokens=128,512,2048", "--delays", said, "--slo", args.slo, "--lengths", PROMPTS,
        "--output-lengths", ANSWERS, *rate, "--servable", "--jobs", "2", "--disable-tqdm", "--output",
        str(OUT / "plan.yaml"),
    ]  # fmt: skip
    subprocess.run(command, check=True)


def serve(args: argparse.Namespace) -> list[dict[str, float]]:
    """Live runs beside those of the twin."""
    deployment = Deployment.read(OUT / "plan.yaml")
    planned = deployment.planned
    assert planned is not None, "a plan says what it is for"
    option, goal = Option(name="as served", gpus=1, deployment=deployment, knobs={}), Goal(Slo.parse(deployment.slo))
    load = Load(lengths=PROMPTS, output_lengths=ANSWERS, num_prompts=1, duration_s=args.seconds)
    rows = []
    with ServerProcess("--plan", str(OUT / "plan.yaml"), "--served-model-name", "m", "--quiet") as server:
        for turn, (times, seed) in enumerate(product(TIMES, range(100, 100 + args.seeds))):
            rate = times * planned.rate
            path = OUT / f"asked-{times}-{seed}.jsonl"
            requests = load.requests(rate, seed)
            trace.save(requests, path)
            predicted = trial(option, load, goal, rate, seed)[0].share(goal)
            live = [share(bench(server.url, path, f"live-{times}-{seed}-{k}", 10 + 2 * turn + k), goal) for k in (0, 1)]
            rows.append(
                {"times": times, "rate": rate, "seed": seed, "requests": len(requests), "predicted": predicted,
                 "live": live[0], "again": live[1], "planned": planned.attained or 0.0}
            )  # fmt: skip
            print(json.dumps(rows[-1]), flush=True)
    return rows


def bench(url: str, path: Path, name: str, words: int) -> list[Record]:
    """Sends a trace; every time with other words, lest prefixes be found again."""
    command = [
        *PENSTOCK, "bench", "serve", "--base-url", url, "--model", "m", "--dataset-name", "trace", "--dataset-path",
        str(path), "--prompt-seed", str(words), "--ignore-eos", "--temperature", "0", "--disable-tqdm",
        "--save-result", "--result-dir", str(OUT), "--result-filename", f"{name}.json",
    ]  # fmt: skip
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return sorted(result.load(OUT / f"{name}.json").records, key=lambda r: r.sent_ns)


def share(records: list[Record], goal: Goal) -> float:
    goodput = summarize(records, goal.slo).goodput
    assert goodput is not None, "an SLO is judged"
    return goodput.share


def table(rows: list[dict[str, float]]) -> str:
    """All seeds of a rate together."""
    lines = [f"{'rate':>14} {'requests':>9} {'predicted':>10}{'live':>10}{'again':>10} {'off':>7}  within {BAR:.0%}"]
    for times in TIMES:
        some = [row for row in rows if row["times"] == times]
        weights = [row["requests"] for row in some]
        means = {
            key: float(np.average([row[key] for row in some], weights=weights))
            for key in ("predicted", "live", "again")
        }
        off = means["predicted"] - (means["live"] + means["again"]) / 2
        shares = "".join(f"{100 * means[key]:8.1f} %" for key in ("predicted", "live", "again"))
        verdict = "yes" if abs(off) <= BAR else "no"
        lines.append(
            f"{times:g} x {some[0]['rate'] / times:8.3f} {sum(weights):9.0f} {shares} {100 * off:+7.1f}  {verdict}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
