"""What a request was promised, and whether the promise was kept. The one definition of every latency metric.

    TTFT  arrival to first token
    TPOT  (E2E - TTFT) / (n - 1) for n output tokens; a request of one token has no TPOT and meets any
    E2E   arrival to last token

Times are integer nanoseconds. A request is *good* when it ended normally and met every target that it has.
"""

import re

import msgspec

MS = 1_000_000
SECOND = 1_000_000_000

_UNIT_NS = {"us": 1_000, "ms": MS, "s": SECOND}
_TARGET = re.compile(r"(\d+(?:\.\d+)?)(us|ms|s|x)?$")


class Target(msgspec.Struct, frozen=True, array_like=True):
    """A bound on one latency: absolute (`ns`), or a multiple (`times`) of what an idle instance would take."""

    ns: int = 0
    times: float = 0.0

    @staticmethod
    def parse(text: str) -> "Target":
        """`500ms`, `1.5s`, `3x`; a bare number is milliseconds, as in `vllm bench serve --goodput ttft:200`."""
        match = _TARGET.match(text.strip())
        if not match or not float(match[1]):
            raise ValueError(f"latency target {text!r}: write a positive number with ms, s, us or x, as in 500ms or 3x")
        if match[2] == "x":
            return Target(times=float(match[1]))
        return Target(ns=round(float(match[1]) * _UNIT_NS[match[2] or "ms"]))

    def resolve(self, idle_ns: int) -> int:
        """The bound in ns, given what the same request would take on an idle instance."""
        return self.ns or round(self.times * idle_ns)

    def __str__(self) -> str:
        return f"{self.times:g}x" if self.times else f"{self.ns / MS:g}ms"


class Slo(msgspec.Struct, frozen=True, array_like=True):
    """Any subset of the three targets. None means no promise."""

    ttft: Target | None = None
    tpot: Target | None = None
    e2e: Target | None = None

    @staticmethod
    def parse(text: str) -> "Slo":
        """`ttft=500ms,tpot=3x`, separators `,` or blank, `=` or `:`."""
        targets: dict[str, Target] = {}
        for item in text.replace(",", " ").split():
            name, _, value = item.replace(":", "=").partition("=")
            name = {"e2el": "e2e"}.get(name, name)
            if name not in ("ttft", "tpot", "e2e"):
                raise ValueError(f"SLO {item!r}: the metric must be ttft, tpot or e2e, as in ttft=500ms,tpot=3x")
            targets[name] = Target.parse(value)
        return Slo(**targets)

    def resolve(self, idle_ttft_ns: int = 0, idle_tpot_ns: int = 0, idle_e2e_ns: int = 0) -> "Bounds":
        """Bounds in ns, given the same request's latencies on an idle instance."""
        return Bounds(
            self.ttft.resolve(idle_ttft_ns) if self.ttft else None,
            self.tpot.resolve(idle_tpot_ns) if self.tpot else None,
            self.e2e.resolve(idle_e2e_ns) if self.e2e else None,
        )

    @property
    def relative(self) -> bool:
        """Whether a target is a multiple of idle time, so that judging needs a prediction."""
        return any(t is not None and t.times for t in (self.ttft, self.tpot, self.e2e))

    def __bool__(self) -> bool:
        return any(t is not None for t in (self.ttft, self.tpot, self.e2e))

    def __str__(self) -> str:
        pairs = (("ttft", self.ttft), ("tpot", self.tpot), ("e2e", self.e2e))
        return ",".join(f"{name}={target}" for name, target in pairs if target is not None)


class Bounds(msgspec.Struct, frozen=True, array_like=True):
    """An SLO of one request in ns, multiples resolved."""

    ttft_ns: int | None = None
    tpot_ns: int | None = None
    e2e_ns: int | None = None

    def met(self, ttft_ns: float, tpot_ns: float | None, e2e_ns: float) -> bool:
        """Whether a request with these latencies is good. `tpot_ns` None: it had one token."""
        return (
            (self.ttft_ns is None or ttft_ns <= self.ttft_ns)
            and (self.tpot_ns is None or tpot_ns is None or tpot_ns <= self.tpot_ns)
            and (self.e2e_ns is None or e2e_ns <= self.e2e_ns)
        )

    def due(self, index: int) -> int | None:
        """When output token `index` (from 0) is due, in ns after arrival: TTFT, then one TPOT a token.

        Tokens delivered by then count towards token goodput; None where the SLO has no such deadline.
        """
        if self.tpot_ns is None or self.ttft_ns is None:
            return self.e2e_ns if self.ttft_ns is None or index else self.ttft_ns
        return self.ttft_ns + index * self.tpot_ns


def tpot(ttft: float, e2e: float, tokens: int) -> float | None:
    """Time per output token after the first, in the unit of its arguments; None for fewer than two tokens."""
    return (e2e - ttft) / (tokens - 1) if tokens > 1 else None
