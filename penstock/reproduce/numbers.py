"""What is kept of a run: numbers by name, computed from its records. Runs nothing.

attained             share that completed and kept the SLO; of all requests sent
ttft_mean_s, _p50_s, _p90_s, _p99_s;  tpot_mean_ms, _p50_ms, _p90_ms, _p99_ms;  e2e_mean_s, _p99_s
                     of completed requests; of tpot each request's mean time between its tokens
urgent_*, normal_*   the same of these requests, where some are urgent
loss_s               what preemptions cost a request on average: from each to the next token, less a step
instances, gpus      on average while requests came
stage_*, each_*      shares of all requests' time, and the mean of each request's shares: prefill queue, prefill,
                     transfer, decode queue, decode
halt_mean_ms         the longest gap between a request's tokens, less its median gap
fragmented_mean      share of all KV that is free, but not where heads of queues could use it
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from penstock.core.slo import SECOND, Slo
from penstock.metrics.curves import scaled
from penstock.metrics.record import COMPLETED, Record

Array = npt.NDArray[np.float64]
_QUANTILES = 101


class Numbers(msgspec.Struct, frozen=True, kw_only=True):
    """Of one run."""

    values: dict[str, float]
    #: SLO scale, as text -> attained.
    scales: dict[str, float] = {}
    #: Quantity -> 101 values, from the least to the greatest.
    quantiles: dict[str, list[float]] = {}

    def at_scale(self, scale: float) -> float:
        return self.scales[f"{scale:g}"]


def mean(repeats: Sequence[Numbers]) -> Numbers:
    """Of repeats, number by number."""

    def of(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
        return {key: float(np.mean([part[key] for part in parts])) for key in parts[0] if all(key in p for p in parts)}

    first = repeats[0]
    return Numbers(
        values=of([one.values for one in repeats]),
        scales=of([one.scales for one in repeats]),
        quantiles={
            key: np.mean([one.quantiles[key] for one in repeats if key in one.quantiles], axis=0).tolist()
            for key in first.quantiles
        },
    )


def of_records(records: Sequence[Record], slo: Slo, scales: Sequence[float] = ()) -> Numbers:
    """All that records say."""
    values = {"requests": float(len(records))} | latencies(records)
    if slo:
        values["attained"] = _share(records, slo)
        values |= _each(records, slo)
    end_s = max((record.end_ns for record in records), default=0) / SECOND
    values["duration_s"] = end_s
    e2e = [record.e2e_ns / SECOND for record in records if record.outcome == COMPLETED and record.e2e_ns is not None]
    return Numbers(
        values=values,
        scales={f"{scale:g}": _share(records, scaled(slo, scale)) for scale in scales} if slo else {},
        quantiles={"e2e_s": quantiles(e2e)} if e2e else {},
    )


def latencies(records: Sequence[Record], prefix: str = "") -> dict[str, float]:
    """Of those that completed."""
    done = [record for record in records if record.outcome == COMPLETED]
    found = {"completed": float(len(done))}
    if done:
        found |= _spread("ttft", [(record.ttft_ns or 0) / SECOND for record in done], "s")
        found |= _spread("e2e", [(record.e2e_ns or 0) / SECOND for record in done], "s")
        found |= _spread("tpot", [tpot / 1e6 for record in done if (tpot := record.tpot_ns) is not None], "ms")
        decode = [((record.e2e_ns or 0) - (record.ttft_ns or 0)) / SECOND for record in done]
        found["decode_mean_s"] = float(np.mean(decode))
    return {prefix + key: value for key, value in found.items()}


def quantiles(values: Any) -> list[float]:
    """From the least to the greatest."""
    return [float(v) for v in np.quantile(np.asarray(values, float), np.linspace(0, 1, _QUANTILES)).round(6)]


def _spread(name: str, values: Sequence[float], unit: str) -> dict[str, float]:
    if not values:
        return {}
    p50, p90, p99 = np.percentile(values, (50, 90, 99)).tolist()
    return {
        f"{name}_mean_{unit}": float(np.mean(values)),
        f"{name}_p50_{unit}": p50,
        f"{name}_p90_{unit}": p90,
        f"{name}_p99_{unit}": p99,
    }


def _share(records: Sequence[Record], slo: Slo) -> float:
    return sum(record.good(slo) for record in records) / len(records) if records else 0.0


def _each(records: Sequence[Record], slo: Slo) -> dict[str, float]:
    """Each of the two promises by itself."""
    return {
        f"attained_{name}": _share(records, one)
        for name, one in (("ttft", Slo(ttft=slo.ttft)), ("tpot", Slo(tpot=slo.tpot)))
        if one
    }
