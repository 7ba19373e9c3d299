"""Readers on small files, round trips through every format, cutting and scaling."""

import json
from pathlib import Path

import msgspec
import pytest

from penstock.core.slo import Slo
from penstock.workload import trace
from penstock.workload.describe import sharing
from penstock.workload.formats.mooncake import reblocked
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


def test_bailian_is_in_seconds_and_small_blocks_and_chats_have_parents(tmp_path: Path) -> None:
    row = {"timestamp": 61.5, "input_length": 40, "output_length": 9, "hash_ids": [3, 4, 5], "type": "text"}
    chats = [(7, -1, 61.5), (8, -1, 62.0), (9, 7, 70.0), (12, 9, 71.0), (13, 4, 72.0)]
    lines = [row | {"chat_id": chat, "parent_chat_id": parent, "timestamp": t} for chat, parent, t in chats]
    requests = trace.load(write(tmp_path, "qwen.jsonl", "\n".join(map(json.dumps, lines))))
    assert [(r.arrival_s, r.session) for r in requests] == [(0, "7"), (0.5, "8"), (8.5, "7"), (9.5, "7"), (10.5, "13")]
    assert {r.block_tokens for r in requests} == {16}


def test_lines_of_json_by_any_name(tmp_path: Path) -> None:
    text = '\ufeff{"timestamp": 0, "input_length": 3, "output_length": 4}\n'
    assert sizes(trace.load(write(tmp_path, "trace.txt", text))) == [(0.0, 3, 4)]


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


def rich() -> list[Request]:
    """Every field, some of them in some requests only."""
    return [
        Request(
            arrival_s=0.0,
            prompt_tokens=812,
            output_tokens=64,
            limit_tokens=100,
            session="a",
            slo=Slo.parse("ttft=1234.567891ms,tpot=2.5x"),
            priority=-1,
        ),
        Request(arrival_s=0.5, prompt_tokens=7, output_tokens=1, prompt='say "hi",\nplease ✓', adapter="sql"),
        Request(
            arrival_s=1.25, prompt_tokens=980, output_tokens=31, session="a", think_s=4.0, cancel_s=0.25, priority=3
        ),
        Request(arrival_s=2.0, prompt_tokens=10, output_tokens=2, slo=Slo.parse("e2e=10us")),
    ]


def blocks() -> list[Request]:
    rows = [(1024, (0, 1)), (1500, (0, 2, 2**63)), (700, (0, 1)), (90, ())]
    return [
        Request(arrival_s=i / 4, prompt_tokens=tokens, output_tokens=5, hash_ids=ids)
        for i, (tokens, ids) in enumerate(rows)
    ]


def test_our_own_format_loses_nothing(tmp_path: Path) -> None:
    requests = sorted(
        rich() + [msgspec.structs.replace(r, block_tokens=16) for r in blocks()], key=lambda r: r.arrival_s
    )
    path = tmp_path / "a.jsonl"
    assert trace.save(requests, path) == {}
    header, first = map(json.loads, path.read_text().splitlines()[:2])
    assert header == {"format": "penstock-trace", "version": 1, "requests": 8}
    assert first["slo"] == "ttft=1234.567891ms,tpot=2.5x"
    assert trace.load(path) == requests


