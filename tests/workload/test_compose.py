"""Synthesized workloads have the parts that were asked for."""

from collections import Counter, defaultdict
from itertools import pairwise

import numpy as np
import pytest

from penstock.core.slo import Slo
from penstock.workload.arrivals import arrivals
from penstock.workload.compose import Plan, synthesize
from penstock.workload.describe import describe
from penstock.workload.lengths import draw
from penstock.workload.request import Request
from penstock.workload.trace import mean_rate


def plan(**asked: object) -> Plan:
    return Plan(**{"lengths": "fixed:100", "output_lengths": "uniform:10-30", "rate": 5.0} | asked)  # type: ignore[arg-type]


def by_session(requests: list[Request]) -> list[list[Request]]:
    groups = defaultdict(list)
    for request in requests:
        groups[request.session].append(request)
    return list(groups.values())


def test_lone_requests() -> None:
    requests = synthesize(plan(count=20_000, lengths="llumnix:S-L", output_lengths=None, seed=3))
    assert len(requests) == 20_000
    assert [r.arrival_s for r in requests][:1] == [0.0]
    assert all(a.arrival_s <= b.arrival_s for a, b in pairwise(requests))
    assert mean_rate(requests) == pytest.approx(5.0, rel=0.02)
    assert requests[0] == Request(
        arrival_s=0.0, prompt_tokens=requests[0].prompt_tokens, output_tokens=requests[0].output_tokens
    )
    expected = draw("llumnix:S-L", 20_000, seed=3)
    assert [(r.prompt_tokens, r.output_tokens) for r in requests] == list(
        zip(*(c.tolist() for c in expected), strict=True)
    )


@pytest.mark.parametrize("kind", ["poisson", "gamma", "constant", "distserve", "loongserve", "llumnix"])
def test_arrivals_are_those_of_their_kind(kind: str) -> None:
    requests = synthesize(plan(count=500, arrival=kind, cv=2.0, seed=4))
    times = arrivals(kind, 500, 5.0, cv=2.0, seed=4)
    assert [r.arrival_s for r in requests] == pytest.approx((times - times[0]).tolist(), abs=1e-6)


@pytest.mark.parametrize("kind", ["poisson", "gamma", "constant", "loongserve", "llumnix"])
def test_as_many_as_come_in_the_time(kind: str) -> None:
    requests = synthesize(plan(duration_s=2_000.0, arrival=kind, cv=2.0))
    assert len(requests) == pytest.approx(10_000, rel=0.05)
    assert requests[-1].arrival_s == pytest.approx(2_000, rel=0.05)
    longer = synthesize(plan(duration_s=3_000.0, arrival=kind, cv=2.0))
    if kind not in ("loongserve", "llumnix"):
        assert [r.arrival_s for r in longer][: len(requests)] == [r.arrival_s for r in requests]


