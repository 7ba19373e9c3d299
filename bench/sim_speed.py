"""How fast the simulator is: simulated requests per second of wall time, on one thread.

    python bench/sim_speed.py [--trace mooncake_conversation.jsonl] [--rounds 3]
    python bench/sim_speed.py --million

The first plays the conversation trace of Mooncake (FAST'25; github.com/kvcache-ai/Mooncake), or requests like it where
the file is not given, on 8 instances of h200/llama-3.1-8b with pages of 16 tokens: with every token's time and with the
first and the last only, shared blocks of 64 and of 512 tokens, leaping over quiet stretches and, for the first thousand
requests, stepping. Both must give equal records. After `scripts/compiled` PYTHONPATH=build/compiled runs
machine code (docs/compiled.md). The second plays a million requests with the lengths of Azure's
conversation trace of 2023 (CC-BY 4.0), Poisson arrivals, on 256 such instances at 70 % of the rate that one instance
reaches with all requests waiting.
"""

import argparse
import platform
import resource
import time
from itertools import product
from pathlib import Path
from statistics import median

import msgspec

from penstock.core import instance as core
from penstock.drivers.deployment import Deployment, Laid, PoolSpec, lay_out
from penstock.drivers.sim import Simulation
from penstock.metrics.record import COMPLETED, Record
from penstock.workload import trace
from penstock.workload.compose import Plan, synthesize
from penstock.workload.trace import Request

COMPILED = not core.__file__.endswith(".py")
INSTANCES = 8
#: Stepping is slow: only so many of the first requests, leapt over once more for comparison.
STEPPING_REQUESTS = 1000
MANY_INSTANCES, MANY_REQUESTS, LOAD = 256, 1_000_000, 0.7
CAPACITY_REQUESTS = 5000
#: Like Mooncake's: prompts of 12,000 tokens, in conversations that repeat what was said; 3.4 requests/s.
LIKE_MOONCAKE = Plan(
    lengths="lognormal:6000:1.0:60000", output_lengths="lognormal:343:0.8:2000", count=12_031, rate=3.4,
    turns="uniform:1-4", think_s=30.0, prefixes=4, prefix_len=512,
)  # fmt: skip


def deployment(instances: int, block_tokens: int = 64) -> Laid:
    """So many instances; the queue has no end, as nothing is to be turned away."""
    pool = PoolSpec(instances=instances, hardware="h200", block_tokens=block_tokens, max_num_queued_reqs=MANY_REQUESTS)
    return lay_out(Deployment(model="llama-3.1-8b", pools=[pool]))


def play(laid: Laid, requests: list[Request], *, every_token: bool, stepping: bool) -> tuple[float, list[Record], int]:
    """(Seconds, records, steps) of one run."""
    config = msgspec.structs.replace(laid.sim, every_token=every_token, stepping=stepping)
    simulation = Simulation(config, laid.costs)
    began = time.perf_counter()
    records = simulation.run(requests)
    took_s = time.perf_counter() - began
    assert all(record.outcome == COMPLETED for record in records), "a request was not served"
    return took_s, records, sum(member.core.next_step for member in simulation.members)


def trace_speed(requests: list[Request], rounds: int) -> None:
    print(f"{INSTANCES} x h200/llama-3.1-8b, pages of 16 tokens; leaping: median of {rounds} runs, stepping: one run")
    print(f"Python {platform.python_version()}, the core {'is compiled' if COMPILED else 'is not compiled'}")
    columns = (("block tokens", 12), ("token times", 14), ("way", 9), ("requests", 9), ("steps", 10), ("wall s", 8))
    print(*[f"{name:>{width}}" for name, width in columns], f"{'requests/s':>11}")
    few = requests[:STEPPING_REQUESTS]
    for block_tokens, every_token in product((64, 512), (True, False)):
        laid = deployment(INSTANCES, block_tokens)
        ran = []
        for some, stepping, times in ((requests, False, rounds), (few, False, 1), (few, True, 1)):
            plays = [play(laid, some, every_token=every_token, stepping=stepping) for _ in range(times)]
            _, records, steps = plays[-1]
            ran.append(records)
            seconds = median(took_s for took_s, _, _ in plays)
            kept, way = "all" if every_token else "first and last", "stepping" if stepping else "leaping"
            print(
                f"{block_tokens:12} {kept:>14} {way:>9} {len(some):9,} {steps:10,} {seconds:8.2f} "
                f"{len(some) / seconds:11,.0f}",
                flush=True,
            )
        assert ran[1] == ran[2], "leaping did not give what stepping gives"
    print("Stepping and leaping gave equal records.")


def million(count: int) -> None:
    """A large fleet in one process; time and memory."""
    lone = deployment(1)
    waiting = synthesize(Plan(lengths="azure-conv-2023", count=CAPACITY_REQUESTS, rate=1e6))
    _, records, _ = play(lone, waiting, every_token=False, stepping=False)
    capacity = CAPACITY_REQUESTS / (max(record.end_ns for record in records) / 1e9)
    rate = LOAD * capacity * MANY_INSTANCES
    print(f"One instance reaches {capacity:.2f} req/s; {MANY_INSTANCES} get {rate:,.0f} req/s, {LOAD:.0%} of that.")
    began = time.perf_counter()
    requests = synthesize(Plan(lengths="azure-conv-2023", count=count, rate=rate, seed=1))
    print(
        f"{len(requests):,} requests drawn in {time.perf_counter() - began:.1f} s; memory so far {_peak_mib():,} MiB."
    )
    took_s, records, steps = play(deployment(MANY_INSTANCES), requests, every_token=False, stepping=False)
    simulated_s = max(record.end_ns for record in records) / 1e9
    tokens = sum(record.output_tokens for record in records)
    print(
        f"Simulated {simulated_s:,.0f} s, {steps:,} steps and {tokens:,} output tokens in {took_s:,.1f} s of wall "
        f"time: {len(requests) / took_s:,.0f} requests/s; peak memory of the process {_peak_mib():,} MiB."
    )


def _peak_mib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trace", type=Path, help="Mooncake's mooncake_conversation.jsonl, or any trace")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each kind")
    parser.add_argument("--requests", type=int, help="only so many")
    parser.add_argument("--million", action="store_true", help="a million requests over 256 instances; minutes")
    args = parser.parse_args()
    if args.million:
        return million(args.requests or MANY_REQUESTS)
    if args.trace is not None and args.trace.exists():
        requests = trace.load(args.trace)
    else:
        print(f"{args.trace or 'no --trace'}: not there, so requests like Mooncake's are synthesized")
        requests = synthesize(LIKE_MOONCAKE)
    trace_speed(requests[: args.requests], args.rounds)


if __name__ == "__main__":
    main()