def test_plain_csv_loses_blocks_only(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    assert trace.save(rich(), path, "csv") == {}
    assert trace.load(path) == rich()
    assert trace.save(blocks(), path, "csv") == {"hash_ids": 3}
    assert path.read_text().splitlines()[:2] == ["arrival_s,prompt_tokens,output_tokens", "0,1024,5"]
    assert trace.load(path) == [msgspec.structs.replace(r, hash_ids=()) for r in blocks()]


def test_mooncake_comes_back_as_it_was(tmp_path: Path) -> None:
    rows = [
        {"timestamp": 0, "input_length": 700, "output_length": 5, "hash_ids": [0, 2]},
        {"timestamp": 27, "input_length": 1024, "output_length": 9, "hash_ids": [0, 3]},
    ]
    path = write(tmp_path, "a.jsonl", "\n".join(map(json.dumps, rows)))
    again = tmp_path / "b.jsonl"
    assert trace.save(trace.load(path), again, "mooncake") == {}
    assert [json.loads(line) for line in again.read_text().splitlines()] == rows


def test_mooncake_names_every_block_and_tells_what_it_leaves_out(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lost = trace.save(rich(), path, "mooncake")
    assert lost == {"limit_tokens": 1, "priority": 2, "slo": 2, "session": 2, "think_s": 1, "cancel_s": 1, "adapter": 1}
    requests = trace.load(path)
    assert [len(r.hash_ids) for r in requests] == [2, 1, 2, 1]
    assert sharing(requests).seen_tokens == 0
    assert sizes(requests) == sizes(rich())
    assert requests[1].prompt == rich()[1].prompt


@pytest.mark.parametrize("old", [16, 100, 512, 700, 2048])
def test_blocks_of_another_size_are_alike_as_far_as_the_old_ones(tmp_path: Path, old: int) -> None:
    names = [tuple(range(90)), (*range(50), *range(200, 240)), tuple(range(90)), (7, *range(1, 90))]
    requests = [
        Request(arrival_s=float(i), prompt_tokens=90 * old + 5, output_tokens=1, hash_ids=ids, block_tokens=old)
        for i, ids in enumerate(names)
    ]
    renamed, used = reblocked(requests, 512)
    assert used == len({name for ids in renamed for name in ids})
    shared = 50 * old // 512
    assert renamed[0] == renamed[2]
    assert renamed[0][:shared] == renamed[1][:shared]
    assert not set(renamed[0][shared:]) & set(renamed[1][shared:])
    assert renamed[0][0] != renamed[3][0]
    assert all(len(ids) == 90 * old // 512 for ids in renamed)
    trace.save(requests, tmp_path / "a.jsonl", "mooncake")
    assert all(len(r.hash_ids) == -(-r.prompt_tokens // 512) for r in trace.load(tmp_path / "a.jsonl"))


def test_azure_of_later_years(tmp_path: Path) -> None:
    text = (
        "TIMESTAMP,NumImages,ContextTokens,GeneratedTokens\n"
        "2024-05-10 00:00:00.009930+00:00,1,2162,5\n"
        "2024-05-10 00:00:01+00:00,0,2399,6\n"
    )
    assert sizes(trace.load(write(tmp_path, "a.csv", text))) == [(0.0, 2162, 5), (0.99007, 2399, 6)]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"format": "penstock-trace", "version": 2}\n', "line 1: version 2 .* reads version 1"),
        ('{"format": "penstock-trace", "version": 1, "requests": 2}\n{"arrival_s": 0, "prompt_tokens": 1, '
         '"output_tokens": 1}\n', "line 2: the file ends after 1 requests and its header says 2"),
        ('{"format": "penstock-trace", "version": 1}\n\n{"arrival_s": 0, "prompt_tokens": 0, "output_tokens": 1}',
         "line 3: Expected `int` >= 1 - at `..prompt_tokens`; the fields are arrival_s"),
        ('{"format": "penstock-trace", "version": 1}\n{"arrival_s": 0, "prompt_tokens": 1, "output_tokens": 1, '
         '"priorty": 1}', "line 2: Object contains unknown field `priorty`"),
        ('{"format": "penstock-trace", "version": 1}\n{"arrival_s": 0, "prompt_tokens": 1, "output_tokens": 1, '
         '"slo": "fast"}', "line 2: SLO 'fast'"),
        ('{"format": "penstock-trace", "version": 1}\n', "no requests"),
    ],
)  # fmt: skip
def test_bad_files_of_our_own(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        trace.load(write(tmp_path, "a.jsonl", text))
    assert "a.jsonl" in str(caught.value)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("nan,1,2,", "the time 'nan' is neither seconds nor a date"),
        ("soon,1,2,", "the time 'soon' is neither .*; correct the row"),
        ("1,inf,2,", "cannot convert float infinity"),
        ("1,1,2,-3", "'-3' must be seconds, at least 0"),
        ("1,1", "it has 2 of 4 columns"),
    ],
)
def test_bad_rows(tmp_path: Path, row: str, says: str) -> None:
    text = f"arrival_s,prompt_tokens,output_tokens,cancel_s\n0,1,1,\n{row}\n"
    with pytest.raises(ValueError, match=says) as caught:
        trace.load(write(tmp_path, "a.csv", text))
    assert "a.csv: line 3" in str(caught.value)


def test_other_formats_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must be one of penstock, mooncake, csv"):
        trace.save(ten(), tmp_path / "a", "parquet")


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


def test_waiting_is_scaled_with_the_times_and_patience_is_not() -> None:
    request = Request(arrival_s=4, prompt_tokens=1, output_tokens=8, think_s=2.0, cancel_s=3.0, limit_tokens=20)
    (slower,) = trace.scale_times([request], 1.5)
    assert (slower.arrival_s, slower.think_s, slower.cancel_s) == (6.0, 3.0, 3.0)
    (shorter,) = trace.scale_lengths([request], 0.5, output_max=9)
    assert (shorter.output_tokens, shorter.limit_tokens) == (4, 9)
