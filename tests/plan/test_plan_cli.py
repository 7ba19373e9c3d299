from pathlib import Path

import pytest
import yaml

from penstock.cli.main import main
from penstock.drivers.deployment import Deployment

SMALL = [
    "plan", "--model", "opt-13b", "--hardware", "a100:2", "--slo", "ttft=500ms,tpot=60ms", "--lengths",
    "uniform:100-500", "--output-lengths", "fixed:20", "--num-prompts", "60", "--duration", "0", "--seeds", "2",
    "--jobs", "1", "--disable-tqdm", "--pp", "1", "--cost", "distserve/opt-13b/tp{tp}/pp{pp}", "--best", "1",
    "--precision", "0.2",
]  # fmt: skip


def test_the_plan_is_a_deployment_that_simulate_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = tmp_path / "plan.yaml"
    assert main([*SMALL, "--output", str(plan), "--csv", str(tmp_path / "all.csv")]) == 0
    said = capsys.readouterr().out
    assert "Best: " in said
    deployment = Deployment.read(plan)
    assert deployment.slo == "ttft=500ms,tpot=60ms"
    assert set(yaml.safe_load(plan.read_text())["pools"][0]) <= set(Deployment.read(plan).pools[0].__struct_fields__)
    assert (
        main(["simulate", "--config", str(plan), "--num-prompts", "20", "--request-rate", "1", "--disable-tqdm"]) == 0
    )
    rows = (tmp_path / "all.csv").read_text().splitlines()
    assert len(rows) == 1 + 3  # units that do both with tp 1 and 2, and one ratio that fits


def test_a_folder_is_of_one_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(tmp_path / "runs")
    assert main([*SMALL, "--results", folder]) == 0
    first = capsys.readouterr().out
    assert main([*SMALL, "--results", folder]) == 0
    assert capsys.readouterr().out == first
    assert main([*SMALL, "--results", folder, "--target", "0.8"]) == 2
    assert "another plan" in capsys.readouterr().err


def test_a_load_that_is_too_much_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "--rate", "1000"]) == 1
    assert "need more than the 2 GPUs" in capsys.readouterr().out


def test_knobs_are_compared(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "--policies", "fcfs", "--knob", "max_num_batched_tokens=64,2048", "--tp", "1"]) == 0
    said = capsys.readouterr().out
    assert "64: fcfs,i=1xtp1pp1,max_num_batched_tokens=64" in said
    assert "2048: fcfs,i=1xtp1pp1,max_num_batched_tokens=2048" in said


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--model", "llama-3.1-70b", "--hardware", "h100:1"], "bytes are missing"),
        (["--slo", "ttft=1ms,tpot=60ms"], "prompt time"),
        (["--ratios", "2"], "write P:D"),
        (["--knob", "max_num_seqs"], "KEY=VALUE"),
        (["--seeds", "0"], "above 0"),
    ],
)
def test_what_is_wrong_is_said(flags: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    cost = ["--cost", ""] if "--model" in flags else []
    assert main([*SMALL, *flags, *cost]) == 2
    assert said in capsys.readouterr().err


def test_distserves_example_has_distserves_answer(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--like", "distserve-simulator", "--jobs", "1", "--disable-tqdm"]) == 0
    said = capsys.readouterr().out
    assert "Best: distserve,p=1xtp2pp1,d=1xtp1pp1: 4.688 req/s on 3 GPUs" in said  # 1.5625 a GPU
