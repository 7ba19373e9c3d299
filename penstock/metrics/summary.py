"""A run in numbers: latencies, throughput, goodput. Pure functions over records; the same live and simulated.

    window             first counted request sent, to last counted request over
    request throughput completed requests / window
    token throughput   tokens of completed requests / window (output; and prompt + output)
    goodput            good requests / window; as a share, of all counted but those the client cancelled
    token goodput      tokens of completed requests that came before they were due / window

Latencies are of completed requests. ITL is the gap between two deliveries of tokens of one request, however
many tokens they carry. Requests of the warm-up are left out everywhere.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec
import numpy as np

from penstock.core.slo import MS, SECOND, Slo
from penstock.metrics.record import CANCELLED, COMPLETED, OUTCOMES, Record

PERCENTILES = (50.0, 90.0, 99.0)


class Dist(msgspec.Struct, frozen=True):
    """A distribution of times in ms."""

    count: int
    mean_ms: float
    max_ms: float
    #: percentile -> ms, interpolated linearly
    percentiles_ms: dict[float, float]

    @staticmethod
    def of(times_ns: Iterable[float], percentiles: Sequence[float] = PERCENTILES) -> "Dist | None":
        """None for no times at all."""
        values = np.fromiter(times_ns, float) / MS
        if not len(values):
            return None
        at = np.percentile(values, percentiles).tolist()
        return Dist(len(values), float(values.mean()), float(values.max()), dict(zip(percentiles, at, strict=True)))


class Goodput(msgspec.Struct, frozen=True):
    """What became of the promise `slo`."""

    slo: Slo
    good: int
    late: int
    #: Good, of all counted requests but the cancelled.
    share: float
    requests_per_s: float
    #: Output tokens of good requests.
    tokens_per_s: float
    #: Output tokens on time, of any completed request; None where the SLO sets no times for single tokens.
    tokens_on_time_per_s: float | None


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """All that a report says about a run."""

    window_s: float
    #: Records counted, and left out as warm-up.
    requests: int
    warmup_requests: int
    warmup_said: str
    outcomes: dict[str, int]
    prompt_tokens: int
    output_tokens: int
    requests_per_s: float
    output_tokens_per_s: float
    total_tokens_per_s: float
    #: The most requests that were open at one time.
    peak_concurrency: int
    #: (counted requests - 1) / (last scheduled - first scheduled); None where all were at once.
    offered_per_s: float | None
    percentiles: list[float]
    #: ttft, tpot, itl, e2el
    latency: dict[str, Dist | None]
    goodput: Goodput | None
    #: Error text -> requests, most frequent first.
    errors: dict[str, int]


def summarize(
    records: Iterable[Record],
    slo: Slo = Slo(),
    *,
    warmup_requests: int = 0,
    warmup_s: float = 0.0,
    percentiles: Sequence[float] = PERCENTILES,
) -> Summary:
    """The numbers of a run, without those scheduled first (`warmup_requests`) or before `warmup_s`.

    Raises ValueError where nothing is left, or where the SLO is in multiples of idle time that a record
    lacks.
    """
    everyone = list(records)
    counted = after_warmup(everyone, warmup_requests=warmup_requests, warmup_s=warmup_s)
    completed = [r for r in counted if r.outcome == COMPLETED]
    window_s = (max(r.end_ns for r in counted) - min(r.sent_ns for r in counted)) / SECOND or 1e-9
    outcomes = Counter(r.outcome for r in counted)
    prompt, output = sum(r.prompt_tokens for r in completed), sum(r.output_tokens for r in completed)
    return Summary(
        window_s=window_s,
        requests=len(counted),
        warmup_requests=len(everyone) - len(counted),
        warmup_said=_warmup_said(warmup_requests, warmup_s),
        outcomes={name: outcomes[name] for name in OUTCOMES},
        prompt_tokens=prompt,
        output_tokens=output,
        requests_per_s=len(completed) / window_s,
        output_tokens_per_s=output / window_s,
        total_tokens_per_s=(prompt + output) / window_s,
        peak_concurrency=peak_concurrency(counted),
        offered_per_s=_offered(counted),
        percentiles=list(percentiles),
        latency=latencies(completed, percentiles),
        goodput=judge(counted, slo, window_s) if _has_slo(counted, slo) else None,
        errors=dict(Counter(r.error for r in counted if r.error).most_common()),
    )


def after_warmup(records: Iterable[Record], *, warmup_requests: int = 0, warmup_s: float = 0.0) -> list[Record]:
    """The records that count, by due time. Raises ValueError where nothing is left."""
    everyone = sorted(records, key=lambda r: (r.scheduled_ns, r.id))
    counted = [r for r in everyone[warmup_requests:] if r.scheduled_ns >= warmup_s * SECOND]
    if not counted:
        raise ValueError(f"no request is left to count: all {len(everyone)} fall in the warm-up")
    return counted


def latencies(completed: Sequence[Record], percentiles: Sequence[float] = PERCENTILES) -> dict[str, Dist | None]:
    """TTFT, TPOT, ITL and E2E of these requests."""
    ttft = [r.ttft_ns for r in completed if r.ttft_ns is not None]
    tpot = [r.tpot_ns for r in completed if r.tpot_ns is not None]
    e2el = [r.e2e_ns for r in completed if r.e2e_ns is not None]
    gaps = [np.diff(r.times_ns) for r in completed if len(r.times_ns) > 1]
    itl = np.concatenate([np.empty(0), *gaps])
    named = (("ttft", ttft), ("tpot", tpot), ("itl", itl), ("e2el", e2el))
    return {name: Dist.of(values, percentiles) for name, values in named}


def judge(counted: Sequence[Record], slo: Slo, window_s: float) -> Goodput:
    """Goodput of these records under `slo` (or their own). Raises ValueError where idle times are missing."""
    if any((r.slo or slo).relative and not r.idle_ttft_ns for r in counted):
        raise ValueError(f"the SLO {slo} is in multiples of idle time, which these records do not have")
    completed = [r for r in counted if r.outcome == COMPLETED]
    good = [r for r in completed if r.good(slo)]
    offered = sum(r.outcome != CANCELLED for r in counted)
    timed = any(r.bounds(slo).due(0) is not None for r in counted)
    return Goodput(
        slo=slo,
        good=len(good),
        late=len(completed) - len(good),
        share=len(good) / offered if offered else 0.0,
        requests_per_s=len(good) / window_s,
        tokens_per_s=sum(r.output_tokens for r in good) / window_s,
        tokens_on_time_per_s=sum(r.on_time(slo) for r in completed) / window_s if timed else None,
    )


def peak_concurrency(records: Iterable[Record]) -> int:
    """The most requests between sent and over at one time; one that ends as another is sent does not overlap
    it."""
    changes = sorted([(r.sent_ns, 1) for r in records] + [(r.end_ns, -1) for r in records])
    return int(np.cumsum([change for _, change in changes]).max(initial=0))


def _offered(counted: Sequence[Record]) -> float | None:
    span_ns = counted[-1].scheduled_ns - counted[0].scheduled_ns
    return (len(counted) - 1) * SECOND / span_ns if span_ns else None


def _has_slo(counted: Sequence[Record], slo: Slo) -> bool:
    return bool(slo) or any(r.slo for r in counted)


def _warmup_said(requests: int, seconds: float) -> str:
    parts = [f"first {requests} requests"] * (requests > 0) + [f"first {seconds:g} s"] * (seconds > 0)
    return " and ".join(parts) or "none"
