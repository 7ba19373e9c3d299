"""What live processes tell of a request: every chunk, every move, every preemption and replay, and what was slow."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from penstock.core.config import Limits, MoveLimits
from penstock.core.move import MoveEnded
from penstock.core.slo import MS, Bounds
from penstock.core.spec import JobSpec, Unit
from penstock.drivers.fleet import FleetConfig
from penstock.drivers.home import Home
from penstock.drivers.story import Note, Stories, Story, Told
from penstock.drivers.stream import Stream
from penstock.drivers.worker import WorkerConfig
from penstock.engine.null import NullOptions
from penstock.engine.params import Sampling

#: 2 ms a step.
NULL = NullOptions(pages=256, cost=(2e6, 1e4, 0.0, 1e4, 0.0))


@asynccontextmanager
async def running(
    roles: tuple[str, ...], policy: str, record: Path | None = None, pages: int = 256
) -> AsyncIterator[Home]:
    engine = NullOptions(pages=pages, cost=NULL.cost)
    limits = Limits(max_num_batched_tokens=64)
    # As if nobody knew what computing again takes: then whole pages are copied.
    worker = WorkerConfig(
        engine=engine, policy=policy, limits=limits, record=str(record) if record else "", moves=MoveLimits()
    )
    home = Home(worker, FleetConfig(roles=roles))
    await home.start()
    try:
        await home.wait_ready(60)
        yield home
    finally:
        await home.stop()


async def read(stream: Stream) -> int:
    return sum([len(chunk.tokens) async for chunk in stream])


async def told(home: Home, stream: Stream, moves: int = 0) -> Told:
    """What a source says of a move may come after the end."""
    async with asyncio.timeout(20):
        while sum(mark.move is not None for mark in stream.story.marks) < moves:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    return home.stories.told(stream.story)


def check(found: Told) -> None:
    """What is true of every story."""
    assert [event.at_ms for event in found.events] == sorted(event.at_ms for event in found.events)
    assert found.events[0].what == "queued"
    assert found.ttft is not None
    assert found.ttft.queue_ms + found.ttft.compute_ms + found.ttft.else_ms == pytest.approx(found.ttft.ms, abs=0.01)
    for event in found.events:
        assert event.until_ms is None or event.until_ms > event.at_ms


async def test_a_prompt_in_chunks_then_tokens() -> None:
    async with running(("",), "fcfs") as home:
        stream = home.submit([1] * 200, Sampling(max_tokens=20))
        assert await read(stream) == 20
        found = await told(home, stream)
    check(found)
    whats = [event.what for event in found.events]
    assert whats[:2] == ["queued", "placed"]
    assert sum(event.tokens for event in found.events if event.what == "chunk") == 200
    assert whats.count("chunk") == 4
    assert whats.index("first token") > max(i for i, what in enumerate(whats) if what == "chunk")
    assert (whats[-1], found.outcome, found.output_tokens) == ("completed", "completed", 20)
    assert found.tpot is not None
    assert found.tpot.median_ms >= 2.0


async def test_a_hand_off_has_its_phases_and_what_is_computed_again() -> None:
    async with running(("prefill", "decode"), "distserve") as home:
        over: list[MoveEnded] = []
        home.on_moved = over.append
        stream = home.submit([1] * 100, Sampling(max_tokens=10))
        await read(stream)
        found = await told(home, stream, 1)
        (move,) = [event for event in found.events if event.what == "move"]
        source, to = [i.instance for i in home.instances]
        async with asyncio.timeout(20):
            while not home.instances[0].moves.taken:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        counts = home.instances[0].moves
        assert home.instances[0].load.moves == 1
    check(found)
    assert (move.instance, move.to, move.why, move.failed) == (source, to, "hand-off", "")
    assert {"copy", "switch"} <= set(move.phases_ms) <= {"reserve", "copy", "stop", "switch", "release"}
    # Clocks of one host agree, so what the source heard late does not count.
    assert 0 < move.down_ms <= move.phases_ms["switch"] + move.phases_ms.get("release", 0.0) + 0.01
    # Whole pages are copied, what is left of the prompt is computed again there.
    assert (move.copied, move.computed_again) == (96, 4)
    again = [event for event in found.events if event.what == "chunk" and event.instance == to]
    assert [event.tokens for event in again] == [5]
    assert [(m.job, m.copied, m.again) for m in over] == [(stream.id, 96, 4)]
    assert (counts.taken, counts.copied, counts.again, counts.aborted) == (1, 96, 4, {})


async def test_a_killed_instance_is_in_the_story_and_counted() -> None:
    async with running(("", ""), "fcfs") as home:
        stream = home.submit([1] * 30, Sampling(max_tokens=200))
        await stream.__anext__()
        victim = stream.instance
        os.kill(next(i.pid for i in home.instances if i.instance == victim), signal.SIGKILL)
        assert await read(stream) == 199
        found = await told(home, stream)
        assert home.replays == {"instance ended": 1}
    check(found)
    replayed = next(event for event in found.events if event.what == "replayed")
    assert (replayed.instance, replayed.why) == (victim, "instance ended")
    placed = [event for event in found.events if event.what == "placed"]
    assert [event.why for event in placed] == ["new", "again"]
    assert placed[1].instance != victim
    assert found.tpot is not None
    longest = max(found.tpot.gaps, key=lambda gap: gap.ms)
    assert any("replayed" in what for what in longest.happened)


async def test_preemptions_are_in_the_story() -> None:
    async with running(("",), "priority", pages=24) as home:
        streams = [home.submit([1] * 60, Sampling(max_tokens=100), priority=9 - n) for n in range(5)]
        assert await asyncio.gather(*map(read, streams)) == [100] * 5
        found = [await told(home, stream) for stream in streams]
        preempted = sum(event.what == "preempted" for story in found for event in story.events)
        assert preempted == home.capacity.preemptions > 0
    for story in found:
        check(story)


def spec(job: int, known: int = 10) -> JobSpec:
    return JobSpec(id=job, units=(Unit("lm", known + 20),), known=known, arrival=0)


def test_late_says_where_the_time_went() -> None:
    stories = Stories()
    mine, other = Story(spec(1)), Story(spec(2))
    stories.add(mine)
    stories.add(other)
    mine.tell("placed", 1 * MS, 3, "new")
    mine.note(Note(1, 40 * MS, 50 * MS, 10), 3, 0)
    mine.times.extend([51 * MS, 61 * MS, 161 * MS, 171 * MS, 301 * MS])
    other.note(Note(2, 0, 95 * MS, 500), 3, 65 * MS)
    mine.moved(MoveEnded(1, 4, "balance", "", 48, 3, (1 * MS, 9 * MS, 0, 100 * MS, 10 * MS), 105 * MS), 3, 295 * MS)
    mine.end("completed", 301 * MS)
    found = stories.told(mine, Bounds(50 * MS, 20 * MS))
    assert found.ttft is not None
    assert found.tpot is not None
    assert (found.ttft.late, found.ttft.queue_ms, found.ttft.compute_ms, found.ttft.else_ms) == (True, 40.0, 10.0, 1.0)
    assert (found.tpot.late, found.tpot.ms, found.tpot.median_ms) == (True, 62.5, 55.0)
    assert [(gap.token, gap.ms) for gap in found.tpot.gaps] == [(2, 100.0), (4, 130.0)]
    assert found.tpot.gaps[0].happened == ["500 prompt tokens of other requests"]
    assert found.tpot.gaps[1].happened == ["move from 3 to 4 (balance), standing still for 105.0 ms"]


def test_only_so_many_are_kept() -> None:
    stories = Stories(3)
    for job in range(5):
        stories.add(Story(spec(job)))
    assert [stories.get(job) is not None for job in range(5)] == [False, False, True, True, True]


def test_events_of_one_moment_keep_their_order() -> None:
    story = Story(spec(1))
    for what in ("placed", "preempted", "replayed"):
        story.tell(what, 5)
    whats = [event.what for event in Stories().told(story).events]
    assert whats == ["queued", "placed", "preempted", "replayed"]
