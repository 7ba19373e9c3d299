"""Record a live run of very many requests and replay it: does every event give the commands that it gave?

    python bench/replay.py [--requests 10000] [--concurrency 64] [--engine auto|null] [--model FOLDER] [--record FILE]

Short prompts and answers of mixed lengths, some of which begin alike, over HTTP; a tenth of the clients hang up. KV
pages are few, so that requests wait and what was shared is evicted. Prints what `penstock replay` says of the run, the
simulated one included, and the sum of it. Ends with status 1 if a command differs or a request failed.
"""

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from server_process import ServerProcess
from tqdm import tqdm

from penstock.cli.main import main as penstock
from penstock.drivers import log
from penstock.drivers.recorded import paths_of
from penstock.workload.client import Call, Client, Reply

#: The most tokens of an answer, of a prompt's own part, and of what a quarter of the prompts have in common: a block.
ANSWER, OWN, BLOCK = 5, 10, 64
HANG_UP_SHARE = 0.1


def main() -> int:
    args = _parse()
    with tempfile.TemporaryDirectory() as folder:
        path = args.record or Path(folder) / "run.log"
        ends = record(path, args)
        found = [log.replay(one) for one in paths_of(path)]
        penstock(["replay", str(path), "--closed-loop"])
    differing = sum(one.difference is not None for one in found)
    print(
        f"{ends.total()} requests ({', '.join(f'{count} {end}' for end, count in sorted(ends.items()))}), "
        f"{sum(one.events for one in found)} events, {sum(one.commands for one in found)} commands; "
        f"{differing or 'none'} of {len(found)} logs has a command that differs"
    )
    return int(differing > 0 or not ends.keys() <= {"completed", "cancelled"})


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--engine", choices=("auto", "null"), default="auto", help="null: made-up tokens")
    parser.add_argument("--model", default="", help="a model folder; default: the demo model")
    parser.add_argument("--policy", default="fcfs")
    parser.add_argument("--pipeline-depth", type=int, default=1)
    parser.add_argument("--record", type=Path, metavar="FILE", help="keep the logs here")
    return parser.parse_args()


def flags(path: Path, args: argparse.Namespace) -> list[str]:
    """Of the server; with so few pages not all have room at once."""
    said = ["--quiet", "--engine", args.engine, "--kv-pages", str(max(32, args.concurrency)), "--page-tokens", "8"]
    said += ["--record", str(path), "--policy", args.policy, "--pipeline-depth", str(args.pipeline_depth)]
    said += ["--slo", "ttft=1s,tpot=100ms"]
    said += ["--null-cost", "10,5,20"] if args.engine == "null" else []
    return said + [args.model] * bool(args.model)


def record(path: Path, args: argparse.Namespace) -> Counter[str]:
    """Serve the requests and stop the server, which completes the logs; how the requests ended."""
    with ServerProcess(*flags(path, args)) as server, tqdm(total=args.requests, unit="req", disable=None) as bar:
        began = time.monotonic()
        client = Client(
            f"{server.url}/v1/completions", max_concurrency=args.concurrency, on_done=lambda reply: bar.update()
        )
        replies = asyncio.run(client.run(calls(args.requests, random.Random(7))))
        spent_s = time.monotonic() - began
        server.process.terminate()
        server.wait()
    print(_said(replies, spent_s))
    return Counter(reply.outcome for reply in replies)


def calls(count: int, draw: random.Random) -> Iterator[Call]:
    """Requests, all due at once: the concurrency is what limits them."""
    starts = [[draw.randrange(4, 256) for _ in range(BLOCK)] for _ in range(8)]
    for index in range(count):
        own = [draw.randrange(4, 256) for _ in range(draw.randint(1, OWN))]
        prompt = draw.choice(starts) + own if draw.random() < 0.25 else own
        said = {"prompt": prompt, "max_tokens": draw.randint(1, ANSWER), "ignore_eos": True, "stream": True}
        body = json.dumps(said | {"stream_options": {"include_usage": True}}).encode()
        hangs_up = draw.random() < HANG_UP_SHARE
        yield Call(index, 0, body, cancel_after=draw.randrange(ANSWER) if hangs_up else None)


def _said(replies: list[Reply], spent_s: float) -> str:
    tokens = sum(sum(reply.counts) for reply in replies)
    errors = Counter(reply.error for reply in replies if reply.error).most_common(3)
    lines = [f"{len(replies)} requests and {tokens} output tokens in {spent_s:.1f} s"]
    return "\n".join([*lines, *(f"{count} x {text[:200]}" for text, count in errors)])


if __name__ == "__main__":
    sys.exit(main())
