"""The shapes of the cost models that papers publish: closed formulas in what a step does, and tables by batch.

A step has a prefill part, in its slices of more than one position, and a decode part, in its slices of one:

    prefill = base + token (sum of lengths) + square (sum of squared lengths) + prompt (number of prompts)
    decode  = base + job (number of decodes) + context (sum of their contexts, own position included)

Every number is in ns. A chunk of a prompt, positions [start, end), counts end - start tokens and end² - start² squares,
so that the chunks of a prompt add up to the whole of it, but for the bases. None of the systems published a step that
mixes prompts and decodes. Here it takes the sum of both parts less the smaller base: the weights are read once.
This module knows no numbers; they lie beside it, a file a system.
"""

from typing import Any, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from penstock.core.step import Features
from penstock.cost.base import Cost, Durations

#: One number, or one for each of several steps.
Count: TypeAlias = int | npt.NDArray[np.int64]
Ns: TypeAlias = float | npt.NDArray[np.floating[Any]]


class Prefill(msgspec.Struct, frozen=True):
    """Coefficients of the prefill part."""

    base: float
    token: float
    square: float
    prompt: float = 0.0

    def ns(self, tokens: int, squares: Count, prompts: int) -> Ns:
        """Nothing at all without tokens."""
        if not tokens:
            return 0.0
        return self.base + self.token * tokens + self.prompt * prompts + self.square * squares


class Decode(msgspec.Struct, frozen=True):
    """Coefficients of the decode part."""

    base: float
    job: float
    context: float

    def ns(self, jobs: int, context: Count) -> Ns:
        """Nothing at all without jobs."""
        if not jobs:
            return 0.0
        return self.base + self.job * jobs + self.context * context


class Formula(Cost, frozen=True):
    """A cost that is arithmetic on five counts, which works for one step and for an array of them alike."""

    def duration_ns(self, tokens: int, squares: Count, prompts: int, decodes: int, context: Count) -> Ns:
        """Unrounded. `tokens`, `squares`, `prompts` are of the prefill part, `decodes` and `context` of the other."""
        raise NotImplementedError

    def step_ns(self, features: Features) -> int:
        """See `StepCost`."""
        return _whole(self.duration_ns(*_counts(features)))

    def steps_ns(self, first: Features, growth: int, count: int) -> Durations:
        """See `StepCost`."""
        tokens, squares, prompts, decodes, context = _counts(first)
        steps = np.arange(count, dtype=np.int64)
        ns = self.duration_ns(
            tokens, squares + 2 * (growth - decodes) * steps, prompts, decodes, context + decodes * steps
        )
        whole: npt.NDArray[np.int64] = np.maximum(np.rint(np.broadcast_to(ns, count)), 1).astype(np.int64)
        return whole


def _counts(features: Features) -> tuple[int, int, int, int, int]:
    """The arguments of `Formula.duration_ns`. A prompt of n positions adds n (n + 1) / 2 to the context, hence n²."""
    tokens = features.new - features.decodes
    area = features.new_context - features.decode_context
    return tokens, 2 * area - tokens, features.prompts, features.decodes, features.decode_context


def _whole(ns: Ns) -> int:
    return max(round(float(ns)), 1)


class Phases(Formula, frozen=True):
    """One formula for each part."""

    prefill: Prefill
    decode: Decode

    def duration_ns(self, tokens: int, squares: Count, prompts: int, decodes: int, context: Count) -> Ns:
        """See `Formula`."""
        shared = min(self.prefill.base, self.decode.base) if tokens and decodes else 0.0
        return self._prefill_ns(tokens, squares, prompts) + self._decode_ns(decodes, context) - shared

    def _prefill_ns(self, tokens: int, squares: Count, prompts: int) -> Ns:
        return self.prefill.ns(tokens, squares, prompts)

    def _decode_ns(self, decodes: int, context: Count) -> Ns:
        return self.decode.ns(decodes, context)


