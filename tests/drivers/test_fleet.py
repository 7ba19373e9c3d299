"""Many instances: killed, hung, drained, restarted, added and removed under load, and every stream gets its tokens."""

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator, Awaitable, Callable

import psutil
import pytest

from penstock.core.config import Limits, MoveLimits
from penstock.drivers.fleet import FleetConfig
from penstock.drivers.home import Home
from penstock.drivers.stream import JobFailed, Stream
from penstock.drivers.worker import WorkerConfig
from penstock.engine.null import NullOptions
from penstock.engine.params import Sampling

#: 2 ms a step.
NULL = NullOptions(pages=1024, cost=(2e6, 1e3, 0.0, 1e4, 0.0))

Launch = Callable[..., Awaitable[Home]]


def expected(stream: Stream) -> list[int]:
    """What the null engine answers."""
    return [(stream.id * 31 + i * 7) % NULL.vocab for i in range(stream.sampling.max_tokens)]


async def read(stream: Stream) -> list[int]:
    return [token async for chunk in stream for token in chunk.tokens]


@pytest.fixture
async def launch() -> AsyncIterator[Launch]:
    """Starts homes of so many instances; afterwards all pages are free and no process is left."""
    homes: list[Home] = []

    async def started(instances: int = 3, **changes: object) -> Home:
        worker = WorkerConfig(engine=NULL, **{"limits": Limits(max_num_seqs=8)} | changes)
        homes.append(Home(worker, FleetConfig(roles=("",) * instances, watchdog_s=1.0)))
        await homes[-1].start()
        await homes[-1].wait_ready(60)
        return homes[-1]

    yield started
    for home in homes:
        await until(lambda home=home: idle(home))
        await home.stop()
    assert not [p for p in psutil.Process().children() if "penstock.drivers.worker" in " ".join(p.cmdline())]


def idle(home: Home) -> bool:
    up = [instance.load for instance in home.instances if instance.state == "up"]
    return not any(load.running or load.waiting or load.pages_free < load.pages for load in up)


async def until(condition: Callable[[], bool], within_s: float = 30.0) -> None:
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110  what is waited for is in other processes
            await asyncio.sleep(0.01)


def submit(home: Home, count: int, tokens: int = 300) -> list[Stream]:
    draw = random.Random(count)
    return [home.submit([1] * draw.randint(1, 200), Sampling(max_tokens=draw.randint(1, tokens))) for _ in range(count)]


async def check(streams: list[Stream]) -> None:
    answers = await asyncio.gather(*map(read, streams))
    assert answers == [expected(stream) for stream in streams]


def up(home: Home) -> list[int]:
    return [instance.instance for instance in home.instances if instance.state == "up"]


def pid(home: Home, instance: int) -> int:
    return next(found.pid for found in home.instances if found.instance == instance)


async def test_load_is_spread_and_answered(launch: Launch) -> None:
    home = await launch()
    streams = submit(home, 60)
    assert {stream.instance for stream in streams} == {0, 1, 2}
    await check(streams)
    assert [instance.load.seen for instance in home.instances] == [20, 20, 20]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
async def test_workers_that_are_killed_or_hang_lose_no_token(launch: Launch, how: signal.Signals) -> None:
    home = await launch()
    streams = submit(home, 80, 1500)
    checking = asyncio.create_task(check(streams))
    draw = random.Random(0)
    for _ in range(3):
        await asyncio.sleep(0.6)
        os.kill(pid(home, draw.choice(up(home))), how)
    await checking
    assert home.fleet.restarts >= 2
    await until(lambda: len(up(home)) == 3)


async def test_all_die_at_once(launch: Launch) -> None:
    home = await launch()
    streams = submit(home, 40)
    await asyncio.sleep(0.1)
    for instance in up(home):
        os.kill(pid(home, instance), signal.SIGKILL)
    await check(streams)


