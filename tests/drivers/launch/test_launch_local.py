"""Real worker processes on this host: they say hello, can be killed, and none outlives its launcher or its home."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator

import psutil
import pytest
from meeting import Meeting

from penstock.drivers.launch.base import Launched, Launcher
from penstock.drivers.launch.local import LocalLauncher


@pytest.fixture
async def launcher() -> AsyncIterator[LocalLauncher]:
    launcher = LocalLauncher()
    yield launcher
    await launcher.close()


async def test_a_worker_finds_its_configuration_and_says_hello(launcher: LocalLauncher, meeting: Meeting) -> None:
    workers = [await launcher.launch(meeting.config(n)) for n in range(2)]
    assert sorted(await meeting.hellos(2)) == [0, 1]
    assert all(psutil.pid_exists(worker.pid) for worker in workers)
    assert {worker.address for worker in workers} == {launcher.address} == {"127.0.0.1"}


@pytest.mark.parametrize("stopped", [False, True])
async def test_a_killed_worker_is_seen_to_end(launcher: LocalLauncher, meeting: Meeting, stopped: bool) -> None:
    worker = await launcher.launch(meeting.config(0))
    waiting = [asyncio.create_task(worker.wait()) for _ in range(2)]
    await meeting.hellos(1)
    if stopped:
        os.kill(worker.pid, signal.SIGSTOP)
    worker.kill()
    assert await asyncio.gather(*waiting) == [-signal.SIGKILL] * 2
    worker.kill()
    assert await worker.wait() == -signal.SIGKILL


async def test_a_worker_sees_the_devices_that_it_is_given(launcher: LocalLauncher, meeting: Meeting) -> None:
    worker = await launcher.launch(meeting.config(0), devices=["2", "3"])
    await meeting.hellos(1)  # only once it runs can its environment be read
    assert psutil.Process(worker.pid).environ()["CUDA_VISIBLE_DEVICES"] == "2,3"


async def test_a_configuration_that_makes_no_sense_ends_the_worker(launcher: LocalLauncher) -> None:
    worker = await launcher.launch(b"{}")
    assert await worker.wait() > 0


async def test_closing_ends_all(meeting: Meeting) -> None:
    launcher: Launcher = LocalLauncher()
    workers: list[Launched] = [await launcher.launch(meeting.config(n)) for n in range(3)]
    await meeting.hellos(3)
    workers[0].kill()
    await launcher.close()
    await launcher.close()
    assert [await worker.wait() for worker in workers] == [-signal.SIGKILL] * 3
    assert not any(psutil.pid_exists(worker.pid) for worker in workers)


HOME = """
import asyncio, sys
from penstock.drivers.launch.local import LocalLauncher

async def main():
    worker = await LocalLauncher().launch(sys.argv[1].encode())
    print(worker.pid, flush=True)
    await worker.wait()

asyncio.run(main())
"""


async def test_a_worker_ends_with_its_home(meeting: Meeting) -> None:
    command = (sys.executable, "-c", HOME, meeting.config(0).decode())
    home = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    assert home.stdout is not None
    worker = psutil.Process(int(await home.stdout.readline()))
    await meeting.hellos(1)
    home.kill()
    await home.wait()
    with contextlib.suppress(psutil.NoSuchProcess):
        await asyncio.to_thread(worker.wait, 30)
    assert not worker.is_running()
