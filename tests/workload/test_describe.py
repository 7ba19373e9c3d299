"""Descriptions say what a plain count says."""

import os
from pathlib import Path

import pytest

from penstock.core.slo import Slo
from penstock.workload import trace
from penstock.workload.arrivals import arrivals, diurnal
from penstock.workload.describe import describe, sharing
from penstock.workload.prompts import Prompts, at_times, random_requests
from penstock.workload.request import Request

TRACES = Path(os.environ.get("PENSTOCK_TRACES", "traces"))


def request(arrival_s: float = 0.0, tokens: int = 10, **fields: object) -> Request:
    return Request(arrival_s=arrival_s, prompt_tokens=tokens, output_tokens=4, **fields)  # type: ignore[arg-type]


def timed(times: object) -> list[Request]:
    return at_times(random_requests(len(times), 100, 10, range_ratio=0.5), times)  # type: ignore[arg-type]


def test_counts_and_lengths() -> None:
    said = describe([request(float(i), tokens=i + 1) for i in range(100)])
    assert (said.requests, said.duration_s, said.mean_rate) == (100, 99.0, 1.0)
    assert (said.prompt_tokens, said.output_tokens) == (5050, 400)
    assert (said.prompt.mean, said.prompt.p50, said.prompt.p90, said.prompt.max) == pytest.approx(
        (50.5, 50.5, 90.1, 100)
    )
    assert (said.output.mean, said.output.p99, said.total.max) == (4, 4, 104)
    assert said.gap_cv == 0


def test_the_busiest_minute() -> None:
    times = [0.0, 61.0, 62.0, 119.0, 121.0, 500.0]
    said = describe([request(t) for t in times])
    assert (said.peak_at_s, said.peak_rate) == (60.0, 3 / 60)
    short = describe([request(t) for t in (0.0, 1.0, 4.0)])
    assert (short.peak_at_s, short.peak_rate) == (0.0, 3 / 4)


def test_all_at_once_has_no_rate() -> None:
    said = describe([request(), request()])
    assert (said.duration_s, said.mean_rate, said.peak_rate, said.gap_cv, said.gap_cv_in_windows) == (
        0,
        0,
        0,
        None,
        None,
    )


@pytest.mark.parametrize("cv", [0.5, 1.0, 3.0])
def test_burstiness(cv: float) -> None:
    said = describe(timed(arrivals("gamma", 40_000, 5.0, cv=cv)))
    assert said.gap_cv == pytest.approx(cv, rel=0.03)
    assert said.gap_cv_in_windows == pytest.approx(cv, rel=0.05)


def test_a_rate_that_changes_is_not_burstiness() -> None:
    said = describe(timed(diurnal(40_000, 0.2, 10.0, 20_000.0)))
    assert said.gap_cv is not None
    assert said.gap_cv > 1.5
    assert said.gap_cv_in_windows == pytest.approx(1.0, abs=0.07)


def shared_plainly(requests: list[Request], drawer: Prompts) -> int:
    """Tokens of each prompt that begin an earlier one, by whole blocks of its own."""
    seen: list[list[int]] = []
    total = 0
    for index, one in enumerate(requests):
        prompt = drawer.of(one, index)
        named = prompt[: min(len(prompt), len(one.hash_ids) * one.block_tokens)]
        best = 0
        for other in seen:
            same = 0
            while same < min(len(named), len(other)) and named[same] == other[same]:
                same += 1
            whole = same if same == len(named) else same // one.block_tokens * one.block_tokens
            best = max(best, whole)
        total += best
        seen.append(named)
    return total


def test_sharing_is_what_the_prompts_share() -> None:
    rows = [(40, (1, 2, 3, 4)), (40, (1, 2, 9, 4)), (25, (1, 2, 3)), (60, (1, 2, 9, 4, 5)), (40, (2, 3, 4, 1)), (9, ())]
    requests = [request(float(i), tokens, hash_ids=ids, block_tokens=10) for i, (tokens, ids) in enumerate(rows)]
    said = sharing(requests)
    assert said.seen_tokens == 20 + 25 + 40 == shared_plainly(requests, Prompts(10**9))
    assert said.seen_share == said.seen_tokens / 214
    # 1 2 3 4, then 9 4 after 1 2, then 5, then 2 3 4 1.
    assert (said.requests, said.blocks, said.block_tokens) == (5, 11, 40 + 20 + 10 + 40)


def test_blocks_of_different_sizes_are_different() -> None:
    requests = [request(0.0, 40, hash_ids=(1, 2), block_tokens=size) for size in (10, 20)]
    assert sharing(requests).seen_tokens == 0


def test_sessions_promises_and_clients() -> None:
    slo = Slo.parse("ttft=500ms")
    said = describe(
        [
            request(0.0, session="a", slo=slo, priority=1, cancel_s=2.0),
            request(1.0, session="a", slo=slo, think_s=3.0, cancel_s=4.0, limit_tokens=4),
            request(2.0, session="b", priority=1, adapter="sql", limit_tokens=9),
            request(3.0, prompt="hello"),
        ]
    )
    assert (said.sessions, said.turns and said.turns.mean, said.thinking, said.think_s) == (2, 1.5, 1, 3.0)
    assert (said.slos, said.priorities) == ({"ttft=500ms": 2, "none": 2}, {"1": 2, "none": 2})
    assert said.adapters == {"none": 3, "sql": 1}
    assert (said.cancelled, said.cancel_s, said.limited, said.texts) == (2, 3.0, 1, 1)
    plain = describe([request()])
    assert (plain.turns, plain.think_s, plain.slos, plain.cancel_s) == (None, None, {}, None)


def test_nothing_to_describe() -> None:
    with pytest.raises(ValueError, match="no requests"):
        describe([])


@pytest.mark.parametrize(
    ("name", "requests", "seen"), [("mooncake_conversation", 12_031, 0.374), ("mooncake_synthetic", 3_993, 0.651)]
)
def test_mooncake(name: str, requests: int, seen: float) -> None:
    path = TRACES / f"{name}.jsonl"
    if not path.exists():
        pytest.skip(f"the Mooncake trace is not at {path}; PENSTOCK_TRACES may name its folder")
    said = describe(trace.load(path))
    assert said.requests == said.sharing.requests == requests
    assert said.sharing.seen_share == pytest.approx(seen, abs=0.001)
    assert said.sharing.seen_tokens + said.sharing.block_tokens == said.prompt_tokens
