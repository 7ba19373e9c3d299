"""A step cost for hardware and models that are not here: kernel times, added up.

    step = overhead + per_job (decodes + prompts)
         + fudge x (layers x (products + attention + small kernels + all-reduces) + output layer + sends between stages)

Products (q k v, output, up and gate, down) have `new` rows and are split over `tp` GPUs by columns, then by rows, so
that a layer has two all-reduces. Decodes attend as one batch at their mean context. Prompts attend as a batch of equal
chunks: a chunk of c positions after a prefix of p takes as long as a whole prompt with the same area, c p + c (c+1) / 2
contexts, and at least as long as reading the KV of its mean context takes; `Features.prompts` counts chunks.
Norms, rotation, residual and activation move bytes and cost `kernel_ns` a layer besides. The output layer runs for one
row a job. `overhead_ns`, `per_job_ns` and `kernel_ns` are allowances, not measurements: docs/cost-composed.md says what
is left out.

What depends on `new` is computed once for each; attention is piecewise linear in the sum of contexts, once for each
number of jobs. From there on there is only + - * and comparison, in one order, so that numbers and arrays of numbers
give the same integers.
"""

from functools import cached_property
from typing import TYPE_CHECKING

from penstock.core.step import Features
from penstock.cost import hardware as hardwares
from penstock.cost import kernels, shapes
from penstock.cost.base import Cost, Durations
from penstock.cost.rank import Rank
from penstock.cost.shapes import Shape

if TYPE_CHECKING:
    from penstock.cost.models import CostFile


class Composed(Cost, frozen=True, dict=True, kw_only=True):
    """See the module. Raises ValueError for hardware without a name, for a split that the shape does not allow, and for
    numbers other than of two bytes."""

    #: As in `penstock.cost.hardware`.
    hardware: str
    shape: Shape
    tp: int = 1
    pp: int = 1
    #: Ns a step, before its first kernel.
    overhead_ns: float = 500_000.0
    #: Ns a job of the step: sampling, its page table, its output.
    per_job_ns: float = 5_000.0
    #: Ns a layer for starting its small kernels.
    kernel_ns: float = 10_000.0
    #: Everything that kernels take, times this: 1 is what the tables say.
    fudge: float = 1.0

    def __post_init__(self) -> None:
        hardwares.named(self.hardware)
        shapes.check_split(self.shape, self.tp, self.pp)
        if self.shape.dtype_bytes != kernels.DTYPE_BYTES:
            raise ValueError(f"weights of {self.shape.dtype_bytes} bytes: kernels were measured in bfloat16, so give 2")
        if self.tp > hardwares.NODE_GPUS:
            raise ValueError(f"tp {self.tp} spans nodes, which no table covers: at most {hardwares.NODE_GPUS}, and pp")

    def step_ns(self, features: Features) -> int:
        """See `StepCost`: through all stages."""
        return self._rank.step_ns(features)

    def steps_ns(self, first: Features, growth: int, count: int) -> Durations:
        """See `StepCost`."""
        return self._rank.steps_ns(first, growth, count)

    def interval_ns(self, features: Features) -> int:
        """See `StepCost`: the slowest stage, with what it sends on. The output layer is the last stage's."""
        return self._rank.interval_ns(features)

    def ready(self) -> Rank:
        """See `Cost`."""
        return self._rank

    @cached_property
    def _rank(self) -> Rank:
        return Rank(self)


def compose(hardware: str, model: str, tp: int = 1, pp: int = 1) -> "CostFile":
    """The cost of a model on hardware, both by name (a model also by its folder), with what is known of it.

    Raises ValueError for names and splits that do not exist.
    """
    from penstock.cost.models import CostFile  # which imports `Composed`

    cost = Composed(hardware=hardware, shape=shapes.named(model), tp=tp, pp=pp)
    gpu = hardwares.named(hardware)
    measured = kernels.load(gpu)
    own = gpu.kernels == gpu.name
    provenance = {
        "hardware": f"{hardware}, tp {tp}, pp {pp}",
        "model": model,
        "dtype": measured.provenance["dtype"],
        "engine": f"composed from kernels of {measured.provenance['engine']}",
        "from": f"{measured.provenance['from']}, {measured.provenance['hardware']}"
        + ("" if own else f": its utilisations at the rates of {hardware}"),
        "licence": measured.provenance["licence"],
    }
    return CostFile(cost=cost, provenance=provenance, errors=measured.errors if own else {})
