"""`penstock plan --watch` beside a real server: as planned, drifted, gone."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from server_process import ServerProcess

from penstock.cli.main import main
from penstock.drivers.deployment import Deployment

PLAN = [
    "plan", "--model", "opt-13b", "--hardware", "a100:32", "--slo", "ttft=500ms,tpot=60ms", "--lengths", "fixed:40",
    "--output-lengths", "fixed:8", "--arrival", "constant", "--num-prompts", "60", "--duration", "0", "--seeds", "1",
    "--jobs", "1", "--disable-tqdm", "--cost", "distserve/opt-13b/tp1", "--best", "1", "--precision", "0.2",
    "--policies", "fcfs", "--tp", "1", "--pp", "1", "--rate", "20",
]  # fmt: skip


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plan") / "plan.yaml"
    assert main([*PLAN, "--output", str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def url(plan: Path) -> Iterator[str]:
    with ServerProcess("--engine", "null", "--null-cost", "1,1,1", "--plan", str(plan), "--quiet") as server:
        yield server.url


class Load:
    """Requests at even gaps, at least, until the end of the block."""

    def __init__(self, url: str, rate: float, prompt: int, answer: int) -> None:
        self._url, self._gap_s, self._stop = url, 1 / rate, threading.Event()
        self._body = {"model": "null", "prompt": [1] * prompt, "max_tokens": answer, "ignore_eos": True}
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> None:
        self._thread.start()
        time.sleep(0.5)

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        with httpx.Client(timeout=30) as client:
            due_s = time.monotonic()
            while not self._stop.wait(max(0.0, due_s - time.monotonic())):
                client.post(f"{self._url}/v1/completions", json=self._body).raise_for_status()
                due_s = max(due_s + self._gap_s, time.monotonic())  # What is late is not caught up on.


def watch(url: str, plan: Path, *flags: str) -> int:
    return main(["plan", "--watch", url, str(plan), "--interval", "1.5", "--once", "--jobs", "1", *flags])


def test_a_workload_as_planned(url: str, plan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Load(url, 20, 40, 8):
        assert watch(url, plan, "--drift", "0.9") == 0
    assert "as planned" in capsys.readouterr().out


def test_a_workload_that_drifted(url: str, plan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new = tmp_path / "new.yaml"
    with Load(url, 20, 2000, 4):
        assert watch(url, plan, "--drift", "0.6", "--output", str(new)) == 1
    said = capsys.readouterr().out
    assert "prompts: 2e+03 instead of 40 tokens" in said
    assert "Nothing better" not in said, said
    table = said[said.index("as served") :].splitlines()
    assert table[0].split() == ["as", "served", "planned", "anew"]
    assert table[2].split()[0] == "GPUs"
    assert int(table[2].split()[1]) < int(table[2].split()[2])
    served, anew = table[-1].split()[1::2]
    assert table[-1].startswith("attained")
    assert float(served) < 90 <= float(anew)
    spec = Deployment.read(new).planned
    assert spec is not None
    assert spec.workload.input_mean == 2000


def test_what_cannot_be_watched(plan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert watch("http://127.0.0.1:1", plan) == 2
    assert "the server does not answer, or no longer" in capsys.readouterr().err
    bare = tmp_path / "bare.yaml"
    bare.write_text("pools: [{}]")
    assert watch("http://127.0.0.1:1", bare) == 2
    assert "has no `planned:`" in capsys.readouterr().err
    assert main(["plan", "--watch", "http://127.0.0.1:1"]) == 2
    assert "give both" in capsys.readouterr().err
