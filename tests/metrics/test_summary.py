"""Every formula against a slow, plain computation over random runs."""

import statistics
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.core.slo import MS, SECOND, Slo, Target
from penstock.metrics.record import COMPLETED, OUTCOMES, Record
from penstock.metrics.summary import Dist, peak_concurrency, summarize

SLO = Slo.parse("ttft=30ms,tpot=8ms")


def record(
    id: int = 0, sent_ms: float = 0, token_ms: list[float] | None = None, counts: list[int] | None = None, **given: Any
) -> Record:
    """`token_ms` are when deliveries came, in ms after the start of the run."""
    times_ns = [round(t * MS) for t in token_ms or []]
    sent_ns = round(sent_ms * MS)
    said = {"scheduled_ns": sent_ns, "end_ns": times_ns[-1] if times_ns else sent_ns + MS, "prompt_tokens": 10} | given
    return Record(id=id, sent_ns=sent_ns, times_ns=times_ns, counts=counts or [], **said)


@st.composite
def runs(draw: st.DrawFn) -> list[Record]:
    records = []
    for i in range(draw(st.integers(1, 12))):
        sent_ns = draw(st.integers(0, 200 * MS))
        gaps = draw(st.lists(st.integers(0, 20 * MS), max_size=6))
        times_ns = [sent_ns + draw(st.integers(0, 60 * MS)) + sum(gaps[:k]) for k in range(len(gaps))]
        times_ns.sort()
        counts = draw(st.sampled_from([[], draw(st.lists(st.integers(1, 4), min_size=len(gaps), max_size=len(gaps)))]))
        # Only a request with tokens can be complete.
        outcome = draw(st.sampled_from(OUTCOMES)) if times_ns else "failed"
        end_ns = (times_ns or [sent_ns])[-1] + draw(st.integers(0, 5 * MS))
        records.append(
            Record(
                id=i,
                scheduled_ns=max(0, sent_ns - draw(st.integers(0, MS))),
                sent_ns=sent_ns,
                end_ns=end_ns,
                prompt_tokens=draw(st.integers(1, 99)),
                times_ns=times_ns,
                counts=counts,
                outcome=outcome,
            )
        )
    return records


def plain_percentile(values: list[float], percent: float) -> float:
    """Linear interpolation between the closest ranks."""
    ordered = sorted(values)
    rank = percent / 100 * (len(ordered) - 1)
    low = int(rank)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (rank - low)


def check_dist(dist: Dist | None, values_ms: list[float]) -> None:
    if not values_ms:
        assert dist is None
        return
    assert dist is not None
    assert dist.count == len(values_ms)
    assert dist.mean_ms == pytest.approx(statistics.fmean(values_ms))
    assert dist.max_ms == pytest.approx(max(values_ms))
    for percent, value in dist.percentiles_ms.items():
        assert value == pytest.approx(plain_percentile(values_ms, percent))


def plain_times(record: Record) -> list[int]:
    """When each single token came."""
    counts = record.counts or [1] * len(record.times_ns)
    return [t for t, count in zip(record.times_ns, counts, strict=True) for _ in range(count)]


def plain_good(record: Record) -> bool:
    tokens = plain_times(record)
    ttft_ms = (tokens[0] - record.sent_ns) / MS
    if ttft_ms > 30:
        return False
    return len(tokens) == 1 or (tokens[-1] - tokens[0]) / MS / (len(tokens) - 1) <= 8


@settings(deadline=None)
@given(runs())
def test_formulas(records: list[Record]) -> None:
    summary = summarize(records, SLO, percentiles=(0, 50, 90, 99))
    done = [r for r in records if r.outcome == COMPLETED]
    tokens = {r.id: plain_times(r) for r in done}
    check_dist(summary.latency["ttft"], [(tokens[r.id][0] - r.sent_ns) / MS for r in done])
    check_dist(summary.latency["e2el"], [(tokens[r.id][-1] - r.sent_ns) / MS for r in done])
    check_dist(
        summary.latency["tpot"],
        [(t[-1] - t[0]) / MS / (len(t) - 1) for t in (tokens[r.id] for r in done) if len(t) > 1],
    )
    check_dist(
        summary.latency["itl"],
        [(r.times_ns[k + 1] - r.times_ns[k]) / MS for r in done for k in range(len(r.times_ns) - 1)],
    )
    window_s = (max(r.end_ns for r in records) - min(r.sent_ns for r in records)) / SECOND
    if not window_s:
        return
    output = sum(len(t) for t in tokens.values())
    prompt = sum(r.prompt_tokens for r in done)
    assert summary.window_s == pytest.approx(window_s)
    assert summary.requests_per_s == pytest.approx(len(done) / window_s)
    assert summary.output_tokens_per_s == pytest.approx(output / window_s)
    assert summary.total_tokens_per_s == pytest.approx((prompt + output) / window_s)
    assert summary.outcomes == {name: sum(r.outcome == name for r in records) for name in OUTCOMES}
    good = [r for r in done if plain_good(r)]
    offered = [r for r in records if r.outcome != "cancelled"]
    goodput = summary.goodput
    assert goodput is not None
    assert (goodput.good, goodput.late) == (len(good), len(done) - len(good))
    assert goodput.share == pytest.approx(len(good) / len(offered) if offered else 0)
    assert goodput.requests_per_s == pytest.approx(len(good) / window_s)
    assert goodput.tokens_per_s == pytest.approx(sum(len(tokens[r.id]) for r in good) / window_s)
    on_time = sum((at - r.sent_ns) / MS <= 30 + 8 * k for r in done for k, at in enumerate(tokens[r.id]))
    assert goodput.tokens_on_time_per_s == pytest.approx(on_time / window_s)


