"""Errors of a twin: against values worked out by hand, and laws that any two runs obey."""

import random

import pytest

from penstock.core.slo import MS, Slo, Target
from penstock.metrics.errors import METRICS, compare, render
from penstock.metrics.record import CANCELLED, FAILED, REJECTED, Record


def record(number: int, first_ms: float, gap_ms: float = 10.0, tokens: int = 3, **more: object) -> Record:
    """Sent one a second; its first token after `first_ms`, the others `gap_ms` apart."""
    sent = number * 1000 * MS
    times = [sent + round((first_ms + i * gap_ms) * MS) for i in range(tokens)]
    made = Record(
        id=number, scheduled_ns=sent, sent_ns=sent, end_ns=times[-1] if times else sent, prompt_tokens=5, times_ns=times
    )
    for name, value in more.items():
        setattr(made, name, value)
    return made


LIVE = [record(0, 100.0), record(1, 200.0), record(2, 300.0)]
TWIN = [record(0, 110.0, 9.0), record(1, 190.0, 9.0), record(2, 270.0, 9.0)]


def test_errors_are_relative_to_the_live_run_and_have_a_sign() -> None:
    found = compare(LIVE, TWIN)
    mean = found.of("ttft", "mean")
    assert (mean.live_ms, mean.twin_ms) == (200.0, 190.0)
    assert mean.relative == pytest.approx(-0.05)
    assert found.of("ttft", "median").relative == pytest.approx(-0.05)
    assert found.of("ttft", "P90").relative == pytest.approx((254 - 280) / 280)
    assert found.of("tpot", "P99").relative == pytest.approx(-0.1)
    assert found.of("e2el", "mean").relative == pytest.approx((208 - 220) / 220)
    assert found.attainment is None


def test_attainment_differs_in_points() -> None:
    found = compare(LIVE, TWIN, Slo.parse("ttft=280ms")).attainment
    assert found is not None
    assert (found.live, found.twin) == (pytest.approx(2 / 3), 1.0)
    assert found.points == pytest.approx(100 / 3)


def test_a_requests_own_slo_comes_before_the_runs() -> None:
    own = [record(0, 100.0, slo=Slo(ttft=Target(ns=50 * MS))), record(1, 100.0)]
    found = compare(own, own, Slo.parse("ttft=1s")).attainment
    assert found is not None
    assert (found.live, found.twin, found.points) == (0.5, 0.5, 0.0)


def test_a_run_has_no_error_against_itself() -> None:
    draw = random.Random(0)
    run = [record(n, draw.uniform(1, 500), draw.uniform(1, 50), draw.randrange(1, 9)) for n in range(50)]
    found = compare(run, run, Slo.parse("ttft=250ms,tpot=25ms"), percentiles=(50.0, 95.0))
    assert {e.relative for e in found.errors} == {0.0}
    assert [e.statistic for e in found.errors] == ["mean", "median", "P95"] * len(METRICS)
    assert found.attainment is not None
    assert found.attainment.points == 0.0


def test_outcomes_are_counted_and_only_completed_requests_have_latencies() -> None:
    live = [*LIVE, record(3, 9999.0, outcome=CANCELLED), record(4, 0.0, tokens=0, outcome=REJECTED)]
    twin = [*TWIN, record(3, 1.0, outcome=CANCELLED), record(4, 1.0, tokens=0, outcome=FAILED)]
    found = compare(live, twin)
    assert found.outcomes == {"completed": (3, 3), "rejected": (1, 0), "failed": (0, 1), "cancelled": (1, 1)}
    assert found.of("ttft", "mean").relative == pytest.approx(-0.05)


def test_what_is_missing_has_no_error_and_prints_as_a_dash() -> None:
    one_token = [record(0, 100.0, tokens=1)]
    found = compare(one_token, one_token)
    assert found.of("tpot", "mean").relative is None
    assert any(line.split()[-4:] == ["-"] * 4 for line in render(found).splitlines())


def test_the_table_names_units_and_both_runs() -> None:
    text = render(compare(LIVE, TWIN, Slo.parse("ttft=280ms")), ("live", "twin"))
    first = next(line for line in text.splitlines() if "live, ms" in line)
    assert first.split()[-4:] == ["200.00", "200.00", "280.00", "298.00"]
    assert "-5.0" in text
    assert "+33.33 pts" in text
    assert "under ttft=280ms" in text
    assert all(len(line) <= 80 for line in text.splitlines())


def test_a_run_without_requests_is_refused() -> None:
    with pytest.raises(ValueError, match="no request"):
        compare([], TWIN)