class GroupPhases(Phases, frozen=True):
    """A group of instances that share the KV of its jobs: a decode is mastered by one of `masters`, and the master with
    most of them sets the pace; `gather` is what having several costs. The context is over the whole group, balanced."""

    masters: int = 1
    gather: float = 0.0

    def __post_init__(self) -> None:
        if self.masters < 1:
            raise ValueError(f"a group has at least one master, not {self.masters}")

    def _decode_ns(self, decodes: int, context: Count) -> Ns:
        several = self.gather if min(self.masters, decodes) > 1 else 0.0
        return self.decode.ns(-(-decodes // self.masters), context) + several


class BucketPhases(Phases, frozen=True):
    """Prefill by table while its tokens fit in one: entry i is for up to (i + 1) `bucket` tokens, whatever the prompts
    that they belong to. `overheads` are (above, more): a decode part above so much takes so much more, added up."""

    bucket_ns: tuple[float, ...]
    bucket: int
    overheads: tuple[tuple[float, float], ...]

    def _prefill_ns(self, tokens: int, squares: Count, prompts: int) -> Ns:
        place = -(-tokens // self.bucket) - 1
        return self.bucket_ns[place] if 0 <= place < len(self.bucket_ns) else self.prefill.ns(tokens, squares, prompts)

    def _decode_ns(self, decodes: int, context: Count) -> Ns:
        raw = self.decode.ns(decodes, context)
        ns: Ns = raw
        for above, more in self.overheads:
            ns = ns + more * (raw > above)
        return ns


class PipelinePhases(Formula, frozen=True):
    """A pipeline of `pp` equal stages. Its decode part changes coefficients at `split` jobs.

    A stage takes 1/pp of the formulas, raw fit times overhead factor, and with prompts pp x `boundary` besides; the
    first one also `driver` and `driver_token` for each token of context (in a prompt, of those executed), every step.
    """

    prefill: Prefill
    few: Decode
    many: Decode
    split: int
    prefill_factor: float
    decode_factor: float
    boundary: float
    driver: float
    driver_token: float
    pp: int = 1

    def __post_init__(self) -> None:
        if self.pp < 1:
            raise ValueError(f"a pipeline has at least one stage, not {self.pp}")

    def duration_ns(self, tokens: int, squares: Count, prompts: int, decodes: int, context: Count) -> Ns:
        """See `Formula`: through all stages."""
        stage = self._stage_ns(tokens, squares, prompts, decodes, context)
        return self.pp * stage + self._driver_ns(tokens, decodes, context)

    def interval_ns(self, features: Features) -> int:
        """See `StepCost`: the first stage is the slowest."""
        tokens, squares, prompts, decodes, context = _counts(features)
        stage = self._stage_ns(tokens, squares, prompts, decodes, context)
        return _whole(stage + self._driver_ns(tokens, decodes, context))

    def _stage_ns(self, tokens: int, squares: Count, prompts: int, decodes: int, context: Count) -> Ns:
        decode = self.few if decodes < self.split else self.many
        prefill_ns = self.prefill_factor * self.prefill.ns(tokens, squares, prompts)
        ns = prefill_ns + self.decode_factor * decode.ns(decodes, context)
        if tokens and decodes:
            ns = ns - min(self.prefill_factor * self.prefill.base, self.decode_factor * decode.base)
        return ns / self.pp + (self.pp * self.boundary if tokens else 0.0)

    def _driver_ns(self, tokens: int, decodes: int, context: Count) -> Ns:
        return self.driver + self.driver_token * (tokens + context - decodes)


class Table(Cost, frozen=True):
    """ns by batch, the number of slices: entry i is for i + 1. Beyond the last it goes on along the last slope; a
    single entry is proportional to the batch."""

    batch_ns: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.batch_ns:
            raise ValueError("a table of step times needs at least one, for a batch of 1")

    def step_ns(self, features: Features) -> int:
        """See `StepCost`."""
        batch, table = features.decodes + features.prompts, self.batch_ns
        if batch <= len(table):
            return _whole(table[max(batch, 1) - 1])
        before = table[-2] if len(table) > 1 else 0.0
        return _whole(table[-1] + (table[-1] - before) * (batch - len(table)))

    def steps_ns(self, first: Features, growth: int, count: int) -> Durations:
        """See `StepCost`: a batch that stays the same takes the same time."""
        return np.full(count, self.step_ns(first), np.int64)
