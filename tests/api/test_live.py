"""What time does to a request: clients that leave, stall or send slowly, servers that stop, many streams at once."""

import asyncio
import json
import socket
import threading
from collections.abc import Iterator

import httpx
import msgspec
import pytest
from fake_home import INFO, Chunk, FakeHome, say, text
from serving import running, wait_for

from penstock.api.config import FrontConfig

CHAT = "/v1/chat/completions"
HI = {"messages": [{"role": "user", "content": "hi"}]}


def connect(url: str) -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)))


def request(body: bytes, path: str = CHAT) -> bytes:
    return b"POST %s HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%s" % (path.encode(), len(body), body)


@pytest.mark.parametrize("ask", [{}, {"stream": True}, {"n": 3}, {"n": 3, "stream": True}])
def test_a_client_that_leaves_ends_its_jobs(server: str, home: FakeHome, ask: dict) -> None:
    home.script = lambda asked: [Chunk([65]), 60.0]
    with connect(server) as client:
        client.sendall(request(json.dumps(HI | ask).encode()))
        wait_for(lambda: len(home.open) == ask.get("n", 1))
        if ask.get("stream"):
            assert b"200 OK" in client.recv(100)
    wait_for(lambda: not home.open)


def test_the_others_go_on(server: str, home: FakeHome) -> None:
    home.script = lambda asked: [Chunk([65]), 60.0] if asked.tokens == [66] else say([67], pause_s=0.2)
    with connect(server) as client:
        client.sendall(request(b'{"prompt": "B"}', "/v1/completions"))
        wait_for(lambda: len(home.open) == 1)
        other = threading.Thread(
            target=lambda: replies.append(httpx.post(f"{server}/v1/completions", json={"prompt": "A"}))
        )
        replies: list[httpx.Response] = []
        other.start()
        wait_for(lambda: len(home.asked) == 2)
    other.join()
    assert replies[0].json()["choices"][0]["text"] == "C"


@pytest.fixture
def hasty(home: FakeHome) -> Iterator[str]:
    """A server with little patience."""
    config = FrontConfig(served_names=("fake",), request_timeout_s=0.3, body_timeout_s=0.3)
    with running(home, config) as (url, _):
        yield url


def test_no_progress_ends_a_request(hasty: str, home: FakeHome) -> None:
    home.script = lambda asked: [60.0]
    reply = httpx.post(hasty + CHAT, json=HI)
    assert reply.status_code == 504
    assert reply.json()["error"]["code"] == "timeout"


def test_no_progress_ends_a_stream(hasty: str, home: FakeHome) -> None:
    home.script = lambda asked: [Chunk([65]), 60.0]
    reply = httpx.post(hasty + CHAT, json=HI | {"stream": True})
    assert json.loads(reply.text.split("\n\n")[-3].removeprefix("data: "))["error"]["code"] == "timeout"


def test_progress_keeps_a_request_alive(hasty: str, home: FakeHome) -> None:
    home.script = text("slowly", pause_s=0.1)
    assert httpx.post(hasty + CHAT, json=HI).json()["choices"][0]["message"]["content"] == "slowly"


def test_a_client_that_does_not_read_ends_its_job(hasty: str, home: FakeHome) -> None:
    home.script = lambda asked: [Chunk([65])] * 5
    home.info = msgspec.structs.replace(INFO, max_len=2_000_000)
    ask = {"prompt": [40_000] * 1_000_000, "echo": True, "stream": True}
    with connect(hasty) as client:
        client.sendall(request(json.dumps(ask).encode(), "/v1/completions"))
        wait_for(lambda: len(home.asked) == 1)
        wait_for(lambda: not home.open)


def test_a_body_must_arrive_in_time(hasty: str) -> None:
    with connect(hasty) as client:
        client.sendall(b"POST %s HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n{" % CHAT.encode())
        assert b" 408 " in client.recv(1000)


def test_a_client_that_leaves_while_sending_is_no_error(
    server: str, home: FakeHome, caplog: pytest.LogCaptureFixture
) -> None:
    with connect(server) as client:
        client.sendall(b"POST %s HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n{" % CHAT.encode())
    assert httpx.get(server + "/health").status_code == 200
    assert not caplog.records


def test_connections_are_kept(server: str) -> None:
    with httpx.Client() as client:
        for _ in range(3):
            assert client.post(server + CHAT, json=HI).status_code == 200
        assert client.post(server + CHAT, json={}).status_code == 400
        assert client.post(server + CHAT, json=HI).status_code == 200


async def test_a_long_tokenization_lets_other_streams_go_on(home: FakeHome) -> None:
    """The tokenizer waits for a token of another stream: it would wait for ever on the event loop itself."""
    passed = threading.Event()
    home.script = lambda asked: [Chunk([65]), 0.05, Chunk([66], None, "length")]
    with running(home, FrontConfig(served_names=("fake",))) as (url, app):
        tokenizer = app.state.front.tokenizer
        plain = tokenizer.encode

        def slow(words: str, special: bool) -> list[int]:
            if len(words) > 4096:
                assert passed.wait(10)
            return plain(words, special)[:5]

        tokenizer.encode = slow
        async with httpx.AsyncClient() as client:
            long = asyncio.create_task(client.post(f"{url}/v1/completions", json={"prompt": "x" * 10_000}))
            await asyncio.sleep(0.1)
            short = await client.post(f"{url}/v1/completions", json={"prompt": "x"})
            passed.set()
            assert short.json()["choices"][0]["text"] == "AB"
            assert (await long).status_code == 200


async def test_many_streams_at_once(server: str, home: FakeHome) -> None:
    home.script = lambda asked: say(asked.tokens * 5, "length", pause_s=0.01)
    limits = httpx.Limits(max_connections=200)
    async with httpx.AsyncClient(limits=limits, timeout=60) as client:

        async def one(index: int) -> str:
            ask = {"prompt": [1000 + index], "stream": True}
            frames = (await client.post(f"{server}/v1/completions", json=ask)).text.split("\n\n")[:-2]
            return "".join(json.loads(frame.removeprefix("data: "))["choices"][0]["text"] for frame in frames)

        texts = await asyncio.gather(*map(one, range(100)))
    assert texts == [f"<{1000 + index}>" * 5 for index in range(100)]


def test_stopping_lets_answers_finish(home: FakeHome) -> None:
    home.script = text("done", pause_s=0.05)
    replies: list[httpx.Response] = []
    with running(home, FrontConfig(served_names=("fake",))) as (url, _):
        client = threading.Thread(target=lambda: replies.append(httpx.post(url + CHAT, json=HI)))
        client.start()
        wait_for(lambda: len(home.open) == 1)
    client.join()
    assert replies[0].json()["choices"][0]["message"]["content"] == "done"


def test_stopping_cuts_what_takes_too_long(home: FakeHome) -> None:
    home.script = lambda asked: [Chunk([65]), 600.0]
    with running(home, FrontConfig(served_names=("fake",))) as (url, _):
        client = connect(url)
        client.sendall(request(json.dumps(HI).encode()))
        wait_for(lambda: len(home.open) == 1)
    client.close()
    assert not home.open


def test_a_taken_port_is_a_clear_error(server: str, home: FakeHome) -> None:
    from penstock.api.server import serve

    port = int(server.rsplit(":", 1)[1])
    with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{port}"):
        asyncio.run(serve(None, "127.0.0.1", port, stop=asyncio.Event()))
