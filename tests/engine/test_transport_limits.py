"""What a transport asks for and when, on a clock and a wire that the test has in its hand."""

import queue
import threading
from collections import Counter, deque
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import peers
import pytest
from peers import HEADS, PAGES, Spec

from penstock.engine.transport import base
from penstock.engine.transport.base import Arrival, Chunk, Limits, Transport
from penstock.engine.transport.store import HostStore, Piece

STORE = HostStore(peers.layout(Spec(transport="", folder=""), 0, HEADS), [Piece(0, *peers.whole(0))])
PAGE_BYTES = STORE.layout.page_bytes(HEADS)


class Clock:
    """Goes on a little whenever it is read."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        self.now += 1e-5
        return self.now


class FakeWire:
    """A chunk takes `chunk_s`; waits end a little early, as those of poll may."""

    name = "fake"
    capability = "fake"
    where = b""

    def __init__(self, clock: Clock, chunk_s: float) -> None:
        self.clock = clock
        self.chunk_s = chunk_s
        #: When each chunk was asked for, of which peer.
        self.asked: list[tuple[float, int]] = []
        self.most: Counter[int] = Counter()
        self.peers_at_once = 0
        self._coming: deque[tuple[float, Chunk]] = deque()
        self._woken: queue.SimpleQueue[None] = queue.SimpleQueue()
        #: Set once all is there that the test asks for.
        self.ready = threading.Event()

    def open(self, route: base.Route, where: bytes, layout: object) -> None: ...

    def shut(self, route: base.Route) -> None: ...

    def close(self) -> None: ...

    def wake(self) -> None:
        self._woken.put(None)

    def fetch(self, chunk: Chunk) -> None:
        self.asked.append((self.clock.now, chunk.route[0]))
        self._coming.append((self.clock.now + self.chunk_s, chunk))
        flying = Counter(one.route[0] for _, one in self._coming)
        self.most |= flying
        self.peers_at_once = max(self.peers_at_once, len(flying))

    def poll(self, wait_s: float) -> Iterator[Arrival]:
        assert self.ready.wait(60)
        if not self._coming and wait_s > 10:
            self._woken.get(timeout=20)  # there is nothing to do
            return
        assert wait_s < 10, "it would sleep with work to do"
        at = min([self._coming[0][0]] if self._coming else [], default=self.clock.now + wait_s)
        self.clock.now = max(self.clock.now, min(at, self.clock.now + wait_s) - 1.5e-5)
        while self._coming and self._coming[0][0] <= self.clock.now + 2e-5:
            _, chunk = self._coming.popleft()
            yield Arrival(chunk.number, np.zeros(len(chunk.own_pages) * PAGE_BYTES, np.uint8))


def run(limits: Limits, monkeypatch: pytest.MonkeyPatch, pulls: int, pages: int, chunk_s: float = 0.001) -> FakeWire:
    """So many pulls of so many pages, a page a chunk, each from a peer of its own."""
    clock = Clock()
    monkeypatch.setattr(base, "time", SimpleNamespace(monotonic=clock.monotonic))
    wire = FakeWire(clock, chunk_s)
    transport = Transport(wire, STORE, limits)
    done: queue.SimpleQueue[str] = queue.SimpleQueue()
    for peer in range(pulls):
        transport.connect(peer, [transport.address()])
        transport.pull(peer, range(1, pages + 1), range(1, pages + 1), done.put)
    wire.ready.set()
    assert [done.get(timeout=60) for _ in range(pulls)] == [""] * pulls
    transport.close()
    return wire


@pytest.mark.parametrize("pages", [1, 39])
def test_bandwidth_is_kept_to_whenever_waits_end(monkeypatch: pytest.MonkeyPatch, pages: int) -> None:
    wire = run(Limits(chunk_bytes=1, bytes_per_s=100 * PAGE_BYTES), monkeypatch, 1, pages)
    assert len(wire.asked) == pages
    took = wire.asked[-1][0] - wire.asked[0][0]
    assert took == pytest.approx((pages - 1) / 100, abs=0.012)


@pytest.mark.parametrize("in_flight", [1, 3])
@pytest.mark.parametrize("pulls", [1, 2])
def test_no_more_at_once_than_is_allowed(monkeypatch: pytest.MonkeyPatch, in_flight: int, pulls: int) -> None:
    wire = run(Limits(chunk_bytes=1, in_flight=in_flight, pulls=pulls), monkeypatch, 4, PAGES - 1)
    assert set(wire.most.values()) == {in_flight}
    assert wire.peers_at_once == pulls
    assert Counter(peer for _, peer in wire.asked) == dict.fromkeys(range(4), PAGES - 1)


def test_pulls_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = Limits(chunk_bytes=1, in_flight=1, pulls=2, bytes_per_s=100 * PAGE_BYTES)
    assert [peer for _, peer in run(limits, monkeypatch, 2, 30).asked] == [0, 1] * 30


def test_what_never_comes_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(base, "time", SimpleNamespace(monotonic=clock.monotonic))
    wire = FakeWire(clock, 1000.0)
    transport = Transport(wire, STORE, Limits(timeout_s=3))
    transport.connect(0, [transport.address()])
    done: queue.SimpleQueue[str] = queue.SimpleQueue()
    transport.pull(0, [1], [1], done.put)
    wire.ready.set()
    assert done.get(timeout=60) == "the peer sent nothing for 3 s"
    assert clock.now - 100 == pytest.approx(3, abs=0.1)
    transport.close()
