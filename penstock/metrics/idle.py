"""What requests take on an idle instance, learnt from a few that were sent alone. For SLOs such as `ttft=3x`.

    idle TTFT = a + b x prompt tokens,  idle TPOT = c

with a, b, c >= 0; of several requests of one length the quickest counts. Rough on purpose: it is the yardstick of a
promise, not a predictor to schedule by.
"""

from collections.abc import Iterable

import msgspec
import numpy as np

from penstock.metrics.record import COMPLETED, Record


class Idle(msgspec.Struct, frozen=True):
    """a, b and c, in ns."""

    ttft_base_ns: float
    ttft_token_ns: float
    tpot_ns: float

    @staticmethod
    def fit(lone: Iterable[Record]) -> "Idle":
        """From completed requests, each sent when the instance had no other. Raises ValueError if none completed."""
        done = [r for r in lone if r.outcome == COMPLETED and r.ttft_ns is not None]
        if not done:
            raise ValueError("no lone request was answered, so multiples of idle time mean nothing")
        quickest: dict[int, int] = {}
        for r in done:
            quickest[r.prompt_tokens] = min(r.ttft_ns or 0, quickest.get(r.prompt_tokens, 1 << 62))
        lengths, ttft_ns = np.array(list(quickest), float), np.array(list(quickest.values()), float)
        slope = 0.0 if lengths.std() == 0 else float(np.polyfit(lengths, ttft_ns, 1)[0])
        slope = min(max(slope, 0.0), float((ttft_ns / lengths).min()))
        tpots_ns = [r.tpot_ns for r in done if r.tpot_ns is not None]
        return Idle(float((ttft_ns - slope * lengths).mean()), slope, float(np.median(tpots_ns)) if tpots_ns else 0.0)

    def set_on(self, record: Record) -> None:
        """Write the record's idle times."""
        record.idle_ttft_ns = round(self.ttft_base_ns + self.ttft_token_ns * record.prompt_tokens)
        record.idle_tpot_ns = round(self.tpot_ns)

    def __str__(self) -> str:
        return (
            f"TTFT {self.ttft_base_ns / 1e6:.2f} ms + {self.ttft_token_ns / 1e3:.2f} us a prompt token, "
            f"TPOT {self.tpot_ns / 1e6:.2f} ms"
        )
