"""From the search to a server: what a plan keeps, that it is served as it is, and what is refused."""

import argparse
from pathlib import Path

import httpx
import pytest
from server_process import ServerProcess

from penstock.cli import deployed
from penstock.cli.main import main
from penstock.drivers.deployment import Deployment
from penstock.engine.hub import DEMO

SMALL = [
    "plan", "--model", str(DEMO), "--hardware", "a100:3", "--slo", "ttft=500ms,tpot=60ms", "--lengths",
    "uniform:100-500", "--output-lengths", "fixed:20", "--num-prompts", "60", "--duration", "0", "--seeds", "2",
    "--jobs", "1", "--disable-tqdm", "--cost", "distserve/opt-13b/tp1", "--best", "1", "--precision", "0.2",
    "--policies", "distserve", "--ratios", "1:2", "--tp", "1", "--pp", "1", "--knob", "kv_tokens=8192", "--knob",
    "max_num_seqs=16",
]  # fmt: skip


def read(path: Path, text: str) -> Deployment:
    path.write_text(text)
    return Deployment.read(path)


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plan") / "plan.yaml"
    assert main([*SMALL, "--output", str(path)]) == 0
    return path


def test_a_plan_says_what_it_is_for(plan: Path) -> None:
    spec = Deployment.read(plan).planned
    assert spec is not None
    assert spec.target == 0.9
    assert spec.attained is not None
    assert 0.85 < spec.attained <= 1
    assert spec.workload.input_mean == pytest.approx(300, rel=0.15)
    assert spec.workload.input_std == pytest.approx(400 / 12**0.5, rel=0.2)
    assert (spec.workload.output_mean, spec.workload.output_std) == (20, 0)
    assert spec.workload.gap_cv == pytest.approx(1, abs=0.35)


def test_its_command_makes_it_again(plan: Path, tmp_path: Path) -> None:
    spec = Deployment.read(plan).planned
    assert spec is not None
    again = tmp_path / "again.yaml"
    command = spec.command.split()
    assert command[:2] == ["penstock", "plan"]
    assert not {"--output", "--jobs", "--disable-tqdm"} & set(command)
    assert main([*command[1:], "--jobs", "1", "--disable-tqdm", "--output", str(again)]) == 0
    assert again.read_text() == plan.read_text()


def test_a_plan_is_served(plan: Path) -> None:
    flags = ("--engine", "null", "--max-model-len", "512", "--plan", str(plan))
    with ServerProcess(*flags) as server:
        assert "of the machine that was simulated, and not used here: pools.hardware, pools.cost" in server.output
        assert "planned for" in server.output
        model = httpx.get(f"{server.url}/v1/models", timeout=30).json()["data"][0]["id"]
        body = {"model": model, "prompt": [1, 2, 3], "max_tokens": 5}
        answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=30).json()
        assert answer["usage"]["completion_tokens"] == 5
        lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    assert sum("penstock_instance_up{" in line and 'role="decode"' in line for line in lines) == 2
    assert sum("penstock_instance_up{" in line and 'role="prefill"' in line for line in lines) == 1


def test_a_configuration_may_name_a_plan_and_wins_over_it(plan: Path, tmp_path: Path) -> None:
    config = tmp_path / "serve.yaml"
    config.write_text(f"plan: {plan}\nengine: 'null'\nmax-num-seqs: 5\nquiet: true\n")
    with ServerProcess("--config", str(config), "--max-num-queued-reqs", "7") as server:
        assert "policy=distserve" in server.output
        assert "max_num_seqs=5" in server.output
        assert "max_num_queued=7" in server.output


def served(deployment: Deployment, model: str, engine: str = "auto") -> str:
    return deployed.model(deployment, argparse.Namespace(model=model, engine=engine, download_dir=""))


def test_only_the_model_that_was_planned_for_is_served(plan: Path, tmp_path: Path) -> None:
    deployment = Deployment.read(plan)
    assert served(deployment, str(DEMO)) == str(DEMO)
    text = plan.read_text().replace(f"model: {DEMO}", "model: llama-3.1-8b")
    other = read(tmp_path / "other.yaml", text)
    with pytest.raises(ValueError, match=r"another: hidden 256 instead of 4096.*plan --model"):
        served(other, str(DEMO))
    with pytest.raises(ValueError, match="serve FOLDER"):
        served(other, "llama-3.1-8b")
    assert served(other, "llama-3.1-8b", "null") == ""


def test_flags_win_over_a_file_that_was_not_planned(tmp_path: Path) -> None:
    assert served(read(tmp_path / "d.yaml", "{model: llama-3.1-8b, pools: [{}]}"), str(DEMO)) == str(DEMO)


def test_what_cannot_be_served_is_left_out_where_asked(capsys: pytest.CaptureFixture[str]) -> None:
    main(
        [*SMALL, "--hardware", "a100:6", "--ratios", "1:1", "--pp", "1", "5", "--cost", "5e6,2e4,0,1e5,0", "--servable"]
    )
    said = capsys.readouterr().out
    assert "5 stages are simulated only" in said


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("rate:", "rat:", "planned: there is no key `rat`; the keys are command, rate"),
        ("gap_cv:", "gap_c:", "planned.workload: there is no key `gap_c`; the keys are gap_cv"),
        ("target: 0.9", "target: 1.9", "planned.target: must be"),
    ],
)
def test_a_plan_is_checked(plan: Path, tmp_path: Path, old: str, new: str, says: str) -> None:
    text = plan.read_text()
    text = text.replace("  workload:", "  target: 0.9\n  workload:") if "target" in old else text
    with pytest.raises(ValueError, match=says):
        read(tmp_path / "wrong.yaml", text.replace(old, new))
