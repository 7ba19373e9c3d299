"""`penstock bench serve` as a whole, against a server in another thread."""

import argparse
import asyncio
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_openai import FakeServer, Script

from penstock.cli import bench
from penstock.metrics import result
from penstock.workload import trace
from penstock.workload.request import Request


class Threaded:
    """A fake server on an event loop of its own."""

    def __init__(self, server: FakeServer) -> None:
        self.server = server
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    async def _run(self) -> None:
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        async with self.server.running():
            self._ready.set()
            await self._end.wait()

    def start(self) -> str:
        self._thread.start()
        self._ready.wait(10)
        return self.server.url

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(10)


@pytest.fixture
def server() -> Iterator[FakeServer]:
    threaded = Threaded(FakeServer(lambda index, body: Script(first_s=0.01, gap_s=0.002)))
    threaded.start()
    yield threaded.server
    threaded.stop()


def run(verb: str, *flags: str) -> int:
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    return bench.main(parser.parse_args([verb, *flags]))


def serve(server: FakeServer, *flags: str) -> int:
    return run("serve", "--base-url", server.url, "--disable-tqdm", *flags)


def value(text: str, label: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(label)).split()[-1]


def test_random(server: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = "--num-prompts 20 --request-rate 100 --random-input-len 12 --random-output-len 5 --ignore-eos "
    flags += (
        f"--temperature 0 --goodput ttft:5s tpot:1s --save-result --result-dir {tmp_path} --result-filename r.json "
    )
    flags += f'--num-warmups 2 --warmup 5 --plot {tmp_path / "r.png"} --extra-body {{"top_p":0.5}}'
    assert serve(server, *flags.split()) == 0
    text = capsys.readouterr().out
    assert value(text, "Requests completed") == value(text, "Good requests") == "15"
    assert value(text, "Output tokens of completed") == "75"
    assert "15 requests counted, 5 left out as warm-up (first 5 requests)" in text
    assert "token ids" in text
    assert "Client sent requests late by" in text
    saved = result.load(tmp_path / "r.json")
    assert [len(r.times_ns) for r in saved.records] == [5] * 20
    # The fake counts one more, as for a token that begins a text.
    assert {r.prompt_tokens for r in saved.records} == {13}
    assert saved.run["model"] == "fake-model"
    assert len(server.bodies) == 22
    assert {len(body["prompt"]) for body in server.bodies} == {12}
    asked = {"max_tokens": 5, "ignore_eos": True, "temperature": 0.0, "top_p": 0.5, "model": "fake-model"}
    assert all(asked.items() <= body.items() for body in server.bodies)
    assert (tmp_path / "r.png").exists()
    warm, measured = server.bodies[:2], server.bodies[2:]
    assert not [body for body in warm if body["prompt"] in [other["prompt"] for other in measured]]

    assert run("report", str(tmp_path / "r.json"), "--goodput", "ttft:1us", "--warmup", "0") == 0
    again = capsys.readouterr().out
    assert (value(again, "Requests completed"), value(again, "Good requests")) == ("20", "0")


def test_the_same_seed_sends_the_same(server: FakeServer) -> None:
    flags = "--num-prompts 5 --max-concurrency 1 --random-input-len 9 --random-range-ratio 0.5 --random-output-len 3"
    for seed in ("1", "1", "2"):
        assert serve(server, *flags.split(), "--seed", seed) == 0
    first, again, other = (server.bodies[k : k + 5] for k in (0, 5, 10))
    assert first == again != other


def test_trace_at_its_own_times(server: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [f"2023-11-16 18:15:{46 + i}.0,{100 * (i + 1)},{10 * (i + 1)}" for i in range(6)]
    path = tmp_path / "azure.csv"
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + "\n".join(rows))
    flags = f"--dataset-name trace --dataset-path {path} --trace-start 1 --num-prompts 4 --time-scale 0.1 "
    flags += f"--length-scale 0.1 --max-output-len 4 --save-result --result-dir {tmp_path} --result-filename r.json"
    assert serve(server, *flags.split()) == 0
    saved = sorted(result.load(tmp_path / "r.json").records, key=lambda r: r.id)
    assert [r.scheduled_ns // 1_000_000 for r in saved] == [0, 100, 200, 300]
    assert [r.prompt_tokens - 1 for r in saved] == [20, 30, 40, 50]
    assert [r.output_tokens for r in saved] == [2, 3, 4, 4]
    assert f"Requests from {path}" in capsys.readouterr().out


def test_synthesized_chat_with_relative_slo(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    flags = "--backend openai-chat --dataset-name trace --request-rate 200 --length-scale 0.02 --duration 0.1 "
    flags += "--goodput ttft:300x tpot:300x --verbose"
    assert serve(server, *flags.split()) == 0
    text = capsys.readouterr().out
    assert "synthesized to match the Azure 2023 conversation trace" in text
    assert "Idle times, from 10 lone requests before the run: TTFT" in text
    assert value(text, "Good, of all not cancelled") == "100.00"
    assert "-> ' the" in text


def test_prefix_repetition(server: FakeServer) -> None:
    flags = "--dataset-name prefix_repetition --num-prompts 8 --prefix-repetition-num-prefixes 2 "
    flags += "--prefix-repetition-prefix-len 16 --prefix-repetition-suffix-len 8 --prefix-repetition-output-len 2"
    assert serve(server, *flags.split()) == 0
    assert len({tuple(body["prompt"][:16]) for body in server.bodies}) == 2
    assert len({tuple(body["prompt"]) for body in server.bodies}) == 8


def test_cancel_share(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    flags = "--num-prompts 40 --random-input-len 5 --random-output-len 30 --cancel-share 0.5"
    assert serve(server, *flags.split()) == 0
    text = capsys.readouterr().out
    cancelled, completed = (int(value(text, f"Requests {name}")) for name in ("cancelled", "completed"))
    assert cancelled + completed == 40
    assert 10 <= cancelled <= 30


def test_failures_are_told_and_fail_the_command(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.script = lambda index, body: Script(status=[429, 503, 500][index % 3], message="not today")
    assert serve(server, "--num-prompts", "6") == 1
    text = capsys.readouterr().out
    assert [value(text, f"Requests {name}") for name in ("rejected", "dropped", "failed")] == ["2", "2", "2"]
    assert "6 x not today" in text


def test_interrupted_it_reports_what_there_is(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    def script(index: int, body: dict[str, object]) -> Script:
        if index == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return Script(gap_s=0.0 if index < 2 else 60.0)

    server.script = script
    assert serve(server, "--num-prompts", "9", "--max-concurrency", "3", "--random-output-len", "3") == 0
    text = capsys.readouterr().out
    assert value(text, "Requests completed") == "2"
    assert value(text, "Requests cancelled") == "3"


def test_no_server(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("serve", "--port", "9") == 1
    assert "no server answers at http://127.0.0.1:9" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--dataset-name trace --dataset-path nowhere.csv", "nowhere.csv"),
        ("--goodput speed:3", "ttft, tpot or e2e"),
        ("--num-prompts 5 --warmup 5", "leaves out all 5"),
        ("--request-rate -1", "must be positive"),
        ("--random-range-ratio 2", "range ratio"),
        ("--dataset-name trace --duration 0 --num-prompts 3", "no request"),
    ],
)
def test_bad_flags(flags: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("serve", "--port", "9", *flags.split()) == 1
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("flags", ["--warmup soon", "--metric-percentiles 50,120", "--percentile-metrics speed"])
def test_bad_values(flags: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run("serve", *flags.split())
    assert flags.split()[0] in capsys.readouterr().err


def test_turns_and_patience_of_a_trace(server: FakeServer, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    requests = [
        Request(arrival_s=0.0, prompt_tokens=5, output_tokens=20, session="a"),
        Request(arrival_s=0.0, prompt_tokens=5, output_tokens=500, cancel_s=0.1),
        Request(
            arrival_s=0.0, prompt_tokens=5, output_tokens=3, session="a", think_s=0.05, limit_tokens=4, adapter="sql"
        ),
    ]
    trace.save(requests, path)
    flags = f"--dataset-name trace --dataset-path {path} --num-warmups 1 --save-result --result-dir {tmp_path}"
    assert serve(server, *flags.split(), "--result-filename", "r.json") == 0
    first, gone, second = sorted(result.load(tmp_path / "r.json").records, key=lambda r: r.id)
    assert [r.outcome for r in (first, gone, second)] == ["completed", "cancelled", "completed"]
    assert second.scheduled_ns == first.end_ns + 50_000_000
    # The event loop counts whole milliseconds, so its timers may end up to one early.
    assert 0.099e9 <= gone.end_ns - gone.sent_ns < 0.9e9
    assert (server.bodies[-1]["max_tokens"], server.bodies[-1]["model"]) == (4, "sql")
