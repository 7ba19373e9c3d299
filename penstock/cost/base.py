"""What every cost model is: a struct of numbers, so that it can be stored, that says how long a step takes."""

import msgspec
import numpy as np
import numpy.typing as npt

from penstock.core.features import repeated
from penstock.core.step import Features, StepCost

#: In ns: a few, or many.
Durations = list[int] | npt.NDArray[np.int64]

#: Fewer repeated steps than this are quicker one by one than as arrays.
FEW = 16


class Cost(msgspec.Struct, frozen=True, tag=True):
    """See `core.step.StepCost`. A model gives `step_ns`; the rest follows, and is overridden where there is more to say
    or a quicker way. Each model's class name is its tag in files."""

    def step_ns(self, features: Features) -> int:
        """Duration of a step, in ns, at least 1."""
        raise NotImplementedError

    def steps_ns(self, first: Features, growth: int, count: int) -> Durations:
        """Durations of `count` steps that repeat one plan (`core.features.repeated`), the very numbers that `step_ns`
        gives for each."""
        return list(map(self.step_ns, repeated(first, growth, count)))

    def interval_ns(self, features: Features) -> int:
        """From the start of a step to when another, of other jobs, may start: less than `step_ns` in a pipeline."""
        return self.step_ns(features)

    def ready(self) -> StepCost:
        """Gives the same answers; to be asked often."""
        return self

    def request_ns(self, prompt: int, tokens: int) -> tuple[int, int]:
        """(TTFT, TPOT) of a request alone on an idle instance, its prompt in one step."""
        ttft = self.step_ns(Features(prompt, prompt * (prompt + 1) // 2, 0, 0, 1))
        middle = prompt + max(tokens, 1) // 2
        return ttft, self.step_ns(Features(1, middle, 1, middle))
