"""A live run is recorded, replayed and simulated: the log against what the client saw, and what the command prints."""

import asyncio
import json
import random
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import pytest
from msgspec import structs
from server_process import ServerProcess

from penstock.cli.main import main
from penstock.core.config import Limits
from penstock.core.events import Arrived
from penstock.cost.linear import Linear
from penstock.drivers.log import LogWriter, read
from penstock.drivers.recorded import Recorded, gather, paths_of, simulate
from penstock.metrics import result
from penstock.metrics.errors import METRICS
from penstock.metrics.record import CANCELLED, COMPLETED, Record
from penstock.metrics.summary import summarize
from penstock.workload.client import Call, Client, Reply

REQUESTS = 48
ANSWER = 60
#: 5 ms a step; two steps in flight; so few pages that requests wait and are preempted.
FLAGS = ("--engine", "null", "--null-cost", "5,0,0", "--kv-pages", "24", "--pipeline-depth", "2", "--quiet")


@dataclass
class Run:
    """A recorded run, as its client saw it and as its logs tell it."""

    log: Path
    #: In the order of the requests; times on the clock of the log.
    replies: list[Reply]
    recorded: Recorded

    def pairs(self) -> list[tuple[Reply, Record]]:
        """Every request has a prompt of another length."""
        records = {record.prompt_tokens: record for record in self.recorded.records}
        return [(reply, records[reply.index + 1]) for reply in self.replies]


def asked(index: int) -> int:
    """Tokens of an answer; whoever is to leave asks for many."""
    return ANSWER if leaves(index) else random.Random(index).randint(1, ANSWER)


def leaves(index: int) -> bool:
    return index % 6 == 0


def call(index: int) -> Call:
    said = {"prompt": [7] * (index + 1), "max_tokens": asked(index), "ignore_eos": True, "stream": True}
    body = json.dumps(said | {"stream_options": {"include_usage": True}}).encode()
    return Call(index, index * 10_000_000, body, cancel_after=3 if leaves(index) else None)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    log = tmp_path_factory.mktemp("recorded") / "run.log"
    with ServerProcess(*FLAGS, "--record", str(log), "--slo", "ttft=10s,tpot=3x") as server:
        client = Client(f"{server.url}/v1/completions")
        asyncio.run(client.run(map(call, range(REQUESTS))))
        server.process.terminate()
        assert server.wait() == 0
    recorded = gather(paths_of(log))
    # Both clocks are monotonic, and records count from the first arrival.
    first = min(entry.event.spec.arrival for entry in read(log)[1] if isinstance(entry.event, Arrived))
    to_log = client.start_ns + time.monotonic_ns() - time.perf_counter_ns() - first
    for reply in client.replies:
        reply.sent_ns += to_log
        reply.times_ns = [at + to_log for at in reply.times_ns]
    return Run(log, sorted(client.replies, key=lambda reply: reply.index), recorded)


def test_every_request_is_in_the_log_with_its_lengths_and_its_end(run: Run) -> None:
    assert len(run.recorded.records) == REQUESTS
    requests = {request.prompt_tokens: request for request in run.recorded.requests}
    for reply, record in run.pairs():
        request = requests[record.prompt_tokens]
        assert request.limit_tokens == asked(reply.index)
        if leaves(reply.index):
            assert record.outcome in (CANCELLED, COMPLETED)
            assert record.output_tokens >= sum(reply.counts) > 0
        else:
            assert (reply.outcome, record.outcome) == ("completed", COMPLETED)
            assert record.output_tokens == sum(reply.counts) == request.output_tokens == asked(reply.index)
    assert any(record.outcome == CANCELLED for record in run.recorded.records)
    assert run.recorded.preemptions > 0


