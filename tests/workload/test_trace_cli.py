"""`penstock trace` as a user calls it."""

import json
from pathlib import Path

import pytest

from penstock.cli.main import main
from penstock.workload import trace

MADE = "--count 300 --rate 5 --lengths loongserve:sharegpt --sessions uniform:1-4 --think 3 --seed 0x2a"


def made(tmp_path: Path, *more: str, name: str = "a.jsonl") -> Path:
    path = tmp_path / name
    assert main(["trace", "synthesize", str(path), *MADE.split(), *more]) == 0
    return path


def test_the_same_seed_makes_the_same_file(tmp_path: Path) -> None:
    one, two = (made(tmp_path, name=name) for name in ("one.jsonl", "two.jsonl"))
    assert one.read_bytes() == two.read_bytes()
    assert one.read_bytes() != made(tmp_path, "--seed", "7").read_bytes()


def test_describe_says_numbers_with_their_units(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = made(tmp_path, "--slo", "ttft=500ms", "--cancel-share", "0.5", "--priority-share", "0.1")
    capsys.readouterr()
    assert main(["trace", "describe", str(path)]) == 0
    said = capsys.readouterr().out
    assert all(len(line) == 72 for line in said.splitlines())
    for words in ("Mean rate (req/s)", "Sessions", "SLO ttft=500ms", "Priority 0", "gives up", "best hit rate (%)"):
        assert words in said
    assert main(["trace", "describe", str(path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["requests"], told["slos"]) == (300, {"ttft=500ms": 300})


def test_describe_without_times_or_blocks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.csv"
    path.write_text("prompt_tokens,output_tokens\n1,2\n3,4\n")
    assert main(["trace", "describe", str(path)]) == 0
    said = capsys.readouterr().out
    assert "all at 0 s" in said
    assert "rate" not in said


def test_describe_draws(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "a.png"
    assert main(["trace", "describe", str(made(tmp_path)), "--plot", str(path)]) == 0
    assert path.read_bytes().startswith(b"\x89PNG")


def test_convert_cuts_and_scales(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = made(tmp_path), tmp_path / "b.csv"
    asked = "--start 5 --duration 30 --limit 50 --rate 20 --length-scale 0.5 --max-input-len 300 --max-output-len 90"
    assert main(["trace", "convert", str(path), str(out), *asked.split()]) == 0
    requests = trace.load(out)
    assert len(requests) == 50
    assert trace.mean_rate(requests) == pytest.approx(20, rel=1e-4)
    assert max(r.prompt_tokens for r in requests) == 300
    assert max(r.output_tokens for r in requests) <= 90
    said = capsys.readouterr().out
    assert "20.000 req/s; format csv" in said
    assert "hash_ids of" in said


@pytest.mark.parametrize("format", ["penstock", "mooncake"])
def test_convert_to_and_fro(tmp_path: Path, format: str) -> None:
    path = made(tmp_path, "--block-tokens", "512")
    out, again = tmp_path / "b.jsonl", tmp_path / "c.jsonl"
    assert main(["trace", "convert", str(path), str(out), "--format", format]) == 0
    assert main(["trace", "convert", str(out), str(again), "--format", format]) == 0
    assert out.read_bytes() == again.read_bytes()
    if format == "penstock":
        assert out.read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ("describe {}/none.jsonl", "No such file"),
        ("synthesize {}/x --count 3 --rate 2 --lengths fixed:3", "--output-lengths"),
        ("synthesize {}/x --count 3 --lengths llumnix:S-S", "need a --rate"),
        ("convert {}/a.jsonl {}/b.csv --start 1e9", "no request is left"),
        ("convert {}/a.jsonl {}/b.csv --rate 0", "--rate 0 must be positive"),
    ],
)
def test_errors_say_what_to_change(tmp_path: Path, asked: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    made(tmp_path)
    assert main(["trace", *asked.replace("{}", str(tmp_path)).split()]) == 2
    assert says in capsys.readouterr().err
