"""Sixty-four workers on this machine, with the controller at work and without: what does it add to a step, and cost?

    python bench/live_fleet.py [--instances 64] [--seconds 60] [--step-ms 500] [--rounds 2]

Workers have null engines: they sleep for as long as a step is to take, so that two cores carry them all. Clients keep
so many requests of mixed lengths open. In turns, policy `round-robin`, which places jobs and leaves them there, and
`llumnix`, which looks at all loads every 50 ms and moves jobs. Over the same window:

    beyond a step    from the end of one step to the end of the next, less the time that a step is to take: planning,
                     messages, and whatever else keeps the worker from its next step (the instances' logs)
    late token       the same, as the client sees it: between tokens of a stream
    controller       CPU time of the cluster core, its log replayed afterwards, per step and per request
    home             CPU time of the whole process that has the controller: streams, messages and clients too

Sleeping takes no CPU time, but the rest does: the share of the machine's cores that was busy is printed, and where it
is near 100 % the times say more of the machine than of the controller. Ends with status 1 if llumnix adds more than
`--most-ms` to a step at P99, or moved nothing.
"""

import argparse
import asyncio
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
from live_cluster import cluster, run, submit, told

from penstock.core.commands import Run
from penstock.core.config import Limits
from penstock.core.events import Arrived, StepDone
from penstock.drivers.fleet import FleetConfig
from penstock.drivers.home import Home
from penstock.drivers.log import ClusterEntry, read
from penstock.drivers.worker import WorkerConfig
from penstock.engine.null import NullOptions
from penstock.engine.params import Sampling
from penstock.policies.bundles import make_cluster

POLICIES = ("round-robin", "llumnix")


@dataclass
class Found:
    """What one round of a policy showed; samples in ms."""

    beyond: list[float]
    late: list[float]
    #: CPU time of each event that the cluster core heard.
    decisions: list[float]
    requests: int
    #: Jobs, since the start.
    moved: int
    home_s: float
    #: Share of all cores, 0 to 1.
    busy: float


