"""A server's life, from outside: how it starts, ends, is killed, loses its engine, is overrun, and what it leaves."""

import contextlib
import http.client
import json
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from server_process import PATIENCE_S, ServerProcess, alive, wait_until

from penstock.cli.main import main

NULL = ("--engine", "null", "--quiet")
#: 20 ms a step: an answer of 50 tokens takes about a second.
SLOW = (*NULL, "--null-cost", "20,0,0")
ASK = {"prompt": "hello", "max_tokens": 50}


def ask(server: ServerProcess, **changes: Any) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/completions", json=ASK | changes, timeout=PATIENCE_S)


@contextlib.contextmanager
def load(server: ServerProcess, count: int, **changes: Any) -> Iterator[list["Future[httpx.Response]"]]:
    """So many requests under way: every other one is streamed, all of them run."""
    with ThreadPoolExecutor(count) as pool:
        futures = [pool.submit(ask, server, stream=number % 2 == 0, **changes) for number in range(count)]
        wait_until(lambda: server.metrics()["penstock_num_requests_running"] == count, "all run")
        yield futures


def end(reply: httpx.Response) -> str:
    """How an answer ended: answered, error, or a way that it must not."""
    if reply.status_code != 200:
        return "error" if reply.status_code in (500, 503) and reply.json()["error"]["message"] else reply.text
    if not reply.headers["content-type"].startswith("text/event-stream"):
        return "answered" if reply.json()["choices"][0]["finish_reason"] == "length" else reply.text
    *_, last, done = [frame.removeprefix("data: ") for frame in reply.text.split("\n\n") if frame]
    assert done == "[DONE]"
    frame = json.loads(last)
    if "error" in frame:
        return "error" if frame["error"]["message"] else reply.text
    return "answered" if frame["choices"][0]["finish_reason"] == "length" else reply.text


def ends(futures: list["Future[httpx.Response]"]) -> Counter[str]:
    return Counter(end(future.result(PATIENCE_S)) for future in futures)


@pytest.fixture(scope="module")
def slow() -> Iterator[ServerProcess]:
    with ServerProcess(*SLOW, "--watchdog", "1.5") as server:
        yield server


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_an_engine_that_dies_or_hangs_is_replaced(slow: ServerProcess, how: signal.Signals) -> None:
    """And what it was answering is answered by the next."""
    with load(slow, 16, max_tokens=500) as futures:
        victim = slow.kill_engine(how)
        assert ends(futures) == {"answered": 16}
    assert end(ask(slow, max_tokens=3)) == "answered"
    assert not psutil.pid_exists(victim)
    assert len(slow.family()) == 2
    wait_until(slow.idle, "every page is free or evictable")
    assert httpx.get(f"{slow.url}/health").status_code == 200


def test_requests_that_engines_die_of_are_given_up() -> None:
    """Their prompts would take for ever; the error says what happened."""
    with ServerProcess(*NULL, "--null-cost", "20,100000000,0") as server, ThreadPoolExecutor(1) as pool:
        future = pool.submit(ask, server)
        for died in range(1, 4):
            wait_until(lambda: server.metrics()["penstock_num_requests_running"] == 1, "it runs")
            server.kill_engine(signal.SIGKILL)
            wait_until(lambda died=died: server.output.count("starting another") == died, "it is noticed")
        whole = future.result(PATIENCE_S)
    assert whole.status_code == 500
    assert whole.json()["error"]["type"] == "server_error"
    assert "SIGKILL" in whole.json()["error"]["message"]
    assert "3 times" in whole.json()["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_pages(slow: ServerProcess, stream: bool) -> None:
    with contextlib.closing(connect(slow)) as connection:
        body = json.dumps(ASK | {"prompt": "x" * 300, "max_tokens": 5000, "stream": stream})
        connection.request("POST", "/v1/completions", body)
        wait_until(lambda: slow.metrics()["penstock_kv_cache_usage_perc"] > 0, "it holds pages")
        before = slow.metrics()["penstock_request_success_total"]
    wait_until(slow.idle, "its pages are free", 10)
    assert slow.metrics()["penstock_request_success_total"] == before + 1
    assert slow.metrics()["penstock_num_requests_running"] == 0


def connect(server: ServerProcess) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=PATIENCE_S)


def test_a_full_queue_is_429_at_once() -> None:
    with (
        ServerProcess(*SLOW, "--max-num-seqs", "2", "--max-num-queued-reqs", "3", "--shutdown-timeout", "1") as server,
        ThreadPoolExecutor(5) as pool,
    ):
        futures = [pool.submit(ask, server, max_tokens=50_000, prompt=[1]) for _ in range(2)]
        wait_until(lambda: server.metrics()["penstock_num_requests_running"] == 2, "two run")
        futures += [pool.submit(ask, server, max_tokens=100, prompt=[1]) for _ in range(3)]
        wait_until(lambda: server.metrics()["penstock_num_requests_waiting"] == 3, "three wait")
        refused = ask(server)
        # Nothing has moved on: the answer did not wait for a place.
        assert server.metrics()["penstock_num_requests_waiting"] == 3
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["type"] == "rate_limit_error"
        assert server.metrics()["penstock_requests_total"] == 1
        server.process.terminate()
        assert server.wait() == 0
        assert ends(futures) == {"error": 5}


