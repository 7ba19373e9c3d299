"""`penstock serve --api-server-count`: several HTTP processes, a scheduler of its own; each is killed under load."""

import os
import re
import signal
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest
from server_process import PATIENCE_S, ServerProcess, alive, wait_until

from penstock.cli.main import main

FLAGS = ("--engine", "null", "--null-cost", "10,0,0", "--quiet", "--api-server-count", "2", "--watchdog", "1.5")


@pytest.fixture(params=[("--instances", "2"), ("--prefill", "1", "--decode", "1", "--policy", "distserve")])
def server(request: pytest.FixtureRequest) -> Iterator[ServerProcess]:
    with ServerProcess(*FLAGS, *request.param, "--admin-key", "secret") as server:
        yield server


def processes(server: ServerProcess, module: str) -> list[psutil.Process]:
    return [p for p in server.family()[1:] if alive(p) and f"penstock.{module}" in p.cmdline()]


def replaced(server: ServerProcess, module: str, victim: psutil.Process, count: int) -> bool:
    found = processes(server, module)
    return len(found) == count and victim not in found


def ask(server: ServerProcess, tokens: int) -> str:
    """How a request ended."""
    try:
        body = {"prompt": [1, 2, 3], "max_tokens": tokens}
        reply = httpx.post(f"{server.url}/v1/completions", json=body, timeout=PATIENCE_S)
    except httpx.TransportError:
        return "cut"
    return (
        "answered" if reply.status_code == 200 and reply.json()["usage"]["completion_tokens"] == tokens else reply.text
    )


def ends(server: ServerProcess, clients: int, requests: int, tokens: int) -> "tuple[ThreadPoolExecutor, list]":
    pool = ThreadPoolExecutor(clients)
    return pool, [pool.submit(ask, server, tokens) for _ in range(requests)]


def test_a_scheduler_that_dies_or_hangs_is_replaced_and_nothing_fails(server: ServerProcess) -> None:
    for how in (signal.SIGKILL, signal.SIGSTOP):
        pool, futures = ends(server, 8, 60, 40)
        (victim,) = processes(server, "drivers.scheduler")
        victim.send_signal(how)
        assert Counter(future.result(PATIENCE_S) for future in futures) == {"answered": 60}
        pool.shutdown()
        wait_until(
            lambda victim=victim: processes(server, "drivers.scheduler") not in ([], [victim]), "there is another"
        )
    assert ask(server, 5) == "answered"
    wait_until(server.idle, "every page is free or evictable")


def test_an_http_process_that_dies_takes_its_own_streams_only(server: ServerProcess) -> None:
    pool, futures = ends(server, 8, 8, 400)
    wait_until(lambda: server.metrics()["penstock_num_requests_running"] == 8, "all run")
    victim = processes(server, "cli.front")[0]
    victim.kill()
    found = Counter(future.result(PATIENCE_S) for future in futures)
    pool.shutdown()
    assert set(found) <= {"answered", "cut"}
    wait_until(lambda: replaced(server, "cli.front", victim, 2), "there is another")
    wait_until(server.idle, "every page is free or evictable")
    assert {ask(server, 5) for _ in range(10)} == {"answered"}


def test_a_worker_that_dies_or_hangs_is_replaced_and_nothing_fails() -> None:
    with ServerProcess(*FLAGS, "--prefill", "1", "--decode", "1", "--policy", "distserve") as server:
        for number, how in enumerate((signal.SIGKILL, signal.SIGSTOP)):
            pool, futures = ends(server, 8, 8, 300)
            wait_until(lambda: server.metrics()["penstock_num_requests_running"] == 8, "all run")
            processes(server, "drivers.worker")[number].send_signal(how)
            assert Counter(future.result(PATIENCE_S) for future in futures) == {"answered": 8}
            pool.shutdown()
        wait_until(server.idle, "every page is free or evictable")


def test_sigterm_lets_answers_finish(server: ServerProcess) -> None:
    family = server.family()
    pool, futures = ends(server, 6, 6, 150)
    wait_until(lambda: server.metrics()["penstock_num_requests_running"] == 6, "all run")
    os.kill(server.process.pid, signal.SIGTERM)
    assert Counter(future.result(PATIENCE_S) for future in futures) == {"answered": 6}
    pool.shutdown()
    assert server.wait() == 0
    assert not list(filter(alive, family))
    assert "Traceback" not in server.output


def test_what_the_front_cannot_read_is_said(tmp_path: Path) -> None:
    server = ServerProcess(*FLAGS, "--chat-template", str(tmp_path / "absent.jinja"))
    try:
        assert server.wait() == 1
    finally:
        server.process.kill()
    assert server.said("absent.jinja")
    assert server.lines[-1].startswith("penstock serve: an HTTP process ended 3 times before it was ready")


def test_the_operator_is_heard_by_any_of_them(server: ServerProcess, capsys: pytest.CaptureFixture[str]) -> None:
    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(ask, server, 30) for _ in range(40)]
        assert main(["instances", "add", server.url, "--admin-key", "secret"]) == 0
        assert main(["instances", "drain", server.url, "0", "--admin-key", "secret"]) == 0
        assert Counter(future.result(PATIENCE_S) for future in futures) == {"answered": 40}
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[-2:]] == ["1", "2"]


def test_roles_given_while_the_scheduler_hangs_are_told_by_the_next() -> None:
    """The roles change places; a worker that had not heard of it would keep its answers."""
    flags = ("--prefill", "1", "--decode", "1", "--policy", "distserve", "--admin-key", "secret")
    with ServerProcess(*FLAGS, *flags) as server:
        (victim,) = processes(server, "drivers.scheduler")
        victim.suspend()
        for instance, role in enumerate(("decode", "prefill")):
            path = f"{server.url}/admin/instances/{instance}/role"
            reply = httpx.post(path, json={"role": role}, headers={"Authorization": "Bearer secret"})
            assert reply.status_code == 202, reply.text
        wait_until(lambda: processes(server, "drivers.scheduler") not in ([], [victim]), "there is another")
        wait_until(lambda: ask(server, 5) == "answered" and moved(server) == {0: False, 1: True}, "roles are as told")
        for _ in range(5):
            assert ask(server, 30) == "answered"
        assert not moved(server)[0]


def moved(server: ServerProcess) -> dict[int, bool]:
    """Whether answers went on elsewhere, by instance."""
    text = httpx.get(f"{server.url}/metrics").text
    taken = re.findall(r'^penstock_instance_moves_taken_total\{.*instance="(\d+)".*\} (.*)$', text, re.M)
    return {int(instance): float(value) > 0 for instance, value in taken}
