"""Transports: bring KV pages from a peer. The destination pulls, by page number; the source's engine has no part in it.

    Transport   pulls: their order, limits and deadlines; one thread, neither the engine's nor the core's
    Wire        how bytes come: `zmq.ZmqWire`, `nixl.NixlWire`
    Store       where they come from and go to: `store.HostStore`, `tensors.CudaStore`

A pull is cut into chunks, which land in memory of the wire and are then written to the pages by the transport's thread.
So once a pull is over, however it ended, nothing writes to its pages any more, whatever a dead or frozen peer and its
network may still do; and `done` means that the bytes are in the pages. Knows nothing of jobs, moves or steps.
"""

import itertools
import os
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

import msgspec

import penstock
from penstock.engine.transport.layout import Layout, Part, parts
from penstock.engine.transport.store import Bytes, Store

if TYPE_CHECKING:
    from torch import Tensor

#: Called once, in the transport's thread, with "" or an error text. It must neither wait nor raise.
Done = Callable[[str], None]
#: A rank of a peer.
Route = tuple[int, int]

_LATE_S = 0.01


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What a transport may take. Its memory is at most pulls * in_flight * chunk_bytes, or single pages if larger."""

    #: Larger ones are faster: pages that lie in a row are read as one, within a chunk.
    chunk_bytes: int = 4 << 20
    #: Chunks of one pull that are asked for and not here yet.
    in_flight: int = 2
    #: Pulls under way at once; others wait their turn, `waiting` at most.
    pulls: int = 4
    waiting: int = 1024
    #: Of all pulls together; 0 is no limit.
    bytes_per_s: float = 0.0
    #: A chunk that takes longer ends its pull.
    timeout_s: float = 5.0


class Address(msgspec.Struct, frozen=True):
    """What peers must know of a transport."""

    version: str
    transport: str
    layout: Layout
    #: The wire's own affair.
    where: bytes


class Chunk(msgspec.Struct, frozen=True):
    """Pages of heads [start, end), from one rank of a peer. Numbers are never used again."""

    number: int
    route: Route
    source_pages: list[int]
    own_pages: list[int]
    start: int
    end: int


class Arrival(msgspec.Struct, frozen=True):
    """A chunk's bytes, or why they will not come. The bytes are good until the next arrival is asked for."""

    number: int
    data: "Bytes | Tensor | None"
    error: str = ""


class Wire(Protocol):
    """How bytes come. All is called in the transport's thread, but for `wake` and the attributes."""

    name: str
    #: For people: what it can do here.
    capability: str
    where: bytes

    def open(self, route: Route, where: bytes, layout: Layout) -> None:
        """Peers come at any time. Raises ValueError or OSError if this one cannot be reached by `where`."""

    def shut(self, route: Route) -> None:
        """The peer has gone; what it was asked for is no longer wanted."""

    def fetch(self, chunk: Chunk) -> None:
        """Ask for a chunk of an open route. Raises OSError if that is not possible now."""

    def poll(self, wait_s: float) -> Iterator[Arrival]:
        """Serve peers, and tell what has come; wait so long, or until `wake`, if there is nothing to do."""

    def wake(self) -> None:
        """Any thread: `poll` is to return."""

    def close(self) -> None: ...


class Peer:
    """A peer that can be pulled from, or why not."""

    __slots__ = ("addresses", "error", "parts")

    def __init__(self, addresses: list[Address], parts: list[Part]) -> None:
        self.addresses = addresses
        self.parts = parts
        self.error = ""


class Pull:
    """Pages on their way."""

    __slots__ = ("chunks", "done", "left", "peer", "turn")

    def __init__(self, peer: int, chunks: deque[Chunk], done: Done) -> None:
        self.peer = peer
        #: Not asked for yet.
        self.chunks = chunks
        #: Not here yet.
        self.left = len(chunks)
        #: The last time that a chunk was asked for; 0 at first.
        self.turn = 0
        self.done = done