def test_sigterm_lets_answers_finish() -> None:
    with ServerProcess(*SLOW) as server:
        family = server.family()
        with load(server, 12, max_tokens=150) as futures:
            server.process.send_signal(signal.SIGTERM)
            wait_until(lambda: server.said("stopping"), "it says so")
            wait_until(lambda: refuses(server), "it takes nothing new")
            assert ends(futures) == {"answered": 12}
        assert server.wait() == 0
        assert not list(filter(alive, family))
        assert "Traceback" not in server.output


def refuses(server: ServerProcess) -> bool:
    """No connection, which is what balancers look at, or a 503 with Retry-After."""
    try:
        late = ask(server, max_tokens=1)
    except httpx.ConnectError:
        return True
    return late.status_code == 503 and "retry-after" in late.headers


def test_sigterm_has_a_limit() -> None:
    with ServerProcess(*SLOW, "--shutdown-timeout", "0.5") as server:
        family = server.family()
        with load(server, 4, max_tokens=50_000) as futures:
            server.process.send_signal(signal.SIGTERM)
            assert ends(futures) == {"error": 4}
        assert server.wait() == 0
        assert not list(filter(alive, family))
        assert "Traceback" not in server.output


def test_sigterm_ends_a_hung_engine_too() -> None:
    with ServerProcess(*SLOW, "--shutdown-timeout", "0.5", "--watchdog", "600") as server:
        family = server.family()
        with load(server, 2, max_tokens=50_000) as futures:
            server.kill_engine(signal.SIGSTOP)
            server.process.send_signal(signal.SIGTERM)
            assert ends(futures) == {"error": 2}
        assert server.wait() == 0
        assert not list(filter(alive, family))


def test_a_second_sigint_ends_it_at_once(tmp_path: Path) -> None:
    with ServerProcess(*SLOW, env={"TMPDIR": str(tmp_path)}) as server:
        family = server.family()
        with ThreadPoolExecutor(1) as pool:
            cut = pool.submit(ask, server, max_tokens=50_000)
            wait_until(lambda: server.metrics()["penstock_num_requests_running"] == 1, "it runs")
            server.process.send_signal(signal.SIGINT)
            wait_until(lambda: server.said("stopping"), "it says so")
            server.process.send_signal(signal.SIGINT)
            assert server.wait() == 130
            assert isinstance(cut.exception(PATIENCE_S), httpx.RemoteProtocolError | httpx.ReadError)
        wait_until(lambda: not any(map(alive, family)), "no process is left")
        assert not list(tmp_path.iterdir())


def test_a_killed_server_leaves_no_process() -> None:
    """Not even where the engine was stopped at that moment."""
    with ServerProcess(*SLOW) as server:
        family = server.family()
        assert len(family) == 2
        server.kill_engine(signal.SIGSTOP)
        server.process.kill()
        server.wait()
        wait_until(lambda: not any(map(alive, family)), "no process is left")


def status_and_words(server: ServerProcess) -> tuple[int, str]:
    """Exit status and last line of a server that cannot start."""
    try:
        status = server.wait()
    finally:
        server.process.kill()
    assert "Traceback" not in server.output, server.output
    return status, server.lines[-1]


def test_a_taken_port_is_said() -> None:
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        status, words = status_and_words(ServerProcess(*NULL, "--port", str(port)))
    assert status == 1
    assert words == f"penstock serve: cannot listen on 127.0.0.1:{port}: Address already in use"