def main() -> int:
    args = _parse()
    found: dict[str, list[Found]] = {policy: [] for policy in POLICIES}
    print(f"{args.instances} null workers, {args.step_ms:g} ms a step, {args.concurrency} requests open, ", end="")
    print(f"windows of {args.seconds:g} s after {args.warm:g} s, {psutil.cpu_count()} cores\n{HEADINGS}", flush=True)
    for number in range(args.rounds):
        for policy in POLICIES[:: 1 if number % 2 == 0 else -1]:
            with tempfile.TemporaryDirectory() as folder:
                found[policy].append(run(measure(args, policy, Path(folder) / "log")))
            print(_row(policy, found[policy][-1]), flush=True)
    return verdict(args, found)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--instances", type=int, default=64)
    parser.add_argument("--concurrency", type=int, default=256, help="requests open (default: %(default)s)")
    parser.add_argument("--step-ms", type=float, default=500.0, help="a step takes (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=60.0, help="of the window (default: %(default)s)")
    parser.add_argument("--warm", type=float, default=30.0, help="seconds before it (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--most-ms", type=float, default=10.0, help="more at P99 is too much (default: %(default)s)")
    return parser.parse_args()


async def measure(args: argparse.Namespace, policy: str, record: Path) -> Found:
    """One cluster under one policy."""
    engine = NullOptions(pages=80, cost=(args.step_ms * 1e6, 0, 0, 0, 0))
    worker = WorkerConfig(engine=engine, policy=policy, limits=Limits(max_num_seqs=16), record=str(record))
    async with cluster(worker, FleetConfig(roles=("",) * args.instances, watchdog_s=60.0)) as home:
        seen: list[list[float]] = []
        clients = [asyncio.create_task(client(home, random.Random(n), seen)) for n in range(args.concurrency)]
        await asyncio.sleep(args.warm)
        psutil.cpu_percent()
        start_s, cpu_s = time.monotonic(), time.process_time()
        await asyncio.sleep(args.seconds)
        home_s, end_s, busy = time.process_time() - cpu_s, time.monotonic(), psutil.cpu_percent() / 100
        for task in clients:
            task.cancel()
        await asyncio.gather(*clients, return_exceptions=True)
    return Found(
        beyond=beyond(record, args.step_ms, start_s, end_s),
        late=[
            (b - a) * 1e3 - args.step_ms for times in seen for a, b in pairwise(times) if a >= start_s and b <= end_s
        ],
        decisions=decide(record, start_s, end_s),
        requests=sum(isinstance(entry.event, Arrived) for entry in within(record, start_s, end_s)),
        moved=told(record).switched,
        home_s=home_s,
        busy=busy,
    )


async def client(home: Home, draw: random.Random, seen: list[list[float]]) -> None:
    """One request after the other."""
    while True:
        # Few answers are long: instances that get several of those fill up.
        answer = draw.randint(8, 64) if draw.random() < 0.8 else draw.randint(128, 512)
        stream = await submit(home, ([7] * draw.randint(16, 400), Sampling(max_tokens=answer, ignore_eos=True)))
        times: list[float] = []
        seen.append(times)
        async for _ in stream:
            times.append(time.monotonic())


def within(log: Path, start_s: float, end_s: float) -> Iterator[Any]:
    """Entries of a log in that window."""
    return (entry for entry in read(log)[1] if start_s * 1e9 <= entry.now <= end_s * 1e9)


def beyond(record: Path, step_ms: float, start_s: float, end_s: float) -> list[float]:
    """Of all steps that were planned as soon as the one before was done: ms until they were done, less `step_ms`."""
    found = []
    for path in record.parent.glob(f"{record.name}.instance*"):
        since = 0
        for entry in within(path, start_s, end_s):
            if isinstance(entry.event, StepDone):
                if since:
                    found.append((entry.now - since) / 1e6 - step_ms)
                since = entry.now if any(isinstance(command, Run) for command in entry.commands) else 0
    return found


def decide(record: Path, start_s: float, end_s: float) -> list[float]:
    """What each event of the window takes a fresh cluster core that has heard all before: CPU ms."""
    header, entries = read(record)
    assert header.cluster is not None
    core, found = make_cluster(header.cluster), list[float]()
    for entry in entries:
        assert isinstance(entry, ClusterEntry)
        began = time.thread_time_ns()
        core.handle(entry.event, entry.now)
        if start_s * 1e9 <= entry.now <= end_s * 1e9:
            found.append((time.thread_time_ns() - began) / 1e6)
    return found


HEADINGS = (
    f"{'policy':12} {'steps':>7} {'beyond a step ms: P50':>21} {'P99':>6} {'most':>6} {'late token ms: P50':>18} "
    f"{'P99':>6} {'requests':>8} {'moves':>6} {'controller CPU us/step':>22} {'us/request':>10} {'most ms':>7} "
    f"{'home CPU us/step':>16} {'cores busy':>10}"
)


def _row(policy: str, found: Found) -> str:
    steps, decided_us = len(found.beyond), sum(found.decisions) * 1e3
    return (
        f"{policy:12} {steps:7} {_at(found.beyond, 50):21.2f} {_at(found.beyond, 99):6.2f} {max(found.beyond):6.1f} "
        f"{_at(found.late, 50):18.2f} {_at(found.late, 99):6.2f} {found.requests:8} {found.moved:6} "
        f"{decided_us / steps:22.1f} {decided_us / max(1, found.requests):10.0f} {max(found.decisions):7.2f} "
        f"{found.home_s * 1e6 / steps:16.0f} {100 * found.busy:8.0f} %"
    )


def _at(values: Sequence[float], percent: int) -> float:
    return sorted(values)[len(values) * percent // 100]


def verdict(args: argparse.Namespace, found: dict[str, list[Found]]) -> int:
    """Medians over rounds; 1 if the controller adds too much, or did nothing."""
    p99 = {policy: statistics.median(_at(one.beyond, 99) for one in rounds) for policy, rounds in found.items()}
    added = p99["llumnix"] - p99["round-robin"]
    print(f"at work, the controller adds {added:+.2f} ms to a step at P99 (medians of {args.rounds} rounds)")
    failures = [f"that is more than {args.most_ms:g} ms"] * (added > args.most_ms)
    failures += ["llumnix moved nothing"] * (not all(one.moved for one in found["llumnix"]))
    print("\n".join(failures), end="\n" if failures else "")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
