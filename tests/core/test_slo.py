"""SLO: parsing, resolving, judging."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.core.slo import MS, SECOND, Bounds, Slo, Target, tpot


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("500ms", Target(ns=500 * MS)),
        ("1.5s", Target(ns=3 * SECOND // 2)),
        ("250us", Target(ns=250_000)),
        ("200", Target(ns=200 * MS)),
        ("3x", Target(times=3.0)),
    ],
)
def test_targets_are_read_as_people_write_them(text: str, target: Target) -> None:
    assert Target.parse(text) == target
    assert Target.parse(str(target)) == target


@pytest.mark.parametrize("text", ["", "fast", "-3ms", "0ms", "0x", "5 m", "nan", "1e3ms"])
def test_what_is_no_target_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="500ms or 3x"):
        Target.parse(text)


def test_an_slo_names_its_targets() -> None:
    slo = Slo.parse("ttft:200 tpot=3x")
    assert slo == Slo(ttft=Target(ns=200 * MS), tpot=Target(times=3.0))
    assert Slo.parse(str(slo)) == slo
    assert slo.relative
    assert not Slo.parse("")
    with pytest.raises(ValueError, match="ttft, tpot or e2e"):
        Slo.parse("latency=3ms")


def test_multiples_are_of_the_same_requests_idle_times() -> None:
    bounds = Slo.parse("ttft=2x,tpot=3x,e2e=1s").resolve(idle_ttft_ns=10 * MS, idle_tpot_ns=4 * MS)
    assert bounds == Bounds(20 * MS, 12 * MS, SECOND)


def test_good_means_every_target_met_and_bounds_are_inclusive() -> None:
    bounds = Bounds(100, 10, 1000)
    assert bounds.met(100, 10, 1000)
    assert not bounds.met(101, 10, 1000)
    assert not bounds.met(100, 10.1, 1000)
    assert not bounds.met(100, 10, 1001)
    assert bounds.met(100, None, 100), "one token has no TPOT and meets any"
    assert Bounds().met(1e18, 1e18, 1e18)


@given(st.lists(st.integers(1, 10**9), min_size=2, max_size=50))
def test_tpot_is_the_mean_gap_after_the_first_token(gaps: list[int]) -> None:
    times = [sum(gaps[: i + 1]) for i in range(len(gaps))]
    mean_gap = sum(gaps[1:]) / (len(gaps) - 1)
    assert tpot(times[0], times[-1], len(times)) == pytest.approx(mean_gap)


def test_tokens_are_due_one_tpot_apart_after_the_first() -> None:
    assert [Bounds(100, 10).due(i) for i in range(3)] == [100, 110, 120]
    assert [Bounds(100, None, 500).due(i) for i in range(2)] == [100, 500]
    assert Bounds(None, None, 500).due(0) == 500
    assert Bounds(None, None, None).due(3) is None
