"""Pages by NIXL: one-sided reads over UCX, which picks what the hosts have: RDMA, NVLink, shared memory, TCP.

The source's process takes no part: its tensors are registered once, and peers read them by address. NIXL's own thread
answers the rest (connections, and reads where there is only TCP). Reads land in memory of the wire, not in the pages:
a read that hangs cannot be called off, and may still write long after its pull has ended.
"""

import os
import select
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from penstock.engine.transport.base import Arrival, Chunk, Limits, Route, Waker
from penstock.engine.transport.layout import Layout
from penstock.engine.transport.store import Bytes, Region, Store

if TYPE_CHECKING:
    from torch import Tensor

Int64 = npt.NDArray[np.int64]

#: How long NIXL's thread waits for an event before it looks for itself. (0, which its Python API sets, takes a core.)
_LOOK_US = 20_000
#: How often reads under way are asked after, at first and in the end.
_ASK_S = 0.0005, 0.05


class Where(msgspec.Struct, frozen=True):
    """What a peer needs for its reads."""

    agent: bytes
    device: int | None
    regions: list[Region]


class _Route(NamedTuple):
    agent: str
    device: int | None
    regions: list[Region]
    layout: Layout


class _Landing(NamedTuple):
    memory: "Bytes | Tensor"
    address: int


class _Read(NamedTuple):
    """A read that has been posted; `error` if that failed."""

    request: int
    landing: _Landing
    size: int
    route: Route
    error: str


class NixlWire:
    """A NIXL agent with the UCX backend."""

    name = "nixl"

    def __init__(self, store: Store, limits: Limits, one_host: bool) -> None:
        """`one_host`: no peer is elsewhere, so that no port need be open to the network. Raises ValueError, saying what
        to change, if NIXL is not installed or does not work here."""
        self._nixl = load()
        self._store = store
        self._landing_bytes = max(limits.chunk_bytes, store.layout.page_bytes(store.layout.heads))
        #: Reads that hang keep theirs; with so many the others still go on.
        self._landings_left = 2 * limits.pulls * limits.in_flight
        self._landings: list[_Landing] = []
        self._routes: dict[Route, _Route] = {}
        self._reads: dict[int, _Read] = {}
        #: Routes that are no longer wanted, but have reads under way.
        self._leaving: dict[Route, _Route] = {}
        self._ask_s = _ASK_S[0]
        self._waker = Waker()
        self._ready = select.poll()
        self._ready.register(self._waker.fd, select.POLLIN)
        try:
            self._start(one_host)
        except Exception as error:  # its errors have no common class
            self._waker.close()
            raise ValueError(f"NIXL does not work here ({error}): choose --kv-transport zmq") from error
        self.capability = f"nixl {version()}: one-sided reads over UCX, {'on this host' if one_host else 'any host'}"

    def _start(self, one_host: bool) -> None:
        config = self._nixl.nixlAgentConfig()
        config.useProgThread = True
        config.pthrDelay = _LOOK_US
        self._agent: Any = self._nixl.nixlAgent(f"penstock-{uuid.uuid4().hex}", config)
        with _loopback(one_host):
            self._backend = self._agent.createBackend("UCX", {})
        layout, regions = self._store.layout, self._store.regions()
        for region in regions:
            count = layout.layers * layout.pages * (region.end - region.start) * layout.page_tokens * layout.itemsize
            self._register(region.keys_address, count * layout.key_dim)
            self._register(region.values_address, count * layout.value_dim)
        self.where = msgspec.msgpack.encode(Where(self._agent.getLocalMD(), self._store.device, regions))

    def open(self, route: Route, where: bytes, layout: Layout) -> None:
        try:
            found = msgspec.msgpack.decode(where, type=Where)
            agent = self._agent.loadRemoteMD(found.agent)
            self._routes[route] = _Route(agent, found.device, found.regions, layout)
            self._agent.makeConnection(agent, [self._backend])
        except Exception as error:  # as above
            raise ValueError(str(error)) from error

    def shut(self, route: Route) -> None:
        known = self._routes.pop(route, None)
        if known is not None:
            self._leaving[route] = known
            self._leave()

    def fetch(self, chunk: Chunk) -> None:
        route = self._routes[chunk.route]
        landing = self._land()
        own, layout = self._store.layout, route.layout
        size = len(chunk.own_pages) * own.page_bytes(chunk.end - chunk.start)
        here, there = spans(chunk, layout, route.regions, landing.address)
        try:
            request = self._agent.createXferReq(
                self._nixl.NIXL_READ,
                self._descriptors(here, self._store.device),
                self._descriptors(there, route.device),
                route.agent,
                b"",
                [self._backend],
            )
        except Exception as error:
            self._landings.append(landing)
            raise OSError(str(error)) from error
        self._reads[chunk.number] = _Read(request, landing, size, chunk.route, self._post(request))
        self._ask_s = _ASK_S[0]

    def poll(self, wait_s: float) -> Iterator[Arrival]:
        idle = True
        for number, read in list(self._reads.items()):
            error = self._state(read)
            if error is not None:
                idle = False
                yield Arrival(number, None if error else read.landing.memory[: read.size], error)
                self._forget(number, read)
        if idle:
            self._wait(min(wait_s, self._ask_s) if self._reads else wait_s)
            self._ask_s = min(2 * self._ask_s, _ASK_S[1])

    def wake(self) -> None:
        self._waker.wake()

    def close(self) -> None:
        """Ends NIXL's threads before the memory goes that they may write to."""
        for read in self._reads.values():
            with suppress(Exception):
                self._agent.releaseXferReq(read.request)
        del self._agent
        self._landings.clear()
        self._reads.clear()
        self._waker.close()

    def _post(self, request: int) -> str:
        """Start a read; where memory is shared, it is through on return. An error text, or ""."""
        try:
            self._agent.postXferReq(request, b"")
        except Exception as error:
            return str(error)
        return ""

    def _state(self, read: _Read) -> str | None:
        """An error text, "" if the bytes are here, None if the read is under way."""
        try:
            status = self._agent.getXferStatus(read.request)
        except Exception as error:
            return read.error or str(error)
        if status == self._nixl.NIXL_IN_PROG:
            return None
        return read.error or ("" if status == self._nixl.NIXL_SUCCESS else str(status))

    def _forget(self, number: int, read: _Read) -> None:
        """A read is over: its memory can be used again."""
        del self._reads[number]
        self._agent.releaseXferReq(read.request)
        self._landings.append(read.landing)
        self._ask_s = _ASK_S[0]
        self._leave()

    def _leave(self) -> None:
        """Drop connections that are no longer wanted, once no read is under way."""
        busy = {read.route for read in self._reads.values()}
        for route in [route for route in self._leaving if route not in busy]:
            with suppress(Exception):  # it is gone already
                self._agent.invalidateRemoteMD(self._leaving.pop(route).agent)

    def _land(self) -> _Landing:
        if self._landings:
            return self._landings.pop()
        if not self._landings_left:
            raise OSError("earlier reads hang and hold all memory for new ones")
        self._landings_left -= 1
        landing = _Landing(*self._store.landing(self._landing_bytes))
        self._register(landing.address, self._landing_bytes)
        return landing

    def _register(self, address: int, size: int) -> None:
        regions = [(address, size, self._store.device or 0, "")]
        self._agent.registerMem(self._nixl.nixlRegDList(self._memory(self._store.device), regions), [self._backend])

    def _descriptors(self, found: Int64, device: int | None) -> Any:
        rows = np.full((len(found), 3), device or 0, np.uint64)
        rows[:, :2] = found
        return self._nixl.nixlXferDList(self._memory(device), rows)

    def _memory(self, device: int | None) -> Any:
        return self._nixl.DRAM_SEG if device is None else self._nixl.VRAM_SEG

    def _wait(self, wait_s: float) -> None:
        if self._ready.poll(wait_s * 1000):
            self._waker.clear()


