"""What a trace is like: rates, burstiness, lengths, and how much of its prompts could be found in a cache."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from penstock.workload.request import Request

Array = npt.NDArray[np.float64]

MINUTE_S = 60.0
#: Over so long a rate is taken to be even.
WINDOW_S = 300.0
#: Windows with fewer gaps say nothing about their spread.
GAPS_MIN = 20


class Spread(msgspec.Struct, frozen=True):
    """A distribution of lengths in tokens (or of turns)."""

    mean: float
    p50: float
    p90: float
    p99: float
    max: float

    @staticmethod
    def of(values: npt.NDArray[np.int64]) -> "Spread":
        p50, p90, p99 = np.percentile(values, (50, 90, 99)).tolist()
        return Spread(float(values.astype(float).mean()), p50, p90, p99, float(values.max()))


class Sharing(msgspec.Struct, frozen=True):
    """What prompts have in common, by the names of their blocks."""

    #: Requests that name blocks at all.
    requests: int
    #: Of all prompt tokens, those in blocks that an earlier prompt had, after the same blocks: what an endless
    #: cache would find.
    seen_tokens: int
    seen_share: float
    #: Different blocks, each after what stands before it, and the tokens in them: what such a cache would hold.
    blocks: int
    block_tokens: int


class Description(msgspec.Struct, frozen=True):
    requests: int
    #: From the first arrival to the last.
    duration_s: float
    #: Gaps over that time, in requests/s; 0 where all come at once.
    mean_rate: float
    #: Most requests in one minute (from the start, or all if it is shorter), in requests/s, and when it began.
    peak_rate: float
    peak_at_s: float
    #: Coefficient of variation of the gaps: over all, and the mean of those of single windows, weighted by gaps.
    gap_cv: float | None
    gap_cv_in_windows: float | None
    prompt: Spread
    output: Spread
    total: Spread
    prompt_tokens: int
    output_tokens: int
    sharing: Sharing
    sessions: int
    #: Turns of each session; None where there are none.
    turns: Spread | None
    #: Turns that wait for an answer, and s after it, on average.
    thinking: int
    think_s: float | None
    #: Value -> requests; "none" are those without.
    slos: dict[str, int]
    priorities: dict[str, int]
    adapters: dict[str, int]
    #: Requests that the client gives up, and s after sending, on average.
    cancelled: int
    cancel_s: float | None
    #: Requests whose limit is not the length of their answer.
    limited: int
    #: Requests with the text of their prompt.
    texts: int


def describe(requests: list[Request]) -> Description:
    """Statistics of requests in the order of their arrivals. Raises ValueError where there are none."""
    if not requests:
        raise ValueError("there are no requests to describe")
    times = np.array([r.arrival_s for r in requests])
    prompts = np.array([r.prompt_tokens for r in requests])
    outputs = np.array([r.output_tokens for r in requests])
    gaps = np.diff(times)
    span_s = float(times[-1] - times[0])
    peak_rate, peak_at_s = _peak(times - times[0])
    sessions = Counter(r.session for r in requests if r.session)
    thinks = [r.think_s for r in requests if r.think_s is not None]
    cancels = [r.cancel_s for r in requests if r.cancel_s is not None]
    return Description(
        requests=len(requests),
        duration_s=span_s,
        mean_rate=len(gaps) / span_s if span_s else 0.0,
        peak_rate=peak_rate,
        peak_at_s=peak_at_s,
        gap_cv=_cv(gaps),
        gap_cv_in_windows=_cv_in_windows(times - times[0]),
        prompt=Spread.of(prompts),
        output=Spread.of(outputs),
        total=Spread.of(prompts + outputs),
        prompt_tokens=int(prompts.sum()),
        output_tokens=int(outputs.sum()),
        sharing=sharing(requests),
        sessions=len(sessions),
        turns=Spread.of(np.array(list(sessions.values()))) if sessions else None,
        thinking=len(thinks),
        think_s=float(np.mean(thinks)) if thinks else None,
        slos=_counts([str(r.slo or "") for r in requests]),
        priorities=_counts(["" if r.priority is None else str(r.priority) for r in requests]),
        adapters=_counts([r.adapter for r in requests]),
        cancelled=len(cancels),
        cancel_s=float(np.mean(cancels)) if cancels else None,
        limited=sum(r.limit_tokens not in (None, r.output_tokens) for r in requests),
        texts=sum(r.prompt is not None for r in requests),
    )


def sharing(requests: Sequence[Request]) -> Sharing:
    """How many prompt tokens an endless cache would find, if each prompt were in it as soon as it has come.

    A block is found only after the same blocks from the start of the prompt, and a prompt's last block counts for
    the tokens that the prompt has of it.
    """
    parts = list(seen_and_new(requests))
    seen_tokens, total = sum(seen for seen, _, _ in parts), sum(r.prompt_tokens for r in requests)
    return Sharing(
        requests=sum(bool(r.hash_ids) for r in requests),
        seen_tokens=seen_tokens,
        seen_share=seen_tokens / total,
        blocks=sum(blocks for _, _, blocks in parts),
        block_tokens=sum(new for _, new, _ in parts),
    )


def seen_and_new(requests: Iterable[Request]) -> Iterator[tuple[int, int, int]]:
    """Of each prompt: tokens in blocks that are there already, tokens in new blocks, and how many those are."""
    #: (what stands before it, name) -> number of the block; what stands before the first is its size, negative.
    known: dict[tuple[int, int], int] = {}
    for request in requests:
        size, seen, new, blocks = request.block_tokens, 0, 0, 0
        before, left = -size, request.prompt_tokens
        for name in request.hash_ids:
            if left <= 0:
                break
            number = len(known)
            before = known.setdefault((before, name), number)
            if before == number:
                new += min(size, left)
                blocks += 1
            else:
                seen += min(size, left)
            left -= size
        yield seen, new, blocks


def _peak(times: Array) -> tuple[float, float]:
    """The busiest minute: its rate and when it began."""
    counts = np.bincount((times // MINUTE_S).astype(int))
    busiest = int(counts.argmax())
    width_s = MINUTE_S if times[-1] >= MINUTE_S else float(times[-1])
    return (float(counts[busiest]) / width_s if width_s else 0.0), busiest * MINUTE_S


def _cv(gaps: Array) -> float | None:
    mean = float(gaps.mean()) if len(gaps) > 1 else 0.0
    return float(gaps.std()) / mean if mean else None


def _cv_in_windows(times: Array) -> float | None:
    """So that a rate which changes over the day is not taken for burstiness."""
    window = (times // WINDOW_S).astype(int)
    parts = [np.diff(part) for part in np.split(times, np.flatnonzero(np.diff(window)) + 1)]
    spreads = [(cv, len(gaps)) for gaps in parts if len(gaps) >= GAPS_MIN and (cv := _cv(gaps)) is not None]
    if not spreads:
        return None
    values, weights = zip(*spreads, strict=True)
    return float(np.average(values, weights=weights))


def _counts(names: list[str]) -> dict[str, int]:
    """By value, the most frequent first; empty where no request has any."""
    counts = Counter(name or "none" for name in names)
    return {} if set(counts) == {"none"} else dict(counts.most_common())
