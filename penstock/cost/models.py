"""Cost models on disk: any of them, with where it came from.

{"format": "penstock-cost", "version": 1,
 "cost":       {"type": "Linear", "base": 5e6, ...},        one of `Model`, by class name
 "provenance": {"hardware": "...", "model": "...", "dtype": "...", "engine": "...", "date": "...", "from": "..."},
 "errors":     {"decode": {"mean": 0.021, ...}, ...}}       held out, by regime, as fractions
"""

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from penstock.core.predict import regime
from penstock.core.step import Features
from penstock.cost.base import Cost, Durations
from penstock.cost.composed import Composed
from penstock.cost.linear import Linear
from penstock.cost.piecewise import Piecewise
from penstock.cost.published.forms import BucketPhases, GroupPhases, Phases, PipelinePhases, Table

FORMAT, VERSION = "penstock-cost", 1

Plain = Linear | Piecewise | Phases | GroupPhases | BucketPhases | PipelinePhases | Table | Composed


class Scaled(Cost, frozen=True):
    """Another model, times a factor: to correct it by what was measured since, or to see what an error does."""

    cost: Plain
    factor: float = 1.0
    #: For steps of one regime (`core.predict.regime`), instead of `factor`.
    regimes: dict[str, float] = msgspec.field(default_factory=dict)

    def step_ns(self, features: Features) -> int:
        return max(1, round(self.cost.step_ns(features) * self._of(features)))

    def steps_ns(self, first: Features, growth: int, count: int) -> Durations:
        scaled = np.rint(np.asarray(self.cost.steps_ns(first, growth, count)) * self._of(first))
        durations: npt.NDArray[np.int64] = np.maximum(scaled, 1).astype(np.int64)
        return durations

    def interval_ns(self, features: Features) -> int:
        return max(1, round(self.cost.interval_ns(features) * self._of(features)))

    def _of(self, features: Features) -> float:
        return self.regimes.get(regime(features), self.factor)


def corrected(cost: Plain, steps: Sequence[tuple[Features, int]]) -> Scaled:
    """The model so scaled that in each regime it gives these steps, together, the time that they took.

    A fit to typical steps leaves out the stalls that any real run has; what a run takes is the sum of all its steps.
    """
    took: dict[str, list[int]] = {}
    for features, ns in steps:
        sums = took.setdefault(regime(features), [0, 0])
        sums[0] += ns
        sums[1] += cost.step_ns(features)
    return Scaled(cost, regimes={name: measured / said for name, (measured, said) in took.items()})


Model = Plain | Scaled


class CostFile(msgspec.Struct, kw_only=True):
    """A cost model and what is known of it."""

    format: str = FORMAT
    version: int = VERSION
    cost: Model
    provenance: dict[str, str] = {}
    #: Regime -> statistic -> held-out relative error.
    errors: dict[str, dict[str, float]] = {}


def save(file: CostFile, path: str | Path) -> None:
    """Write it, making folders as needed. Raises OSError."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(file), indent=1))


def load(path: str | Path) -> CostFile:
    """Read it back. Raises OSError, and ValueError for a file that is something else."""
    try:
        file = msgspec.json.decode(Path(path).read_bytes(), type=CostFile)
    except msgspec.DecodeError as error:
        raise ValueError(f"{path} is not a cost model that `penstock fit` wrote: {error}") from None
    if (file.format, file.version) != (FORMAT, VERSION):
        raise ValueError(f"{path} is {file.format} version {file.version}; this reads {FORMAT} {VERSION}")
    return file
