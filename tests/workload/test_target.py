"""What the client learns of a server, and what it then sends."""

import asyncio
import json
import socket

import pytest
from fake_openai import FakeServer

from penstock.core.slo import Slo
from penstock.workload.prompts import WORDS
from penstock.workload.target import NoServer, Target
from penstock.workload.trace import Request

REQUEST = Request(arrival_s=0, prompt_tokens=40, output_tokens=7)


async def find(server: FakeServer, endpoint: str = "/v1/completions", model: str = "") -> Target:
    async with server.running():
        target = Target(server.url, endpoint, model, {})
        await target.find()
    return target


async def test_ids_where_they_are_known_and_taken() -> None:
    target = await find(FakeServer())
    assert target.model == "fake-model"
    assert target.ids == list(range(100, 100 + len(WORDS)))
    assert target.sized(REQUEST) == REQUEST
    assert target.prompt(REQUEST, [0, 3]) == [100, 103]


async def test_a_tokenizer_that_knows_no_word_does_not_make_all_prompts_alike() -> None:
    target = await find(FakeServer(wordless=1500))
    assert target.ids == list(range(8, 1024))
    with pytest.raises(NoServer, match="few tokens"):
        await find(FakeServer(wordless=10))


@pytest.mark.parametrize("server", [FakeServer(takes_ids=False), FakeServer(tokenizes=False)])
async def test_words_elsewhere(server: FakeServer) -> None:
    target = await find(server)
    assert target.symbols == len(WORDS)
    assert target.tokens_per_word == pytest.approx(1.0, abs=0.02)
    assert target.prompt(REQUEST, [0, 1]) == "the of"


async def test_chats_are_words() -> None:
    target = await find(FakeServer(), "/v1/chat/completions")
    said = json.loads(target.body(REQUEST, "hello", {}))
    assert said["messages"] == [{"role": "user", "content": "hello"}]
    assert "prompt" not in said


def test_words_are_as_many_as_give_the_tokens() -> None:
    target = Target("http://x", "/v1/completions", "m", {})
    target.tokens_per_word = 2.0
    assert target.sized(REQUEST).prompt_tokens == 20


def test_body_has_what_was_asked_and_nothing_else() -> None:
    target = Target("http://x/", "/v1/completions", "m", {})
    said = json.loads(target.body(REQUEST, [1, 2], {"ignore_eos": True}))
    assert said == {
        "model": "m",
        "prompt": [1, 2],
        "max_tokens": 7,
        "stream": True,
        "stream_options": {"include_usage": True},
        "ignore_eos": True,
    }
    assert target.url == "http://x/v1/completions"


def test_what_a_request_says_of_itself() -> None:
    target = Target("http://x", "/v1/completions", "m", {})
    urgent = Request(arrival_s=0, prompt_tokens=1, output_tokens=1, priority=-1, slo=Slo.parse("ttft=200ms,tpot=3x"))
    assert json.loads(target.body(urgent, "a", {}))["priority"] == -1
    assert target.request_headers(urgent) == {"x-slo-ttft-ms": "200"}
    own = Request(arrival_s=0, prompt_tokens=1, output_tokens=1, prompt="my words")
    assert target.prompt(own, [1]) == "my words"


async def test_ids_are_shown_as_words() -> None:
    async with FakeServer().running() as server:
        target = Target(server.url, "/v1/completions", "m", {})
        assert await target.words_of([100, 101]) == "the of"
        assert await target.words_of("as it is") == "as it is"


async def test_no_server() -> None:
    with pytest.raises(NoServer, match=r"no server answers at http://127.0.0.1:9 .*--base-url"):
        await Target("http://127.0.0.1:9", "/v1/completions", "", {}).find()


async def test_a_server_that_loads_is_waited_for() -> None:
    async with FakeServer(loading=3).running() as server:
        await Target(server.url, "/v1/completions", "", {}).wait()
        assert server.loading == -1


async def test_waiting_has_an_end() -> None:
    async with FakeServer(loading=1000).running() as server:
        with pytest.raises(NoServer, match="/health answers 503"):
            await Target(server.url, "/v1/completions", "", {}).wait(0.7)


async def test_a_server_that_has_failed_is_not_waited_for() -> None:
    async with FakeServer(loading=1000, state="failed").running() as server:
        with pytest.raises(NoServer, match="is not ready: no engine"):
            await Target(server.url, "/v1/completions", "", {}).wait()


async def test_a_server_that_is_not_there_is_waited_for_when_that_was_asked() -> None:
    with socket.socket() as own:
        own.bind(("127.0.0.1", 0))
        port = own.getsockname()[1]
    target = Target(f"http://127.0.0.1:{port}", "/v1/completions", "", {})
    with pytest.raises(NoServer, match="no server answers"):
        await target.wait()
    waiting = asyncio.create_task(target.wait(30))
    await asyncio.sleep(0)
    async with FakeServer().running(port):
        await waiting
