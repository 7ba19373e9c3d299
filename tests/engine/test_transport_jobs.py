"""Jobs travel between real engines, one of them split over two ranks: same tokens as if they had stayed."""

import queue
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import tiny

from penstock.engine.runner import TransformersEngine
from penstock.engine.transport.base import Limits, Transport
from penstock.engine.transport.choose import start_transport
from penstock.engine.transport.tensors import store_of

PAGE_TOKENS = 4


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[TransformersEngine]]:
    folder = tiny.build("Llama", tmp_path_factory.mktemp("llama"))
    made = [tiny.engine(folder, tensor_parallel_size=ranks) for ranks in (1, 2, 1)]
    yield made
    tiny.close(made[1])


@pytest.fixture(
    params=["zmq", pytest.param("nixl", marks=pytest.mark.skipif(find_spec("nixl") is None, reason="needs NIXL"))]
)
def transports(
    request: pytest.FixtureRequest, engines: list[TransformersEngine], tmp_path: Path
) -> Iterator[list[Transport]]:
    made = [
        start_transport(request.param, store_of(engine.kv), f"ipc://{tmp_path}/{i}", limits=Limits(chunk_bytes=1 << 14))
        for i, engine in enumerate(engines)
    ]
    for transport in made:
        for peer, other in enumerate(made):
            transport.connect(peer, [other.address()])
    yield made
    for transport in made:
        transport.close()


def bring(transport: Transport, peer: int, source: list[int], own: list[int]) -> None:
    done: queue.SimpleQueue[str] = queue.SimpleQueue()
    transport.pull(peer, source, own, done.put)
    assert done.get(timeout=60) == ""


def test_from_one_engine_to_the_next(engines: list[TransformersEngine], transports: list[Transport]) -> None:
    """Six tokens here, six there; the pages of the prompt come while the source still decodes."""
    prompts = tiny.prompts([50, 13, 90])
    alone = tiny.Driver(engines[0])
    for job, prompt in enumerate(prompts):
        alone.add(job, prompt, tiny.greedy(18))
    expected = alone.finish_all()

    driver = tiny.Driver(engines[0])
    for job, prompt in enumerate(prompts):
        driver.add(job, prompt, tiny.greedy(18))
    driver.step(dict.fromkeys(range(3), 100))
    for at, (source, destination) in enumerate(((0, 1), (1, 2))):
        theirs, ours = engines[source], engines[destination]
        following = tiny.Driver(ours)
        for job, prompt in enumerate(prompts):
            whole = len(prompt) // PAGE_TOKENS
            ours.receive(job, ())
            bring(
                transports[destination], source, theirs.pages_of(job, len(prompt))[:whole],
                ours.room(job, len(prompt))[:whole],
            )  # fmt: skip
        for _ in range(6):
            driver.step(dict.fromkeys(range(3), 1))
        for job, prompt in enumerate(prompts):
            whole, upto = len(prompt) // PAGE_TOKENS, driver.done[job]
            bring(transports[destination], source, theirs.pages_of(job, upto)[whole:], ours.room(job, upto)[whole:])
            ours.add(job, prompt + driver.outputs[job], len(prompt), tiny.greedy(18))
            ours.adopt(job, job, upto)
            theirs.release(job, forget=True)
            following.known[job], following.done[job] = driver.known[job], upto
            following.outputs[job] = list(driver.outputs[job])
        assert theirs.used() == 0
        assert len(driver.outputs[0]) == 1 + 6 * (at + 1)
        driver = following
    assert driver.finish_all() == expected
    assert [engine.used() for engine in engines] == [0, 0, 0]
