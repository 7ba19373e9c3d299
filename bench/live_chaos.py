"""Steady load on several instances while workers are killed and frozen: does every request get exactly its tokens?

    python bench/live_chaos.py [--minutes 5] [--every 15] [--model null|tiny|FOLDER] [--launcher ray]
                               [--api-servers 2] [--prefill 1 --policy distserve]

`penstock serve` with three instances, over HTTP, as clients see it. Requests come at random (Poisson), all streamed.
First a calm minute; then, about every so many seconds, a random worker gets SIGKILL, or every fourth time SIGSTOP. Each
request must end in a whole answer: with the null engine token i must be 7 more (mod 256) than token i-1; a model's must
be those that it gave in the calm before (greedy, float32). Good is a request within the bounds on TTFT and TPOT.

Recovery, of each blow: until the streams that ran on the victim had a token again. The client does not know which those
were; the victim's last report says how many, and so many of the streams that waited longest are taken for them. `back`
is when all instances are up again. Ends with status 1 where a request did not get its tokens or something was left
behind.

`--launcher ray` has Ray start the workers, over two nodes of a cluster that the script makes on this host.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import aiohttp
from live_cluster import run
from server_process import PATIENCE_S, ServerProcess, wait_until
from tiny_llama import VOCAB, build

from penstock.cli.instances import Server

KEY = "chaos"
#: Different requests; each is asked again and again.
KINDS = 24
#: Every so many blows, a worker is frozen instead of killed.
FREEZE_EACH = 4
#: What a worker sent before its end has come by then.
_UNDER_WAY_S = 0.04


@dataclass
class Answer:
    """One request, as its client saw it; times of the monotonic clock, s."""

    kind: int
    asked_s: float
    tokens: list[int] = field(default_factory=list)
    times_s: list[float] = field(default_factory=list)
    #: What was wrong; empty: nothing.
    error: str = ""

    @property
    def ttft_s(self) -> float:
        return self.times_s[0] - self.asked_s

    @property
    def tpot_s(self) -> float:
        return (self.times_s[-1] - self.times_s[0]) / max(1, len(self.tokens) - 1)

    def is_open(self, at_s: float) -> bool:
        """Whether it was being answered then."""
        return bool(self.times_s) and self.times_s[0] <= at_s < self.times_s[-1]

    def waited_s(self, at_s: float) -> float:
        """From then until the end of the longest silence that began before, or while tokens were still under way."""
        gaps = [(b - a, b - at_s) for a, b in pairwise(self.times_s) if a < at_s + _UNDER_WAY_S and b > at_s]
        return max(gaps)[1]


@dataclass
class Blow:
    """What happened to one worker."""

    how: str
    at_s: float
    #: Answers that ran there.
    running: int
    back_s: float = 0.0


def main() -> int:
    args = _parse()
    with ExitStack() as stack:
        more: list[str] = []
        if args.launcher == "ray":
            more = ["--launcher", "ray", "--ray-address", stack.enter_context(two_nodes())]
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        server = stack.enter_context(ServerProcess(*flags(args, Path(folder)), *more))
        failures = run(torment(server, args))
        failures += ["the server printed a traceback"] * server.said("Traceback")
    print("\n".join(failures) or "every request got exactly its tokens, and nothing was left behind")
    return 1 if failures else 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0, help="of blows (default: %(default)s)")
    parser.add_argument("--calm", type=float, default=1.0, help="minutes before, without (default: %(default)s)")
    parser.add_argument("--every", type=float, default=15.0, help="seconds between blows (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=5.0, help="requests a second (default: %(default)s)")
    parser.add_argument("--model", default="null", help="null, tiny (random weights) or a model folder")
    parser.add_argument("--instances", type=int, default=3)
    parser.add_argument("--prefill", type=int, default=0, help="so many of them for prompts, the others for decoding")
    parser.add_argument("--api-servers", type=int, default=1, help="HTTP processes, beside a scheduler of its own")
    parser.add_argument("--policy", default="llumnix", help="default: %(default)s")
    parser.add_argument("--launcher", default="local", choices=["local", "ray"], help="default: %(default)s")
    parser.add_argument("--watchdog", type=float, default=2.0, help="seconds of silence that the server allows")
    parser.add_argument("--ttft-ms", type=float, default=1000.0, help="a good request's first token (ms)")
    parser.add_argument("--tpot-ms", type=float, default=100.0, help="and the mean time of the others (ms)")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


@contextmanager
def two_nodes() -> Iterator[str]:
    """A Ray cluster of two nodes on this host, each with room for two instances; its address."""
    from ray.cluster_utils import Cluster

    with tempfile.TemporaryDirectory(prefix="ray-") as folder:  # A short path, since sockets lie below it.
        os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": folder}
        cluster = Cluster()
        try:
            for _ in range(2):
                cluster.add_node(num_cpus=2, include_dashboard=False, object_store_memory=80_000_000)
            yield cluster.address
        finally:
            cluster.shutdown()


def flags(args: argparse.Namespace, folder: Path) -> list[str]:
    shared = ["--prefill", args.prefill, "--decode", args.instances - args.prefill] if args.prefill else []
    shared = shared or ["--instances", args.instances]
    shared += ["--api-server-count", args.api_servers, "--policy", args.policy, "--watchdog", args.watchdog, "--quiet"]
    shared += ["--admin-key", KEY, "--served-model-name", "victim"]
    if args.model == "null":
        shared += ["--engine", "null", "--null-cost", "20,20,100"]
    else:
        shared += ["--threads", 1, "--dtype", "float32", build(folder) if args.model == "tiny" else args.model]
    return [str(flag) for flag in shared]


async def torment(server: ServerProcess, args: argparse.Namespace) -> list[str]:
    """The calm, the blows, and what they showed; what went wrong."""
    admin, bodies = Server(server.url, KEY), make_bodies(args.seed)
    await asyncio.to_thread(wait_until, lambda: is_whole(admin, args.instances), "all instances are up")
    processes = len(server.family())
    async with aiohttp.ClientSession(
        base_url=server.url, timeout=aiohttp.ClientTimeout(PATIENCE_S), connector=aiohttp.TCPConnector(limit=0)
    ) as session:
        expected = None if args.model == "null" else [(await ask(session, body, 0)).tokens for body in bodies]
        calm = await load(session, bodies, args.calm * 60, args.rate, random.Random(args.seed))
        striking = asyncio.create_task(strike(admin, args))
        rough = await load(session, bodies, args.minutes * 60, args.rate, random.Random(args.seed + 1))
        blows = await striking
    failures = [*check(calm, bodies, expected), *check(rough, bodies, expected)]
    failures += await at_rest(server, admin, args.instances, processes)
    report(args, calm, rough, blows)
    return failures


def make_bodies(seed: int) -> list[dict[str, Any]]:
    draw = random.Random(seed)
    return [
        {
            "prompt": [draw.randrange(4, min(VOCAB, 256)) for _ in range(draw.randint(8, 250))],
            "max_tokens": draw.randint(60, 240), "temperature": 0, "ignore_eos": True, "stream": True,
            "return_token_ids": True,
        }
        for _ in range(KINDS)
    ]  # fmt: skip


def is_whole(admin: Server, instances: int) -> bool:
    return [row["state"] for row in admin.instances()].count("up") == instances


async def load(
    session: aiohttp.ClientSession, bodies: Sequence[dict[str, Any]], seconds: float, rate: float, draw: random.Random
) -> list[Answer]:
    """Ask at random times for so long; all answers."""
    asking: list[asyncio.Task[Answer]] = []
    began = at = time.monotonic()
    while (at := at + draw.expovariate(rate)) < began + seconds:
        await asyncio.sleep(max(0.0, at - time.monotonic()))
        kind = draw.randrange(len(bodies))
        asking.append(asyncio.create_task(ask(session, bodies[kind], kind)))
    return list(await asyncio.gather(*asking))


async def ask(session: aiohttp.ClientSession, body: dict[str, Any], kind: int) -> Answer:
    answer = Answer(kind, time.monotonic())
    try:
        async with session.post("/v1/completions", json=body) as reply:
            if reply.status != 200:
                answer.error = f"status {reply.status}: {(await reply.text())[:200]}"
                return answer
            await _read(reply, answer)
    except (aiohttp.ClientError, TimeoutError) as error:
        answer.error = f"{type(error).__name__} after {len(answer.tokens)} tokens"
    return answer


async def _read(reply: aiohttp.ClientResponse, answer: Answer) -> None:
    """The frames of a stream; it must end as streams do."""
    async for line in reply.content:
        frame = line.removeprefix(b"data: ").strip()
        if frame == b"[DONE]":
            return
        if not frame or not line.startswith(b"data: "):
            continue
        event = json.loads(frame)
        if "error" in event:
            answer.error = f"error event: {event['error']['message']}"
        elif event["choices"] and (tokens := event["choices"][0].get("token_ids")):
            answer.tokens += tokens
            answer.times_s += [time.monotonic()] * len(tokens)
    answer.error = answer.error or "stream without an end"


async def strike(admin: Server, args: argparse.Namespace) -> list[Blow]:
    """A blow about every so often, each once all instances are up again; the last early enough to see what comes."""
    draw, blows = random.Random(args.seed), list[Blow]()
    end_s = time.monotonic() + args.minutes * 60
    while time.monotonic() + args.every < end_s:
        await asyncio.sleep(args.every * draw.uniform(0.8, 1.2))
        rows = [row for row in await asyncio.to_thread(admin.instances) if row["state"] == "up"]
        victim = draw.choice(rows)
        how = signal.SIGSTOP if len(blows) % FREEZE_EACH == FREEZE_EACH - 1 else signal.SIGKILL
        blows.append(Blow(how.name, time.monotonic(), victim["running"]))
        os.kill(victim["pid"], how)
        back = partial(is_back, admin, args.instances, victim["instance"])
        await asyncio.to_thread(wait_until, back, "it is replaced")
        blows[-1].back_s = time.monotonic() - blows[-1].at_s
    return blows


def is_back(admin: Server, instances: int, gone: int) -> bool:
    there = [row["instance"] for row in admin.instances() if row["state"] == "up"]
    return len(there) == instances and gone not in there


def check(answers: list[Answer], bodies: Sequence[dict[str, Any]], expected: list[list[int]] | None) -> list[str]:
    """Which answers are not just what they should be."""
    found = []
    for number, answer in enumerate(answers):
        tokens, wanted = answer.tokens, bodies[answer.kind]["max_tokens"]
        if answer.error:
            found.append(f"request {number}: {answer.error}")
        elif len(tokens) != wanted:
            found.append(f"request {number}: {len(tokens)} tokens instead of {wanted}")
        elif expected is not None and tokens != expected[answer.kind]:
            at = next(i for i, (a, b) in enumerate(zip(tokens, expected[answer.kind], strict=True)) if a != b)
            found.append(f"request {number}: token {at} is {tokens[at]} instead of {expected[answer.kind][at]}")
        elif expected is None and any(b != (a + 7) % 256 for a, b in pairwise(tokens)):
            found.append(f"request {number}: its tokens are not those of one job")
    return found


async def at_rest(server: ServerProcess, admin: Server, instances: int, processes: int) -> list[str]:
    """What is left behind."""
    try:
        await asyncio.to_thread(wait_until, lambda: is_whole(admin, instances) and server.idle(), "all pages are free")
    except AssertionError as error:
        return [str(error)]
    family = server.family()
    return [f"{len(family)} processes, {processes} before"] if len(family) > processes else []


def report(args: argparse.Namespace, calm: list[Answer], rough: list[Answer], blows: list[Blow]) -> None:
    print(f"{args.instances} instances of {args.model}, policy {args.policy}, {args.rate:g} requests/s")
    print(f"good: TTFT at most {args.ttft_ms:g} ms, TPOT at most {args.tpot_ms:g} ms")
    print(f"{'':5} {'window s':>8} {'requests':>8} {'whole':>6} {'tokens/s':>8} {'good/s':>7} {'good':>6} ", end="")
    print(f"{'TTFT ms P50':>11} {'P99':>6} {'TPOT ms P50':>11} {'P99':>6}")
    for name, minutes, answers in (("calm", args.calm, calm), ("blows", args.minutes, rough)):
        if answers:
            print(f"{name:5} {_row(answers, minutes * 60, args)}")
    print(f"\n{'blow':7} {'jobs there':>10} {'recovery ms: first':>18} {'median':>7} {'last':>6} {'back s':>7}")
    for blow in blows:
        waits = sorted(answer.waited_s(blow.at_s) * 1e3 for answer in rough if answer.is_open(blow.at_s))
        hit = waits[-blow.running :] if blow.running and waits else [0.0]
        print(
            f"{blow.how:7} {blow.running:10} {hit[0]:18.0f} {statistics.median(hit):7.0f} {hit[-1]:6.0f} "
            f"{blow.back_s:7.1f}"
        )


def _row(answers: list[Answer], window_s: float, args: argparse.Namespace) -> str:
    whole = [answer for answer in answers if answer.times_s and not answer.error]
    good = [a for a in whole if a.ttft_s * 1e3 <= args.ttft_ms and a.tpot_s * 1e3 <= args.tpot_ms]
    ttft, tpot = sorted(a.ttft_s * 1e3 for a in whole), sorted(a.tpot_s * 1e3 for a in whole)
    return (
        f"{window_s:8.0f} {len(answers):8} {len(whole):6} {sum(len(a.tokens) for a in answers) / window_s:8.0f} "
        f"{len(good) / window_s:7.2f} {100 * len(good) / len(answers):4.1f} % "
        f"{_at(ttft, 50):11.0f} {_at(ttft, 99):6.0f} {_at(tpot, 50):11.1f} {_at(tpot, 99):6.1f}"
    )


def _at(ordered: Sequence[float], percent: int) -> float:
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)] if ordered else 0.0


if __name__ == "__main__":
    sys.exit(main())
