"""A home in a process of its own hears of instances from the keeper and of jobs from the scheduler, in any order."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from letters import mailboxes, next_of

from penstock.core.commands import Dispatch, Lost
from penstock.core.events import Arrived
from penstock.drivers import messages as m
from penstock.drivers.branch import Branch, BranchConfig
from penstock.drivers.stream import Stream
from penstock.drivers.wire import Mailbox
from penstock.engine.null import NullOptions, null_info
from penstock.engine.params import Sampling

NEVER_S = 1e6


async def until(condition: Any) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


class World:
    """A branch, and the mailboxes of everyone that it talks to."""

    def __init__(self, branch: Branch, boxes: list[Mailbox[Any]]) -> None:
        self.branch = branch
        self.keeper, self.scheduler, self.worker = boxes

    async def submitted(self) -> Stream:
        """A stream that the scheduler has been asked about."""
        stream = self.branch.submit([1] * 10, Sampling(max_tokens=5))
        assert (await next_of(self.scheduler, Arrived)).spec.id == stream.id
        return stream

    def up(self, instance: int) -> None:
        self.keeper.send("branch", m.Up(instance, self.worker.address))

    def place(self, stream: Stream, instance: int) -> None:
        self.scheduler.send("branch", Dispatch(stream.spec, instance))


@asynccontextmanager
async def world(folder: Path) -> AsyncIterator[World]:
    with mailboxes(folder, {m.CONTROL: m.ToControl, m.SCHEDULER: m.ToScheduler, "i0": m.ToWorker}) as boxes:
        keeper, scheduler, _ = boxes
        branch = Branch(BranchConfig(number=3, bind=f"ipc://{folder}/b", keeper=keeper.address, secret=b"x"))
        await branch.start()
        try:
            address = (await next_of(keeper, m.Attach)).address
            for box in boxes:
                box.connect("branch", address)
            info = null_info(NullOptions(pages=64))
            keeper.send("branch", m.Status("ready", "", 0, True, info, None, [], scheduler.address))
            await until(lambda: branch.state == "ready")
            yield World(branch, boxes)
        finally:
            await branch.stop()


@pytest.mark.parametrize("told", [True, False])
async def test_a_job_that_is_sent_where_nobody_is_any_more(
    told: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The instance's end was heard of before the job was sent there. `told`: the scheduler says that the job is lost;
    or it has died too, and the next roll finds out."""
    monkeypatch.setattr("penstock.drivers.home.ROLL_S", NEVER_S if told else 0.05)
    async with world(tmp_path) as there:
        stream = await there.submitted()
        there.place(stream, 0)
        if told:
            await until(lambda: stream.instance == 0)
            there.scheduler.send("branch", Lost(stream.id, 0))
        again = await next_of(there.scheduler, Arrived)
        assert (again.spec.id, again.again, stream.instance) == (stream.id, True, None)


async def test_a_job_that_is_sent_to_an_instance_before_that_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penstock.drivers.home.ROLL_S", NEVER_S)
    async with world(tmp_path) as there:
        stream = await there.submitted()
        there.place(stream, 0)
        await until(lambda: stream.instance == 0)
        there.up(0)
        submit = await next_of(there.worker, m.Submit)
        assert (submit.spec.id, submit.epoch) == (stream.id, stream.epoch)


async def test_a_job_whose_instance_is_there_is_not_lost_by_word_of_a_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was there is replayed when the keeper says that the instance has gone."""
    monkeypatch.setattr("penstock.drivers.home.ROLL_S", NEVER_S)
    async with world(tmp_path) as there:
        there.up(0)
        stream, other = await there.submitted(), await there.submitted()
        await next_of(there.worker, m.Attach)
        there.place(stream, 0)
        there.scheduler.send("branch", Lost(stream.id, 0))
        there.place(other, 0)
        await until(lambda: other.instance == 0)
        assert (stream.instance, stream.epoch) == (0, 1)
        there.keeper.send("branch", m.Gone(0, ""))
        again = [await next_of(there.scheduler, Arrived) for _ in range(2)]
        assert [(arrived.spec.id, arrived.again) for arrived in again] == [(stream.id, True), (other.id, True)]