def test_days() -> None:
    requests = synthesize(plan(rate=None, arrival="diurnal", trough=1.0, peak=9.0, period_s=600.0, duration_s=6_000.0))
    counts = np.bincount([int(r.arrival_s % 600 // 60) for r in requests]) / 600
    assert counts.argmin() in (0, 9)
    assert counts.argmax() in (4, 5)
    assert mean_rate(requests) == pytest.approx(5.0, rel=0.03)


def test_conversations_grow_and_share_what_was_said() -> None:
    asked = plan(count=5_000, turns="uniform:1-5", think_s=7.0, block_tokens=16, seed=2)
    requests = synthesize(asked)
    assert len(requests) == 5_000
    groups = by_session(requests)
    turns = Counter(len(group) for group in groups)
    assert set(turns) == {1, 2, 3, 4, 5}
    for group in groups:
        assert group[0].think_s is None
        for before, after in pairwise(group):
            assert after.prompt_tokens == before.prompt_tokens + before.output_tokens + 100
            assert after.hash_ids[: len(before.hash_ids)] == before.hash_ids
            assert len(after.hash_ids) == after.prompt_tokens // 16
            assert after.arrival_s == pytest.approx(before.arrival_s + after.think_s, abs=1e-5)
    thinks = [r.think_s for r in requests if r.think_s is not None]
    assert np.mean(thinks) == pytest.approx(7.0, rel=0.05)
    names = [{name for r in group for name in r.hash_ids} for group in groups]
    assert sum(map(len, names)) == len(set.union(*names))


def test_turns_count_towards_the_rate() -> None:
    requests = synthesize(plan(duration_s=4_000.0, turns="4", think_s=1.0))
    assert mean_rate(requests) == pytest.approx(5.0, rel=0.05)
    assert describe(requests).turns.mean == pytest.approx(4.0, rel=0.01)  # type: ignore[union-attr]


def test_prefixes_are_as_popular_as_their_law() -> None:
    requests = synthesize(plan(count=20_000, prefixes=4, prefix_len=1024))
    assert {r.prompt_tokens for r in requests} == {1124}
    counts = Counter(r.hash_ids for r in requests)
    weights = np.array([1, 1 / 2, 1 / 3, 1 / 4])
    assert [counts[2 * k, 2 * k + 1] for k in range(4)] == pytest.approx(20_000 * weights / weights.sum(), rel=0.05)
    even = Counter(r.hash_ids for r in synthesize(plan(count=20_000, prefixes=4, prefix_len=1024, prefix_zipf=0.0)))
    assert list(even.values()) == pytest.approx([5_000] * 4, rel=0.05)


def test_a_conversation_keeps_its_prefix() -> None:
    requests = synthesize(plan(count=3_000, prefixes=3, prefix_len=512, block_tokens=64, turns="3"))
    for group in by_session(requests):
        assert len({r.hash_ids[:8] for r in group}) == 1
        assert group[0].prompt_tokens == 612
    firsts = [group[0].hash_ids for group in by_session(requests)]
    assert len({ids[:8] for ids in firsts}) == 3
    assert len({ids[8:] for ids in firsts}) == len(firsts)


def test_clients() -> None:
    slo = Slo.parse("ttft=500ms")
    requests = synthesize(plan(count=20_000, cancel_share=0.2, cancel_s=3.0, priority_share=0.1, slo=slo))
    patience = [r.cancel_s for r in requests if r.cancel_s is not None]
    assert len(patience) == pytest.approx(4_000, rel=0.05)
    assert np.mean(patience) == pytest.approx(3.0, rel=0.05)
    assert Counter(r.priority for r in requests)[0] == pytest.approx(2_000, rel=0.1)
    assert {r.priority for r in requests} == {0, 1}
    assert {r.slo for r in requests} == {slo}


def test_parts_do_not_disturb_each_other() -> None:
    plain = synthesize(plan(count=300, seed=9))
    dressed = synthesize(plan(count=300, seed=9, prefixes=2, prefix_len=512, cancel_share=0.5, priority_share=0.5))
    assert [(r.arrival_s, r.prompt_tokens + 512, r.output_tokens) for r in plain] == [
        (r.arrival_s, r.prompt_tokens, r.output_tokens) for r in dressed
    ]
    assert plain == synthesize(plan(count=300, seed=9)) != synthesize(plan(count=300, seed=8))


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({}, "--count or --duration"),
        ({"count": 1, "duration_s": 1.0}, "--count or --duration"),
        ({"count": 0}, "must be positive"),
        ({"count": 1, "rate": None}, "need a --rate"),
        ({"count": 1, "rate": 0.0}, "need a --rate"),
        ({"count": 1, "arrival": "diurnal"}, "need --trough and --peak"),
        ({"count": 1, "arrival": "weekly"}, "must be one of poisson"),
        ({"count": 1, "cancel_share": 2.0}, "from 0 to 1"),
        ({"count": 1, "prefixes": 2}, "go together"),
        ({"count": 1, "prefixes": 2, "prefix_len": 1000}, "not a multiple of --block-tokens 512"),
        ({"count": 1, "turns": "0"}, "at least 1"),
    ],
)
def test_bad_plans(asked: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        synthesize(plan(**asked))
