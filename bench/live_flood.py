"""A thousand requests while everything moves and workers die: are their tokens those of one undisturbed instance?

    python bench/live_flood.py [--requests 1000] [--scenes flood,hand-off,little-room] [--transports nixl,zmq]

A tiny Llama of random, spread weights in float32. Prompts and answers have mixed lengths, some prompts begin alike;
every other request is greedy, the rest sample with a seed (temperature 0.8, top_p 0.95). First one instance answers
them all, undisturbed. Then, over each transport, a worker getting SIGKILL a few seconds after all have come up:

    flood         three instances, where all jobs move all the time
    hand-off      one instance for prompts, two for the rest (policy distserve)
    little-room   as flood, with so few KV pages that running jobs are preempted

Every answer must have the same token ids. Afterwards all pages of all instances must be free or evictable. Where an
answer differs, the first token that does is printed with the gap between its score and that of the token that was
expected: in float32 a tie can turn with the batch. Ends with status 1 where anything was wrong, or nothing moved, was
killed, or was preempted where it should.
"""

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from live_cluster import Ask, Blows, Told, cluster, is_empty, run, strike, submit, tokens_of, told, until, up
from tiny_llama import VOCAB, build

from penstock.core.config import Limits, MoveLimits
from penstock.drivers.fleet import FleetConfig
from penstock.drivers.home import Home
from penstock.drivers.worker import WorkerConfig
from penstock.engine.options import EngineOptions
from penstock.engine.params import Sampling

#: The longest prompt and the longest answer, in tokens.
PROMPT, ANSWER = 200, 300


@dataclass(frozen=True)
class Scene:
    """Instances by their roles, and what is done to jobs."""

    roles: tuple[str, ...]
    policy: str
    #: KV pages of each instance; the longest request needs 32.
    pages: int = 1024


SCENES = {
    "flood": Scene(("", "", ""), "flood"),
    "hand-off": Scene(("prefill", "decode", "decode"), "distserve"),
    "little-room": Scene(("", "", ""), "flood", 128),
}
ALONE = Scene(("",), "fcfs")


@dataclass
class Found:
    """What came of a scene."""

    answers: list[list[int]]
    blows: Blows
    told: Told
    took_s: float
    failures: list[str]


