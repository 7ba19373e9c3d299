"""Readers on small files, cutting and scaling."""

import json
from pathlib import Path

import pytest

from penstock.workload import trace
from penstock.workload.trace import Request


def write(tmp_path: Path, name: str, text: str) -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


def sizes(requests: list[Request]) -> list[tuple[float, int, int]]:
    return [(round(r.arrival_s, 6), r.prompt_tokens, r.output_tokens) for r in requests]


def test_azure(tmp_path: Path) -> None:
    text = (
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:17:03.9799600,4808,10\n"
        "2023-11-16 18:17:04.0319600,3180,8\n"
        "2023-11-16 18:18:03.9799600,110,27\n"
    )
    requests = trace.load(write(tmp_path, "azure.csv", text))
    assert sizes(requests) == [(0.0, 4808, 10), (0.052, 3180, 8), (60.0, 110, 27)]


def test_mooncake(tmp_path: Path) -> None:
    rows = [
        {"timestamp": 3000, "input_length": 700, "output_length": 5, "hash_ids": [0, 2]},
        {"timestamp": 1000, "input_length": 600, "output_length": 0, "hash_ids": [0, 1], "prompt": "hello"},
    ]
    path = write(tmp_path, "mooncake.jsonl", "\n".join(map(json.dumps, rows)) + "\n\n")
    first, second = trace.load(path)
    assert sizes([first, second]) == [(0.0, 600, 1), (2.0, 700, 5)]
    assert first.hash_ids == (0, 1)
    assert first.prompt == "hello"
    assert second.hash_ids == (0, 2)
    assert second.block_tokens == 512


def test_bailian_is_in_seconds_and_small_blocks(tmp_path: Path) -> None:
    row = {"chat_id": 7, "timestamp": 61.5, "input_length": 40, "output_length": 9, "hash_ids": [3, 4, 5], "turn": 1}
    later = row | {"timestamp": 62.0}
    first, second = trace.load(write(tmp_path, "qwen.jsonl", json.dumps(row) + "\n" + json.dumps(later)))
    assert second.arrival_s == 0.5
    assert (first.block_tokens, first.session) == (16, "7")


@pytest.mark.parametrize(
    ("header", "row"),
    [
        ("arrival_s,prompt_tokens,output_tokens", "{t},11,22"),
        ("num_decode_tokens,num_prefill_tokens,arrived_at", "22.0,11.0,{t}"),
        ("Timestamp,Session ID,Model,Request tokens,Response tokens,Log Type", "{t},s1,m,11,22,x"),
        ("\ufeffarrival_time,input_length,output_length", "{t},11,22"),
    ],
)
def test_names_of_columns(tmp_path: Path, header: str, row: str) -> None:
    text = "\n".join([header, row.format(t=5.5), row.format(t=7)])
    assert sizes(trace.load(write(tmp_path, "plain.csv", text))) == [(0.0, 11, 22), (1.5, 11, 22)]


def test_lengths_only_and_prompts(tmp_path: Path) -> None:
    requests = trace.load(write(tmp_path, "p.csv", 'prompt_tokens,output_tokens,prompt\n3,4,"a, b"\n5,6,\n'))
    assert [(r.arrival_s, r.prompt) for r in requests] == [(0.0, "a, b"), (0.0, None)]


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.csv", "when,prompt_tokens\n1,2\n", "needs a column prompt_tokens and a column output_tokens"),
        ("a.csv", "prompt_tokens,output_tokens\n1,2\n1,many\n", "line 3"),
        ("a.csv", "prompt_tokens,output_tokens\n1\n", "line 2"),
        ("a.csv", "prompt_tokens,output_tokens\n", "no requests"),
        ("a.csv", "", "needs a column"),
        ("a.jsonl", '{"timestamp": 0, "input_length": 3, "output_length": 4}\nnonsense\n', "line 2"),
        ("a.jsonl", '{"timestamp": 0, "output_length": 4}\n', "line 1: Object missing required field `input_length`"),
    ],
)
def test_bad_files_are_named_with_their_line(tmp_path: Path, name: str, text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        trace.load(write(tmp_path, name, text))
    assert name in str(caught.value)


def ten() -> list[Request]:
    return [Request(arrival_s=float(i), prompt_tokens=10 * i + 1, output_tokens=i + 1) for i in range(10)]


def test_cut() -> None:
    kept = trace.cut(ten(), start_s=2, duration_s=5, limit=3)
    assert sizes(kept) == [(0.0, 21, 3), (1.0, 31, 4), (2.0, 41, 5)]
    assert len(trace.cut(ten(), start_s=2, duration_s=5)) == 5
    assert trace.cut(ten(), start_s=10) == []


def test_times_scaled() -> None:
    assert [r.arrival_s for r in trace.scale_times(ten(), 0.5)] == [0.5 * i for i in range(10)]
    assert trace.mean_rate(ten()) == 1.0
    faster = trace.to_rate(ten(), 4.0)
    assert trace.mean_rate(faster) == pytest.approx(4.0)
    assert faster[-1].arrival_s == pytest.approx(9 / 4)
    at_once = [ten()[0]] * 3
    assert trace.to_rate(at_once, 4.0) == at_once


def test_lengths_scaled_with_their_blocks() -> None:
    request = Request(arrival_s=0, prompt_tokens=1000, output_tokens=300, hash_ids=(1, 2))
    (half,) = trace.scale_lengths([request], 0.5, input_max=400)
    assert (half.prompt_tokens, half.output_tokens, half.block_tokens) == (400, 150, 256)
    (tiny,) = trace.scale_lengths([request], 1e-6, output_max=20)
    assert (tiny.prompt_tokens, tiny.output_tokens, tiny.block_tokens) == (1, 1, 1)
