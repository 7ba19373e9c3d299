"""Very many requests in a row, a third of them left by their clients at random moments: what stays behind?

    python bench/soak.py [--requests 10000] [--concurrency 64] [--model null|tiny|FOLDER]

Prompts and answers have random lengths; half are streamed. Prints what the server holds at rest before, after a fifth
of the requests (by then every cache has its size), and at the end: it must have every KV page free or evictable, no
more tasks, threads, descriptors or processes, and hardly more memory. Ends with status 1 if it has.
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
from typing import Any

import aiohttp
from server_process import PATIENCE_S, Footprint, ServerProcess, footprint, growth, wait_until
from tiny_llama import build

#: Between a fifth of the requests and all of them, front and engine may each grow by so much.
GROWTH_BYTES_MAX = 8 << 20
#: The longest prompt and the longest answer, in tokens.
PROMPT, ANSWER = 300, 100


def main() -> int:
    args = _parse()
    with tempfile.TemporaryDirectory() as folder, ServerProcess(*flags(args.model, Path(folder))) as server:
        failures = asyncio.run(soak(server, args.requests, args.concurrency))
        failures += [line for line in server.lines if not line.startswith("[penstock]")]
    print("\n".join(failures) or "nothing was left behind")
    return 1 if failures else 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--model", default="null", help="null, tiny (random weights) or a model folder")
    return parser.parse_args()


def flags(model: str, folder: Path) -> list[str]:
    if model == "null":
        # Few pages, so that requests also wait, are preempted, and evict what was shared.
        return ["--quiet", "--engine", "null", "--null-cost", "0.2,1,5", "--kv-pages", "1000"]
    path = str(build(folder)) if model == "tiny" else model
    return ["--quiet", "--threads", "1", "--kv-pages", "1000", path]


async def soak(server: ServerProcess, requests: int, concurrency: int) -> list[str]:
    """What went wrong."""
    seen: list[Footprint] = []
    ends: Counter[str] = Counter()
    began = time.monotonic()
    bodies = _bodies(requests, random.Random(7))
    for share in (0, requests // 5, requests - requests // 5):
        async with aiohttp.ClientSession(
            base_url=server.url, timeout=aiohttp.ClientTimeout(PATIENCE_S), connector=aiohttp.TCPConnector(limit=0)
        ) as session:
            ends += await _some(session, bodies, max(share, 1), concurrency)
        await asyncio.to_thread(wait_until, server.idle, "every page is free or evictable")
        seen.append(footprint(server))
        print(_row(ends.total(), seen[-1]), flush=True)
    spent_s = time.monotonic() - began
    print(f"{ends.total()} requests in {spent_s:.0f} s: " + ", ".join(f"{n} {end}" for end, n in sorted(ends.items())))
    failures = [f"{count} requests ended so: {end}" for end, count in ends.items() if end not in ("left", "answered")]
    return failures + growth(seen[1], seen[2]) + _memory(seen[1], seen[2])


def _bodies(count: int, draw: random.Random) -> Iterator[tuple[dict[str, Any], float | None]]:
    """Requests, and when the client leaves, as a share of half the time that answers take (None: it stays)."""
    for _ in range(count + 1):
        prompt = [draw.randrange(4, 256) for _ in range(draw.randint(1, PROMPT))]
        leaves = draw.random() if draw.random() < 1 / 3 else None
        # Whoever is to leave asks for more than there will be time for.
        answer = draw.randint(1, ANSWER) if leaves is None else 2 * ANSWER
        body = {"prompt": prompt, "max_tokens": answer, "ignore_eos": True, "stream": draw.random() < 0.5}
        yield body, leaves


async def _some(
    session: aiohttp.ClientSession,
    bodies: Iterator[tuple[dict[str, Any], float | None]],
    count: int,
    concurrency: int,
) -> Counter[str]:
    """So many of the requests, `concurrency` at a time; how they ended."""
    ends: Counter[str] = Counter()
    left = iter(range(count))
    pace_s = [0.1]

    async def client() -> None:
        for _ in left:
            body, leaves = next(bodies)
            began = time.monotonic()
            end = await _ask(session, body, None if leaves is None else leaves * pace_s[0] / 2)
            ends[end] += 1
            if leaves is None and end == "answered":
                # How long answers take at the moment: clients leave at any time within half of it.
                pace_s[0] = 0.9 * pace_s[0] + 0.1 * (time.monotonic() - began)

    await asyncio.gather(*(client() for _ in range(concurrency)))
    return ends


async def _ask(session: aiohttp.ClientSession, body: dict[str, Any], leave_s: float | None) -> str:
    try:
        async with asyncio.timeout(leave_s), session.post("/v1/completions", json=body) as reply:
            text = await reply.text()
    except TimeoutError:
        return "left" if leave_s is not None else "hung"
    except aiohttp.ClientError as error:
        return f"cut: {type(error).__name__}"
    if reply.status != 200:
        return f"{reply.status}: {text[:80]}"
    return _check(text, body)


def _check(text: str, body: dict[str, Any]) -> str:
    """Whether the answer is whole: null engine and `ignore_eos` give just as many tokens as were asked for."""
    if not body["stream"]:
        return "answered" if json.loads(text)["usage"]["completion_tokens"] == body["max_tokens"] else "short"
    frames = text.split("\n\n")
    ended = frames[-2] == "data: [DONE]" and '"finish_reason":"length"' in frames[-3]
    return "answered" if ended else "stream without an end"


def _memory(before: Footprint, after: Footprint) -> list[str]:
    grown = {"front": after.front_bytes - before.front_bytes, "engine": after.engine_bytes - before.engine_bytes}
    for name, size in grown.items():
        print(f"the {name} grew by {size / 2**20:.1f} MiB after the first fifth")
    return [f"the {name} grew by {size} bytes" for name, size in grown.items() if size > GROWTH_BYTES_MAX]


def _row(requests: int, at: Footprint) -> str:
    memory = f"front {at.front_bytes / 2**20:.1f} MiB, engine {at.engine_bytes / 2**20:.1f} MiB"
    return f"at rest after {requests:>5}: {memory}, {at.tasks} tasks, {at.threads} threads, {at.fds} descriptors"


if __name__ == "__main__":
    sys.exit(main())