async def test_a_drained_instance_gives_its_jobs_away_and_goes(launch: Launch) -> None:
    home = await launch()
    streams = submit(home, 30, 1500)
    there = [stream for stream in streams if stream.instance == 1]
    done, *_, longest = sorted(there, key=lambda stream: stream.sampling.max_tokens or 0)
    await check([done])
    home.fleet.drain(1)
    late = submit(home, 20)
    assert {stream.instance for stream in late} == {0, 2}
    await check([stream for stream in streams if stream is not done] + late)
    assert (done.instance, done.epoch) == (1, 1)
    # Those that it finished, and those that were moved, once. One had seconds to go.
    assert {(stream.instance, stream.epoch) for stream in there} <= {(1, 1), (0, 2), (2, 2)}
    assert longest.epoch == 2
    await until(lambda: len(home.instances) == 2)
    assert up(home) == [0, 2]
    assert home.fleet.restarts == 0


async def test_a_removed_instance_goes_at_once_and_its_jobs_go_on(launch: Launch) -> None:
    home = await launch()
    streams = submit(home, 30)
    home.fleet.remove(1)
    await check(streams)
    assert up(home) == [0, 2]
    with pytest.raises(KeyError):
        home.fleet.remove(1)


async def test_an_added_instance_takes_its_part(launch: Launch) -> None:
    home = await launch(1)
    home.fleet.add()
    await until(lambda: up(home) == [0, 1])
    streams = submit(home, 20)
    assert {stream.instance for stream in streams} == {0, 1}
    await check(streams)


async def test_a_rolling_restart_loses_nothing(launch: Launch) -> None:
    home = await launch()
    first = submit(home, 40, 600)
    checks = [asyncio.create_task(check(first))]
    home.fleet.restart()
    while up(home) != [3, 4, 5]:
        checks.append(asyncio.create_task(check(submit(home, 5, 200))))
        await asyncio.sleep(0.1)
    await asyncio.gather(*checks)
    assert home.fleet.restarts == 0


async def test_a_lone_instance_restarts_while_requests_wait(launch: Launch) -> None:
    home = await launch(1)
    early = submit(home, 8, 100)
    home.fleet.restart()
    await until(lambda: home.state == "restarting")
    await check(early + submit(home, 8, 100))
    assert up(home) == [1]


async def test_replayed_jobs_that_find_queues_full_wait_for_room(launch: Launch) -> None:
    """Twice as much is running and waiting as one instance alone can hold."""
    home = await launch(2, limits=Limits(max_num_seqs=2, max_num_queued=6))
    streams = [home.submit([1], Sampling(max_tokens=100)) for _ in range(12)]
    await until(lambda: home.capacity.running == 4)
    os.kill(pid(home, 0), signal.SIGKILL)
    await check(streams)


async def test_without_any_instance_requests_wait_for_one(launch: Launch) -> None:
    home = await launch(1)
    home.fleet.drain(0)
    await until(lambda: not home.instances)
    assert home.state == "restarting"
    streams = submit(home, 5)
    home.fleet.add()
    await check(streams)


async def test_an_engine_that_refuses_a_job_does_so_on_any_instance(launch: Launch) -> None:
    home = await launch(2)
    for _ in range(2):
        with pytest.raises(JobFailed, match="makes its tokens up"):
            await read(home.submit([1], Sampling(max_tokens=5, logprobs=1)))


async def test_a_role_that_is_given_before_an_instance_is_up_reaches_it() -> None:
    worker = WorkerConfig(engine=NULL, policy="distserve", moves=MoveLimits())
    home = Home(worker, FleetConfig(roles=("", "")))
    await home.start()
    try:
        await until(lambda: len(home.instances) == 2)
        first, second = (found.instance for found in home.instances)
        home.fleet.assign(first, "prefill")
        home.fleet.assign(second, "decode")
        await home.wait_ready(60)
        await check(submit(home, 5))
        await until(lambda: home.instances[0].moves.taken == 5)
    finally:
        await home.stop()
