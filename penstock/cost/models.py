"""Cost models on disk: any of them, with where it came from.

{"format": "penstock-cost", "version": 1,
 "cost":       {"type": "Linear", "base": 5e6, ...},        one of `Model`, by class name
 "provenance": {"hardware": "...", "model": "...", "dtype": "...", "engine": "...", "date": "...", "from": "..."},
 "errors":     {"decode": {"mean": 0.021, ...}, ...}}       held out, by regime, as fractions
"""

from pathlib import Path

import msgspec

from penstock.core.step import Features
from penstock.cost.base import Cost
from penstock.cost.composed import Composed
from penstock.cost.linear import Linear
from penstock.cost.piecewise import Piecewise
from penstock.cost.published.forms import BucketPhases, GroupPhases, Phases, PipelinePhases, Table

FORMAT, VERSION = "penstock-cost", 1

Plain = Linear | Piecewise | Phases | GroupPhases | BucketPhases | PipelinePhases | Table | Composed


class Scaled(Cost, frozen=True):
    """Another model, wrong by a factor: to see what that does to a policy."""

    cost: Plain
    factor: float

    def step_ns(self, features: Features) -> int:
        return max(1, round(self.cost.step_ns(features) * self.factor))

    def interval_ns(self, features: Features) -> int:
        return max(1, round(self.cost.interval_ns(features) * self.factor))


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
