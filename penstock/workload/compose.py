"""Workloads from parts: an arrival process, lengths, prefixes that are shared, conversations, and impatient clients.

Everything follows from the seed; times are whole microseconds, so that files are the same on every machine.
"""

from collections.abc import Iterable
from itertools import repeat
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from penstock.core.slo import Slo
from penstock.workload import lengths
from penstock.workload.arrivals import Times, arrivals, diurnal
from penstock.workload.quantiles import Tokens
from penstock.workload.request import MOONCAKE_BLOCK, Request

#: Processes whose draw depends on how many requests there are in all.
_WHOLE = ("loongserve", "llumnix")
_URGENT, _PATIENT = 0, 1


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked for. One of `count` and `duration_s` must be given."""

    lengths: str
    output_lengths: str | None = None
    #: poisson, gamma, constant, distserve, loongserve, llumnix or diurnal (`arrivals`)
    arrival: str = "poisson"
    count: int | None = None
    duration_s: float | None = None
    #: Requests/s on average; turns count as requests.
    rate: float | None = None
    cv: float = 1.0
    #: Diurnal arrivals, instead of a rate: requests/s at the least and at the most, and s from one peak to the next.
    trough: float | None = None
    peak: float | None = None
    period_s: float = 86_400.0
    #: Every conversation (or lone request) begins with one of so many prefixes of `prefix_len` tokens; the k-th most
    #: popular is taken k^-`prefix_zipf` as often as the first.
    prefixes: int = 0
    prefix_len: int = 0
    prefix_zipf: float = 1.0
    block_tokens: int = MOONCAKE_BLOCK
    #: Turns of each conversation, as a number or a spec of `lengths`; None: no conversations. Each turn's prompt is
    #: all that was said before, and what is new.
    turns: str | None = None
    #: s from an answer to the next turn: exponential, of this mean.
    think_s: float = 0.0
    #: This share hangs up after a time that is exponential, of mean `cancel_s`.
    cancel_share: float = 0.0
    cancel_s: float = 5.0
    #: This share has priority 0, the others 1 (less urgent).
    priority_share: float = 0.0
    slo: Slo | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.count is None) == (self.duration_s is None):
            raise ValueError("say how many requests there are to be, or for how many seconds: --count or --duration")
        if (self.count or self.duration_s or 0) <= 0:
            raise ValueError("--count and --duration must be positive")
        if self.arrival == "diurnal":
            if self.trough is None or self.peak is None or self.rate is not None:
                raise ValueError("diurnal arrivals need --trough and --peak (requests/s), and no --rate")
        elif self.rate is None or not 0 < self.rate < float("inf"):
            raise ValueError(f"{self.arrival} arrivals need a --rate above 0 (requests/s)")
        for share in (self.cancel_share, self.priority_share):
            if not 0 <= share <= 1:
                raise ValueError(f"the share {share:g} must be from 0 to 1")
        if self.think_s < 0 or self.cancel_s <= 0 or self.prefixes < 0 or self.prefix_zipf < 0:
            raise ValueError("--think, --prefixes and --prefix-zipf must be at least 0, and --cancel-after above 0")
        if bool(self.prefixes) != bool(self.prefix_len):
            raise ValueError("--prefixes and --prefix-len go together")
        if self.block_tokens < 1 or self.prefix_len % self.block_tokens:
            raise ValueError(
                f"--prefix-len {self.prefix_len} is not a multiple of --block-tokens {self.block_tokens}, and only "
                f"whole blocks are shared: make it one, or set --block-tokens to a divisor of it"
            )


class _Turns(NamedTuple):
    """Columns with a row for each turn; a lone request is a conversation of one turn."""

    times_s: Times
    prompts: Tokens
    outputs: Tokens
    #: Number of the conversation, from 0.
    session: Tokens
    #: NaN for the first turn of a conversation.
    think_s: Times


def synthesize(plan: Plan) -> list[Request]:
    """The requests of a plan, by arrival, the first at 0 s.

    Arrivals are of conversations where there are any, at `rate` over their mean number of turns; a turn's
    `arrival_s` is when it comes if answers take no time. With `duration_s`, what would arrive later is left out.
    """
    turns = _by_arrival(plan, _talk(plan))
    count = len(turns.times_s)
    gone = _rng(plan, 11).random(count) < plan.cancel_share
    patience = np.maximum(1e-6, (_rng(plan, 12).exponential(1.0, count) * plan.cancel_s).round(6))
    urgent = _rng(plan, 13).random(count) < plan.priority_share
    rows = zip(
        turns.times_s.tolist(),
        turns.prompts.tolist(),
        turns.outputs.tolist(),
        _names(plan, turns),
        np.where(urgent, _URGENT, _PATIENT).tolist() if plan.priority_share else repeat(None),
        map(str, turns.session.tolist()) if plan.turns else repeat(""),
        _where(~np.isnan(turns.think_s), turns.think_s),
        _where(gone, patience),
        strict=False,
    )
    return [
        Request(
            arrival_s=arrival_s,
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
            hash_ids=hash_ids,
            block_tokens=plan.block_tokens,
            priority=priority,
            slo=plan.slo,
            session=session,
            think_s=think_s,
            cancel_s=cancel_s,
        )
        for arrival_s, prompt_tokens, output_tokens, hash_ids, priority, session, think_s, cancel_s in rows
    ]


def _talk(plan: Plan) -> _Turns:
    """All turns, one conversation after another."""
    starts, turns = _conversations(plan)
    session = np.repeat(np.arange(len(starts)), turns)[: plan.count]
    first = np.flatnonzero(np.diff(session, prepend=-1))
    new, outputs = lengths.draw(plan.lengths, len(session), outputs=plan.output_lengths, seed=plan.seed)
    prompts = plan.prefix_len + _before(new + outputs, first, session) + new
    think = (_rng(plan, 10).exponential(1.0, len(session)) * plan.think_s).round(6)
    think[first] = 0.0
    times = (starts[session] - starts[0] + _before(think, first, session) + think).round(6)
    think[first] = np.nan
    return _Turns(times, prompts, outputs, session, think)


def _by_arrival(plan: Plan, turns: _Turns) -> _Turns:
    order = np.argsort(turns.times_s, kind="stable")
    if plan.duration_s is not None:
        order = order[turns.times_s[order] <= plan.duration_s]
    return _Turns._make(column[order] for column in turns)


def _conversations(plan: Plan) -> tuple[Times, Tokens]:
    """When each begins, in s, and how many turns it has; a lone request is a conversation of one."""
    mean_turns = float(_turns(plan, 10_000).mean())
    if plan.count is not None:
        turns = _turns(plan, plan.count)
        turns = turns[: 1 + int(np.searchsorted(np.cumsum(turns), plan.count))]
        return _times(plan, len(turns), mean_turns), turns
    starts = _times_until(plan, plan.duration_s or 0.0, mean_turns)
    return starts, _turns(plan, len(starts))


def _turns(plan: Plan, count: int) -> Tokens:
    spec = plan.turns or "1"
    return lengths.one(f"fixed:{spec}" if spec.isdecimal() else spec, count, plan.seed, stream=14)


def _times(plan: Plan, count: int, mean_turns: float) -> Times:
    if plan.arrival == "diurnal":
        trough, peak = ((rate or 0.0) / mean_turns for rate in (plan.trough, plan.peak))
        return diurnal(count, trough, peak, plan.period_s, cv=plan.cv, seed=plan.seed)
    return arrivals(plan.arrival, count, (plan.rate or 0.0) / mean_turns, cv=plan.cv, seed=plan.seed)


def _times_until(plan: Plan, duration_s: float, mean_turns: float) -> Times:
    """As many as come within `duration_s` after the first."""
    rate = (plan.rate or ((plan.trough or 0.0) + (plan.peak or 0.0)) / 2) / mean_turns
    if plan.arrival in _WHOLE:
        return _times(plan, max(1, round(rate * duration_s)), mean_turns)
    count = 100 + int(1.1 * rate * duration_s)
    while (times := _times(plan, count, mean_turns))[-1] - times[0] <= duration_s:
        count *= 2
    return np.asarray(times[times - times[0] <= duration_s])


def _before(values: npt.NDArray[Any], first: npt.NDArray[Any], session: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """For each turn, the sum of the values of the turns before it; `first` is where each conversation begins."""
    sums = np.cumsum(values) - values
    return np.asarray(sums - sums[first][session])


def _names(plan: Plan, turns: _Turns) -> Iterable[tuple[int, ...]]:
    """Names of the prompts' whole blocks: those of the prefix, then those of the conversation so far."""
    if not plan.prefixes and not plan.turns:
        return repeat(())
    shared = plan.prefix_len // plan.block_tokens
    prefixes = [tuple(range(k * shared, (k + 1) * shared)) for k in range(plan.prefixes)] or [()]
    weights = np.cumsum(np.arange(1.0, len(prefixes) + 1) ** -plan.prefix_zipf)
    places = _rng(plan, 15).random(int(turns.session.max()) + 1)
    group = np.searchsorted(weights / weights[-1], places, side="right")[turns.session].tolist()
    if not plan.turns:
        return (prefixes[k] for k in group)
    own = turns.prompts // plan.block_tokens - shared
    longest = np.zeros(len(places), np.int64)
    np.maximum.at(longest, turns.session, own)
    begin = (len(prefixes) * shared + np.cumsum(longest) - longest)[turns.session]
    spans = zip(group, begin.tolist(), own.tolist(), strict=True)
    return (prefixes[k] + tuple(range(start, start + count)) for k, start, count in spans)


def _where(mask: npt.NDArray[np.bool_], values: Times) -> Iterable[float | None]:
    return (value if there else None for there, value in zip(mask.tolist(), values.tolist(), strict=True))


def _rng(plan: Plan, stream: int) -> np.random.Generator:
    """Random numbers for one purpose, whatever else is asked for."""
    return np.random.default_rng([plan.seed, stream])
