"""What a live server gets to do, in the numbers of a plan: from its metrics, between one look and the next.

Sums, sums of squares and counts are enough: they give rates, means and standard deviations. Each API process has
metrics of its own, so a server with several of them cannot be watched.
"""

import http.client
import time
import urllib.error
import urllib.request
from math import sqrt

import msgspec
from prometheus_client.parser import text_string_to_metric_families

from penstock.drivers.deployment import PlannedSpec, WorkloadSpec

#: Seconds for an answer.
_TIMEOUT_S = 30.0
#: What is read of `penstock_...`.
_KINDS = ("request_interarrival_seconds", "request_prompt_tokens", "request_generation_tokens")
_REJECTED = "penstock_requests_total"
#: A difference counts if it is so many standard errors large.
_SURE = 3.0


class Look(msgspec.Struct, frozen=True):
    """Metrics at a time."""

    at_s: float
    values: dict[str, float]

    def sums(self, kind: str) -> tuple[float, float, float]:
        """Count, sum, sum of squares."""
        return tuple(self.values[f"penstock_{kind}{end}"] for end in _ENDS)  # type: ignore[return-value]


_ENDS = ("_count", "_sum", "_squared_total")


class Observed(msgspec.Struct, frozen=True):
    """What came between two looks."""

    seconds: float
    #: Accepted, and rejected.
    requests: int
    rejected: int
    #: None where less than two requests have come, or none has ended.
    workload: WorkloadSpec | None

    @property
    def rate(self) -> float:
        return (self.requests + self.rejected) / self.seconds

    def __str__(self) -> str:
        said = f"{self.rate:.4g} req/s" + f" ({self.rejected} of them rejected)" * bool(self.rejected)
        if self.workload is None:
            return said
        w = self.workload
        return (
            f"{said}, CV of gaps {w.gap_cv:.2f}, prompts {w.input_mean:.4g} +- {w.input_std:.4g} tokens, "
            f"answers {w.output_mean:.4g} +- {w.output_std:.4g}"
        )


def look(url: str) -> Look:
    """Raises OSError where no server answers, ValueError where it has no such metrics."""
    address = url.rstrip("/") + "/metrics"
    try:
        with urllib.request.urlopen(address, timeout=_TIMEOUT_S) as reply:
            text: str = reply.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            raise ValueError(f"{address}: {error.code} {error.reason}; is it a server of Penstock?") from None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise OSError(f"{url}: the server does not answer, or no longer: {reason}") from None
    values: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name != _REJECTED or sample.labels.get("outcome") == "rejected":
                values[sample.name] = values.get(sample.name, 0.0) + sample.value
    wanted = [f"penstock_{kind}{end}" for kind in _KINDS for end in _ENDS] + [_REJECTED]
    if missing := [name for name in wanted if name not in values]:
        raise ValueError(f"{address} has no {missing[0]}: is it a server of Penstock, and of this version?")
    return Look(time.monotonic(), values)


def between(first: Look, second: Look) -> Observed:
    """Raises ValueError where counters went back: it is not the same process."""
    sums = {}
    for kind in _KINDS:
        sums[kind] = [b - a for a, b in zip(first.sums(kind), second.sums(kind), strict=True)]
    rejected = second.values[_REJECTED] - first.values[_REJECTED]
    if min(rejected, *(one for kind in sums.values() for one in kind[::2])) < 0:
        raise ValueError(
            "counters of the server went back: it was started again, or has several API processes "
            "(--api-server-count), each with counters of its own"
        )
    gaps, prompts, answers = (_moments(*sums[kind]) for kind in _KINDS)
    workload = None
    if gaps[0] and prompts[0] and answers[0]:
        workload = WorkloadSpec(
            gap_cv=gaps[1] / gaps[0], input_mean=prompts[0], input_std=prompts[1], output_mean=answers[0],
            output_std=answers[1],
        )  # fmt: skip
    seconds = second.at_s - first.at_s
    return Observed(seconds, round(sums["request_prompt_tokens"][0]), round(rejected), workload)


def _moments(count: float, total: float, squares: float) -> tuple[float, float]:
    """Mean and standard deviation; 0 where there is nothing."""
    mean = total / count if count else 0.0
    return mean, sqrt(max(0.0, squares / count - mean**2)) if count else 0.0


def drift(planned: PlannedSpec, seen: Observed, share: float) -> list[str]:
    """What differs from what was planned for by more than this share, and by more than chance would have it."""
    there, expected = planned.workload, planned.rate * seen.seconds
    changes = [_change("arrival rate", "req/s", planned.rate, seen.rate, share, there.gap_cv / sqrt(expected))]
    if seen.workload is not None:
        here, n = seen.workload, max(1, seen.requests)
        error = sqrt((0.5 + there.gap_cv**2) / n)
        changes += [
            _change("CV of gaps", "", there.gap_cv, here.gap_cv, share, error, least=1.0),
            _change(
                "prompts",
                "tokens",
                there.input_mean,
                here.input_mean,
                share,
                _error(there.input_std, n, there.input_mean),
            ),
            _change(
                "answers",
                "tokens",
                there.output_mean,
                here.output_mean,
                share,
                _error(there.output_std, n, there.output_mean),
            ),
        ]
    return [change for change in changes if change]


def _error(std: float, n: int, mean: float) -> float:
    return std / sqrt(n) / mean


def _change(name: str, unit: str, there: float, here: float, share: float, error: float, least: float = 0.0) -> str:
    """`error`: standard, as a share of what was planned, or of `least` if that is more."""
    if abs(here - there) <= max(share, _SURE * error) * max(there, least):
        return ""
    return f"{name}: {here:.3g} instead of {there:.3g} {unit}".rstrip()
