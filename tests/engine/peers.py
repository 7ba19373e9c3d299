"""Instances' KV without instances: random pages and a transport, here or in a process of its own.

`python peers.py SPEC`, a JSON Spec, prints its addresses and serves until its stdin closes.
"""

import base64
import json
import queue
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from penstock.engine.transport.base import Limits, Transport
from penstock.engine.transport.choose import start_transport
from penstock.engine.transport.layout import Layout
from penstock.engine.transport.store import Array, HostStore, Piece

LAYERS, HEADS, PAGE_TOKENS, KEY_DIM, VALUE_DIM, PAGES = 3, 4, 4, 8, 6, 40


Tensors = tuple[Array, Array]


class Spec(msgspec.Struct, frozen=True, kw_only=True):
    """One peer, of so many ranks."""

    transport: str
    folder: str
    name: str = "peer"
    ranks: int = 1
    seed: int = 0
    pages: int = PAGES
    page_tokens: int = PAGE_TOKENS
    dtype: str = "float32"
    #: Whether the heads of a rank lie one by one in tensors of their own.
    pieces: bool = False
    tcp: bool = False
    curve: tuple[str, str] | None = None
    limits: Limits = Limits()


def whole(seed: int, pages: int = PAGES, page_tokens: int = PAGE_TOKENS, itemsize: int = 4) -> Tensors:
    """Random keys and values of all heads."""
    draw = np.random.default_rng(seed)
    return tuple(
        draw.integers(0, 100, (LAYERS, pages, HEADS, page_tokens, dim), f"i{itemsize}") for dim in (KEY_DIM, VALUE_DIM)
    )


def layout(spec: Spec, start: int, end: int) -> Layout:
    return Layout(
        layers=LAYERS, pages=spec.pages, kv_heads=HEADS, start=start, end=end, page_tokens=spec.page_tokens,
        key_dim=KEY_DIM, value_dim=VALUE_DIM, dtype=spec.dtype, itemsize={"float32": 4, "bfloat16": 2}[spec.dtype],
    )  # fmt: skip


class Ranks:
    """The ranks of one instance: HEADS split over them, or doubled where there are more ranks than heads."""

    def __init__(self, spec: Spec) -> None:
        tensors = whole(spec.seed, spec.pages, spec.page_tokens, layout(spec, 0, HEADS).itemsize)
        self.stores = []
        for rank in range(spec.ranks):
            start = rank * HEADS // spec.ranks
            end = max(start + 1, (rank + 1) * HEADS // spec.ranks)
            cuts = range(start, end) if spec.pieces else [start]
            width = 1 if spec.pieces else end - start
            pieces = [Piece(cut, *(np.ascontiguousarray(t[:, :, cut : cut + width]) for t in tensors)) for cut in cuts]
            self.stores.append(HostStore(layout(spec, start, end), pieces))
        self.transports = [self._start(spec, rank, store) for rank, store in enumerate(self.stores)]

    def _start(self, spec: Spec, rank: int, store: HostStore) -> Transport:
        at = "tcp://127.0.0.1:*" if spec.tcp else f"ipc://{spec.folder}/{spec.name}-{rank}"
        curve = (spec.curve[0].encode(), spec.curve[1].encode()) if spec.curve else None
        return start_transport(spec.transport, store, at, curve, spec.limits)

    def addresses(self) -> list[bytes]:
        return [transport.address() for transport in self.transports]

    def connect(self, peer: int, addresses: Sequence[bytes]) -> None:
        for transport in self.transports:
            transport.connect(peer, addresses)

    def pull(self, peer: int, source: Sequence[int], own: Sequence[int]) -> list[str]:
        """Pull on all ranks at once; each rank's error text."""
        done: queue.SimpleQueue[tuple[int, str]] = queue.SimpleQueue()
        for rank, transport in enumerate(self.transports):
            transport.pull(peer, source, own, lambda error, rank=rank: done.put((rank, error)))
        found = dict(done.get(timeout=60) for _ in self.transports)
        assert done.empty()
        return [found[rank] for rank in range(len(self.transports))]

    def close(self) -> None:
        for transport in self.transports:
            transport.close()


class Process:
    """A peer in a process of its own."""

    def __init__(self, spec: Spec) -> None:
        command = [sys.executable, __file__, msgspec.json.encode(spec).decode()]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        line = self.process.stdout.readline()
        self.addresses = [base64.b64decode(text) for text in json.loads(line)]

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def kill(self) -> None:
        self.process.kill()
        self.close()

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(30)
        self.process.stdout.close()


def main() -> None:
    ranks = Ranks(msgspec.json.decode(sys.argv[1], type=Spec))
    print(json.dumps([base64.b64encode(address).decode() for address in ranks.addresses()]), flush=True)
    sys.stdin.read()
    ranks.close()


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    main()
