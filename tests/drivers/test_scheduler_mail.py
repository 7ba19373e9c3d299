"""The scheduler, in a process of its own, hears of jobs from their homes and of those homes' ends from the keeper."""

import asyncio
from pathlib import Path

import pytest
from letters import mailboxes, next_of

from penstock.core.commands import Dispatch
from penstock.core.config import ClusterConfig
from penstock.core.events import Arrived, Asked, Ended, Joined, Load, Moved
from penstock.core.spec import JobSpec, Unit
from penstock.drivers import messages as m
from penstock.drivers.scheduler import SchedulerConfig, SchedulerProcess

#: The first job of a home, by the home's number.
FIRST = [number << 40 for number in range(3)]


def job(number: int) -> JobSpec:
    return JobSpec(id=number, units=(Unit("lm", 100),), known=50, arrival=0)


@pytest.mark.parametrize("policy", ["fcfs", "distserve"])
async def test_a_home_that_has_ended_leaves_no_job(policy: str, tmp_path: Path) -> None:
    """Whatever of its letters, and of those about its jobs, is read after the word on its end."""
    homes = [m.home_name(number) for number in (1, 2)]
    reads = {m.CONTROL: m.ToControl, homes[0]: m.ToBranch, homes[1]: m.ToBranch}
    with mailboxes(tmp_path, reads) as boxes:
        keeper, gone, other = boxes
        config = SchedulerConfig(
            cluster=ClusterConfig(policy=policy), bind=f"ipc://{tmp_path}/s", keeper=keeper.address
        )
        process = SchedulerProcess(config)
        running = asyncio.create_task(process.run())
        try:
            address = (await next_of(keeper, m.Attach)).address
            for box in boxes:
                box.connect("scheduler", address)
            for instance, role in enumerate(("prefill", "decode")):
                keeper.send("scheduler", Joined(instance, role, Load(pages=100, pages_free=100)))
            # A job that this scheduler knows only by what instances ask; then the end of its home.
            keeper.send("scheduler", Asked(0, FIRST[1], 1, 50, 100))
            keeper.send("scheduler", m.Detach(homes[0]))
            keeper.send("scheduler", Asked(0, FIRST[1] + 1, 1, 50, 100))
            keeper.send("scheduler", m.Attach(keeper.address))
            keeper.send("scheduler", m.Ping(0))
            await next_of(keeper, m.Pong)
            other.send("scheduler", m.Attach(other.address))
            other.send("scheduler", Arrived(job(FIRST[2])))
            await next_of(other, Dispatch)
            late = [m.Attach(gone.address), Arrived(job(FIRST[1] + 2)), Moved(FIRST[1], 1), Ended(FIRST[2])]
            for letter in late:
                gone.send("scheduler", letter)
            core = process._scheduler.core
            async with asyncio.timeout(20):
                while core.jobs:  # noqa: ASYNC110
                    await asyncio.sleep(0.005)
            assert [member.expected.waiting for member in core.members.values()] == [0, 0]
            assert [member.expected.pages_free for member in core.members.values()] == [100, 100]
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            process._mailbox.close()