class Transport:
    """Pulls pages of peers into the store, and lets peers pull from it."""

    def __init__(self, wire: Wire, store: Store, limits: Limits) -> None:
        self.name = wire.name
        self.capability = wire.capability
        self._wire = wire
        self._store = store
        self._limits = limits
        self._peers: dict[int, Peer] = {}
        #: The first `limits.pulls` are under way.
        self._pulls: deque[Pull] = deque()
        #: Chunk number -> its pull, it, and when it was asked for.
        self._flights: dict[int, tuple[Pull, Chunk, float]] = {}
        self._numbers = itertools.count()
        self._turns = itertools.count(1)
        #: When the bandwidth limit lets the next chunk be asked for.
        self._free_at = 0.0
        self._orders: deque[Callable[[], None]] = deque()
        self._lock = threading.Lock()
        #: Why nothing can be pulled any more.
        self._over = ""
        self._thread = threading.Thread(target=self._run, name="transport", daemon=True)
        self._thread.start()

    def address(self) -> bytes:
        """What a peer's `connect` needs of this rank."""
        return msgspec.msgpack.encode(Address(penstock.__version__, self.name, self._store.layout, self._wire.where))

    def connect(self, peer: int, addresses: Sequence[bytes]) -> None:
        """The peer, whose ranks have these addresses, can be pulled from. If it had others, it is forgotten first.
        Raises ValueError, saying why, if it is of another version, transport or layout."""
        known = [read(address, self.name) for address in addresses]
        found = Peer(known, parts(self._store.layout, [address.layout for address in known]))
        self._order(lambda: self._open(peer, found))

    def forget(self, peer: int) -> None:
        """The peer has gone: pulls from it end with an error."""
        self._order(lambda: self._shut(peer, "the peer has gone"))

    def pull(self, peer: int, source_pages: Sequence[int], own_pages: Sequence[int], done: Done) -> None:
        """Copy the peer's pages to our own, one to one, in any order. Returns at once."""
        if len(source_pages) != len(own_pages):
            raise ValueError(f"{len(source_pages)} pages cannot go to {len(own_pages)}")
        if not self._order(lambda: self._begin(peer, list(source_pages), list(own_pages), done)):
            done(self._over)

    def close(self) -> None:
        """Stop. Pulls that are under way end with an error before this returns."""
        self._order(self._stop)
        self._thread.join()

    def _order(self, order: Callable[[], None]) -> bool:
        """Have the thread carry it out; False: it no longer will."""
        with self._lock:
            if self._over:
                return False
            self._orders.append(order)
            self._wire.wake()
            return True

    def _run(self) -> None:
        try:
            while not self._over:
                self._round()
        except Exception as error:
            traceback.print_exc()
            self._over = f"the {self.name} transport has failed: {error}"
        with self._lock:
            orders, self._orders = self._orders, deque()
        for order in orders:
            order()
        while self._pulls:
            self._end(self._pulls[0], self._over)
        self._wire.close()

    def _round(self) -> None:
        for arrival in self._wire.poll(self._wait_s(time.monotonic())):
            self._arrive(arrival)
        while self._orders:
            self._orders.popleft()()
        now = time.monotonic()
        self._expire(now)
        self._issue(now)

    def _stop(self) -> None:
        with self._lock:
            self._over = "the transport is closed"

    def _open(self, peer: int, found: Peer) -> None:
        known = self._peers.get(peer)
        if known is not None and known.addresses == found.addresses and not known.error:
            return
        self._shut(peer, "the peer has started anew")
        self._peers[peer] = found
        try:
            for part in found.parts:
                address = found.addresses[part.rank]
                self._wire.open((peer, part.rank), address.where, address.layout)
        except (ValueError, OSError) as error:
            found.error = f"the peer cannot be reached: {error}"

    def _shut(self, peer: int, why: str) -> None:
        known = self._peers.pop(peer, None)
        if known is None:
            return
        for pull in [pull for pull in self._pulls if pull.peer == peer]:
            self._end(pull, why)
        for part in known.parts:
            self._wire.shut((peer, part.rank))

    def _begin(self, peer: int, source_pages: list[int], own_pages: list[int], done: Done) -> None:
        if wrong := self._refusal(peer, source_pages, own_pages):
            done(wrong)
            return
        chunks = deque(self._cut(peer, source_pages, own_pages))
        if chunks:
            self._pulls.append(Pull(peer, chunks, done))
        else:
            done("")

    def _refusal(self, peer: int, source_pages: list[int], own_pages: list[int]) -> str:
        known = self._peers.get(peer)
        if self._over:
            return self._over
        if known is None:
            return f"peer {peer} is not connected"
        if len(self._pulls) >= self._limits.pulls + self._limits.waiting:
            return f"{len(self._pulls)} pulls are under way or waiting: too many"
        theirs = min((address.layout.pages for address in known.addresses), default=0)
        if not all(0 <= page < theirs for page in source_pages):
            return f"the peer's pages run from 0 to {theirs - 1}"
        if not all(0 <= page < self._store.layout.pages for page in own_pages):
            return f"our pages run from 0 to {self._store.layout.pages - 1}"
        return known.error

    def _cut(self, peer: int, source_pages: list[int], own_pages: list[int]) -> Iterator[Chunk]:
        for part in self._peers[peer].parts:
            page_bytes = self._store.layout.page_bytes(part.end - part.start)
            count = max(1, self._limits.chunk_bytes // page_bytes)
            for i in range(0, len(own_pages), count):
                theirs, ours = source_pages[i : i + count], own_pages[i : i + count]
                yield Chunk(next(self._numbers), (peer, part.rank), theirs, ours, part.start, part.end)

    def _issue(self, now: float) -> None:
        """Ask for chunks, as far as the limits go, of the pull whose last turn is the longest ago."""
        while now >= self._free_at and (ready := self._ready()):
            pull = min(ready, key=lambda pull: pull.turn)
            pull.turn = next(self._turns)
            self._fetch(pull, pull.chunks.popleft(), now)

    def _ready(self) -> list[Pull]:
        """Pulls that may ask for another chunk, as soon as the bandwidth limit lets them."""
        under_way = itertools.islice(self._pulls, self._limits.pulls)
        return [p for p in under_way if p.chunks and p.left - len(p.chunks) < self._limits.in_flight]

    def _fetch(self, pull: Pull, chunk: Chunk, now: float) -> None:
        self._flights[chunk.number] = pull, chunk, now
        if self._limits.bytes_per_s:
            # What a late wake-up has lost is made up for.
            self._free_at = max(now - _LATE_S, self._free_at) + self._bytes(chunk) / self._limits.bytes_per_s
        try:
            self._wire.fetch(chunk)
        except OSError as error:
            self._end(pull, f"the peer cannot be asked: {error}")

    def _arrive(self, arrival: Arrival) -> None:
        pull, chunk, _ = self._flights.pop(arrival.number, (None, None, None))
        if pull is None or chunk is None:
            return  # of a pull that has ended: its pages may be another's by now
        if arrival.data is None or len(arrival.data) != self._bytes(chunk):
            self._end(pull, arrival.error or "the peer sent too few or too many bytes")
            return
        self._store.scatter(chunk.own_pages, chunk.start, chunk.end, arrival.data)
        pull.left -= 1
        if not pull.left:
            self._end(pull, "")

    def _expire(self, now: float) -> None:
        late = [pull for pull, _, since in self._flights.values() if now - since > self._limits.timeout_s]
        for pull in late:
            if pull in self._pulls:
                self._end(pull, f"the peer sent nothing for {self._limits.timeout_s:g} s")

    def _end(self, pull: Pull, error: str) -> None:
        self._pulls.remove(pull)
        self._flights = {n: flight for n, flight in self._flights.items() if flight[0] is not pull}
        pull.done(error)

    def _wait_s(self, now: float) -> float:
        """Until a deadline or the bandwidth limit gives something to do."""
        waits = [since + self._limits.timeout_s - now for _, _, since in self._flights.values()]
        if self._ready():
            waits.append(self._free_at - now)
        return max(0.0, min(waits, default=60.0)) if not self._orders else 0.0

    def _bytes(self, chunk: Chunk) -> int:
        return len(chunk.own_pages) * self._store.layout.page_bytes(chunk.end - chunk.start)


class Waker:
    """Ends a poll from another thread."""

    def __init__(self) -> None:
        self.fd, self._set = os.pipe()
        os.set_blocking(self.fd, False)
        os.set_blocking(self._set, False)

    def wake(self) -> None:
        with suppress(BlockingIOError):  # it is full, so the poll will end
            os.write(self._set, b"x")

    def clear(self) -> None:
        os.read(self.fd, 4096)

    def close(self) -> None:
        os.close(self.fd)
        os.close(self._set)


def read(address: bytes, transport: str) -> Address:
    """A peer's address; raises ValueError, saying why, if it cannot be pulled from."""
    try:
        found = msgspec.msgpack.decode(address, type=Address)
    except msgspec.DecodeError as error:
        raise ValueError(f"not the address of a transport: {error}") from None
    if found.version != penstock.__version__:
        raise ValueError(f"the peer is Penstock {found.version}, this is {penstock.__version__}: run one version")
    if found.transport != transport:
        raise ValueError(
            f"the peer's transport is {found.transport}, ours is {transport}: give all instances one --kv-transport"
        )
    return found
