"""Jobs that move between live instances, with KV that is really carried: the tokens are those of an undisturbed engine.

In float64, so that what else is in a batch does not decide between two tokens that are as good as equal.
"""

import asyncio
import os
import random
import signal
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import torch

from penstock.core.config import Limits, MoveLimits
from penstock.drivers.fleet import FleetConfig
from penstock.drivers.home import Home
from penstock.drivers.launch.base import Launcher
from penstock.drivers.launch.local import LocalLauncher
from penstock.drivers.local import Local
from penstock.drivers.stream import Stream
from penstock.drivers.worker import WorkerConfig
from penstock.engine.options import EngineOptions
from penstock.engine.params import Sampling
from penstock.engine.start import start_engine

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))

from tiny_llama import VOCAB, build

#: A prompt, and how it samples.
Ask = tuple[list[int], Sampling]


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> EngineOptions:
    folder = build(tmp_path_factory.mktemp("tiny-llama"))
    return EngineOptions(
        model=str(folder), dtype="float64", backend="plain", pages=160, page_tokens=4, block_tokens=16, threads=1
    )


def asks(count: int, seed: int) -> list[Ask]:
    """Every other one is greedy; prompts have beginnings in common."""
    draw = random.Random(seed)
    common = [draw.randrange(3, VOCAB) for _ in range(64)]
    found = []
    for number in range(count):
        prompt = common[: draw.choice((0, 20, 64))] + [draw.randrange(3, VOCAB) for _ in range(draw.randint(1, 60))]
        way = {"temperature": 0.0} if number % 2 else {"temperature": 0.9, "top_p": 0.95, "seed": number}
        if number % 5 == 0:
            way |= {"repetition_penalty": 1.1, "presence_penalty": 0.3}
        logprobs = 2 if number % 7 == 0 else None
        sampling = Sampling(max_tokens=draw.randint(1, 90), ignore_eos=True, logprobs=logprobs, **way)
        found.append((prompt, sampling))
    return found


@pytest.fixture(scope="module")
def expected(options: EngineOptions) -> Callable[[Sequence[Ask]], list[list[int]]]:
    """What one engine answers that nobody disturbs."""
    torch.set_num_threads(1)
    engine = start_engine(options)

    def answers(asks: Sequence[Ask]) -> list[list[int]]:
        local = Local(engine)
        jobs = [local.submit(prompt, sampling) for prompt, sampling in asks]
        tokens: dict[int, list[int]] = {job: [] for job in jobs}
        for output in local.run():
            tokens[output.job] += output.tokens
        engine.clear()
        return [tokens[job] for job in jobs]

    return answers


@asynccontextmanager
async def running(
    options: EngineOptions, roles: tuple[str, ...], policy: str, transport: str, launcher: Launcher | None = None
) -> AsyncIterator[Home]:
    """Afterwards every instance has all its pages."""
    # Computing again would be cheaper for so small a model: here copies are what is looked at.
    limits, moves = Limits(max_num_seqs=12), MoveLimits()
    worker = WorkerConfig(engine=options, policy=policy, limits=limits, transport=transport, moves=moves)
    home = Home(worker, FleetConfig(roles=roles), launcher)
    await home.start()
    try:
        await home.wait_ready(120)
        yield home
        await until(lambda: home.fleet.settled and all(free(home)))
    finally:
        await home.stop()


def free(home: Home) -> list[bool]:
    """Of each instance, whether no job and no page is left there."""
    loads = [instance.load for instance in home.instances]
    return [load.pages_free == load.pages and not load.running | load.waiting | load.arriving for load in loads]


async def until(condition: Callable[[], bool], within_s: float = 60.0) -> None:
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110  what is waited for is in other processes
            await asyncio.sleep(0.02)


async def read(stream: Stream) -> list[int]:
    tokens, logprobs = [], 0
    async for chunk in stream:
        tokens += chunk.tokens
        logprobs += len(chunk.logprobs or ())
    assert logprobs == (0 if stream.sampling.logprobs is None else len(tokens))
    return tokens


@pytest.mark.parametrize(("transport", "instances"), [("zmq", 3), ("auto", 2), ("", 2)])
async def test_jobs_that_move_all_the_time(
    options: EngineOptions, expected: Callable[[Sequence[Ask]], list[list[int]]], transport: str, instances: int
) -> None:
    """And without a transport, when what has moved is computed again."""
    wanted = asks(24, 1)
    async with running(options, ("",) * instances, "flood", transport) as home:
        streams = [home.submit(*ask) for ask in wanted]
        answers = await asyncio.gather(*map(read, streams))
        assert answers == expected(wanted)
        assert sum(stream.epoch - 1 for stream in streams) >= len(streams) // 3
        assert home.fleet.restarts == 0


async def test_jobs_that_move_while_instances_die(
    options: EngineOptions, expected: Callable[[Sequence[Ask]], list[list[int]]]
) -> None:
    wanted = asks(50, 2)
    async with running(options, ("", "", ""), "flood", "zmq") as home:
        streams = [home.submit(*ask) for ask in wanted]
        reading = asyncio.gather(*map(read, streams))
        draw = random.Random(3)
        for how in (signal.SIGKILL, signal.SIGSTOP):
            await asyncio.sleep(1.0)
            there = [instance.pid for instance in home.instances if instance.state == "up"]
            os.kill(draw.choice(there), how)
        assert await reading == expected(wanted)
        assert home.fleet.restarts >= 1


class Elsewhere(LocalLauncher):
    """As if workers were on other hosts: everything goes over tcp."""

    name = "elsewhere"


async def test_jobs_that_move_between_hosts(
    options: EngineOptions, expected: Callable[[Sequence[Ask]], list[list[int]]]
) -> None:
    wanted = asks(16, 5)
    async with running(options, ("", ""), "flood", "auto", Elsewhere()) as home:
        streams = [home.submit(*ask) for ask in wanted]
        assert await asyncio.gather(*map(read, streams)) == expected(wanted)
        assert sum(stream.epoch - 1 for stream in streams) >= len(streams) // 3


async def test_prompts_here_and_the_rest_there(
    options: EngineOptions, expected: Callable[[Sequence[Ask]], list[list[int]]]
) -> None:
    wanted = asks(16, 4)
    async with running(options, ("prefill", "decode"), "distserve", "zmq") as home:
        streams = [home.submit(*ask) for ask in wanted]
        assert await asyncio.gather(*map(read, streams)) == expected(wanted)
        # One dispatch, and one hand-off where there was more than one token to be made.
        assert [stream.epoch for stream in streams] == [1 + (s.max_tokens > 1) for _, s in wanted]
        prefill, decode = home.instances
        assert decode.load.seen == sum(s.max_tokens > 1 for _, s in wanted)
        assert prefill.load.ended == prefill.load.seen == len(wanted)
