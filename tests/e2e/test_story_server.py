"""A server with several instances and requests that move: their timelines over HTTP, in /metrics, and from the logs."""

import json
import re
from pathlib import Path

import httpx
import pytest
from server_process import ServerProcess, wait_until

from penstock.cli.main import main

#: 4 ms a step, half a ms a prompt token.
NULL = ("--engine", "null", "--null-cost", "4,0.5,0")
LONG = {"prompt": [7] * 300, "max_tokens": 150, "ignore_eos": True}


def serve(*flags: str) -> ServerProcess:
    return ServerProcess("--quiet", "--policy", "flood", "--instances", "2", *flags)


def moves_taken(url: str) -> float:
    found = re.findall(r"^penstock_instance_moves_taken_total\{.*\} (.*)$", httpx.get(f"{url}/metrics").text, re.M)
    return sum(map(float, found))


@pytest.mark.parametrize("engine", ["null", "demo"])
def test_a_request_that_moves(tmp_path: Path, capsys: pytest.CaptureFixture[str], engine: str) -> None:
    log = tmp_path / "run.log"
    flags = NULL if engine == "null" else ("--threads", "1")
    with serve(*flags, "--record", str(log)) as server:
        answer = httpx.post(
            f"{server.url}/v1/completions",
            json=LONG,
            headers={"x-slo-ttft-ms": "1us", "x-slo-tpot-ms": "1us"},
            timeout=120,
        ).json()
        wait_until(lambda: moves_taken(server.url) > 0, "a move is counted")
        live = httpx.get(f"{server.url}/v1/requests/{answer['id']}/timeline").json()["choices"][0]
        text = httpx.get(f"{server.url}/metrics").text
        server.process.terminate()
        assert server.wait() == 0
    moves = [event for event in live["events"] if event["what"] == "move" and not event.get("failed")]
    assert moves
    assert all(move["why"] == "flood" and move["down_ms"] > 0 for move in moves)
    assert sum(event.get("tokens", 0) for event in live["events"]) >= 300
    assert (live["ttft"]["late"], live["tpot"]["late"], live["output_tokens"]) == (True, True, 150)
    assert any("move from" in what for gap in live["tpot"]["gaps"] for what in gap["happened"])
    assert re.search(r"^penstock_move_downtime_seconds_count\{.*\} [1-9]", text, re.M)
    assert re.search(r'^penstock_move_phase_seconds_count\{.*phase="switch"\} [1-9]', text, re.M)
    copied = re.findall(r"^penstock_instance_move_copied_bytes_total\{.*\} (.*)$", text, re.M)
    # The null engine has no KV; and a move copies where that is reckoned to be cheaper.
    if engine == "null" or any(move.get("copied") for move in moves):
        assert (sum(map(float, copied)) > 0) == (engine == "demo")
    out = tmp_path / "told.json"
    assert main(["replay", str(log), "--request", str(live["job"]), "--json", str(out)]) == 0
    assert "standing still" in capsys.readouterr().out
    same_story(live, json.loads(out.read_text()))


def same_story(live: dict, logged: dict) -> None:
    """Times differ by what messages took; the rest is the same."""

    def said(told: dict, what: str, *names: str) -> list[tuple]:
        return [tuple(event.get(name) for name in names) for event in told["events"] if event["what"] == what]

    for name in ("job", "outcome", "prompt_tokens", "output_tokens"):
        assert live[name] == logged[name]
    assert said(live, "placed", "instance", "why") == said(logged, "placed", "instance", "why")
    assert said(live, "chunk", "instance", "tokens") == said(logged, "chunk", "instance", "tokens")
    moves = [
        said(told, "move", "instance", "to", "copied", "computed_again", "failed", "phases_ms")
        for told in (live, logged)
    ]
    # Each instance tells of its own, so those of two may come in either order, and the last ones may be on their way.
    for move in moves[0]:
        moves[1].remove(move)
    assert len(moves[1]) <= 2


def test_a_request_that_the_log_does_not_have(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "run.log"
    with serve(*NULL, "--record", str(log)) as server:
        httpx.post(f"{server.url}/v1/completions", json=LONG | {"max_tokens": 1}, timeout=60).raise_for_status()
        server.process.terminate()
        assert server.wait() == 0
    assert main(["replay", str(log), "--request", "99"]) != 0
    assert "they have 0 to 0" in capsys.readouterr().err
