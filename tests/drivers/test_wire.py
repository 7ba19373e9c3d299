"""Mailboxes on real sockets: order, no drops, who is let in, what is not understood."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import zmq

from penstock.drivers.wire import Keys, Letter, Mailbox


class Note(msgspec.Struct, frozen=True, array_like=True, tag="note"):
    number: int


class Word(msgspec.Struct, frozen=True, array_like=True, tag="word"):
    text: str


KEYS = Keys.make()


@pytest.fixture(params=["ipc", "tcp"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Mailbox, Mailbox]]:
    """Two mailboxes, the second of which can write to the first."""
    keys = KEYS if request.param == "tcp" else None
    where = [f"ipc://{tmp_path}/{name}" if keys is None else "tcp://127.0.0.1:*" for name in "ab"]
    boxes = [Mailbox(name, bind, Note | Word, keys) for name, bind in zip("ab", where, strict=True)]
    boxes[1].connect("a", boxes[0].address)
    yield boxes[0], boxes[1]
    for box in boxes:
        box.close()


def wait_for_letter(box: Mailbox, within_ms: int = 5000) -> Letter:
    assert box.inbox.poll(within_ms), "nothing came"
    letter = box.receive()
    assert letter is not None
    return letter


def test_letters_come_in_order_and_name_their_sender(pair: tuple[Mailbox, Mailbox]) -> None:
    reader, writer = pair
    for number in range(100):
        writer.send("a", Note(number) if number % 2 else Word(str(number)))
    letters = [wait_for_letter(reader) for _ in range(100)]
    assert {letter.sender for letter in letters} == {"b"}
    assert [letter.message for letter in letters] == [Note(n) if n % 2 else Word(str(n)) for n in range(100)]
    assert reader.receive() is None


def test_nothing_is_dropped_though_nobody_reads(pair: tuple[Mailbox, Mailbox]) -> None:
    reader, writer = pair
    for number in range(20_000):
        writer.send("a", Note(number))
    assert [wait_for_letter(reader).message.number for _ in range(20_000)] == list(range(20_000))


def test_what_was_sent_before_closing_gets_out(pair: tuple[Mailbox, Mailbox], tmp_path: Path) -> None:
    reader, _ = pair
    third: Mailbox[Note] = Mailbox("c", f"ipc://{tmp_path}/c", Note, KEYS if "tcp" in reader.address else None)
    third.connect("a", reader.address)
    third.send("a", Note(1))
    third.close(linger_s=5.0)
    assert wait_for_letter(reader) == Letter("c", Note(1))


def test_a_letter_to_nobody_is_lost_and_one_to_the_dead_waits_for_nobody(pair: tuple[Mailbox, Mailbox]) -> None:
    reader, writer = pair
    writer.send("nobody", Note(1))
    writer.connect("dead", "ipc:///tmp/penstock-nobody-listens" if "ipc" in reader.address else "tcp://127.0.0.1:1")
    writer.send("dead", Note(2))
    writer.disconnect("dead")
    writer.disconnect("dead")
    writer.send("a", Note(3))
    assert wait_for_letter(reader).message == Note(3)


def test_what_is_not_understood_is_passed_over(pair: tuple[Mailbox, Mailbox], caplog: pytest.LogCaptureFixture) -> None:
    reader, writer = pair
    writer.send("a", ["of", "another", "version"])
    writer.send("a", Note(1))
    while (letter := reader.receive()) is None:
        reader.inbox.poll(5000)
    assert letter.message == Note(1)
    assert "another version" in caplog.text


@pytest.mark.parametrize("stranger", ["other keys", "public key", "no keys"])
def test_strangers_are_not_let_in(stranger: str) -> None:
    """Nor is one who has found out the public key."""
    reader: Mailbox[Note] = Mailbox("a", "tcp://127.0.0.1:*", Note, KEYS)
    context = zmq.Context()
    socket = context.socket(zmq.PUSH)
    if stranger != "no keys":
        public, secret = zmq.curve_keypair()
        socket.curve_publickey, socket.curve_secretkey = public, secret
        socket.curve_serverkey = public if stranger == "other keys" else KEYS.public.encode()
    socket.connect(reader.address)
    socket.send(msgspec.msgpack.encode(Letter("b", Note(1))))
    friend: Mailbox[Note] = Mailbox("c", "tcp://127.0.0.1:*", Note, KEYS)
    friend.connect("a", reader.address)
    friend.send("a", Note(2))
    assert wait_for_letter(reader) == Letter("c", Note(2))
    assert not reader.inbox.poll(300)
    socket.close(linger=0)
    context.term()
    friend.close()
    reader.close()


def test_between_hosts_there_must_be_keys() -> None:
    with pytest.raises(ValueError, match="keys"):
        Mailbox("a", "tcp://127.0.0.1:*", Note)


def test_an_address_that_is_taken_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot listen on ipc:///no/such"):
        Mailbox("a", "ipc:///no/such/folder/a", Note)


async def test_listening_in_an_event_loop(pair: tuple[Mailbox, Mailbox]) -> None:
    """Even what is there before, and what comes while others are handled; an error in handling one loses none."""
    reader, writer = pair
    loop, caught, got = asyncio.get_running_loop(), [], []
    loop.set_exception_handler(lambda loop, context: caught.append(context["exception"]))
    done = asyncio.Event()

    def on_letter(sender: str, message: Note) -> None:
        got.append(message.number)
        if len(got) == 5000:
            done.set()
        if message.number == 7:
            raise RuntimeError("seven")

    def write() -> None:
        for number in range(5000):
            writer.send("a", Note(number))

    thread = threading.Thread(target=write)
    thread.start()
    end = reader.listen(on_letter)
    await asyncio.wait_for(done.wait(), 20)
    thread.join()
    assert got == list(range(5000))
    assert [str(error) for error in caught] == ["seven"]
    end()
    writer.send("a", Note(0))
    await asyncio.sleep(0.05)
    assert len(got) == 5000
