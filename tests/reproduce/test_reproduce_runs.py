"""A small figure of its own is run, drawn, judged, and gone on with."""

import csv
from pathlib import Path

import pytest

from penstock.cli.main import main
from penstock.drivers.deployment import Deployment
from penstock.metrics.record import Record
from penstock.reproduce import claims, figure, runs, twin
from penstock.reproduce.figure import Claim, LoadSpec
from penstock.reproduce.numbers import of_records
from penstock.reproduce.runs import Store, line

CONFIG = """
title: T
paper: P
hardware: H
minutes: 0
quick_minutes: 0
expect: E
slo: ttft=100ms,tpot=20ms
load: {lengths: "fixed:200", output_lengths: "fixed:20", requests: 40}
rows:
  fast: {style: "#000000 o", deployment: {pools: [{cost: "5e6,2e4,0,1e5,0", kv_tokens: 20000}]}}
  slow:
    style: "#ff0000 s --"
    preset: vllm-0.2
    deployment: {pools: [{cost: "9e6,2e5,0,1e5,0", kv_tokens: 20000}]}
panels:
  rate: {title: R, xs: [1, 4, 16], y: attained, target: 0.9}
  scale: {title: S, over: slo_scale, xs: [0.5, 1, 2], rate: 4, y: attained}
claims:
  - {says: fast is better, panel: rate, take: order, rows: [slow, fast], least: 1}
  - {says: slow is better, panel: rate, take: order, rows: [fast, slow], least: 1}
  - {says: points, panel: rate, take: points, of: fast, most: 10}
quick:
  panels: {rate: {xs: [1, 16]}}
  load: {requests: 20}
live:
  rows:
    fast: {serve: [--engine, "null", --null-cost, "5,20,100", --max-model-len, "4096"]}
    slow: null
  panels: {rate: {xs: [20]}, scale: null}
  claims: []
"""
POINTS = "# from nowhere\npanel,row,x,y\nrate,fast,1,1.0\nrate,fast,4,1.0\n"


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    folder = tmp_path / "figures" / "mine" / "fig1"
    folder.mkdir(parents=True)
    (folder / "figure.yaml").write_text(CONFIG)
    (folder / "paper.csv").write_text(POINTS)
    (tmp_path / "figures" / "presets.yaml").write_text((figure.ROOT / "presets.yaml").read_text())
    monkeypatch.setattr(figure, "ROOT", tmp_path / "figures")
    figure._raw.cache_clear()
    return "mine/fig1"


def reproduce(*args: str) -> int:
    return main(["reproduce", *args, "--jobs", "1", "--disable-tqdm"])


