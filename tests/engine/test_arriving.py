"""A job goes from one engine to another in the middle: same tokens as if it had stayed, and all pages return."""

import pytest
import tiny
import torch

from penstock.cost.linear import Linear
from penstock.engine.null import NullEngine, NullOptions, null_info
from penstock.engine.pool import PoolError
from penstock.engine.runner import TransformersEngine

KEY = 7


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> list[TransformersEngine]:
    folder = tiny.build("Llama", tmp_path_factory.mktemp("llama"))
    return [tiny.engine(folder), tiny.engine(folder)]


def copy(source: TransformersEngine, pages: list[int], to: TransformersEngine, own: list[int]) -> None:
    (theirs,), (ours,) = source.kv, to.kv
    ours.keys[:, own] = theirs.keys[:, pages]
    ours.values[:, own] = theirs.values[:, pages]


@pytest.mark.parametrize("shared", [False, True])
def test_goes_on_with_the_same_tokens(engines: list[TransformersEngine], shared: bool) -> None:
    source, destination = engines
    prompt = tiny.prompts([21])[0]
    alone = tiny.Driver(source)
    alone.add(1, prompt, tiny.greedy(12))
    expected = alone.finish_all()[1]
    there, here = tiny.Driver(source), tiny.Driver(destination)
    if shared:
        # The destination has the first block of eight from an earlier job.
        here.add(0, prompt, tiny.greedy(1))
        here.step({0: 21})
        destination.share(0, KEY)
        destination.release(0, forget=True)
        del here.done[0]
    there.add(1, prompt, tiny.greedy(12))
    for _ in range(5):
        there.step({1: 64})

    destination.receive(3, (KEY,) if shared else ())
    have = 8 if shared else 0
    for upto in (21, 25):  # in two stages
        pages, own = source.pages_of(1, upto), destination.room(3, upto)
        assert len(pages) == len(own) == -(-upto // 4)
        copy(source, pages[have // 4 :], destination, own[have // 4 :])
        have = upto // 4 * 4
    assert destination.used() == 7
    here.known[1], here.outputs[1] = 26, list(there.outputs[1])
    destination.add(1, prompt + here.outputs[1], 21, tiny.greedy(12))
    destination.adopt(1, 3, 25)
    here.done[1] = 25
    source.release(1, forget=True)
    assert here.finish_all()[1] == expected
    destination.clear()
    assert source.used() == destination.used() == 0


def test_what_is_discarded_or_cleared_returns(engines: list[TransformersEngine]) -> None:
    engine = engines[0]
    engine.receive(1, ())
    first = engine.room(1, 9)
    assert engine.room(1, 17)[:3] == first
    assert engine.room(1, 5) == first[:2]
    assert engine.used() == 5
    with pytest.raises(AssertionError, match="discard it first"):
        engine.receive(1, ())
    engine.discard(1)
    assert engine.used() == 0
    engine.receive(2, ())
    engine.room(2, 30)
    engine.clear()
    assert engine.used() == 0


def test_room_beyond_the_pool_is_told(engines: list[TransformersEngine]) -> None:
    engine = engines[0]
    engine.receive(1, ())
    with pytest.raises(PoolError, match="64 free"):
        engine.room(1, 64 * 4 + 1)
    engine.discard(1)


def test_pages_of_one_who_has_fewer(engines: list[TransformersEngine]) -> None:
    driver = tiny.Driver(engines[0])
    assert driver.engine.pages_of(1, 50) == []
    driver.add(1, [5, 6, 7, 8, 9], tiny.greedy(4))
    assert driver.engine.pages_of(1, 50) == []
    driver.step({1: 5})
    pages = driver.engine.pages_of(1, 50)
    assert len(pages) == 2
    assert driver.engine.pages_of(1, 4) == pages[:1]
    driver.engine.release(1, forget=True)


def test_null_engine_goes_on_where_it_was() -> None:
    driver = tiny.Driver(NullEngine(null_info(NullOptions()), Linear(0.0, 0.0, 0.0, 0.0, 0.0), sleep=None))
    driver.add(1, [5] * 10, tiny.greedy(6))
    driver.step({1: 10})
    there = tiny.Driver(driver.engine)
    expected = [(2 * 31 + i * 7) % 256 for i in range(6)]
    driver.engine.receive(9, ())
    assert driver.engine.room(9, 11) == driver.engine.pages_of(1, 11) == []
    driver.engine.add(2, [5] * 11, 10, tiny.greedy(6))
    driver.engine.adopt(2, 9, 10)
    there.known[2], there.done[2], there.outputs[2] = 11, 10, expected[:1]
    assert there.finish_all()[2] == expected


def test_adopting_takes_the_place_of_binding(engines: list[TransformersEngine]) -> None:
    engine = engines[0]
    driver = tiny.Driver(engine)
    driver.add(1, [5, 6, 7], tiny.greedy(4))
    engine.receive(1, ())
    with pytest.raises(AssertionError, match="bound already"):
        engine.adopt(1, 1, 0)
    engine.discard(1)
    engine.release(1, forget=True)
    assert engine.used() == 0
    assert torch.get_num_threads() == 1
