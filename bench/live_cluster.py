"""A cluster of live instances in this process, for the benches beside this: start, strike, wait, read its logs.

A home with its worker processes, as `penstock serve` has them, without HTTP. Knows no load.
"""

import asyncio
import contextlib
import os
import random
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from penstock.core.commands import Report
from penstock.core.events import Asked, Load, Moved
from penstock.core.move import Aborted, Adopt, Pulled, Tell
from penstock.drivers.fleet import FleetConfig, Instance
from penstock.drivers.home import Home
from penstock.drivers.log import read
from penstock.drivers.stream import Busy, Stream
from penstock.drivers.worker import WorkerConfig
from penstock.engine.params import Sampling

#: What a condition, or a stream's next token, may take on a loaded machine.
PATIENCE_S = 120.0
_LOOK_S = 0.02

Result = TypeVar("Result")
#: A prompt, and how it samples.
Ask = tuple[list[int], Sampling]


def unwind_on_sigterm() -> None:
    """Have SIGTERM end this process as SIGINT does, so that workers end and folders go."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def run(work: Coroutine[Any, Any, Result]) -> Result:
    """As `asyncio.run`, but SIGTERM unwinds it too."""
    unwind_on_sigterm()
    return asyncio.run(work)


@asynccontextmanager
async def cluster(worker: WorkerConfig, config: FleetConfig) -> AsyncIterator[Home]:
    """A home whose instances are all up; ends them."""
    home = Home(worker, config)
    await home.start()
    try:
        await home.wait_ready(PATIENCE_S * len(config.roles))
        yield home
    finally:
        await home.stop()


async def until(condition: Callable[[], bool], what: str, within_s: float = PATIENCE_S) -> None:
    """Raises TimeoutError, saying what did not happen."""
    try:
        async with asyncio.timeout(within_s):
            while not condition():  # noqa: ASYNC110  what is waited for is in other processes
                await asyncio.sleep(_LOOK_S)
    except TimeoutError:
        raise TimeoutError(f"not within {within_s:g} s: {what}") from None


def up(home: Home) -> list[Instance]:
    return [instance for instance in home.instances if instance.state == "up"]


def is_empty(load: Load) -> bool:
    """Whether an instance has no job, and all its pages are free or evictable."""
    return load.pages_free == load.pages and not load.running | load.waiting | load.arriving | load.leaving


async def submit(home: Home, ask: Ask) -> Stream:
    """Raises Busy if it is turned away for longer than anybody's patience."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                return home.submit(*ask)
            except Busy as busy:
                await asyncio.sleep(min(busy.retry_s, 1.0))


async def tokens_of(stream: Stream) -> list[int]:
    """All of them. Raises TimeoutError where the next one does not come, JobFailed where the answer fails."""
    found: list[int] = []
    chunks = aiter(stream)
    with contextlib.suppress(StopAsyncIteration):
        while True:
            async with asyncio.timeout(PATIENCE_S):
                found += (await anext(chunks)).tokens
    return found


@dataclass
class Blows:
    """What workers suffered."""

    kills: int = 0


async def strike(home: Home, blows: Blows, after_s: float, draw: random.Random) -> None:
    """Kill a random worker about so long after all have come up, again and again until this is cancelled."""
    instances, gone = len(up(home)), -1

    def whole() -> bool:
        there = [instance.instance for instance in up(home)]
        return len(there) == instances and gone not in there

    while True:
        await until(whole, "all instances are up")
        await asyncio.sleep(after_s * draw.uniform(0.5, 1.5))
        victim = draw.choice(up(home))
        os.kill(victim.pid, signal.SIGKILL)
        gone = victim.instance
        blows.kills += 1


@dataclass
class Told:
    """What the logs of a run tell. Of a worker that was killed, the last second is missing."""

    #: Jobs that went from one instance to another: those that began to wait there, and those that took KV along.
    switched: int = 0
    adopted: int = 0
    #: Jobs that asked where to go on after their prompt.
    asked: int = 0
    #: Positions whose KV was carried.
    carried: int = 0
    preemptions: int = 0
    #: Moves that came to nothing, by reason.
    aborts: Counter[str] = field(default_factory=Counter)


def told(record: Path) -> Told:
    """Read the logs of a run that was recorded under that name."""
    found = Told()
    for entry in _entries(record):
        found.switched += isinstance(entry.event, Moved)
        found.asked += isinstance(entry.event, Asked)
    for path in record.parent.glob(f"{record.name}.instance*"):
        _read_instance(found, path)
    return found


def _read_instance(found: Told, path: Path) -> None:
    pulls: dict[int, int] = {}
    preemptions = 0
    for entry in _entries(path):
        if isinstance(entry.event, Pulled) and not entry.event.error:
            found.carried += entry.event.upto - pulls.get(entry.event.move, 0)
            pulls[entry.event.move] = entry.event.upto
        for command in entry.commands:
            match command:
                case Adopt(_, _, upto):
                    found.adopted += upto > 0
                case Tell(_, Aborted(_, reason)):
                    found.aborts[reason] += 1
                case Report(load):
                    preemptions = load.preemptions
    found.preemptions += preemptions


def _entries(path: Path) -> Iterator[Any]:
    return iter(read(path)[1])
