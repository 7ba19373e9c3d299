"""Speed of the transports: KV pages pulled from one process by another on this host. One table.

    python bench/transports.py [--transport nixl zmq] [--chunk-kib 4096] [--rounds 5]

Pages are those of a 0.29 B Llama in bfloat16 (24 layers, 4 KV heads of 64, 16 tokens: 384 KiB). They lie in a row, as
in a pool that was empty, or scattered. CPU is what a process took a round, its threads included.
"""

import argparse
import base64
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil

from penstock.engine.transport.base import Limits, Transport
from penstock.engine.transport.choose import start_transport
from penstock.engine.transport.layout import Layout
from penstock.engine.transport.store import HostStore, Piece

LAYERS, KV_HEADS, DIM, PAGE_TOKENS, PAGES = 24, 4, 64, 16, 600
PAGE_BYTES = LAYERS * KV_HEADS * PAGE_TOKENS * 2 * DIM * 2
TOKENS = (256, 1024, 4096)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--transport", nargs="+", default=["nixl", "zmq"])
    parser.add_argument("--chunk-kib", type=int, default=Limits().chunk_bytes >> 10)
    parser.add_argument("--in-flight", type=int, default=Limits().in_flight)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--source", help=argparse.SUPPRESS)
    args = parser.parse_args()
    limits = Limits(chunk_bytes=args.chunk_kib << 10, in_flight=args.in_flight)
    if args.source:
        serve(args.transport[0], args.source, limits)
        return
    print(f"chunks of {args.chunk_kib} KiB, {args.in_flight} in flight; {args.rounds} rounds")
    print(f"{'':>4} {'pages':>9} {'tokens':>6} {'MiB':>4}  median ms  GB/s  best ms  GB/s  CPU ms: puller  source")
    for name in args.transport:
        with tempfile.TemporaryDirectory() as folder:
            measure(name, folder, limits, args)


def make(seed: int) -> HostStore:
    """A pool of random pages."""
    layout = Layout(
        layers=LAYERS, pages=PAGES, kv_heads=KV_HEADS, start=0, end=KV_HEADS, page_tokens=PAGE_TOKENS, key_dim=DIM,
        value_dim=DIM, dtype="bfloat16", itemsize=2,
    )  # fmt: skip
    draw = np.random.default_rng(seed)
    shape = (LAYERS, PAGES, KV_HEADS, PAGE_TOKENS, DIM)
    return HostStore(layout, [Piece(0, *(draw.integers(0, 1000, shape, np.int16) for _ in range(2)))])


def serve(name: str, folder: str, limits: Limits) -> None:
    transport = start_transport(name, make(1), f"ipc://{folder}/source", limits=limits)
    print(base64.b64encode(transport.address()).decode(), flush=True)
    sys.stdin.read()
    transport.close()


def measure(name: str, folder: str, limits: Limits, args: argparse.Namespace) -> None:
    command = [sys.executable, __file__, "--transport", name, "--source", folder]
    command += ["--chunk-kib", str(args.chunk_kib), "--in-flight", str(args.in_flight)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as source:
        assert source.stdin is not None
        assert source.stdout is not None
        address = base64.b64decode(source.stdout.readline())
        store = make(2)
        transport = start_transport(name, store, f"ipc://{folder}/puller", limits=limits)
        transport.connect(0, [address])
        pull(transport, list(range(1, PAGES)), list(range(1, PAGES)))  # connects, and touches all memory
        check(store, make(1))
        for tokens in TOKENS:
            for scattered in (False, True):
                report(name, transport, tokens, scattered, source.pid, args.rounds)
        transport.close()
        source.stdin.close()


def report(name: str, transport: Transport, tokens: int, scattered: bool, source: int, rounds: int) -> None:
    count = tokens // PAGE_TOKENS
    draw = random.Random(tokens)
    times, began = [], (cpu_s(psutil.Process()), cpu_s(psutil.Process(source)))
    for _ in range(rounds):
        first = draw.randrange(1, PAGES - count)
        theirs, ours = (
            draw.sample(range(1, PAGES), count) if scattered else list(range(first, first + count)) for _ in range(2)
        )
        times.append(pull(transport, theirs, ours))
    here, there = cpu_s(psutil.Process()) - began[0], cpu_s(psutil.Process(source)) - began[1]
    size, median_s, best_s = count * PAGE_BYTES, statistics.median(times), min(times)
    print(
        f"{name:>4} {'scattered' if scattered else 'in a row':>9} {tokens:6} {size / 2**20:4.0f}  "
        f"{median_s * 1e3:9.1f} {size / median_s / 1e9:5.2f}  {best_s * 1e3:7.1f} {size / best_s / 1e9:5.2f}  "
        f"{here / rounds * 1e3:14.0f} {there / rounds * 1e3:7.0f}"
    )


def pull(transport: Transport, theirs: list[int], ours: list[int]) -> float:
    """Seconds that it takes."""
    over, errors = threading.Event(), []

    def done(error: str) -> None:
        errors.append(error)
        over.set()

    began = time.perf_counter()
    transport.pull(0, theirs, ours, done)
    assert over.wait(60), "the pull has no end"
    assert errors == [""], errors
    return time.perf_counter() - began


def check(store: HostStore, expected: HostStore) -> None:
    """After a pull of all pages but 0 to their own places."""
    for ours, theirs in zip(store.pieces[0][1:], expected.pieces[0][1:], strict=True):
        np.testing.assert_array_equal(ours[:, 1:], theirs[:, 1:])


def cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    main()