def test_tokens_came_to_the_client_after_they_came_from_the_core(run: Run) -> None:
    late_ns = []
    for reply, record in run.pairs():
        assert record.sent_ns >= reply.sent_ns
        assert record.times_ns == sorted(record.times_ns)
        late_ns.append(reply.times_ns[0] - record.times_ns[0])
        if not leaves(reply.index):
            late_ns.append(reply.times_ns[-1] - record.times_ns[-1])
    assert min(late_ns) > 0
    assert sorted(late_ns)[len(late_ns) // 2] < 0.5e9


def test_the_twin_serves_the_same_requests(run: Run) -> None:
    twin, _ = simulate(run.recorded, Linear(5e6, 0.0, 0.0, 0.0, 0.0))
    for live, simulated in zip(run.recorded.records, twin, strict=True):
        assert (simulated.prompt_tokens, simulated.sent_ns) == (live.prompt_tokens, live.sent_ns)
        if live.outcome == COMPLETED:
            assert (simulated.outcome, simulated.output_tokens) == (COMPLETED, live.output_tokens)
    # A sleep is never shorter than was asked for.
    assert max(record.end_ns for record in twin) < 1.5 * max(record.end_ns for record in run.recorded.records)


def test_the_command_replays_simulates_and_says_how_far_off_it_is(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "errors.json"
    assert main(["replay", str(run.log), "--cost", "5e6,0,0,0,0", "--json", str(out), "--disable-tqdm"]) == 0
    said = capsys.readouterr().out
    assert said.count("all the same") == 2
    assert f"Simulating {REQUESTS} requests on 1 x fcfs." in said
    found = json.loads(out.read_bytes())
    assert set(found["logs"]) == {str(run.log), f"{run.log}.instance0"}
    assert all(one["the_same"] and one["events"] > REQUESTS for one in found["logs"].values())
    names = [(error["metric"], error["statistic"]) for error in found["errors"]]
    assert names == [(metric, name) for metric in METRICS for name in ("mean", "median", "P90", "P99")]
    assert all(error["error"] > -1 for error in found["errors"])
    completed = sum(record.outcome == COMPLETED for record in run.recorded.records)
    assert found["outcomes"]["completed"][0] == completed
    assert 0 <= found["attainment"]["simulated"] <= 1
    assert found["attainment"]["slo"] == ""


def test_without_a_cost_steps_are_fitted_to_the_log(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", str(run.log), "--goodput", "ttft:10000", "--disable-tqdm"]) == 0
    said = capsys.readouterr().out
    assert "held-out relative error" in said
    assert "good requests under ttft=10000ms" in said
    assert main(["replay", str(run.log), "--cost-from", f"{run.log}.instance0", "--disable-tqdm"]) == 0
    assert f"of {run.log.name}.instance0" in capsys.readouterr().out
    assert main(["replay", str(run.log), "--cost-from", str(run.log)]) == 2
    assert "log of a cluster" in capsys.readouterr().err


def test_a_front_is_learnt_from_what_the_client_of_a_recorded_run_saw(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Tokens that reach the client 4 ms after they left the core; the live client's own lateness varies."""
    core = run.recorded.records
    seen = [structs.replace(r, times_ns=[at + 4_000_000 for at in r.times_ns], slo=None) for r in core]
    saved = tmp_path / "seen.json"
    result.save(result.Result(run={}, summary=summarize(seen), records=seen), saved)
    command = ["simulate", "--cost-from", f"{run.log}.instance0", "--against", str(saved), "--disable-tqdm"]
    idle_ns = []
    for name, flags in (("plain", []), ("front", ["--front-from", str(saved)])):
        output = ["--save-result", "--result-dir", str(tmp_path), "--result-filename", name]
        assert main([*command, *flags, *output]) == 0
        idle_ns.append([r.idle_ttft_ns for r in result.load(tmp_path / name).records])
    answered = sum(bool(record.times_ns) for record in core)
    assert f"4.00 ms later than the core (median of {answered} in" in capsys.readouterr().out
    # Without a word of the front a token takes as long as a message to the core.
    more_ns = 4_000_000 - median(run.recorded.delays)
    assert all(late - plain == pytest.approx(more_ns, abs=2) for plain, late in zip(*idle_ns, strict=True))

    result.save(result.Result(run={}, summary=summarize(seen), records=seen[:-1]), saved)
    assert main([*command[:3], "--against", str(saved), "--front-from", str(saved)]) == 2
    assert f"the last {REQUESTS - 1} requests" in capsys.readouterr().err
    assert main(["simulate", "--cost", "5e6,0,0,0,0", "--front-from", str(saved)]) == 2
    assert "say with --cost-from" in capsys.readouterr().err


def test_a_queue_that_runs_away_is_told_of_unless_clients_wait(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """With steps a hundred times as long as they were."""
    said = []
    for more in ([], ["--closed-loop"]):
        assert main(["replay", str(run.log), "--cost", "5e8,0,0,0,0", "--disable-tqdm", *more]) == 0
        said.append("ran away" in capsys.readouterr().out)
    assert said == [True, False]


def test_a_scheduler_that_decides_otherwise_is_found_and_still_simulated(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As if the limit on requests that run had been another."""
    header, entries = read(Path(f"{run.log}.instance0"))
    assert header.instance is not None
    other = structs.replace(header.instance, limits=Limits(max_num_seqs=1))
    writer = LogWriter(tmp_path / "other.log", structs.replace(header, instance=other))
    for entry in entries:
        writer.write(entry)
    writer.close()
    assert main(["replay", str(tmp_path / "other.log"), "--disable-tqdm"]) == 1
    said = capsys.readouterr().out
    assert "gives other commands than recorded" in said
    assert "requests completed" in said
    assert main(["replay", str(tmp_path / "other.log"), "--no-simulation"]) == 1
    assert "requests completed" not in capsys.readouterr().out


def test_a_log_without_requests_is_only_replayed(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    header, _ = read(Path(f"{run.log}.instance0"))
    LogWriter(tmp_path / "empty", header).close()
    assert main(["replay", str(tmp_path / "empty")]) == 0
    assert "Not simulated: no request came" in capsys.readouterr().out


def test_what_is_no_log_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "junk").write_text("hello")
    assert main(["replay", str(tmp_path / "junk")]) == 2
    assert "--record" in capsys.readouterr().err
