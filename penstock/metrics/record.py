"""One finished request, live or simulated: what every number of a report is computed from.

Times are integer ns after the start of the run; latencies count from when the request was sent, as in
`vllm bench serve`. A simulated request is sent when it is scheduled.
"""

from collections.abc import Sequence
from functools import lru_cache

import msgspec
import numpy as np
import numpy.typing as npt

from penstock.core.slo import Bounds, Slo, tpot

COMPLETED, DROPPED, REJECTED = "completed", "dropped", "rejected"
FAILED, CANCELLED = "failed", "cancelled"
OUTCOMES = (COMPLETED, DROPPED, REJECTED, FAILED, CANCELLED)


class Record(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A request and when its tokens came."""

    id: int
    #: When it was to be sent: its arrival, or when a slot of a closed loop became free.
    scheduled_ns: int
    sent_ns: int
    #: When the client knew that it was over, whatever the outcome.
    end_ns: int
    prompt_tokens: int
    #: When tokens came, ascending (simulated: an array, a fifth of a list's memory), ...
    times_ns: Sequence[int] = []
    #: ... and how many each time; empty: one each.
    counts: list[int] = []
    #: One of `OUTCOMES`; whether a completed one was good or late is for an SLO to say.
    outcome: str = COMPLETED
    error: str = ""
    #: HTTP status; 0 where there was no answer, or no HTTP.
    status: int = 0
    #: What the first token, and each later one, would take on an idle instance; for SLOs like `3x`.
    idle_ttft_ns: int = 0
    idle_tpot_ns: int = 0
    #: Its own SLO, where it differs from the run's.
    slo: Slo | None = None

    @property
    def output_tokens(self) -> int:
        return sum(self.counts) if self.counts else len(self.times_ns)

    @property
    def ttft_ns(self) -> int | None:
        """Sent to first token; None where none came."""
        return self.times_ns[0] - self.sent_ns if self.times_ns else None

    @property
    def e2e_ns(self) -> int | None:
        """Sent to last token; None where none came."""
        return self.times_ns[-1] - self.sent_ns if self.times_ns else None

    @property
    def tpot_ns(self) -> float | None:
        """(E2E - TTFT) / (output tokens - 1); None for fewer than two tokens."""
        if not self.times_ns:
            return None
        return tpot(self.times_ns[0], self.times_ns[-1], self.output_tokens)

    def bounds(self, slo: Slo) -> Bounds:
        """What was promised to this request, by its own SLO if it has one, else by `slo`."""
        idle_e2e_ns = self.idle_ttft_ns + max(0, self.output_tokens - 1) * self.idle_tpot_ns
        return (self.slo or slo).resolve(self.idle_ttft_ns, self.idle_tpot_ns, idle_e2e_ns)

    def good(self, slo: Slo) -> bool:
        """Whether it completed and met every target that it has."""
        ttft_ns, e2e_ns = self.ttft_ns, self.e2e_ns
        if self.outcome != COMPLETED or ttft_ns is None or e2e_ns is None:
            return False
        return self.bounds(slo).met(ttft_ns, self.tpot_ns, e2e_ns)

    def on_time(self, slo: Slo) -> int:
        """How many of its tokens came before they were due (`Bounds.due`); those never due are on time."""
        after_ns = np.asarray(self.times_ns, np.int64) - self.sent_ns
        if self.counts:
            after_ns = np.repeat(after_ns, self.counts)
        return int((after_ns <= _due(self.bounds(slo), len(after_ns) + 63 & ~63)[: len(after_ns)]).sum())


@lru_cache(256)
def _due(bounds: Bounds, tokens: int) -> npt.NDArray[np.int64]:
    """When each token is due; most requests of a run share their bounds, so this is worth keeping."""
    never = 1 << 62
    due = (bounds.due(index) for index in range(tokens))
    return np.array([never if at_ns is None else at_ns for at_ns in due], np.int64)
