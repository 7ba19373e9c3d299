"""Outcomes against SLOs, by the clock that the test moves."""

import re

import pytest
from fake_home import FakeHome

from penstock.api import ledger as ledger_module
from penstock.api.ledger import Answer, Ledger, status_line
from penstock.api.metrics import Metrics
from penstock.core.slo import Slo


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(ledger_module, "time", clock)
    return clock


@pytest.fixture
def ledger(clock: Clock) -> Ledger:
    return Ledger(lambda prompt, tokens: (0.1, 0.01), Metrics("m"))


def answer(
    ledger: Ledger, clock: Clock, slo: str, ttft_s: float = 0.2, tpot_s: float = 0.02, tokens: int = 5
) -> Answer:
    """An answer of so many tokens at these latencies, that ended well."""
    found = ledger.begin(clock.now_s, 10, Slo.parse(slo))
    clock.now_s += ttft_s
    found.grew(1)
    for _ in range(tokens - 1):
        clock.now_s += tpot_s
        found.grew(1)
    # What comes after the last token does not count.
    clock.now_s += 5
    found.end("stop")
    return found


@pytest.mark.parametrize(
    ("slo", "outcome"),
    [
        ("", "good"),
        ("ttft=201ms", "good"),
        ("ttft=199ms", "late"),
        ("tpot=21ms", "good"),
        ("tpot=19ms", "late"),
        ("e2e=281ms", "good"),
        ("e2e=279ms", "late"),
        ("ttft=2.01x", "good"),
        ("ttft=1.9x", "late"),
        ("tpot=2.1x", "good"),
        ("tpot=1.9x", "late"),
        ("e2e=2.1x", "good"),
        ("e2e=1.9x", "late"),
        ("ttft=201ms,tpot=19ms", "late"),
    ],
)
def test_judgement(ledger: Ledger, clock: Clock, slo: str, outcome: str) -> None:
    found = answer(ledger, clock, slo)
    assert found.outcome == outcome
    assert (found.ttft_s, found.tpot_s, found.e2e_s) == pytest.approx((0.2, 0.02, 0.28))
    assert ledger.ended == {outcome: 1}
    assert ledger.promised == ({outcome: 1} if slo else {})


def test_one_token_has_no_tpot(ledger: Ledger, clock: Clock) -> None:
    assert answer(ledger, clock, "tpot=1ms", tokens=1).outcome == "good"


def test_an_answer_ends_once(ledger: Ledger, clock: Clock) -> None:
    found = answer(ledger, clock, "ttft=1s")
    found.fail("cancelled")
    found.end("stop")
    assert ledger.ended == {"good": 1}
    assert ledger.open == 0


def test_what_did_not_end_well_is_counted_apart(ledger: Ledger, clock: Clock) -> None:
    for outcome in ("dropped", "failed", "cancelled", "rejected"):
        ledger.begin(clock.now_s, 1, Slo()).fail(outcome)
    ledger.refused(3, Slo.parse("ttft=1s"))
    assert ledger.ended == {"dropped": 1, "failed": 1, "cancelled": 1, "rejected": 4}
    assert ledger.promised == {"rejected": 3}


def test_status_line(ledger: Ledger, clock: Clock) -> None:
    answer(ledger, clock, "ttft=1s")
    answer(ledger, clock, "ttft=1ms")
    answer(ledger, clock, "")
    ledger.begin(clock.now_s, 1, Slo.parse("ttft=1s")).fail("dropped")
    elapsed_s = clock.now_s - 100.0
    line = status_line(FakeHome(), ledger)
    rate = float(re.search(r"([\d.]+) tokens/s", line)[1])
    assert rate == pytest.approx(15 / elapsed_s, abs=0.06)
    assert line.startswith("running 2, waiting 1, KV used 25.0 %, ")
    assert line.endswith("with an SLO so far: good 1, late 1, dropped 1")
    clock.now_s += 1
    assert " 0.0 tokens/s" in status_line(FakeHome(), ledger)