def main() -> int:
    args = _parse()
    with tempfile.TemporaryDirectory() as folder:
        return run(show(args, Path(folder)))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--concurrency", type=int, default=48, help="requests in flight (default: %(default)s)")
    parser.add_argument("--scenes", default=",".join(SCENES), help="default: %(default)s")
    parser.add_argument("--transports", default="nixl,zmq", help="default: %(default)s")
    parser.add_argument(
        "--kill-after", type=float, default=4.0, help="seconds after all are up, on average (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


async def show(args: argparse.Namespace, folder: Path) -> int:
    """Run all scenes, printing a row for each; 1 if a promise was broken."""
    model = build(folder / "model")
    asks = make_asks(args.requests, args.seed)
    alone = await play(ALONE, "", asks, model, folder / "alone", args)
    print(f"{len(asks)} requests on one undisturbed instance: {sum(map(len, alone.answers))} tokens", flush=True)
    print(HEADINGS, flush=True)
    failures = alone.failures
    for name in args.scenes.split(","):
        for transport in args.transports.split(","):
            found = await play(SCENES[name], transport, asks, model, folder / f"{name}-{transport}", args)
            print(_row(name, transport, alone.answers, found), flush=True)
            failures += [f"{name}, {transport}: {failure}" for failure in verdict(SCENES[name], found)]
            for line in differences(model, asks, alone.answers, found.answers):
                failures.append(f"{name}, {transport}: {line}")
                print(f"  {line}", flush=True)
    print("\n".join(failures) or "every token is that of the undisturbed instance, and every page came back")
    return 1 if failures else 0


def make_asks(count: int, seed: int) -> list[Ask]:
    draw = random.Random(seed)
    common = [draw.randrange(4, VOCAB) for _ in range(PROMPT)]
    asks = []
    for number in range(count):
        start = common[: draw.choice((0, 0, 64, 128))]
        prompt = start + [draw.randrange(4, VOCAB) for _ in range(draw.randint(1, PROMPT - len(start)))]
        temperature, top_p = (0.0, 1.0) if number % 2 else (0.8, 0.95)
        sampling = Sampling(
            max_tokens=draw.randint(1, ANSWER), temperature=temperature, top_p=top_p, seed=number, ignore_eos=True
        )
        asks.append((prompt, sampling))
    return asks


async def play(
    scene: Scene, transport: str, asks: Sequence[Ask], model: Path, record: Path, args: argparse.Namespace
) -> Found:
    """Answer all requests under this scene; workers are killed where there are several."""
    options = EngineOptions(model=str(model), dtype="float32", pages=scene.pages, threads=1)
    # For so small a model computing again would be cheaper: with these, copies are preferred to more than a page of it.
    limits, moves = Limits(max_num_seqs=args.concurrency), MoveLimits()
    worker = WorkerConfig(
        engine=options, policy=scene.policy, limits=limits, transport=transport, moves=moves, record=str(record)
    )
    blows, failures = Blows(), list[str]()
    async with cluster(worker, FleetConfig(roles=scene.roles)) as home:
        began = time.monotonic()
        striking = asyncio.create_task(strike(home, blows, args.kill_after, random.Random(args.seed)))
        if len(scene.roles) == 1:
            striking.cancel()
        answers = await answer(home, asks, args.concurrency, failures)
        took_s = time.monotonic() - began
        striking.cancel()
        failures += await emptied(home, len(scene.roles))
    return Found(answers, blows, told(record), took_s, failures)


async def answer(home: Home, asks: Sequence[Ask], concurrency: int, failures: list[str]) -> list[list[int]]:
    """The tokens of all, so many at a time."""
    seats = asyncio.Semaphore(concurrency)

    async def one(number: int, ask: Ask) -> list[int]:
        async with seats:
            try:
                return await tokens_of(await submit(home, ask))
            except Exception as error:
                failures.append(f"request {number} ended in {type(error).__name__}: {error}")
                return []

    return await asyncio.gather(*(one(number, ask) for number, ask in enumerate(asks)))


async def emptied(home: Home, instances: int) -> list[str]:
    """Wait until all instances are up and hold nothing; what they still hold, if they do not let go."""
    try:
        await until(lambda: len(up(home)) == instances and all(is_empty(i.load) for i in up(home)), "empty instances")
    except TimeoutError:
        return [f"instance {i.instance} is {i.state} with {i.load}" for i in home.instances if not is_empty(i.load)]
    return []


def verdict(scene: Scene, found: Found) -> list[str]:
    """What should have been there and was not."""
    counts = {"worker was killed": found.blows.kills, "job moved": found.told.switched, "KV": found.told.adopted}
    if scene.pages < SCENES["flood"].pages:
        counts["job was preempted"] = found.told.preemptions
    return found.failures + [f"no {what}" for what, count in counts.items() if not count]


HEADINGS = (
    f"{'scene':11} {'by':4} {'same':>6} {'differ':>6} {'moved':>7} {'with KV':>7} {'handed':>6} {'MTok KV':>7} "
    f"{'aborted':>7} {'killed':>6} {'preempted':>9} {'s':>5}"
)


def _row(name: str, transport: str, wanted: list[list[int]], found: Found) -> str:
    seen, same = found.told, sum(a == b for a, b in zip(wanted, found.answers, strict=True))
    why = ", ".join(f"{count} {reason}" for reason, count in seen.aborts.most_common())
    return (
        f"{name:11} {transport:4} {same:6} {len(wanted) - same:6} {seen.switched:7} {seen.adopted:7} {seen.asked:6} "
        f"{seen.carried / 1e6:7.2f} {seen.aborts.total():7} {found.blows.kills:6} {seen.preemptions:9} "
        f"{found.took_s:5.0f}  aborted: {why}"
    )


def differences(model: Path, asks: Sequence[Ask], wanted: list[list[int]], found: list[list[int]]) -> list[str]:
    """For each answer that differs, where it does first, and by how much the two tokens' scores differ."""
    lines = []
    for number, (a, b) in enumerate(zip(wanted, found, strict=True)):
        at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), None)
        if at is not None:
            gap = score_gap(model, asks[number], a[:at], a[at], b[at])
            lines.append(f"request {number}, token {at}: {b[at]} instead of {a[at]}, whose score is {gap:+.2e} above")
        elif a != b:
            lines.append(f"request {number}: {len(b)} tokens instead of {len(a)}, equal so far")
    return lines


def score_gap(model: Path, ask: Ask, output: list[int], one: int, other: int) -> float:
    """How much token `one` is better than `other` after that output, in float64: logits, or with a seed what is drawn
    by, logits over temperature plus noise."""
    import torch
    from transformers import AutoModelForCausalLM

    from penstock.engine.noise import gumbel

    prompt, sampling = ask
    llama = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float64)
    with torch.no_grad():
        scores = llama(torch.from_numpy(np.array([prompt + output]))).logits[0, -1]
    if sampling.temperature:
        noise = gumbel([sampling.seed], [0], [len(output)], len(scores))[0]
        scores = scores / sampling.temperature + noise
    return float(scores[one] - scores[other])


if __name__ == "__main__":
    sys.exit(main())
