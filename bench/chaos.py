"""Kill and hang the engine of a server under load, again and again, and look at what becomes of every request.

    python bench/chaos.py [--rounds 10] [--requests 32] [--model null|tiny|FOLDER] [--watchdog 2]

In each round so many requests run, half of them streamed; then the engine gets SIGKILL, in the next round SIGSTOP. Each
request must end in a whole answer all the same, from the next engine. Anything that a round leaves behind is a failure,
too: a process, a thread, a file descriptor, a task or a KV page. Ends with status 1 if there was a failure.
"""

import argparse
import asyncio
import json
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from server_process import PATIENCE_S, Footprint, ServerProcess, footprint, growth, wait_until
from tiny_llama import build

#: How a request may end; everything else is a failure.
GOOD_ENDS = ("answered",)


@dataclass
class Round:
    """What one blow did."""

    how: str
    ends: Counter[str]
    #: From the blow until a new request had its whole answer.
    recovery_s: float
    after: Footprint


def main() -> int:
    args = _parse()
    with tempfile.TemporaryDirectory() as folder, ServerProcess(*flags(args, Path(folder))) as server:
        rounds = asyncio.run(torment(server, args.rounds, args.requests))
        troubles = [line for line in server.lines if not line.startswith("[penstock]")]
    print(*troubles, sep="\n")
    failures = verdict(rounds) + ["the server printed a traceback"] * any("Traceback" in line for line in troubles)
    print("\n".join(failures) or "every request was answered, and nothing was left behind")
    return 1 if failures else 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10, help="of SIGKILL, and as many of SIGSTOP")
    parser.add_argument("--requests", type=int, default=32, help="in flight at each blow")
    parser.add_argument("--model", default="null", help="null, tiny (random weights) or a model folder")
    parser.add_argument("--watchdog", type=float, default=2.0, help="seconds of silence that the server allows")
    return parser.parse_args()


def flags(args: argparse.Namespace, folder: Path) -> list[str]:
    """Of a server whose requests last longer than a round."""
    shared = ["--quiet", "--watchdog", str(args.watchdog), "--served-model-name", "victim"]
    if args.model == "null":
        return [*shared, "--engine", "null", "--null-cost", "20,20,100"]
    return [*shared, "--threads", "1", str(build(folder)) if args.model == "tiny" else args.model]


async def torment(server: ServerProcess, rounds: int, requests: int) -> list[Round]:
    """The rounds, printed as they end; the first row is the server before all of them."""
    print(f"{'':>9} {'in flight':>9} " + " ".join(f"{end:>11}" for end in (*GOOD_ENDS, "other")), end=" ")
    print(f"{'served s':>9} {'procs':>5} {'fds':>4} {'thr':>4} {'tasks':>5} {'RSS MiB':>7}")
    done: list[Round] = []
    async with aiohttp.ClientSession(
        base_url=server.url,
        timeout=aiohttp.ClientTimeout(PATIENCE_S),
        connector=aiohttp.TCPConnector(limit=0, force_close=True),
    ) as session:
        await ask(session, 0)
        for number in range(2 * rounds):
            how = (signal.SIGKILL, signal.SIGSTOP)[number % 2]
            done.append(await one_round(session, server, how, requests))
            print(_row(done[-1]), flush=True)
    return done


async def one_round(session: aiohttp.ClientSession, server: ServerProcess, how: signal.Signals, requests: int) -> Round:
    load = [asyncio.create_task(ask(session, number)) for number in range(requests)]
    await until(lambda: server.metrics()["penstock_num_requests_running"] >= requests / 2, "half of them run")
    victim = server.kill_engine(how)
    began = time.monotonic()
    ends = Counter(await asyncio.gather(*load))
    while (end := await ask(session, 0, max_tokens=2)) != "answered":
        assert end in GOOD_ENDS, f"a new request ended so: {end}"
        assert time.monotonic() - began < PATIENCE_S, "no new request was served"
        await asyncio.sleep(0.05)
    recovery_s = time.monotonic() - began
    await until(server.idle, "every page is free or evictable")
    assert victim not in [process.pid for process in server.family()], "the old engine is still there"
    return Round(how.name, ends, recovery_s, footprint(server))


async def until(condition: Any, what: str) -> None:
    await asyncio.to_thread(wait_until, condition, what)


async def ask(session: aiohttp.ClientSession, number: int, max_tokens: int = 400) -> str:
    """How a request ended; those with odd numbers are streamed."""
    body = {"prompt": [4 + number % 200] * 20, "max_tokens": max_tokens, "ignore_eos": True, "stream": number % 2 == 1}
    try:
        async with session.post("/v1/completions", json=body) as reply:
            text = await reply.text()
    except TimeoutError:
        return "hung"
    except aiohttp.ClientError as error:
        return f"cut: {type(error).__name__}"
    if reply.status == 200:
        return _end_of_stream(text) if body["stream"] else "answered"
    message = json.loads(text).get("error", {}).get("message")
    return "5xx" if reply.status in (500, 503) and message else f"{reply.status}: {text[:80]}"


def _end_of_stream(text: str) -> str:
    frames = [frame.removeprefix("data: ") for frame in text.split("\n\n") if frame]
    if len(frames) < 2 or frames[-1] != "[DONE]":
        return "stream without an end"
    last = json.loads(frames[-2])
    if "error" in last:
        return "error event" if last["error"]["message"] else "empty error"
    return "answered" if last["choices"][0]["finish_reason"] else "stream without an end"


def _row(done: Round) -> str:
    other = sum(count for end, count in done.ends.items() if end not in GOOD_ENDS)
    counts = " ".join(f"{count:>11}" for count in (*(done.ends[end] for end in GOOD_ENDS), other))
    at = done.after
    held = f"{at.processes:>5} {at.fds:>4} {at.threads:>4} {at.tasks:>5} {at.front_bytes / 2**20:>7.1f}"
    return f"{done.how:>9} {done.ends.total():>9} {counts} {done.recovery_s:>9.2f} {held}"


def verdict(rounds: list[Round]) -> list[str]:
    """What went wrong. After the first two rounds everything that the server holds for good is there."""
    failures = [
        f"{done.how}: {count} requests ended so: {end}"
        for done in rounds
        for end, count in done.ends.items()
        if end not in GOOD_ENDS
    ]
    first, last = rounds[min(1, len(rounds) - 1)].after, rounds[-1].after
    return failures + growth(first, last)


if __name__ == "__main__":
    sys.exit(main())
