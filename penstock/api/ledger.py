"""What became of every answer, and how fast it came. The one place that judges latencies for metrics and status line.

An answer is one job: a request with n choices has n of them. Times are seconds of the monotonic clock; the definitions
of the latencies are those of `core.slo`. Arrival is when the request's body is complete, so tokenization counts.
"""

import time
from collections import Counter
from collections.abc import Callable

from penstock.api.metrics import Metrics
from penstock.core.events import Load
from penstock.core.slo import SECOND, Slo, tpot
from penstock.drivers.home import BaseHome

OUTCOMES = ("good", "late", "dropped", "rejected", "cancelled", "failed")

Idle = Callable[[int, int], tuple[float, float]]


class Answer:
    """One answer under way."""

    __slots__ = ("_ledger", "arrival_s", "first_s", "last_s", "outcome", "prompt", "slo", "tokens")

    def __init__(self, ledger: "Ledger", arrival_s: float, prompt: int, slo: Slo) -> None:
        self._ledger = ledger
        self.arrival_s = arrival_s
        self.prompt = prompt
        self.slo = slo
        self.tokens = 0
        self.first_s = 0.0
        self.last_s = 0.0
        #: None while it is under way.
        self.outcome: str | None = None

    def grew(self, tokens: int) -> None:
        """So many tokens have just come."""
        if not tokens:
            return
        now_s = time.monotonic()
        if self.tokens:
            self._ledger.metrics.inter_token(now_s - self.last_s, tokens)
        else:
            self.first_s = now_s
            self._ledger.metrics.first_token(now_s - self.arrival_s)
        self.last_s = now_s
        self.tokens += tokens
        self._ledger.tokens += tokens
        self._ledger.metrics.generated(tokens)

    def end(self, finish: str) -> None:
        """The answer is complete ("stop" or "length"); judges it. Ends it once, as `fail` does."""
        if self.outcome is None:
            self._ledger.close(self, "good" if self._met() else "late", finish)

    def fail(self, outcome: str) -> None:
        """The answer will not be complete: dropped, rejected, cancelled or failed."""
        if self.outcome is None:
            self._ledger.close(self, outcome, "abort" if outcome == "cancelled" else "error")

    @property
    def ttft_s(self) -> float:
        return self.first_s - self.arrival_s

    @property
    def e2e_s(self) -> float:
        return self.last_s - self.arrival_s

    @property
    def tpot_s(self) -> float | None:
        return tpot(self.ttft_s, self.e2e_s, self.tokens)

    def _met(self) -> bool:
        if not self.slo:
            return True
        idle_ttft_s, idle_tpot_s = self._ledger.idle(self.prompt, self.tokens) if self.slo.relative else (0.0, 0.0)
        idle_e2e_s = idle_ttft_s + idle_tpot_s * (self.tokens - 1)
        bounds = self.slo.resolve(*(round(idle_s * SECOND) for idle_s in (idle_ttft_s, idle_tpot_s, idle_e2e_s)))
        tpot_s = self.tpot_s
        return bounds.met(self.ttft_s * SECOND, None if tpot_s is None else tpot_s * SECOND, self.e2e_s * SECOND)


class Ledger:
    """Counts since the start. `idle` predicts (TTFT, TPOT) in s of (prompt, output) tokens on an idle instance."""

    def __init__(self, idle: Idle, metrics: Metrics) -> None:
        self.idle = idle
        self.metrics = metrics
        #: Answers under way.
        self.open = 0
        #: Output tokens of all answers.
        self.tokens = 0
        #: Ended answers, by outcome; every one, and those that had an SLO.
        self.ended: Counter[str] = Counter()
        self.promised: Counter[str] = Counter()
        self._tick = (time.monotonic(), 0)

    def begin(self, arrival_s: float, prompt: int, slo: Slo) -> Answer:
        self.open += 1
        self.metrics.accepted(prompt, arrival_s)
        return Answer(self, arrival_s, prompt, slo)

    def refused(self, answers: int, slo: Slo) -> None:
        """So many answers were rejected before they began (queue full, no engine)."""
        self._count("rejected", answers, bool(slo))

    def close(self, answer: Answer, outcome: str, finish: str) -> None:
        answer.outcome = outcome
        self.open -= 1
        self._count(outcome, 1, bool(answer.slo))
        self.metrics.finished(finish, answer.e2e_s if answer.tokens else None, answer.tpot_s, answer.tokens)

    def tokens_per_s(self) -> float:
        """Output tokens per second since the last call."""
        (then_s, then), now_s = self._tick, time.monotonic()
        self._tick = (now_s, self.tokens)
        return (self.tokens - then) / max(now_s - then_s, 1e-9)

    def _count(self, outcome: str, answers: int, promised: bool) -> None:
        self.ended[outcome] += answers
        if promised:
            self.promised[outcome] += answers
        self.metrics.ended(outcome, answers)


def kv_used(load: Load) -> float:
    """Share of the KV pages that are in use, 0 to 1."""
    return 1 - load.pages_free / load.pages if load.pages else 0.0


def status_line(home: BaseHome, ledger: Ledger) -> str:
    """One line for people: load now, output rate since the last call, and what became of answers with an SLO so far."""
    load, promised = home.capacity, ledger.promised
    up, all_of_them = sum(i.state == "up" for i in home.instances), len(home.instances)
    return (
        f"{f'{up} of {all_of_them} instances, ' if all_of_them > 1 else ''}"
        f"running {load.running}, waiting {load.waiting}, KV used {100 * kv_used(load):.1f} %, "
        f"{ledger.tokens_per_s():.1f} tokens/s, with an SLO so far: "
        f"good {promised['good']}, late {promised['late']}, dropped {promised['dropped']}"
    )