def test_what_the_engine_or_the_files_refuse_is_said(tmp_path: Path, folder: Path) -> None:
    """All at once: each takes a while to find out."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    empty = tmp_path / "empty"
    empty.mkdir()
    broken = {
        "config.json": [str(tmp_path)],
        "tokenizer.json": [str(empty)],
        "multiple": [*NULL, "--block-tokens", "50"],
        "Is a directory": [*NULL, "--record", str(tmp_path)],
        "absent.jinja": [*NULL, "--chat-template", str(tmp_path / "absent.jinja")],
    }
    servers = {words: ServerProcess(*flags) for words, flags in broken.items()}
    for words, server in servers.items():
        status, said = status_and_words(server)
        assert status in (1, 2)
        assert said.startswith("penstock serve: ")
        assert words in said


BAD_FLAGS = [
    (["/no/such/model"], "no such folder"),
    (["--config", "/no/such.yaml"], "/no/such.yaml"),
    (["--slo", "ttft=fast"], "'fast'"),
    (["--max-num-seqs", "0"], "at least 1"),
    (["--page-tokens", "0"], "at least 1"),
    (["--watchdog", "0"], "more than 0"),
    (["--port", "70000"], "65535"),
    (["--null-cost", "5"], "5,20,100"),
]


@pytest.mark.parametrize(("flags", "words"), BAD_FLAGS)
def test_bad_flags_are_said(flags: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--engine", "null", *flags]) == 2
    said = capsys.readouterr().err
    assert said.startswith("penstock serve: ")
    assert words in said


def test_config_file_key_and_record(tmp_path: Path) -> None:
    """Flags from a file, and over them from the command line; a key; a log that replays."""
    record = tmp_path / "run.log"
    settings = {"engine": "null", "kv-pages": 60, "max_num_seqs": 4, "api-key": "from-file", "record": str(record)}
    settings |= {"null-cost": "1,0,0", "served-model-name": ["a", "b"], "quiet": True, "policy": "priority"}
    (tmp_path / "serve.yaml").write_text(json.dumps(settings))
    with ServerProcess("--config", str(tmp_path / "serve.yaml"), "--max-num-seqs", "9") as server:
        shown = next(line for line in server.lines if "configuration" in line)
        assert "max_num_seqs=9" in shown
        assert "pages=60" in shown
        assert "from-file" not in server.output
        models = f"{server.url}/v1/models"
        assert httpx.get(models).status_code == 401
        wrong = httpx.post(f"{server.url}/v1/completions", json=ASK, headers={"authorization": "Bearer wrong"})
        assert wrong.status_code == 401
        assert wrong.json()["error"]["code"] == "invalid_api_key"
        key = {"authorization": "Bearer from-file"}
        assert [m["id"] for m in httpx.get(models, headers=key).json()["data"]] == ["a", "b"]
        assert httpx.get(f"{server.url}/health").status_code == 200
        _busy(server, key)
        server.kill_engine(signal.SIGKILL)
        wait_until(lambda: server.said("starting another"), "it notices")
        _busy(server, key)
        server.process.terminate()
        assert server.wait() == 0
    _replays(record)


def _busy(server: ServerProcess, key: dict[str, str]) -> None:
    """Requests that are preempted, reuse each other's prompts, and are left."""
    with httpx.Client(base_url=server.url, headers=key, timeout=PATIENCE_S) as client, ThreadPoolExecutor(8) as pool:

        def one(number: int) -> None:
            ask = {"prompt": list(range(130)), "max_tokens": 60 + number, "priority": number % 3}
            if number % 4:
                assert client.post("/v1/completions", json=ask).status_code == 200
            else:
                with client.stream("POST", "/v1/completions", json=ask | {"stream": True}) as stream:
                    next(stream.iter_lines())

        list(pool.map(one, range(24)))


def _replays(record: Path) -> None:
    logs = sorted(record.parent.glob("run.log*"))
    assert [log.name for log in logs] == ["run.log", "run.log.instance0", "run.log.instance1"]
    assert main(["replay", str(record)]) == 0


def test_a_stalled_reader_delays_nobody(slow: ServerProcess) -> None:
    """A client that asks for a long stream and never reads."""
    with contextlib.closing(connect(slow)) as stalled:
        stalled.request("POST", "/v1/completions", json.dumps(ASK | {"max_tokens": 3000, "stream": True}))
        wait_until(lambda: slow.metrics()["penstock_num_requests_running"] == 1, "it runs")
        assert end(ask(slow, max_tokens=5)) == "answered"
    wait_until(slow.idle, "its pages are free", 10)


@pytest.mark.parametrize("requests", [0, 4])
def test_a_front_that_was_stopped_does_not_blame_the_engine(slow: ServerProcess, requests: int) -> None:
    """As after a suspended machine or a long pause: the silence was its own."""
    assert end(ask(slow, max_tokens=3)) == "answered"
    engine = slow.engine()
    with load(slow, requests, max_tokens=250) if requests else contextlib.nullcontext([]) as futures:
        slow.process.send_signal(signal.SIGSTOP)
        time.sleep(3)  # twice the watchdog's patience
        slow.process.send_signal(signal.SIGCONT)
        assert ends(futures) == Counter({"answered": requests} if requests else {})
    assert end(ask(slow, max_tokens=100)) == "answered"
    assert slow.engine() == engine


def test_requests_during_a_restart_wait_for_it(slow: ServerProcess) -> None:
    slow.kill_engine(signal.SIGKILL)
    wait_until(lambda: httpx.get(f"{slow.url}/health").status_code == 503, "it notices")
    replies: list[str] = []
    threads = [threading.Thread(target=lambda: replies.append(end(ask(slow, max_tokens=3)))) for _ in range(4)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert replies == ["answered"] * 4
    assert time.monotonic() - began < PATIENCE_S
