"""What one step of one executor does: so many positions of so many jobs. There is no prefill and no decode here."""

from typing import Any, Protocol

import msgspec


class Slice(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Execute positions [start, start + count) of a job, keep their KV in `pool`, with `master` gathering partial
    results. Pools are numbered within the instance; an ordinary instance has pool 0 only."""

    job: int
    start: int
    count: int
    pool: int = 0
    master: int = 0


class StepPlan(msgspec.Struct, frozen=True, array_like=True):
    """One step. `seq` numbers the steps of an instance from 0 without gaps."""

    seq: int
    slices: list[Slice]


class Features(msgspec.Struct, frozen=True, array_like=True):
    """What a step's duration depends on (see `StepCost`)."""

    #: Positions executed.
    new: int
    #: Sum over positions of the context each sees, itself included: what attention computes.
    new_context: int
    #: Slices of one position, and the sum of their contexts.
    decodes: int
    decode_context: int
    #: Slices of more than one position.
    prompts: int = 0


class StepCost(Protocol):
    """How long steps take. Handed to whoever needs it; core and policies never ask where it comes from."""

    def step_ns(self, features: Features) -> int:
        """Duration of a step with these features, at least 1."""

    def steps_ns(self, first: Features, growth: int, count: int) -> Any:
        """Durations of `count` steps that repeat one plan (`features.repeated`), the very numbers that `step_ns` gives
        for each: a list, or an int64 array where there are many."""

    def interval_ns(self, features: Features) -> int:
        """From the start of a step to when another, of other jobs, may start: less than `step_ns` in a pipeline."""
