"""Pages through ZeroMQ sockets: works wherever two processes can talk. Over ipc:// on one host, else over tcp:// with
CURVE, where all processes of a deployment have one key pair and others are refused.

    Fetch (number, pages, heads) ->
                                 <- Fetched (number, error), then the chunk's bytes in a frame of their own
"""

from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil

import msgspec
import numpy as np
import zmq
from zmq.utils import z85

from penstock.engine.transport.base import Arrival, Chunk, Route, Waker
from penstock.engine.transport.layout import Layout
from penstock.engine.transport.store import Store

#: A public and a secret key, as of zmq.curve_keypair().
Curve = tuple[bytes, bytes]

#: Messages that wait for one peer. It has asked for them all, and asks for few at a time.
_QUEUE = 64
#: No peer asks for so much at once, but for a single page.
_REPLY_BYTES = 64 << 20


class Fetch(msgspec.Struct, frozen=True, array_like=True):
    """Send heads [start, end) of these pages."""

    number: int
    pages: list[int]
    start: int
    end: int


class Fetched(msgspec.Struct, frozen=True, array_like=True):
    """The frame behind has the bytes, unless there was an error."""

    number: int
    error: str = ""


class ZmqWire:
    """One socket that serves peers, and one to each rank of a peer."""

    name = "zmq"

    def __init__(self, store: Store, at: str, curve: Curve | None = None) -> None:
        """Listens `at` ipc://path or tcp://host:port; port * is any. Raises ValueError, saying what to change, or
        OSError, if it cannot."""
        if not at.startswith(("ipc://", "tcp://")) or at.startswith(("tcp://*", "tcp://0.0.0.0", "tcp://[::]")):
            raise ValueError(
                f"{at!r}: listen at ipc://path, or at tcp://host:port with a host that peers can connect to"
            )
        if at.startswith("tcp://") and curve is None:
            raise ValueError(f"{at!r}: over TCP, pages need CURVE keys")
        self._store = store
        self._curve = curve
        self._routes: dict[Route, zmq.Socket[bytes]] = {}
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._poller = zmq.Poller()
        self._waker = Waker()
        self._poller.register(self._waker.fd, zmq.POLLIN)
        self._gate = self._socket(zmq.REP)
        self._gate.bind("inproc://zeromq.zap.01")
        self._server = self._socket(zmq.ROUTER)
        if curve is not None:
            self._server.curve_server = True
            self._server.curve_publickey, self._server.curve_secretkey = curve
        try:
            with _os_error(at):
                self._server.bind(at)
        except OSError:
            self.close()
            raise
        self._decoder = msgspec.msgpack.Decoder(Fetch)
        self.where: bytes = self._server.getsockopt(zmq.LAST_ENDPOINT).rstrip(b"\0")  # type: ignore[union-attr]
        through = "ipc sockets, on this host" if at.startswith("ipc://") else "tcp sockets with CURVE, any host"
        self.capability = f"zmq {zmq.zmq_version()}: pages copied through {through}"

    def open(self, route: Route, where: bytes, layout: Layout) -> None:
        socket = self._socket(zmq.DEALER)
        if self._curve is not None:
            socket.curve_publickey, socket.curve_secretkey = self._curve
            socket.curve_serverkey = self._curve[0]
        self._routes[route] = socket
        with _os_error(where.decode(errors="replace")):
            socket.connect(where.decode(errors="replace"))

    def shut(self, route: Route) -> None:
        socket = self._routes.pop(route, None)
        if socket is not None:
            self._poller.unregister(socket)
            socket.close()

    def fetch(self, chunk: Chunk) -> None:
        message = Fetch(chunk.number, chunk.source_pages, chunk.start, chunk.end)
        with _os_error("its queue is full"):
            self._routes[chunk.route].send(msgspec.msgpack.encode(message), zmq.NOBLOCK)

    def poll(self, wait_s: float) -> Iterator[Arrival]:
        ready = dict(self._poller.poll(ceil(wait_s * 1000)))
        if self._waker.fd in ready:
            self._waker.clear()
        if self._gate in ready:
            self._admit()
        if self._server in ready:
            self._serve()
        for socket in [socket for socket in self._routes.values() if socket in ready]:
            yield from self._receive(socket)

    def wake(self) -> None:
        self._waker.wake()

    def close(self) -> None:
        for socket in (*self._routes.values(), self._server, self._gate):
            socket.close()
        self._context.term()
        self._waker.close()

    def _socket(self, kind: int) -> "zmq.Socket[bytes]":
        socket: zmq.Socket[bytes] = self._context.socket(kind)
        socket.linger = 0
        socket.sndhwm = socket.rcvhwm = _QUEUE
        self._poller.register(socket, zmq.POLLIN)
        return socket

    def _admit(self) -> None:
        """Whether a client may connect (ZeroMQ's ZAP, RFC 27): CURVE has proved that it has the key it shows."""
        version, request, _, _, _, mechanism, *credentials = self._gate.recv_multipart()
        ours = self._curve is not None and mechanism == b"CURVE" and credentials == [z85.decode(self._curve[0])]
        code, text = (b"200", b"OK") if ours else (b"400", b"not a key of this deployment")
        self._gate.send_multipart([version, request, code, text, b"", b""])

    def _serve(self) -> None:
        """One request: in between, what has come for us is seen to."""
        client, *frames = self._server.recv_multipart()
        try:
            asked = self._decoder.decode(frames[0])
        except (msgspec.DecodeError, IndexError):
            return  # nothing that a peer would send
        wrong = refusal(self._store.layout, asked)
        reply: list[bytes | memoryview] = [client, msgspec.msgpack.encode(Fetched(asked.number, wrong))]
        if not wrong:
            reply.append(self._store.gather(asked.pages, asked.start, asked.end).data)
        self._server.send_multipart(reply, copy=False)

    def _receive(self, socket: "zmq.Socket[bytes]") -> Iterator[Arrival]:
        header, *data = socket.recv_multipart(zmq.NOBLOCK, copy=False)
        found = msgspec.msgpack.decode(header.buffer, type=Fetched)
        chunk = np.frombuffer(data[0].buffer, np.uint8) if data else None
        yield Arrival(found.number, chunk, found.error)


@contextmanager
def _os_error(about: str) -> Iterator[None]:
    """ZeroMQ's errors, which are no OSError, as one."""
    try:
        yield
    except zmq.ZMQError as error:
        raise OSError(error.errno, f"{error.strerror} ({about})") from error


def refusal(layout: Layout, asked: Fetch) -> str:
    """Why these pages cannot be sent; "" if they can."""
    if not layout.start <= asked.start < asked.end <= layout.end:
        return f"heads {asked.start} to {asked.end - 1} are not here"
    if not all(0 <= page < layout.pages for page in asked.pages):
        return f"pages here run from 0 to {layout.pages - 1}"
    if len(asked.pages) > 1 and len(asked.pages) * layout.page_bytes(asked.end - asked.start) > _REPLY_BYTES:
        return f"more than {_REPLY_BYTES} bytes at once"
    return ""
