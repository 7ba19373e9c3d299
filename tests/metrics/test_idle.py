"""Idle times from lone requests."""

import pytest
from test_summary import record

from penstock.core.slo import MS
from penstock.metrics.idle import Idle


def lone(prompt: int, ttft_ms: float, tpot_ms: float = 5.0, **given: object) -> object:
    return record(0, 0, [ttft_ms, ttft_ms + 2 * tpot_ms], counts=[1, 2], prompt_tokens=prompt, **given)


def test_a_line_comes_back() -> None:
    idle = Idle.fit([lone(p, 10 + 0.25 * p) for p in (10, 100, 1000)])
    assert idle.ttft_base_ns == pytest.approx(10 * MS)
    assert idle.ttft_token_ns == pytest.approx(0.25 * MS)
    assert idle.tpot_ns == pytest.approx(5 * MS)
    other = record(1, 0, [1], prompt_tokens=40)
    idle.set_on(other)
    assert (other.idle_ttft_ns, other.idle_tpot_ns) == (20 * MS, 5 * MS)


def test_never_negative() -> None:
    falling = Idle.fit([lone(10, 50), lone(1000, 20)])
    assert falling.ttft_token_ns == 0
    assert falling.ttft_base_ns == pytest.approx(35 * MS)
    steep = Idle.fit([lone(10, 1), lone(20, 10), lone(30, 100)])
    assert steep.ttft_base_ns >= 0


def test_one_length_and_failures() -> None:
    idle = Idle.fit([lone(10, 30), lone(10, 40), lone(10, 1, outcome="failed")])
    assert (idle.ttft_base_ns, idle.ttft_token_ns) == (pytest.approx(30 * MS), 0)
    assert "TTFT 30.00 ms" in str(idle)
    with pytest.raises(ValueError, match="no lone request"):
        Idle.fit([lone(10, 30, outcome="failed")])