def spans(chunk: Chunk, layout: Layout, regions: Sequence[Region], landing: int) -> tuple[Int64, Int64]:
    """What to read: where it goes to at `landing`, and where it is in the peer's tensors, which have this layout.
    Two int64 arrays [reads, 2] of address and length."""
    pages = np.array(chunk.source_pages, np.int64)
    layers = np.arange(layout.layers, dtype=np.int64)[:, None]
    order = layers * len(pages) + np.arange(len(pages))
    heads = chunk.end - chunk.start
    key_row, value_row = (layout.page_tokens * dim * layout.itemsize for dim in (layout.key_dim, layout.value_dim))
    values = landing + layout.layers * len(pages) * heads * key_row
    found = []
    for region in regions:
        first, last = max(chunk.start, region.start), min(chunk.end, region.end)
        source = (layers * layout.pages + pages) * (region.end - region.start) + first - region.start
        for base, to, row in ((region.keys_address, landing, key_row), (region.values_address, values, value_row)):
            if first < last:
                here, there = to + (order * heads + first - chunk.start) * row, base + source * row
                found.append(merge(here.ravel(), there.ravel(), (last - first) * row))
    return np.concatenate([here for here, _ in found]), np.concatenate([there for _, there in found])


def merge(here: Int64, there: Int64, length: int) -> tuple[Int64, Int64]:
    """Reads of one length, by their addresses; those that follow one another on both sides are made one."""
    broken = (np.diff(here) != length) | (np.diff(there) != length)
    starts = np.flatnonzero(np.append(True, broken))
    lengths = np.diff(np.append(starts, len(here))) * length
    return np.stack([here[starts], lengths], 1), np.stack([there[starts], lengths], 1)


def load() -> ModuleType:
    """NIXL's bindings, below the Python API, which fixes how long its thread waits. Raises ValueError if missing."""
    try:
        from nixl import _bindings
    except (ImportError, OSError) as error:
        raise ValueError(
            f"NIXL is not installed ({error}): pip install 'penstock[nixl]', or choose --kv-transport zmq"
        ) from error
    return _bindings  # type: ignore[no-any-return]


def version() -> str:
    from importlib.metadata import version

    return version("nixl")


@contextmanager
def _loopback(only: bool) -> Iterator[None]:
    """UCX, started in here, listens on the loopback interface only, unless its environment says otherwise."""
    if not only or "UCX_NET_DEVICES" in os.environ:
        yield
        return
    os.environ["UCX_NET_DEVICES"] = "lo"
    try:
        yield
    finally:
        del os.environ["UCX_NET_DEVICES"]
