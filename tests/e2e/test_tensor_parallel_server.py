"""Two ranks behind a server: the answers of one, whatever is sent; ranks that die, and none that is left behind.

Ranks alone, without a server: tests/engine/test_tensor_parallel.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest
from server_process import PATIENCE_S, ServerProcess, alive, wait_until

#: Prompts of more than a step's tokens, so that they are cut; the later ones start as the first does.
_START = "the quick brown fox jumps over the lazy dog. " * 3
PROMPTS = [_START + "a penstock", _START + "leads the water", "to", _START[:60] + '{"name": "x"}']


@pytest.fixture(scope="module")
def pair(folder: Path) -> Iterator[ServerProcess]:
    with ServerProcess(
        str(folder), "--served-model-name", "tiny", "--quiet", "-tp", "2", "--threads", "2",
        "--max-num-batched-tokens", "24", "--block-tokens", "16",
    ) as server:  # fmt: skip
        yield server


def answers(server: ServerProcess) -> list[str]:
    """All prompts at once, and all once more, when their starts are in the cache."""

    def ask(prompt: str) -> str:
        body = {"model": "tiny", "prompt": prompt, "max_tokens": 30, "temperature": 0, "ignore_eos": True}
        reply = httpx.post(f"{server.url}/v1/completions", json=body, timeout=PATIENCE_S)
        assert reply.status_code == 200, reply.text
        text: str = reply.json()["choices"][0]["text"]
        return text

    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        return [*pool.map(ask, PROMPTS), *pool.map(ask, PROMPTS)]


def ranks(server: ServerProcess) -> list[psutil.Process]:
    return [p for p in server.family() if alive(p) and "penstock.engine.parallel.rank" in p.cmdline()]


def test_the_answers_of_one_rank(server: ServerProcess, pair: ServerProcess) -> None:
    expected = answers(server)
    assert len(set(expected)) == len(PROMPTS)
    assert answers(pair) == expected
    assert pair.said("tensor parallel over 2 ranks")
    wait_until(pair.idle, "all pages are free")


def test_a_rank_that_dies_ends_the_instance_and_another_comes(pair: ServerProcess) -> None:
    expected, (rank,), engine = answers(pair), ranks(pair), pair.engine()
    rank.kill()
    assert engine is not None
    psutil.wait_procs([rank, engine], PATIENCE_S)
    assert not alive(engine)
    wait_until(lambda: len(ranks(pair)) == 1, "another instance")
    assert answers(pair) == expected


def test_nothing_is_left_of_a_server_that_is_killed(pair: ServerProcess) -> None:
    family = pair.family()
    assert ranks(pair)
    pair.process.kill()
    wait_until(lambda: not any(alive(p) for p in family), "all processes have ended")
