"""From measuring to a cost model, as a user does it: stopped and gone on with, merged, fitted, drawn, used."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from penstock.cli.main import main
from penstock.core.step import Features
from penstock.cost import grid, models
from penstock.cost.profile import Profile

NULL = ["--engine", "null", "--null-cost", "1,2,10"]


def count(path: Path) -> tuple[int, int]:
    """Points and single times in a file with one setup."""
    with Profile(path, must_exist=True) as profile:
        points = profile.points(1)
        return len(points), sum(len(point.repeats) for point in points)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("profile") / "a.sqlite"
    assert main(["profile", *NULL, "--repeat", "2", "--out", str(path)]) == 0
    return path


def test_a_fit_says_what_the_engine_takes(measured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, picture = tmp_path / "cost.json", tmp_path / "fit.png"
    assert main(["fit", str(measured), "--out", str(out), "--plot", str(picture)]) == 0
    said = capsys.readouterr().out
    assert "held out, %" in said
    assert "<- taken" in said
    file = models.load(out)
    assert file.provenance["model"] == "null"
    assert set(file.errors) == {"prefill", "decode", "mixed", "all"}
    # Sleeping takes a little longer than asked for.
    assert file.cost.step_ns(Features(32, 4096, 32, 4096)) == pytest.approx(1.32e6 + 1e5, rel=0.5)
    assert file.cost.step_ns(Features(512, 131328, 0, 0, 1)) == pytest.approx(2.02e6 + 1e5, rel=0.5)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_measuring_again_adds_only_what_is_missing(measured: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def finished() -> dict[grid.Step, list[tuple[int, int]]]:
        """Times of the steps that need no more: what others disturbed is tried again."""
        with Profile(measured) as profile:
            visits = profile.visits(1)
            return {point.step: point.repeats for point in profile.points(1) if visits.get(point.step, 0) >= 2}

    before = finished()
    assert main(["profile", *NULL, "--repeat", "2", "--out", str(measured)]) == 0
    after = finished()
    assert {step: after[step] for step in before} == before
    assert "scheduler's decision" in capsys.readouterr().out


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_stopped_half_way_it_goes_on(tmp_path: Path, how: signal.Signals) -> None:
    path = tmp_path / "p.sqlite"
    command = [sys.executable, "-m", "penstock.cli.main", "profile", "--engine", "null", "--null-cost", "40,0,0"]
    process = subprocess.Popen([*command, "--out", str(path)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    ends_s = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < ends_s and not (path.exists() and _some(path)):
        time.sleep(0.1)
    process.send_signal(how)
    said, _ = process.communicate(timeout=30)
    if how == signal.SIGINT:
        assert process.returncode == 130
        assert b"goes on" in said
    points, repeats = count(path)
    assert points > 0
    assert main(["profile", "--engine", "null", "--null-cost", "40,0,0", "--repeat", "1", "--out", str(path)]) == 0
    assert count(path)[0] == 52
    assert count(path)[1] >= repeats


def _some(path: Path) -> bool:
    """Whether a point is there; the file may be about to be made."""
    try:
        return count(path)[0] > 0
    except (ValueError, OSError):
        return False


def test_files_are_merged_listed_and_chosen_from(
    measured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = tmp_path / "both.sqlite"
    other = tmp_path / "other.sqlite"
    assert main(["profile", "--engine", "null", "--null-cost", "2,0,0", "--repeat", "1", "--out", str(other)]) == 0
    assert main(["profile", "--import", str(measured), str(other), "--out", str(both)]) == 0
    assert "52 new points" in capsys.readouterr().out
    assert main(["profile", "--list", "--out", str(both)]) == 0
    assert "2 setups" in capsys.readouterr().out
    assert main(["fit", str(both), "--out", str(tmp_path / "c.json")]) == 2
    assert "choose with --hardware" in capsys.readouterr().err
    assert main(["fit", str(both), "--model", "opt", "--out", str(tmp_path / "c.json")]) == 2
    assert "no such setup" in capsys.readouterr().err


def test_what_cannot_be_fitted_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text").write_text("hello " * 500)
    with Profile(tmp_path / "empty.sqlite"):
        pass
    for args, words in (
        ([], "nothing to fit"),
        ([str(tmp_path / "none.sqlite")], "is not there"),
        ([str(tmp_path / "text")], "not a profile"),
        ([str(tmp_path / "empty.sqlite")], "is empty"),
        (["--from", str(tmp_path / "text")], "not a log"),
        (["--from", str(tmp_path / "none.log")], "none.log"),
    ):
        assert main(["fit", *args, "--out", str(tmp_path / "c.json")]) == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "c.json").exists()


def test_latency_without_a_server(capsys: pytest.CaptureFixture[str]) -> None:
    args = ["bench", "latency", "--engine", "null", "--null-cost", "2,0,0", "--repeat", "2", "--output-len", "5"]
    assert main([*args, "--batch", "1", "4"]) == 0
    said = capsys.readouterr().out
    assert "TTFT ms" in said
    assert main([*args, "--json"]) == 0
    assert '"output_tokens_per_s"' in capsys.readouterr().out
    assert main([*args, "--kv-pages", "20"]) == 1
    assert "--kv-pages" in capsys.readouterr().err


def test_named_costs_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--list"]) == 0
    listed = capsys.readouterr().out
    assert "distserve/opt-13b/tp1" in listed
    assert "h200/" in listed


def test_latency_of_a_cost_is_arithmetic(capsys: pytest.CaptureFixture[str]) -> None:
    """10 ms a step, 1 ms a prompt token, 2 ms a decode."""
    flags = ["--batch", "1", "--input-len", "20", "--output-len", "5", "--json"]
    assert main(["bench", "latency", "--cost", "10e6,1e6,0,2e6,0", *flags]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["ttft_ms"]["mean"] == pytest.approx(30)
    assert found["tpot_ms"]["mean"] == pytest.approx(12)
    assert found["output_tokens_per_s"]["mean"] == pytest.approx(5 / 0.078)
