"""What people see: every number labelled, the window and the warm-up said."""

import pytest
from test_summary import SLO, record

from penstock.metrics.report import compare, render
from penstock.metrics.summary import summarize


def run(extra_ms: float = 0.0) -> list:
    done = [record(i, 100 * i, [100 * i + 20 + extra_ms, 100 * i + 40 + extra_ms], scheduled_ns=i) for i in range(10)]
    return [*done, record(10, 0, outcome="dropped", error="too late", scheduled_ns=10)]


def value(text: str, label: str) -> str:
    (line,) = [line for line in text.splitlines() if line.startswith(label)]
    return line.split()[-1]


def test_report() -> None:
    text = render(summarize(run(), SLO, warmup_requests=2), title="demo", notes=["a note"])
    assert value(text, "Requests completed") == "8"
    assert value(text, "Requests dropped") == "1"
    assert value(text, "Late requests") == "8"
    assert "Goodput under ttft=30ms,tpot=8ms" in text
    assert "9 requests counted, 2 left out as warm-up (first 2 requests)" in text
    assert "TTFT  sent to first token            20.00     20.00     20.00     20.00" in text
    assert "1 x too late" in text
    assert "a note" in text
    assert {len(line) for line in text.splitlines() if line.startswith(("=", "-"))} == {72}


def test_report_without_slo_or_answers() -> None:
    text = render(summarize([record(0, 0, outcome="failed", error="no")]), metrics=["ttft"])
    assert "no SLO given" in text
    assert "none left out as warm-up" in text
    (line,) = [line for line in text.splitlines() if line.startswith("TTFT")]
    assert line.split()[-4:] == ["-"] * 4
    assert "TPOT" not in text


def test_side_by_side() -> None:
    text = compare(summarize(run(), SLO), summarize(run(extra_ms=5), SLO))
    lines = {line[:40].strip(): line[40:].split() for line in text.splitlines()}
    assert lines[""] == ["live", "simulated", "difference"]
    assert lines["mean TTFT (ms)"] == ["20.00", "25.00", "+25.0", "%"]
    assert lines["mean TPOT (ms)"] == ["20.00", "20.00", "0", "%"]
    assert "simulated: 11 requests counted" in text


def test_side_by_side_with_a_side_that_has_nothing() -> None:
    nothing = summarize([record(0, 0, outcome="failed")], SLO)
    lines = {line[:40].strip(): line[40:].split() for line in compare(summarize(run(), SLO), nothing).splitlines()}
    assert lines["mean TTFT (ms)"] == ["20.00", "-"]
    assert lines["Requests failed"] == ["0", "1", "new"]


@pytest.mark.parametrize("percentiles", [(50.0,), (25.0, 99.9)])
def test_percentiles_are_named(percentiles: tuple[float, ...]) -> None:
    text = render(summarize(run(), percentiles=percentiles))
    assert all(("median" if p == 50 else f"P{p:g}") in text for p in percentiles)
