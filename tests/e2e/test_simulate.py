"""`penstock simulate` from the outside: flags, files, reports, and what it says when it cannot."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from penstock.cli.main import main
from penstock.metrics import result
from penstock.metrics.record import CANCELLED, COMPLETED, FAILED, Record
from penstock.workload import trace
from penstock.workload.trace import Request

SYSTEM = "--cost 5e6,2e4,0,1e5,10 --disable-tqdm"
LOAD = "--num-prompts 30 --request-rate 10 --random-input-len 100 --random-output-len 12 --random-range-ratio 0.5"


def simulate(flags: str) -> int:
    return main(["simulate", *shlex.split(flags)])


def records(folder: Path, flags: str) -> list[Record]:
    assert simulate(f"{flags} --save-result --result-dir {folder}") == 0
    return result.load(folder / "simulated.json").records


def test_as_a_command_of_its_own() -> None:
    run = [sys.executable, "-m", "penstock.cli.main", "simulate", *shlex.split(f"{SYSTEM} {LOAD} --goodput ttft:200")]
    done = subprocess.run(run, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    for said in ("Requests completed", "Goodput under ttft=200ms", "assumption: --kv-tokens", "% of the time"):
        assert said in done.stdout


def test_the_report_says_what_limits(capsys: pytest.CaptureFixture[str]) -> None:
    flags = "--max-num-seqs 2 --num-prompts 40 --request-rate 100"
    assert simulate(f"{SYSTEM} --kv-tokens 4800 --dataset-name prefix_repetition {flags}") == 0
    said = capsys.readouterr().out
    assert "1 x step times of 5e6,2e4,0,1e5,10, each with room for 4,800 tokens of KV:" in said
    assert "stepping 100.0 % of the time; KV in use" in said
    assert "0 preemptions." in said
    assert "Prompt tokens found in the prefix cache:" in said


def test_stepping_and_leaping_serve_alike(tmp_path: Path) -> None:
    flags = f"{SYSTEM} {LOAD} --kv-tokens 800 --instances 2"
    assert records(tmp_path / "leaping", flags) == records(tmp_path / "stepping", f"{flags} --stepping")


def test_flags_win_over_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "two.yaml"
    config.write_text(
        "model: llama-3.1-8b\nslo: ttft=1ms\n"
        "pools: [{hardware: h200, kv_tokens: 160}, {hardware: h100, kv_tokens: 320, page_tokens: 32}]\n"
    )
    assert simulate(f"--config {config} {LOAD} --disable-tqdm") == 0
    said = capsys.readouterr().out
    assert "1 x llama-3.1-8b on h200, each with room for 160 tokens of KV:" in said
    assert "1 x llama-3.1-8b on h100, each with room for 320 tokens of KV:" in said
    assert "Goodput under ttft=1ms" in said
    assert simulate(f"--config {config} {LOAD} --disable-tqdm --hardware a100 --kv-pages 100 --goodput ttft:2s") == 0
    said = capsys.readouterr().out
    assert "1 x llama-3.1-8b on a100, each with room for 1,600 tokens of KV:" in said
    assert "1 x llama-3.1-8b on a100, each with room for 3,200 tokens of KV:" in said
    assert "Goodput under ttft=2000ms" in said or "Goodput under ttft=2s" in said
    assert "on each of 2 GPUs" in said


def test_relative_targets_are_of_the_idle_instance(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (lone,) = records(tmp_path, f"{SYSTEM} --num-prompts 1 --goodput ttft:1x e2e:1.01x")
    assert lone.ttft_ns == lone.idle_ttft_ns > 0
    assert "Good, of all not cancelled (%)                                    100.00" in capsys.readouterr().out


def test_sessions_cancellations_and_promises_of_a_trace(tmp_path: Path) -> None:
    asked = [
        Request(arrival_s=0.0, prompt_tokens=10, output_tokens=3, session="a", think_s=1.0),
        Request(arrival_s=0.0, prompt_tokens=20, output_tokens=500, cancel_s=0.5),
        Request(arrival_s=0.1, prompt_tokens=20, output_tokens=3, session="a", think_s=1.0),
    ]
    trace.save(asked, tmp_path / "load.jsonl")
    ran = records(tmp_path, f"{SYSTEM} --dataset-name trace --dataset-path {tmp_path}/load.jsonl")
    outcomes = {record.id: record.outcome for record in ran}
    assert sorted(outcomes.values()) == [CANCELLED, COMPLETED, COMPLETED]
    first, later = (record for record in ran if record.outcome == COMPLETED)
    assert later.sent_ns == first.end_ns + 10**9
    (gone,) = (record for record in ran if record.outcome == CANCELLED)
    assert gone.end_ns == 5 * 10**8
    assert 0 < gone.output_tokens < 500


def test_a_failing_deployment_with_a_cold_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "cold.yaml"
    config.write_text(
        "model: opt-1.3b\nwarm: false\nload_gb_per_s: 2\npools: [{instances: 2, hardware: a10, start_s: 1}]\n"
        "delays: {front_ms: 2, dispatch_ms: 1, token_ms: 1}\nfailures: [{instance: 1, at_s: 6, down_s: 1}]\n"
    )
    load = f"{LOAD} --num-prompts 80"
    ran = records(tmp_path, f"--config {config} {load} --disable-tqdm --chrome-trace {tmp_path}/t.json")
    assert min(r.times_ns[0] for r in ran if r.times_ns) > 3 * 10**9
    assert {r.outcome for r in ran} <= {COMPLETED, FAILED}
    events = json.loads((tmp_path / "t.json").read_bytes())["traceEvents"]
    names = {event["args"]["name"] for event in events if event["ph"] == "M"}
    assert names == {"instance 0", "instance 1", "requests"}
    assert "ui.perfetto.dev" in capsys.readouterr().out


def test_a_cluster_that_hands_off_says_what_moved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "pd.yaml"
    config.write_text(
        "model: opt-13b\npolicy: distserve\nmove_gb_per_s: 25\nslo: ttft=500ms,tpot=100ms\npools:\n"
        "- {role: prefill, hardware: a100, cost: distserve/opt-13b/tp1, instances: 2}\n"
        "- {role: decode, hardware: a100, cost: distserve/opt-13b/tp1}\n"
    )
    assert simulate(f"--config {config} {LOAD} --disable-tqdm") == 0
    said = capsys.readouterr().out
    assert "2 x opt-13b on a100 for prefill, step times of distserve/opt-13b/tp1, each with room" in said
    assert "Moves between instances: 30, with " in said
    assert "came to nothing: none." in said
    assert "req/s on each of 3 GPUs" in said


def test_a_fleet_that_grows_is_counted_in_gpu_hours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "grows.yaml"
    config.write_text(
        "model: llama-7b\npolicy: llumnix\nslo: ttft=5s\nmove_gb_per_s: 2.4\n"
        "pools: [{hardware: a10, cost: llumnix/llama-7b, kv_tokens: 12672, start_s: 5}]\n"
        "balance: {scaling: true, instances_max: 4, scale_s: 2}\n"
    )
    load = "--num-prompts 60 --request-rate 2 --random-input-len 500 --random-output-len 200"
    assert simulate(f"--config {config} {load} --disable-tqdm") == 0
    said = capsys.readouterr().out
    assert "Instances, starting ones too: " in said
    assert " GPU-hours." in said
    assert "Goodput a GPU: " in said


def test_published_costs_and_pipelines(capsys: pytest.CaptureFixture[str]) -> None:
    assert simulate(f"--cost distserve/opt-13b/tp1/pp2 --pp 2 --kv-tokens 20000 {LOAD} --disable-tqdm") == 0
    assert "step times of distserve/opt-13b/tp1/pp2 pp 2" in capsys.readouterr().out


def test_all_failed_is_status_1_and_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    assert simulate(f"{SYSTEM} --kv-tokens 16 {LOAD}") == 1
    assert "the KV cache has 16: shorten the prompt" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("", "give both, or `cost`"),
        ("--hardware h200", "without `model`"),
        ("--hardware h300 --model llama-3.1-8b", "no hardware 'h300'"),
        ("--hardware h200 --model llama-9", "no model 'llama-9'"),
        ("--cost nope", "nope is no cost model"),
        ("--cost 1,2", "5 numbers of ns"),
        ("--cost distserve/opt-13b/tp1/pp2", "pp: it is 1"),
        (f"{SYSTEM} --instances 0", "instances: must be a whole number, at least 1"),
        (f"{SYSTEM} --tp 0", "tp: must be"),
        (f"{SYSTEM} --kv-tokens 0", "kv_tokens: must be"),
        (f"{SYSTEM} --kv-tokens 5", "less than a page"),
        (f"{SYSTEM} --kv-pages 0", "--kv-pages 0: must be above 0"),
        (f"{SYSTEM} --kv-pages 5 --kv-tokens 80", "give one"),
        (f"{SYSTEM} --page-tokens 0", "page_tokens: must be"),
        (f"{SYSTEM} --block-tokens 50", "multiple of page_tokens"),
        (f"{SYSTEM} --max-num-seqs 0", "max_num_seqs: must be"),
        (f"{SYSTEM} --predictor-factor nan", "predictor_factor: nan"),
        (f"{SYSTEM} --predictor nope", "nope is no cost model"),
        (f"{SYSTEM} --request-rate 0", "--request-rate 0.0: must be above 0"),
        (f"{SYSTEM} --num-prompts -1", "--num-prompts -1: must be above 0"),
        (f"{SYSTEM} --random-input-len 0", "--random-input-len 0: must be above 0"),
        (f"{SYSTEM} --seed -1", "--seed -1: must be 0 or more"),
        (f"{SYSTEM} --max-concurrency 3", "a closed loop"),
        (f"{SYSTEM} --goodput foo:3", "SLO 'foo:3'"),
        (f"{SYSTEM} --chrome-trace none/t.json", "none/t.json: there is no such folder"),
        (f"{SYSTEM} --against none.json", "none.json"),
        (f"{SYSTEM} --dataset-name trace --dataset-path none.jsonl", "none.jsonl"),
        ("--cost-from none.log", "none.log"),
        ("--config none.yaml", "none.yaml"),
    ],
)
def test_bad_input_is_one_line_and_status_2(flags: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert simulate(flags) == 2
    written = capsys.readouterr()
    assert said in written.err
    assert len(written.err.splitlines()) == 1
    assert not written.out
