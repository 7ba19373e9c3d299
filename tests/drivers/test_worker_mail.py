"""A worker process hears of others in two ways, from their homes and from the control, which are not in order."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from letters import mailboxes, next_of
from msgspec import json
from msgspec.structs import replace

from penstock.core.config import MoveLimits
from penstock.core.move import Aborted, Offload, PeerLeft, Reserve, Reserved
from penstock.core.spec import JobSpec, Unit
from penstock.drivers import messages as m
from penstock.drivers.launch.local import LocalLauncher
from penstock.drivers.wire import Mailbox
from penstock.drivers.worker import WorkerConfig
from penstock.engine.null import NullOptions
from penstock.engine.params import Sampling

SPEC = JobSpec(id=1, units=(Unit("lm", 5_000),), known=40, arrival=0)
SUBMIT = m.Submit(SPEC, 1, [1] * 40, 40, Sampling(max_tokens=4_000))


class World:
    """A worker, instance 0, and the mailboxes of everyone that it talks to."""

    def __init__(self, control: Mailbox[Any], home: Mailbox[Any], other: Mailbox[Any]) -> None:
        self.control = control
        self.home = home
        #: Of instance 1.
        self.other = other

    def introduce(self) -> None:
        self.control.send("i0", m.Neighbour(1, self.other.address, []))

    async def read_all(self, sender: Mailbox[Any]) -> None:
        """Wait until the worker has read what was sent so far: what one sender sends is in order."""
        sender.send("i0", m.Ping(1))
        await next_of(sender, m.Pong)


@asynccontextmanager
async def world(folder: Path) -> AsyncIterator[World]:
    reads = {m.CONTROL: m.ToControl, "home": m.ToHome | m.Pong, "i1": m.ToWorker | m.Pong}
    with mailboxes(folder, reads) as boxes:
        control, home, other = boxes
        launcher = LocalLauncher()
        config = WorkerConfig(engine=NullOptions(pages=512), control=control.address, moves=MoveLimits())
        try:
            await launcher.launch(json.encode(config))
            address = (await next_of(control, m.Hello)).address
            for box in boxes:
                box.connect("i0", address)
            home.send("i0", m.Attach(home.address))
            yield World(control, home, other)
        finally:
            await launcher.close()


@pytest.mark.parametrize("arrives", [False, True])
async def test_what_is_for_an_instance_waits_until_that_is_known(arrives: bool, tmp_path: Path) -> None:
    """A job is to go to instance 1, or comes from there, before the control has said where that is."""
    async with world(tmp_path) as there:
        if arrives:
            there.home.send("i0", m.Peer(Reserve(1 << 40, 1, SPEC, 40), []))
        else:
            there.home.send("i0", SUBMIT)
            await next_of(there.home, m.Began)
            there.home.send("i0", Offload(1, 1, why="drain"))
        await there.read_all(there.home)
        there.introduce()
        event = (await next_of(there.other, m.Peer)).event
        assert isinstance(event, Reserved if arrives else Reserve)


async def test_a_job_is_to_go_to_an_instance_that_has_left(tmp_path: Path) -> None:
    """It stays free to go elsewhere, not only when a lease ends."""
    async with world(tmp_path) as there:
        there.control.send("i0", PeerLeft(1))
        there.control.send("i0", m.Neighbour(2, there.other.address, []))
        await there.read_all(there.control)
        there.home.send("i0", SUBMIT)
        await next_of(there.home, m.Began)
        for instance in (1, 2):
            there.home.send("i0", Offload(instance, 1, why="drain"))
        assert isinstance((await next_of(there.other, m.Peer)).event, Reserve)


async def test_what_an_instance_sent_before_it_left_reserves_nothing(tmp_path: Path) -> None:
    async with world(tmp_path) as there:
        there.introduce()
        there.control.send("i0", PeerLeft(1))
        await there.read_all(there.control)
        there.other.send("i0", m.Attach(there.other.address))
        there.other.send("i0", m.Peer(Reserve(1 << 40, 1, SPEC, 40), []))
        await there.read_all(there.other)
        there.home.send("i0", SUBMIT)
        loads = [(await next_of(there.control, m.Loaded)).load for _ in range(2)]
        assert [load.arriving for load in loads] == [0, 0]
        assert loads[-1].running


async def test_a_home_that_has_ended_leaves_no_job(tmp_path: Path) -> None:
    """What it sent is read after the control's word on its end."""
    async with world(tmp_path) as there:
        await there.read_all(there.home)
        there.control.send("i0", m.Detach("home"))
        await there.read_all(there.control)
        there.home.send("i0", SUBMIT)
        there.home.send("i0", m.Attach(there.home.address))
        await there.read_all(there.home)
        there.home.send("i0", m.Submit(replace(SPEC, id=2), 1, [1] * 40, 40, Sampling(max_tokens=4_000)))
        await next_of(there.home, m.Began)
        there.home.send("i0", m.Roll([(1, 1), (2, 1)]))
        assert (await next_of(there.home, m.Absent)).jobs == [(1, 1)]


async def test_a_job_that_arrives_ends_with_its_home(tmp_path: Path) -> None:
    """The home has switched, and pages are still to come."""
    async with world(tmp_path) as there:
        there.introduce()
        await there.read_all(there.control)
        there.home.send("i0", m.Peer(Reserve(1 << 40, 1, SPEC, 40), []))
        there.home.send("i0", replace(SUBMIT, move=1 << 40))
        await there.read_all(there.home)
        there.control.send("i0", m.Detach("home"))
        told = [(await next_of(there.other, m.Peer)).event for _ in range(2)]
        assert isinstance(told[0], Reserved)
        assert told[1] == Aborted(1 << 40, "cancelled")