def test_a_figure_is_run_once_and_leaves_picture_numbers_and_claims(
    mine: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = ["--results", str(tmp_path / "out")]
    assert reproduce(mine, *results) == 0
    folder = tmp_path / "out" / mine
    assert (folder / "figure.png").read_bytes()[:4] == b"\x89PNG"
    said = (folder / "figure.claim").read_text()
    assert said.count("holds      yes") == 2
    assert said.count("holds      no") == 1
    rows = list(csv.DictReader((folder / "numbers.csv").read_text().splitlines()))
    assert {(r["panel"], r["row"]) for r in rows} == {(p, r) for p in ("rate", "scale") for r in ("fast", "slow")}
    assert next(r for r in rows if r["row"] == "fast")["paper"] == "1.0"
    files = {path: path.stat().st_mtime_ns for path in folder.glob("cells/*/*.json")}
    assert len(files) == 6, "both panels show the run at 4 requests/s"
    assert "2 of 3 claims hold" in capsys.readouterr().out

    next(iter(files)).unlink()
    assert reproduce(mine, *results) == 0
    again = {path: path.stat().st_mtime_ns for path in folder.glob("cells/*/*.json")}
    assert sum(again[path] != at for path, at in files.items()) == 1, "only what was missing"
    assert reproduce(mine, *results, "--fresh", "--only", "fast*") == 0
    fresh = {path: path.stat().st_mtime_ns for path in folder.glob("cells/*/*.json")}
    assert {path.parent.name.split(",")[0] for path in fresh if fresh[path] != again[path]} == {"fast"}


def test_partial_results_are_drawn_and_what_is_missing_does_not_hold(
    mine: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = ["--results", str(tmp_path / "out")]
    assert reproduce("plot", mine, *results) == 2, "nothing has been run"
    assert reproduce(mine, *results, "--only", "fast,rate=1,*", "--repeat", "2") == 0
    assert len(list((tmp_path / "out" / mine / "cells").glob("*/repeat*.json"))) == 2
    (tmp_path / "out" / mine / "figure.png").unlink()
    capsys.readouterr()
    assert reproduce("plot", mine, *results) == 0
    assert (tmp_path / "out" / mine / "figure.png").exists()
    assert "slow has not been run" in capsys.readouterr().out
    assert reproduce("claims", mine, *results) == 0
    table = capsys.readouterr().out
    assert "| slow is better | in words | not known | at least 1 | **no** |" in table


def test_quick_is_smaller_and_lies_elsewhere(mine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert reproduce(mine, "--quick") == 0
    names = {path.name for path in (tmp_path / "results/reproduce/quick" / mine / "cells").iterdir()}
    assert names == {f"{row},rate={rate},cv=1,n=20" for row in ("fast", "slow") for rate in (1, 4, 16)}


def test_live_serves_the_same_requests(mine: str, tmp_path: Path) -> None:
    """A real server with an engine that only sleeps, and the real client."""
    assert reproduce(mine, "--live", "--results", str(tmp_path / "out")) == 0
    store = Store(tmp_path / "out", figure.load(mine, "live"))
    ((_, attained),) = line(store, "rate", "fast")
    assert attained > 0
    numbers = store.get(runs.cell(store.figure, "rate", "fast", 20))
    assert numbers is not None
    assert numbers.values["completed"] == numbers.values["requests"] == 40
    assert 0 < numbers.values["tpot_p50_ms"] < 1000


def test_the_best_option_is_the_best_where_the_load_is_hardest(tmp_path: Path) -> None:
    one = figure.load("distserve/fig11-13b", "quick")
    store = Store(tmp_path, one)
    runs.run(store, only="prefill-first*")
    hardest = max(one.panels["rate"].xs)
    every = {
        option: numbers.values["attained"]
        for option in runs.candidates(one, "vLLM++")
        if (numbers := store.get(runs.cell(one, "rate", "vLLM++", hardest, option))) is not None
    }
    assert len(every) == len(runs.candidates(one, "vLLM++")) > 3
    best = runs.best(store, "rate", "vLLM++")
    assert best is not None
    assert every[best] == max(every.values())
    assert len(line(store, "rate", "vLLM++")) == len(one.panels["rate"].xs)


Lines = dict[str, list[tuple[float, float]]]


def judged(monkeypatch: pytest.MonkeyPatch, lines: Lines, claim: Claim) -> claims.Verdict:
    monkeypatch.setattr(claims, "line", lambda store, key, row, y="": lines[row])
    return claims._judge(None, claim)  # type: ignore[arg-type]


def test_where_lines_cross(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: Lines = {
        "a": [(1.0, 1.0), (2.0, 0.8), (3.0, 0.5)], "b": [(1.0, 0.95), (2.0, 0.85), (3.0, 0.1)],
        "never": [(1.0, 1.0), (3.0, 0.95)], "at once": [(1.0, 0.5), (3.0, 0.1)], "ms": [(1.0, 50.0), (2.0, 150.0)],
        # Over SLO scales.
        "loose": [(0.5, 0.1), (1.0, 0.7), (2.0, 1.0)], "tight": [(0.5, 0.92), (1.0, 1.0), (2.0, 1.0)],
    }  # fmt: skip

    def ours(of: str, over: str = "", level: float = 0.9, least: float = 0.0) -> claims.Verdict:
        claim = Claim(says="", panel="", take="crossing", of=of, over=over, level=level, least=least)
        return judged(monkeypatch, lines, claim)

    assert ours("a").ours == pytest.approx(1.5)
    assert ours("a", "b").ours == pytest.approx(1.0)
    assert ours("ms", level=100).ours == pytest.approx(1.5), "times rise"
    beyond = ours("never", "a", least=1.5)
    assert (beyond.ours, beyond.at_least, beyond.holds) == (pytest.approx(2.0), True, True)
    assert ours("a", "at once").at_least, "that one crosses before the first point"
    assert ours("a", "never").ours is None, "at most that: nothing is known that could hold"
    assert not ours("a", "never").holds
    assert ours("loose").ours == pytest.approx(1.0 + 2 / 3)
    assert ours("loose", "tight").ours == pytest.approx((1 + 2 / 3) / 0.5)
    assert ours("loose", "tight").at_least, "the tight one may be tighter still"


def test_what_is_known_from_below_only_does_not_hold_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    claim = Claim(says="", panel="", take="crossing", of="never", level=0.9, published=3.0, within=0.25)
    verdict = judged(monkeypatch, {"never": [(1.0, 1.0), (3.0, 0.95)]}, claim)
    assert (verdict.ours, verdict.at_least, verdict.holds) == (3.0, True, False)


def test_a_claim_that_accepts_anything_is_refused() -> None:
    with pytest.raises(ValueError, match="accepts anything"):
        Claim(says="vague", panel="p", published=3.0).bounds  # noqa: B018


def test_numbers_of_records_are_those_worked_out_by_hand() -> None:
    def record(number: int, ttft_ms: int, gap_ms: int, tokens: int) -> Record:
        first = 10**9 * number + ttft_ms * 10**6
        times = [first + gap_ms * 10**6 * n for n in range(tokens)]
        return Record(id=number, scheduled_ns=10**9 * number, sent_ns=10**9 * number, end_ns=times[-1],
                      prompt_tokens=5, times_ns=times)  # fmt: skip

    slo = figure.Slo.parse("ttft=100ms,tpot=20ms")
    found = of_records([record(0, 50, 10, 11), record(1, 150, 10, 3), record(2, 50, 40, 2)], slo, [0.4, 2.0])
    assert found.values["attained"] == pytest.approx(1 / 3)
    assert found.values["attained_ttft"] == found.values["attained_tpot"] == pytest.approx(2 / 3)
    assert found.scales == {"0.4": 0.0, "2": 1.0}
    assert found.values["ttft_mean_s"] == pytest.approx(0.25 / 3)
    assert found.values["tpot_mean_ms"] == pytest.approx(20)
    assert found.values["decode_mean_s"] == pytest.approx((0.1 + 0.02 + 0.04) / 3)
    assert len(found.quantiles["e2e_s"]) == 101


def test_stages_of_a_lone_request_add_up_and_are_what_steps_and_bytes_take() -> None:
    """One prompt of 1,000 positions on one instance, whose KV goes to another at 100 GB/s."""
    raw = {
        "model": "opt-13b", "policy": "distserve", "move_gb_per_s": 100,
        "pools": [{"role": role, "cost": "5e6,2e4,0,1e5,0", "kv_tokens": 20000} for role in ("prefill", "decode")],
    }  # fmt: skip
    deployment = figure.msgspec.convert(raw, Deployment)
    load = LoadSpec(lengths="fixed:1000", output_lengths="fixed:21", requests=1)
    found = twin.run(deployment, twin.requests(load, 1.0, 1, 1.0, 0), figure.Slo(), stages=True)
    values = found.values
    assert sum(values[f"stage_{name}"] for name in twin.STAGES) == pytest.approx(1)
    whole_ms = 1000 * values["e2e_mean_s"]
    assert values["stage_prefill"] * whole_ms == pytest.approx(1000 * values["ttft_mean_s"], rel=1e-3)
    assert values["stage_decode"] * whole_ms == pytest.approx(20 * 5.1, rel=0.01)
    kv_bytes = 2 * 2 * 40 * 5120 * 1000
    assert found.quantiles["transfer_ms"][0] == pytest.approx(kv_bytes / 100e9 * 1000, rel=0.05)
    assert values["moves"] == 1
