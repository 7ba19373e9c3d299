"""Pages come over byte for byte, between processes, whatever the split of heads; and failures end in an error."""

import os
import queue
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import msgspec
import numpy as np
import peers
import psutil
import pytest
import zmq
from peers import HEADS, PAGES, Process, Ranks, Spec

from penstock.engine.transport.base import Address, Limits
from penstock.engine.transport.choose import start_transport
from penstock.engine.transport.store import HostStore, Piece, no_store
from penstock.engine.transport.tensors import store_of
from penstock.engine.transport.zmq import Fetch

NIXL = pytest.mark.skipif(find_spec("nixl") is None, reason="needs NIXL")
TRANSPORTS = ["zmq", pytest.param("nixl", marks=NIXL)]
#: Over TCP, NIXL's reads need the source's process, as between hosts without RDMA.
SLOW_READS = [*TRANSPORTS, pytest.param("nixl over tcp", marks=NIXL)]
#: A page is 3 layers x 4 tokens x 14 x 4 bytes x heads: chunks of a page or two.
SMALL = Limits(chunk_bytes=6000, timeout_s=30)

Make = Callable[..., Ranks | Process]


@pytest.fixture(params=TRANSPORTS)
def transport(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "nixl over tcp":
        monkeypatch.setenv("UCX_TLS", "tcp,self")
    return str(request.param).split()[0]


@pytest.fixture
def make(transport: str, tmp_path: Path) -> Iterator[Make]:
    """Makes peers that are closed in the end; `process` gives each a process of its own."""
    made: list[Ranks | Process] = []

    def build(process: bool = False, **changes: object) -> Ranks | Process:
        spec = Spec(transport=transport, folder=str(tmp_path), name=str(len(made)), seed=len(made), **changes)
        made.append(Process(spec) if process else Ranks(spec))
        return made[-1]

    yield build
    for one in made:
        one.close()


def some_pages(seed: int, count: int) -> tuple[list[int], list[int]]:
    """Distinct pages there and here, in no order; page 0 is nobody's."""
    draw = random.Random(seed)
    return draw.sample(range(1, PAGES), count), draw.sample(range(1, PAGES), count)


def check(here: Ranks, before: peers.Tensors, there_seed: int, source: list[int], own: list[int]) -> None:
    """All ranks have the source's pages in their own, and nothing else has changed."""
    theirs = peers.whole(there_seed)
    for piece in [piece for store in here.stores for piece in store.pieces]:
        heads = slice(piece.start, piece.end)
        for now, was, came in zip(piece[1:], before, theirs, strict=True):
            expected = was[:, :, heads].copy()
            expected[:, own] = came[:, source, heads]
            np.testing.assert_array_equal(now, expected)


@pytest.mark.parametrize(("theirs", "ours"), [(1, 1), (1, 2), (2, 1), (2, 2), (4, 2), (8, 1), (1, 8)])
@pytest.mark.parametrize("pieces", [(False, False), (True, False), (False, True)])
def test_pages_come_over_whatever_the_split(make: Make, theirs: int, ours: int, pieces: tuple[bool, bool]) -> None:
    here, there = make(ranks=ours, pieces=pieces[0], limits=SMALL), make(ranks=theirs, pieces=pieces[1])
    here.connect(5, there.addresses())
    source, own = some_pages(theirs, 17)
    assert here.pull(5, source, own) == [""] * ours
    check(here, peers.whole(0), 1, source, own)


@pytest.mark.parametrize("limits", [SMALL, Limits(), Limits(chunk_bytes=1, in_flight=1, pulls=1)])
def test_from_another_process(make: Make, limits: Limits) -> None:
    here, there = make(limits=limits), make(process=True)
    here.connect(0, there.addresses)
    source, own = some_pages(3, 30)
    done: queue.SimpleQueue[str] = queue.SimpleQueue()
    for i in range(0, 30, 3):  # many at once
        here.transports[0].pull(0, source[i : i + 3], own[i : i + 3], done.put)
    assert [done.get(timeout=60) for _ in range(10)] == [""] * 10
    check(here, peers.whole(0), 1, source, own)


def test_no_pages_are_no_work(make: Make) -> None:
    here, there = make(), make()
    here.connect(0, there.addresses())
    assert here.pull(0, [], []) == [""]


def test_peers_come_and_go(make: Make) -> None:
    here = make(limits=SMALL)
    assert here.pull(7, [1], [1]) == ["peer 7 is not connected"]
    for seed in (1, 2):
        there = make(process=True)
        before = tuple(tensor.copy() for tensor in here.stores[0].pieces[0][1:])
        here.connect(7, there.addresses)  # the same number, started anew, sometimes without a word of the first's end
        source, own = some_pages(seed, 9)
        assert here.pull(7, source, own) == [""]
        check(here, before, seed, source, own)
        if seed == 1:
            here.transports[0].forget(7)
            assert here.pull(7, source, own) == ["peer 7 is not connected"]
        there.close()


def test_two_pull_from_each_other(make: Make) -> None:
    one, two = make(limits=SMALL), make(limits=SMALL)
    one.connect(2, two.addresses())
    two.connect(1, one.addresses())
    done: queue.SimpleQueue[str] = queue.SimpleQueue()
    pages, free = list(range(1, 20)), list(range(20, 39))
    one.transports[0].pull(2, pages, free, done.put)
    two.transports[0].pull(1, pages, free, done.put)
    assert [done.get(timeout=60), done.get(timeout=60)] == ["", ""]
    check(one, peers.whole(0), 1, pages, free)
    check(two, peers.whole(1), 0, pages, free)


@pytest.mark.parametrize("transport", SLOW_READS, indirect=True)
@pytest.mark.parametrize("told", [False, True])
def test_peer_killed_during_a_pull(make: Make, told: bool) -> None:
    """A slow pull, so that the death comes in the middle; with a word of it the pull ends at once, else in time."""
    here = make(limits=Limits(chunk_bytes=1, bytes_per_s=20_000, timeout_s=1.0))
    there = make(process=True)
    here.connect(0, there.addresses)
    done: queue.SimpleQueue[str] = queue.SimpleQueue()
    source, own = some_pages(1, 38)
    here.transports[0].pull(0, source, own, done.put)
    there.kill()
    if told:
        here.transports[0].forget(0)
    assert done.get(timeout=60)
    other = make(process=True)
    here.connect(1, other.addresses)
    pull_at_last(here, 1, [1], [1])
    assert done.empty()


@pytest.mark.parametrize("transport", SLOW_READS, indirect=True)
def test_nothing_is_written_once_a_pull_has_failed(make: Make) -> None:
    """A peer that is stopped, and wakes up when its pages are no longer wanted."""
    here, there = make(limits=Limits(timeout_s=0.2)), make(process=True)
    here.connect(0, there.addresses)
    os.kill(there.process.pid, signal.SIGSTOP)
    try:
        errors = here.pull(0, [1, 2], [3, 4])
    finally:
        os.kill(there.process.pid, signal.SIGCONT)
    if errors == [""]:
        check(here, peers.whole(0), 1, [1, 2], [3, 4])  # a read that asks nobody
        return
    assert errors == ["the peer sent nothing for 0.2 s"]
    pull_at_last(here, 0, [5], [6])
    check(here, peers.whole(0), 1, [5], [6])


def test_bandwidth_is_limited(make: Make) -> None:
    """Ten pages of 2,688 bytes, one by one, at 50,000 bytes/s: nine wait for the one before."""
    here, there = make(limits=Limits(chunk_bytes=1, bytes_per_s=50_000)), make()
    here.connect(0, there.addresses())
    began = time.monotonic()
    assert here.pull(0, list(range(1, 11)), list(range(1, 11))) == [""]
    assert time.monotonic() - began > 9 * 2688 / 50_000 - 0.02


def test_closing_ends_pulls(make: Make) -> None:
    here, there = make(limits=Limits(chunk_bytes=1, bytes_per_s=10)), make()
    here.connect(0, there.addresses())
    done: queue.SimpleQueue[str] = queue.SimpleQueue()
    for _ in range(3):
        here.transports[0].pull(0, [1, 2], [3, 4], done.put)
    here.transports[0].close()
    here.transports[0].pull(0, [1, 2], [3, 4], done.put)
    here.transports[0].close()
    assert [done.get(timeout=0) for _ in range(4)] == ["the transport is closed"] * 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": "bfloat16"}, "dtype is bfloat16 there and float32 here"),
        ({"page_tokens": 8}, "page_tokens is 8 there and 4 here"),
    ],
)
def test_another_layout_is_refused(make: Make, changes: dict[str, object], message: str) -> None:
    here, there = make(), make(**changes)
    with pytest.raises(ValueError, match=message):
        here.connect(0, there.addresses())


