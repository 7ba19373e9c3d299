"""The live driver with real worker processes: tokens in order, cancellation, kills, hangs, draining, nothing left."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import msgspec
import psutil
import pytest

import penstock
from penstock.core.config import Limits
from penstock.drivers import messages as m
from penstock.drivers.fleet import FleetConfig
from penstock.drivers.home import Home
from penstock.drivers.log import replay
from penstock.drivers.stream import Busy, JobFailed, Stream, Unavailable
from penstock.drivers.wire import Mailbox
from penstock.drivers.worker import WorkerConfig
from penstock.engine.null import NullOptions
from penstock.engine.options import EngineOptions
from penstock.engine.params import Sampling

FAST = NullOptions(pages=512, cost=(1e6, 1e3, 0.0, 1e4, 0.0))


def expected(job: int, tokens: int) -> list[int]:
    """What the null engine answers."""
    return [(job * 31 + i * 7) % FAST.vocab for i in range(tokens)]


async def read(stream: Stream) -> list[int]:
    return [token async for chunk in stream for token in chunk.tokens]


Launch = Callable[..., Awaitable[Home]]


@pytest.fixture
async def launch() -> AsyncIterator[Launch]:
    """Starts homes; afterwards none has left a process."""
    homes: list[Home] = []

    async def started(worker: WorkerConfig, config: FleetConfig | None = None, ready: bool = True) -> Home:
        homes.append(Home(worker, config))
        await homes[-1].start()
        if ready:
            await homes[-1].wait_ready(30)
        return homes[-1]

    yield started
    for home in homes:
        if home.state != "stopped":
            await home.stop()
    assert not [p for p in psutil.Process().children() if "penstock.drivers.worker" in " ".join(p.cmdline())]


@pytest.fixture
async def home(launch: Launch) -> Home:
    return await launch(WorkerConfig(engine=FAST), FleetConfig(watchdog_s=1.0))


async def until(condition: Callable[[], bool], within_s: float = 20.0) -> None:
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end, f"not within {within_s} s"
        await asyncio.sleep(0.01)


async def settled(home: Home, within_s: float = 10.0) -> None:
    """Until the worker reports that it has no job, with all pages free or evictable."""

    def idle() -> bool:
        load = home.capacity
        return not load.running and not load.waiting and load.pages == load.pages_free == FAST.pages

    await until(idle, within_s)


async def test_every_token_once_and_in_order(home: Home) -> None:
    streams = [home.submit(list(range(1, 60)), Sampling(max_tokens=n)) for n in (1, 2, 17, 80)]
    answers = await asyncio.gather(*map(read, streams))
    assert answers == [expected(s.id, n) for s, n in zip(streams, (1, 2, 17, 80), strict=True)]
    await settled(home)


async def test_leaving_a_stream_frees_its_pages(home: Home) -> None:
    stream = home.submit([1] * 200, Sampling(max_tokens=4000))
    await stream.__anext__()
    stream.close()
    stream.close()
    await settled(home, 2.0)


async def test_what_the_engine_refuses_fails_that_job_alone(home: Home) -> None:
    good = home.submit([1, 2, 3], Sampling(max_tokens=30))
    bad = home.submit([1, 2, 3], Sampling(max_tokens=30, logprobs=1))
    with pytest.raises(JobFailed, match="makes its tokens up"):
        await read(bad)
    assert await read(good) == expected(good.id, 30)
    await settled(home)


async def test_a_job_larger_than_the_cache_is_rejected_with_the_numbers(home: Home) -> None:
    with pytest.raises(JobFailed, match="8192"):
        await read(home.submit([1] * 100, Sampling(max_tokens=9000)))


async def test_a_full_queue_is_refused_at_once(launch: Launch) -> None:
    slow = NullOptions(cost=(5e7, 0.0, 0.0, 0.0, 0.0))
    limits = Limits(max_num_seqs=2, max_num_queued=3)
    home = await launch(WorkerConfig(engine=slow, limits=limits))
    # All in one turn of the loop: none can have begun to run.
    streams = [home.submit([1], Sampling(max_tokens=50)) for _ in range(3)]
    with pytest.raises(Busy, match="queue full") as refusal:
        home.submit([1], Sampling(max_tokens=50))
    assert refusal.value.retry_s >= 1
    await home.stop()
    for stream in streams:
        with pytest.raises(JobFailed, match="shutting down"):
            await read(stream)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
async def test_jobs_of_a_dead_or_hung_worker_go_on_in_the_next(home: Home, how: signal.Signals) -> None:
    for round_number in range(2):
        streams = [home.submit([1, 2, 3], Sampling(max_tokens=500)) for _ in range(8)]
        await asyncio.gather(*(s.__anext__() for s in streams))
        os.kill(home.instances[0].pid, how)
        answers = await asyncio.gather(*map(read, streams))
        assert answers == [expected(s.id, 500)[1:] for s in streams]
        assert home.fleet.restarts == round_number + 1
    await settled(home)


async def test_a_job_that_workers_die_of_fails_and_no_other(launch: Launch) -> None:
    """Its prompt would take a minute; while it does, the worker is killed, again and again."""
    slow = NullOptions(pages=512, cost=(1e6, 3e8, 0.0, 1e4, 0.0))
    home = await launch(WorkerConfig(engine=slow, limits=Limits(max_num_seqs=1)))
    poison = home.submit([1] * 200, Sampling(max_tokens=5))
    waiting = home.submit([1], Sampling(max_tokens=5))
    for _ in range(3):
        await until(lambda: poison.began)
        victim = home.instances[0].pid
        os.kill(victim, signal.SIGKILL)
        while any(instance.pid == victim for instance in home.instances):
            await home.changed()
    with pytest.raises(JobFailed, match=r"SIGKILL.* 3 times in a row"):
        await read(poison)
    assert await read(waiting) == expected(waiting.id, 5)


async def test_a_job_that_went_missing_is_found_at_the_next_roll(home: Home) -> None:
    """As if the home had never sent it, or the tokens had been lost on their way."""
    streams = [home.submit([1, 2, 3], Sampling(max_tokens=2000)) for _ in range(3)]
    await asyncio.gather(*(s.__anext__() for s in streams))
    home._tell(home.instances[0].instance, m.Cancel(streams[1].id, streams[1].epoch))
    answers = await asyncio.gather(*map(read, streams))
    assert answers == [expected(s.id, 2000)[1:] for s in streams]
    assert [s.epoch for s in streams] == [1, 3, 1]
    await settled(home)


async def test_a_job_that_the_home_does_not_know_is_dropped_at_the_next_roll(home: Home) -> None:
    stream = home.submit([1, 2, 3], Sampling(max_tokens=4000))
    await stream.__anext__()
    del home._streams[stream.id]
    await settled(home)


async def test_a_silent_home_has_its_jobs_dropped_and_others_have_not(launch: Launch, tmp_path: Path) -> None:
    home = await launch(WorkerConfig(engine=FAST, lease_s=1.5))
    mine = home.submit([1, 2, 3], Sampling(max_tokens=3000))
    other: Mailbox[m.ToHome] = Mailbox("h7", f"ipc://{tmp_path}/h7", m.ToHome)
    other.connect("i0", other_address(home, "i0"))
    other.send("i0", m.Attach(other.address))
    spec = msgspec.structs.replace(mine.spec, id=7 << 40)
    other.send("i0", m.Submit(spec, 1, [1, 2, 3], 3, Sampling(max_tokens=1 << 12)))
    await until(lambda: home.capacity.running == 2)
    await until(lambda: home.capacity.running == 1)
    assert await read(mine) == expected(mine.id, 3000)
    other.send("i0", m.Roll([(spec.id, 1)]))
    told = []
    while not isinstance(told[-1] if told else None, m.Absent):
        await asyncio.sleep(0.01)
        told += [letter.message for letter in iter(other.receive, None)]
    assert told[-1].jobs == [(spec.id, 1)]
    tokens = [
        token for message in told if isinstance(message, m.Stepped) for _, o in message.outputs for token in o.tokens
    ]
    assert 0 < len(tokens) < 1 << 12
    assert tokens == expected(spec.id, len(tokens))
    other.close()
    await settled(home)


def other_address(home: Home, name: str) -> str:
    return f"{home._mailbox.address.rpartition('/')[0]}/{name}"


async def test_a_worker_of_another_version_is_refused(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(penstock, "__version__", "0.0.0")
    home = await launch(WorkerConfig(engine=FAST), ready=False)
    with pytest.raises(Unavailable, match=r"this is 0\.0\.0"):
        await home.wait_ready(60)


async def test_draining_lets_what_runs_finish_and_takes_nothing_new(home: Home) -> None:
    stream = home.submit([1, 2, 3], Sampling(max_tokens=40))
    await stream.__anext__()
    draining = asyncio.create_task(home.drain(20))
    await asyncio.sleep(0)
    with pytest.raises(Unavailable):
        home.submit([1], Sampling(max_tokens=1))
    assert await read(stream) == expected(stream.id, 40)[1:]
    await draining


async def test_a_model_that_is_not_there_is_said_and_not_tried_again(launch: Launch) -> None:
    home = await launch(WorkerConfig(engine=EngineOptions(model="/no/such/model")), ready=False)
    with pytest.raises(Unavailable, match="no such"):
        await home.wait_ready(60)
    assert home.state == "failed"


async def test_a_worker_that_never_gets_ready_is_given_up(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONHOME", "/no/such/python")
    home = await launch(WorkerConfig(engine=FAST), ready=False)
    with pytest.raises(Unavailable, match="3 times"):
        await home.wait_ready(60)


async def test_the_worker_ends_with_its_home() -> None:
    """Even if the home is killed and the worker is stopped at that moment."""
    script = (
        "import asyncio\n"
        "from penstock.drivers.home import Home\n"
        "from penstock.drivers.worker import WorkerConfig\n"
        "from penstock.engine.null import NullOptions\n"
        "async def main():\n"
        "    home = Home(WorkerConfig(engine=NullOptions()))\n"
        "    await home.start(); await home.wait_ready(30)\n"
        "    print(home.instances[0].pid, flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    pid = int(await process.stdout.readline())
    os.kill(pid, signal.SIGSTOP)
    process.kill()
    await process.communicate()
    for _ in range(100):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return
        await asyncio.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    raise AssertionError("the worker outlived its home")


async def test_a_recorded_run_replays_to_the_same_commands(launch: Launch, tmp_path: Path) -> None:
    """With cancellations, reuse of prefixes, preemption and a kill in it."""
    small = NullOptions(pages=40, cost=(5e5, 1e3, 0.0, 1e4, 0.0))
    record = tmp_path / "run.log"
    home = await launch(WorkerConfig(engine=small, policy="priority", record=str(record), depth=2))
    streams = [home.submit(list(range(130)), Sampling(max_tokens=60 + n), priority=n % 3) for n in range(12)]
    for stream in streams[::4]:
        await stream.__anext__()
        stream.close()
    answers = await asyncio.gather(*(read(s) for i, s in enumerate(streams) if i % 4))
    assert answers == [expected(s.id, 60 + i) for i, s in enumerate(streams) if i % 4]
    assert home.capacity.preemptions > 0
    os.kill(home.instances[0].pid, signal.SIGKILL)
    while home.state == "ready":
        await home.changed()
    assert len(await read(home.submit([1, 2], Sampling(max_tokens=3)))) == 3
    await home.stop()
    logs = [record, *sorted(tmp_path.glob("run.log.instance*"))]
    assert len(logs) == 3
    for log in logs:
        found = replay(log)
        assert found.difference is None
        assert found.events > 0
