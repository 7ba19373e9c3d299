"""How the processes of a deployment talk: each has one inbox, and writes to the inboxes of others.

Sending never waits and never drops for want of room: there is no high-water mark, and what can pile up is bounded by
the limits of queues and by watchdogs, which end who does not read. From one process to another, messages come in the
order in which they were sent; those of two senders in any order, seconds apart where the reader lags: who acts on one
must do with the other coming later, or never. What is under way when a receiver ends, or when the network breaks, is
lost: whoever needs to know asks again, now and then.

On one host, inboxes are ipc:// in a private folder. Between hosts they are tcp:// under CURVE: all processes of a
deployment have the same secret key pair, and nobody else is let in.
"""

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import msgspec
import zmq
import zmq.utils.z85 as z85

log = logging.getLogger("penstock.wire")

T = TypeVar("T")

#: Messages that are handled before others in the event loop get their turn.
_TURN = 256


class Keys(msgspec.Struct, frozen=True):
    """The key pair of a deployment, in Z85. Who has it belongs to the deployment."""

    public: str
    secret: str

    @staticmethod
    def make() -> "Keys":
        public, secret = zmq.curve_keypair()
        return Keys(public.decode(), secret.decode())


class Letter(msgspec.Struct, Generic[T], frozen=True, array_like=True):
    """A message, and who it is from."""

    sender: str
    message: T


class Mailbox(Generic[T]):
    """An inbox, and the ways to others. Used by one thread at a time.

    `bind` is ipc://<path>, or tcp://<interface>:<port or *>, for which there must be `keys`; `reads` is the type of the
    messages that are understood. Raises ValueError if it cannot be bound.
    """

    def __init__(self, name: str, bind: str, reads: Any, keys: Keys | None = None) -> None:
        if keys is None and not bind.startswith("ipc://"):
            raise ValueError(f"{bind}: only ipc:// is private without keys; make some with Keys.make()")
        self.name = name
        self._keys = keys
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        if keys is not None:
            _Guard(self._context, keys)
        #: For a poller.
        self.inbox = self._socket(zmq.PULL, server=True)
        try:
            self.inbox.bind(bind)
        except zmq.ZMQError as error:
            self.close()
            raise ValueError(f"cannot listen on {bind}: {error}") from None
        #: What others connect to; where it was bound to 0.0.0.0 they must know the host.
        self.address = str(self.inbox.getsockopt_string(zmq.LAST_ENDPOINT))
        self._peers: dict[str, zmq.Socket[bytes]] = {}
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(Letter[reads])

    def connect(self, peer: str, address: str) -> None:
        """From now on `send` reaches the peer; what was still on its way to a former address is dropped."""
        self.disconnect(peer)
        socket = self._peers[peer] = self._socket(zmq.PUSH, server=False)
        socket.connect(address)

    def disconnect(self, peer: str) -> None:
        """The peer is gone, and so is what it has not got yet."""
        if (socket := self._peers.pop(peer, None)) is not None:
            socket.close(linger=0)

    def send(self, peer: str, message: Any) -> bool:
        """To a peer that is connected; to others it is lost (False). Never waits."""
        if (socket := self._peers.get(peer)) is None:
            return False
        with contextlib.suppress(zmq.Again):
            socket.send(self._encoder.encode(Letter(self.name, message)), zmq.NOBLOCK)
        return True

    def receive(self) -> Letter[T] | None:
        """The next letter, None if there is none now."""
        while True:
            try:
                letter: Letter[T] = self._decoder.decode(self.inbox.recv(zmq.NOBLOCK))
                return letter
            except zmq.Again:
                return None
            except msgspec.DecodeError as error:
                log.warning(
                    "%s got a message that it does not understand, of another version perhaps: %s", self.name, error
                )

    def listen(self, on_letter: Callable[[str, T], None]) -> Callable[[], None]:
        """Have the running event loop call `on_letter(sender, message)` for what comes. Returns what ends that."""
        loop, fd = asyncio.get_running_loop(), int(self.inbox.fd)
        listening = True

        def pump() -> None:
            """The descriptor tells of news only, so none may be left."""
            left = listening
            try:
                for _ in range(_TURN):
                    if not listening or (letter := self.receive()) is None:
                        left = False
                        return
                    on_letter(letter.sender, letter.message)
            finally:
                if left:
                    loop.call_soon(pump)

        def end() -> None:
            nonlocal listening
            listening = False
            loop.remove_reader(fd)

        loop.add_reader(fd, pump)
        loop.call_soon(pump)
        return end

    def close(self, linger_s: float = 0.0) -> None:
        """What was sent has so long to get out."""
        for socket in (self.inbox, *getattr(self, "_peers", {}).values()):
            socket.close(linger=round(linger_s * 1000))
        self._context.term()

    def _socket(self, kind: int, server: bool) -> "zmq.Socket[bytes]":
        socket = self._context.socket(kind)
        socket.set_hwm(0)
        if self._keys is not None:
            socket.curve_publickey = self._keys.public.encode()
            socket.curve_secretkey = self._keys.secret.encode()
            if server:
                socket.curve_server = True
                socket.zap_domain = b"penstock"
            else:
                socket.curve_serverkey = self._keys.public.encode()
        return socket


class _Guard:
    """Lets in who has the deployment's key (ZeroMQ RFC 27): the library alone would let in whoever knows the public
    one. Ends with its context."""

    def __init__(self, context: "zmq.Context[zmq.Socket[bytes]]", keys: Keys) -> None:
        self._known = z85.decode(keys.public)
        self._socket = context.socket(zmq.REP)
        self._socket.bind("inproc://zeromq.zap.01")
        threading.Thread(target=self._run, name="guard", daemon=True).start()

    def _run(self) -> None:
        with contextlib.suppress(zmq.ContextTerminated):
            while True:
                version, request, _, _, _, mechanism, *credentials = self._socket.recv_multipart()
                known = mechanism == b"CURVE" and credentials == [self._known]
                verdict = (b"200", b"") if known else (b"400", b"unknown key")
                self._socket.send_multipart([version, request, *verdict, b"", b""])
        self._socket.close(linger=0)