def test_a_part_of_the_ranks_is_refused(make: Make) -> None:
    here, there = make(), make(ranks=2)
    with pytest.raises(ValueError, match="heads 2 to 3 are on none of the peer's 1 ranks"):
        here.connect(0, there.addresses()[:1])


def test_another_version_is_refused(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = make(), make()
    addresses = there.addresses()
    monkeypatch.setattr("penstock.__version__", "9.9")
    with pytest.raises(ValueError, match=r"the peer is Penstock .*, this is 9\.9"):
        here.connect(0, addresses)
    with pytest.raises(ValueError, match="not the address"):
        here.connect(0, [b"\x93abc"])


def test_pages_that_are_not_there_are_refused(make: Make) -> None:
    here, there = make(), make(pages=20)
    here.connect(0, there.addresses())
    assert here.pull(0, [20], [1]) == ["the peer's pages run from 0 to 19"]
    assert here.pull(0, [1], [PAGES]) == [f"our pages run from 0 to {PAGES - 1}"]
    with pytest.raises(ValueError, match="2 pages cannot go to 1"):
        here.pull(0, [1, 2], [1])


def test_waiting_pulls_are_bounded(make: Make) -> None:
    here = make(limits=Limits(chunk_bytes=1, bytes_per_s=10, pulls=1, waiting=2))
    there = make()
    here.connect(0, there.addresses())
    done: queue.SimpleQueue[str] = queue.SimpleQueue()
    for _ in range(4):
        here.transports[0].pull(0, [1, 2], [3, 4], done.put)
    assert done.get(timeout=60) == "3 pulls are under way or waiting: too many"


def pull_at_last(here: Ranks, peer: int, source: list[int], own: list[int]) -> None:
    """On a busy machine, connecting may take longer than limits that are to end what hangs."""
    errors = (here.pull(peer, source, own) for _ in range(50))
    assert [""] in errors


def keys() -> tuple[str, str]:
    public, secret = zmq.curve_keypair()
    return public.decode(), secret.decode()


def answers(where: bytes, server: str, mine: tuple[str, str] | None, wait_ms: int) -> bool:
    """Whether a client with these keys gets pages of the server that has this public key."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.linger = 0
        if mine:
            socket.curve_publickey, socket.curve_secretkey = mine[0].encode(), mine[1].encode()
            socket.curve_serverkey = server.encode()
        socket.connect(where.decode())
        socket.send(msgspec.msgpack.encode(Fetch(1, [1], 0, 1)))
        return bool(socket.poll(wait_ms))


def test_over_tcp_strangers_are_refused(tmp_path: Path) -> None:
    ours = keys()
    common = {"transport": "zmq", "folder": str(tmp_path), "tcp": True, "limits": Limits(timeout_s=20)}
    here, there = Ranks(Spec(curve=ours, **common)), Process(Spec(curve=ours, seed=1, **common))
    here.connect(0, there.addresses)
    assert here.pull(0, [1, 2], [3, 4]) == [""]
    check(here, peers.whole(0), 1, [1, 2], [3, 4])
    where = msgspec.msgpack.decode(there.addresses[0], type=Address).where
    assert answers(where, ours[0], ours, 20_000)
    assert not answers(where, ours[0], keys(), 500)  # keys of its own, though it knows the server's public one
    assert not answers(where, ours[0], None, 500)
    assert here.pull(0, [5], [6]) == [""]
    here.close()
    there.close()
    with pytest.raises(ValueError, match="CURVE keys"):
        Ranks(Spec(**common))


def test_a_transport_must_be_known(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="choose auto, nixl, zmq"):
        Ranks(Spec(transport="pigeon", folder=str(tmp_path)))


@NIXL
def test_nixl_on_one_host_listens_to_nobody_else(tmp_path: Path) -> None:
    with Process(Spec(transport="nixl", folder=str(tmp_path))) as there:
        sockets = psutil.Process(there.process.pid).net_connections("tcp")
        listening = {socket.laddr.ip for socket in sockets if socket.status == psutil.CONN_LISTEN}
        assert listening <= {"127.0.0.1", "::1"}


def test_auto_says_what_and_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = HostStore(peers.layout(Spec(transport="", folder=""), 0, HEADS), [Piece(0, *peers.whole(0))])
    curve = zmq.curve_keypair()

    def chosen(store: HostStore, at: str) -> tuple[str, str]:
        said: list[str] = []
        transport = start_transport("auto", store, at, curve if "tcp" in at else None, say=said.append)
        transport.close()
        return transport.name, said[0]

    here = f"ipc://{tmp_path}/here"
    if find_spec("nixl") is not None:
        name, said = chosen(store, here)
        assert name == "nixl"
        assert said.startswith("KV pages travel by nixl 1")
        assert "on this host (installed, and costs the source nothing)" in said
    name, said = chosen(store, "tcp://127.0.0.1:*")
    assert name == "zmq"
    assert "tcp sockets with CURVE" in said
    assert "NIXL neither encrypts nor authenticates" in said
    assert chosen(no_store(), here)[0] == "zmq"
    monkeypatch.setitem(sys.modules, "nixl", None)
    name, said = chosen(store, here)
    assert name == "zmq"
    assert "pip install 'penstock[nixl]'" in said
    with pytest.raises(ValueError, match="NIXL is not installed"):
        start_transport("nixl", store, here)


def test_where_nobody_can_listen_or_be_reached(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file or directory"):
        Ranks(Spec(transport="zmq", folder=str(tmp_path / "missing")))
    with pytest.raises(ValueError, match="a host that peers can connect to"):
        start_transport("zmq", no_store(), "tcp://0.0.0.0:*", zmq.curve_keypair())
    here = Ranks(Spec(transport="zmq", folder=str(tmp_path), limits=Limits(timeout_s=0.2)))
    known = msgspec.msgpack.decode(here.addresses()[0], type=Address)
    for where, error in ((b"pigeon://x", "Protocol not supported"), (b"\xff", "Invalid argument")):
        here.connect(0, [msgspec.msgpack.encode(msgspec.structs.replace(known, where=where))])
        (told,) = here.pull(0, [1], [1])
        assert told.startswith("the peer cannot be reached: ")
        assert error in told
    nobody = f"ipc://{tmp_path}/nobody".encode()
    here.connect(0, [msgspec.msgpack.encode(msgspec.structs.replace(known, where=nobody))])
    assert here.pull(0, [1], [1]) == ["the peer sent nothing for 0.2 s"]
    here.close()


def test_peers_of_another_transport_are_refused(tmp_path: Path) -> None:
    here, there = (Ranks(Spec(transport="zmq", folder=str(tmp_path), name=name)) for name in "ab")
    other = msgspec.structs.replace(msgspec.msgpack.decode(there.addresses()[0], type=Address), transport="nixl")
    with pytest.raises(ValueError, match="give all instances one --kv-transport"):
        here.connect(0, [msgspec.msgpack.encode(other)])
    here.close()
    there.close()


def test_engines_without_tensors(tmp_path: Path) -> None:
    """A null engine has no pages, and its moves bring none."""
    one, two = (start_transport("auto", store_of([]), f"ipc://{tmp_path}/{name}") for name in "ab")
    one.connect(2, [two.address()])
    done: queue.SimpleQueue[str] = queue.SimpleQueue()
    one.pull(2, [], [], done.put)
    assert done.get(timeout=60) == ""
    one.close()
    two.close()