@given(runs())
def test_peak_concurrency(records: list[Record]) -> None:
    moments = [r.sent_ns for r in records]
    # One that starts and ends in the same instant is never seen.
    plain = max(sum(r.sent_ns <= at < r.end_ns for r in records) for at in moments)
    assert peak_concurrency(records) == plain


@given(runs(), st.integers(0, 5), st.integers(0, 100))
def test_warmup_is_left_out(records: list[Record], first: int, warmup_ms: int) -> None:
    ordered = sorted(records, key=lambda r: (r.scheduled_ns, r.id))
    kept = [r for r in ordered[first:] if r.scheduled_ns >= warmup_ms * MS]
    if not kept:
        with pytest.raises(ValueError, match="no request is left"):
            summarize(records, SLO, warmup_requests=first, warmup_s=warmup_ms / 1000)
        return
    summary = summarize(records, SLO, warmup_requests=first, warmup_s=warmup_ms / 1000)
    assert summary.warmup_requests == len(records) - len(kept)
    alone = summarize(kept, SLO)
    assert summary.latency == alone.latency
    assert summary.goodput == alone.goodput
    assert summary.window_s == alone.window_s


def test_on_time_is_no_later_than_due() -> None:
    # Due after 30, 38 and 46 ms; the second delivery brings two tokens, one of them due before.
    assert record(0, 10, [40, 48, 56]).on_time(SLO) == 3
    assert record(0, 10, [40, 48.001, 56.001]).on_time(SLO) == 1
    assert record(0, 10, [40, 50], counts=[1, 2]).on_time(SLO) == 2
    assert record(0, 10, [40], counts=[100]).on_time(SLO) == 100


def test_a_target_just_met_is_met() -> None:
    assert record(0, 10, [40, 48]).good(SLO)
    assert not record(0, 10, [40.001, 48]).good(SLO)
    assert not record(0, 10, [40, 48.001]).good(SLO)


def test_no_slo_no_goodput() -> None:
    assert summarize([record(0, 0, [1, 2])]).goodput is None


def test_offered_rate() -> None:
    assert summarize([record(i, 100 * i, [100 * i + 1]) for i in range(5)]).offered_per_s == pytest.approx(10)
    assert summarize([record(i, 0, [1]) for i in range(5)]).offered_per_s is None


def test_multiples_of_idle_time() -> None:
    quick = record(0, 0, [29, 35], idle_ttft_ns=10 * MS, idle_tpot_ns=2 * MS)
    slow = record(1, 0, [29, 35.1], idle_ttft_ns=10 * MS, idle_tpot_ns=2 * MS)
    goodput = summarize([quick, slow], Slo.parse("ttft=3x,tpot=3x")).goodput
    assert goodput is not None
    assert (goodput.good, goodput.late) == (1, 1)
    by_end = summarize([quick, slow], Slo.parse("e2e=2.92x")).goodput
    assert by_end is not None
    assert (by_end.good, by_end.late) == (1, 1)
    with pytest.raises(ValueError, match="multiples of idle time"):
        summarize([record(0, 0, [1])], Slo.parse("ttft=3x"))


def test_a_request_may_have_an_slo_of_its_own() -> None:
    strict = record(1, 0, [20], slo=Slo(ttft=Target(ns=10 * MS)))
    goodput = summarize([record(0, 0, [20]), strict], SLO).goodput
    assert goodput is not None
    assert (goodput.good, goodput.late) == (1, 1)
    alone = summarize([record(0, 0, [20]), strict]).goodput
    assert alone is not None
    assert alone.late == 1


def test_token_goodput_needs_times_for_tokens() -> None:
    goodput = summarize([record(0, 0, [1, 2])], Slo.parse("tpot=5ms")).goodput
    assert goodput is not None
    assert goodput.tokens_on_time_per_s is None


def test_errors_are_counted_most_frequent_first() -> None:
    said = ["no", "oh", "no"]
    failed = [record(i, 0, outcome="failed", error=error) for i, error in enumerate(said)]
    assert list(summarize(failed).errors.items()) == [("no", 2), ("oh", 1)]
    assert summarize(failed).latency["ttft"] is None


def test_a_good_request_has_completed() -> None:
    assert record(0, 0, [1, 2]).good(SLO)
    assert not record(0, 0, [1, 2], outcome="failed").good(SLO)
    assert not record(0, 0, []).good(SLO)
