"""`penstock bench sweep`, and what `bench report` makes of its folder: simulated, and against a server."""

import argparse
import os
import signal
from pathlib import Path

import pytest
from fake_openai import FakeServer, Script
from test_bench_serve import run, server  # noqa: F401

from penstock.cli import simulate, sweep
from penstock.core.slo import Slo
from penstock.metrics import layout, result
from penstock.metrics.curves import judge
from penstock.metrics.layout import Cell
from penstock.metrics.summary import Dist

SIMULATED = "--cost 5e6,2e4,0,1e5,10 --random-range-ratio 0.5 --random-output-len 20"
SLO = "ttft=60ms,tpot=8ms"


def simulated(folder: Path, *flags: str, shared: str = SIMULATED) -> int:
    return run("sweep", "--simulate", "--results", str(folder), "--slos", SLO, *flags, "--", *shared.split())


def files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def cells(*flags: str) -> list[Cell]:
    parser = argparse.ArgumentParser()
    sweep.add_arguments(parser)
    return sweep.cells_of(parser.parse_args(["--results", "unused", *flags]))


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The rates of the runs that were made, as they are made."""
    made: list[float] = []
    real = simulate.main

    def counting(args: argparse.Namespace) -> int:
        made.append(args.request_rate)
        return real(args)

    monkeypatch.setattr(simulate, "main", counting)
    return made


def test_grids() -> None:
    assert [c.rate for c in cells("--rates", "1:8:1")] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [c.rate for c in cells("--rates", "0.1:0.3:0.1", "4", "0.3")] == [0.1, 0.2, 0.3, 4]
    assert cells("--cells", "[(100, 0.5), (200, 1.0)]") == [Cell(0.5, None, 100), Cell(1.0, None, 200)]
    both = cells("--rates", "1", "2", "--cvs", "1", "4", "--num-prompts", "10", "20")
    assert len(both) == 8
    assert both[0] == Cell(1.0, 1.0, 10)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--rates 0", "must be positive"),
        ("--rates 1 --cvs -1", "must be positive"),
        ("--rates inf", "write numbers"),
        ("--rates 1:2", "start:stop:step"),
        ("--rates 1:2:0", "start:stop:step"),
        ("--cells [(1,2,3)]", "write pairs"),
        ("--cells 1;2", "write pairs"),
        ("--cells [(5,1)] --num-prompts 3", "either --cells"),
        ("--rates 1 --cells [(5,1)]", "either --cells"),
        ("--rates 1 --repeat 0", "at least 1"),
        ("--rates 1 -- --request-rate 3", "see --rates"),
        ("--rates 1 -- --arrival closed", "closed loop"),
        ("--rates 1 --cvs 2 -- --arrival constant", "gamma"),
    ],
)
def test_bad_grids(flags: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "s"
    assert run("sweep", "--simulate", "--results", str(folder), "--slos", SLO, *flags.split()) == 1
    assert says in capsys.readouterr().err
    assert not folder.exists()


def test_without_an_slo_there_is_nothing_to_sweep_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("sweep", "--results", str(tmp_path), "--rates", "1") == 1
    assert "say what is good" in capsys.readouterr().err


def test_a_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "s"
    grid = ["--rates", "4", "40", "--cvs", "1", "2", "--num-prompts", "30", "--repeat", "2", "--slo-scales", "2", "0.5"]
    assert simulated(folder, *grid, "--plot", str(tmp_path / "s.png"), "--csv", str(tmp_path / "s.csv")) == 0
    text = capsys.readouterr().out
    expected = [f"cells/rate={r},cv={c},n=30/repeat{k}.json" for r in (4, 40) for c in (1, 2) for k in (0, 1)]
    assert files(folder) == sorted([*expected, "sweep.json"])
    assert text.count("2 x 30") == 4
    assert "95 % confidence interval of the mean over repeats (Student's t, 2 repeats)" in text
    assert (tmp_path / "s.png").exists()
    assert (tmp_path / "s.csv").read_text().count("\n") == 1 + 4 * 3

    # The report of the folder is the report of the sweep, and every run is judged as it was when it was made.
    assert run("report", str(folder)) == 0
    assert capsys.readouterr().out in text
    for path in layout.runs_in(folder):
        saved = result.load(path)
        assert judge(saved.records, Slo.parse(SLO)).summary.goodput == saved.summary.goodput


def test_repeats_have_seeds_of_their_own_and_cells_the_same_ones(tmp_path: Path) -> None:
    assert simulated(tmp_path, "--rates", "4", "8", "--num-prompts", "20", "--repeat", "2") == 0
    load = {
        (rate, k): result.load(layout.path_of(tmp_path, Cell(rate, None, 20), k)).records
        for rate in (4, 8)
        for k in (0, 1)
    }
    lengths = {key: [r.prompt_tokens for r in records] for key, records in load.items()}
    assert lengths[4, 0] == lengths[8, 0] != lengths[4, 1]
    for slow, fast in zip(load[4, 0], load[8, 0], strict=True):
        assert slow.scheduled_ns == pytest.approx(2 * fast.scheduled_ns, abs=2)


def test_resumed_it_runs_nothing_twice_and_ends_the_same(
    tmp_path: Path, runs: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    grid = ["--rates", "4", "8", "--num-prompts", "20", "--repeat", "2"]
    assert simulated(tmp_path, *grid) == 0
    whole = capsys.readouterr().out
    assert runs == [4, 8, 4, 8]
    lost = layout.path_of(tmp_path, Cell(8.0, None, 20), 1)
    before = result.load(lost)
    lost.unlink()
    assert simulated(tmp_path, *grid) == 0
    assert runs == [4, 8, 4, 8, 8]
    said, table = capsys.readouterr().out.split("\n", 1)
    assert said.startswith("3 of 4 runs are in")
    assert table == whole
    after = result.load(lost)
    assert (after.records, after.summary) == (before.records, before.summary)

    # More of the same grid runs only what is new; other flags are another sweep.
    assert simulated(tmp_path, "--rates", "4", "8", "16", "--num-prompts", "20", "--repeat", "2") == 0
    assert runs[5:] == [16, 16]
    assert simulated(tmp_path, *grid, shared=SIMULATED + " --seed 5") == 1
    assert "give another --results, or --fresh" in capsys.readouterr().err
    assert simulated(tmp_path, *grid, "--fresh", shared=SIMULATED + " --seed 5") == 0
    assert runs[7:] == [4, 8, 4, 8]
    assert len(layout.runs_in(tmp_path)) == 4


def test_only_some_cells(tmp_path: Path, runs: list[float]) -> None:
    grid = ["--rates", "4", "8", "--num-prompts", "10"]
    assert simulated(tmp_path, *grid, "--only", "rate=8*") == 0
    assert simulated(tmp_path, *grid) == 0
    assert simulated(tmp_path, *grid, "--only", "rate=4*", "--fresh") == 0
    assert runs == [8, 4, 4]


def test_a_failing_cell_is_a_row_and_the_others_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shared = SIMULATED + " --warmup 10"
    assert simulated(tmp_path, "--cells", "[(5, 2.0), (40, 4.0)]", shared=shared) == 1
    text = capsys.readouterr().out
    assert "rate=2,n=5 repeat 0: no request is left to count: all 5 fall in the warm-up" in text
    assert ["rate=4,n=40", "30"] in [line.split()[:2] for line in text.splitlines()]
    assert files(tmp_path) == ["cells/rate=4,n=40/repeat0.json", "sweep.json"]


def test_interrupted_it_leaves_no_half_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = simulate.main

    def interrupted(args: argparse.Namespace) -> int:
        status = real(args)
        if args.request_rate == 8:
            raise KeyboardInterrupt
        return status

    monkeypatch.setattr(simulate, "main", interrupted)
    assert simulated(tmp_path, "--rates", "4", "8", "16", "--num-prompts", "10") == 130
    assert files(tmp_path) == ["cells/rate=4,n=10/repeat0.json", "sweep.json"]
    assert "Stopped: 1 of 3 runs are in" in capsys.readouterr().err
    assert run("report", str(tmp_path)) == 0
    assert "rate=4,n=10" in capsys.readouterr().out


def test_a_late_client_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert simulated(tmp_path, "--rates", "4", "8", "--num-prompts", "10") == 0
    path = layout.path_of(tmp_path, Cell(8.0, None, 10), 0)
    saved = result.load(path)
    saved.client = {"send": Dist.of([2e6, 30e6]), "loop": None}
    result.save(saved, path)
    capsys.readouterr()
    assert run("report", str(tmp_path)) == 0
    assert "more than 10 ms late (P99); latencies may be its own: rate=8,n=10 repeat 0." in capsys.readouterr().out


def test_repeats_that_seeds_do_not_change_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shared = "--cost 5e6,2e4,0,1e5,10 --arrival constant"
    assert simulated(tmp_path, "--rates", "4", "--num-prompts", "10", "--repeat", "2", shared=shared) == 0
    said = "WARNING: equal to another run of its cell, so +- is of no meaning: rate=4,n=10 repeat 1."
    assert said in capsys.readouterr().out


LIVE = "--random-input-len 5 --random-output-len 3"


def live(server: FakeServer, folder: Path, *flags: str) -> int:  # noqa: F811
    shared = ["--base-url", server.url, *LIVE.split()]
    return run("sweep", "--results", str(folder), "--slos", "ttft=2s", *flags, "--", *shared)


def test_live_and_simulated_in_one_figure(
    server: FakeServer,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert live(server, tmp_path / "live", "--rates", "100", "200", "--num-prompts", "10") == 0
    assert simulated(tmp_path / "sim", "--rates", "100", "200", "--num-prompts", "10") == 0
    # Prompts differ between cells, so that no prefix cache knows them, while lengths do not.
    words = [tuple(body["prompt"]) for body in server.bodies]
    assert len(set(words)) == 20
    picture, both = tmp_path / "both.png", [f"live={tmp_path / 'live'}", f"simulated={tmp_path / 'sim'}"]
    capsys.readouterr()
    assert run("report", *both) == 1
    assert "judged differently" in capsys.readouterr().err
    assert run("report", *both, "--goodput", "ttft:1s", "--slo-scales", "1", "0.5", "--plot", str(picture)) == 0
    text = capsys.readouterr().out
    assert "- live -" in text
    assert "- simulated -" in text
    assert "Wilson" in text
    assert picture.exists()


def test_multiples_of_idle_time_are_measured_live(server: FakeServer, tmp_path: Path) -> None:  # noqa: F811
    assert live(server, tmp_path, "--rates", "100", "--num-prompts", "5", "--slos", "ttft=1s", "ttft=300x") == 0


def test_a_live_interrupt_leaves_no_half_cell(server: FakeServer, tmp_path: Path) -> None:  # noqa: F811
    def script(index: int, body: dict[str, object]) -> Script:
        if index == 14:
            os.kill(os.getpid(), signal.SIGINT)
        return Script(gap_s=0.0 if index < 10 else 60.0)

    server.script = script
    assert live(server, tmp_path, "--rates", "100", "200", "--num-prompts", "10") == 130
    assert files(tmp_path) == ["cells/rate=100,n=10/repeat0.json", "sweep.json"]


def test_a_server_that_answers_nothing_is_a_failed_cell(
    server: FakeServer,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    server.script = lambda index, body: Script(status=500, message="out of order") if index < 10 else Script()
    assert live(server, tmp_path, "--rates", "100", "200", "--num-prompts", "10") == 1
    assert "rate=100,n=10 repeat 0: every request failed: out of order" in capsys.readouterr().out
    assert files(tmp_path) == ["cells/rate=200,n=10/repeat0.json", "sweep.json"]
