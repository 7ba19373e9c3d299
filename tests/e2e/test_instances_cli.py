"""`penstock serve --instances` and `penstock instances` from outside, with requests under way."""

import threading
from collections.abc import Iterator

import httpx
import pytest
from server_process import PATIENCE_S, ServerProcess, wait_until

from penstock.cli.main import main

ASK = {"prompt": [1, 2, 3], "max_tokens": 40}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ServerProcess]:
    monkeypatch.setenv("PENSTOCK_ADMIN_KEY", "secret")
    with ServerProcess("--engine", "null", "--null-cost", "10,0,0", "--quiet", "--instances", "2") as server:
        yield server


class Load:
    """Clients that ask again and again, until told to stop."""

    def __init__(self, server: ServerProcess, clients: int) -> None:
        self.statuses: list[int] = []
        self._server = server
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(clients)]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        with httpx.Client(timeout=PATIENCE_S) as client:
            while not self._stop.is_set():
                reply = client.post(f"{self._server.url}/v1/completions", json=ASK)
                whole = reply.status_code == 200 and reply.json()["usage"]["completion_tokens"] == ASK["max_tokens"]
                self.statuses.append(reply.status_code if reply.status_code != 200 or whole else 0)


def instances(capsys: pytest.CaptureFixture[str], *args: str) -> list[int]:
    """Runs `penstock instances ...`; the numbers in the table that it ends with."""
    assert main(["instances", *args]) == 0
    lines = capsys.readouterr().out.splitlines()
    header = max(number for number, line in enumerate(lines) if line.lstrip().startswith("instance "))
    return [int(line.split()[0]) for line in lines[header + 1 :]]


def test_instances_come_and_go_and_no_request_fails(server: ServerProcess, capsys: pytest.CaptureFixture[str]) -> None:
    assert server.said("2 instances, each")
    with Load(server, 8) as load:
        assert instances(capsys, "list", server.url) == [0, 1]
        assert instances(capsys, "add", server.url) == [0, 1, 2]
        assert instances(capsys, "drain", server.url, "0") == [1, 2]
        assert instances(capsys, "remove", server.url, "1") == [2]
        assert instances(capsys, "restart", server.url) == [3]
        assert httpx.get(f"{server.url}/health").json()["instances_up"] == 1
    assert set(load.statuses) == {200}
    wait_until(server.idle, "every page is free or evictable")


def test_what_cannot_be_is_said(server: ServerProcess, capsys: pytest.CaptureFixture[str]) -> None:
    for args, words in (
        (["drain", server.url, "9"], "no instance 9"),
        (["drain", server.url], "takes the number"),
        (["list", server.url, "1"], "takes none"),
        (["list", server.url, "--admin-key", "wrong"], "admin key"),
        (["list", server.url + "/elsewhere"], "nothing at /elsewhere"),
        (["list", "http://127.0.0.1:1"], "refused"),
    ):
        assert main(["instances", *args]) == 2
        assert words in capsys.readouterr().err
