"""What one GPU of a `Composed` takes: computed once for each `new` and each number of jobs, and straight from there."""

from bisect import bisect_right
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from penstock.core.step import Features
from penstock.cost import hardware as hardwares
from penstock.cost import kernels, memory
from penstock.cost.base import FEW, Durations
from penstock.cost.kernels import Array
from penstock.cost.shapes import Shape

if TYPE_CHECKING:
    from penstock.cost.composed import Composed

#: What reading and writing memory reaches of the data sheet's bandwidth.
BANDWIDTH_SHARE = 0.8
#: From the end of a stage to the start of the next, beside the bytes.
SEND_NS = 10_000
#: Prompts' attention is straight between this many points from one measured length to the next; decodes' between the
#: measured contexts, which is nearer to contexts left out than any curve through the utilisations.
_BETWEEN = 4


class Line:
    """A function that is straight between knots and beyond the last goes on in proportion."""

    def __init__(self, xs: Array, ys: Array) -> None:
        ys = np.maximum.accumulate(ys)  # more to attend to never takes less time
        self._arrays = xs, ys, np.append(np.diff(ys) / np.diff(xs), ys[-1] / xs[-1])
        self._xs, self._ys, self._slopes = (array.tolist() for array in self._arrays)

    def at(self, x: float) -> float:
        """For x of at least 0, where the first knot is."""
        i = bisect_right(self._xs, x) - 1
        value: float = self._ys[i] + (x - self._xs[i]) * self._slopes[i]
        return value

    def along(self, x: npt.NDArray[np.int64]) -> Array:
        """The same for many that ascend, to the bit."""
        i = bisect_right(self._xs, int(x[0])) - 1
        if i == bisect_right(self._xs, int(x[-1])) - 1:  # x ascends: all on one piece
            straight: Array = self._ys[i] + (x - self._xs[i]) * self._slopes[i]
            return straight
        xs, ys, slopes = self._arrays
        pieces = np.searchsorted(xs, x.astype(np.float64), side="right") - 1
        bent: Array = ys[pieces] + (x - xs[pieces]) * slopes[pieces]
        return bent


class Rank:
    """One GPU of a `Composed`, and what it has computed so far; a `StepCost`. Times are of one layer, without fudge,
    unless said."""

    def __init__(self, cost: "Composed") -> None:
        self._tp, self._pp, self._fudge = cost.tp, cost.pp, cost.fudge
        self._overhead_ns, self._per_job_ns, self._kernel_ns = cost.overhead_ns, cost.per_job_ns, cost.kernel_ns
        self._shape = shape = cost.shape
        #: So many times what a layer takes.
        self._layers: float = cost.fudge * shape.layers
        self._hardware = hardwares.named(cost.hardware)
        self._kernels = kernels.load(self._hardware)
        self._heads, self._kv_heads = shape.heads // cost.tp, max(1, shape.kv_heads // cost.tp)
        self._gemms = [self._kernels.gemm(n, k) for n, k in matrices(shape, cost.tp)]
        self._output = self._kernels.gemm(-(-shape.vocab // cost.tp), shape.hidden)
        self._bandwidth = self._hardware.bandwidth * BANDWIDTH_SHARE / 1e9
        self._kv_ns = 2 * self._kv_heads * shape.head_dim * shape.dtype_bytes / self._bandwidth
        self._lengths = between(self._kernels.nodes("prefill", shape.head_dim))
        self._linear: dict[int, float] = {}
        self._stages_ns: dict[int, float] = {}
        self._outputs: dict[int, float] = {}
        self._decodes: dict[int, Line] = {}
        self._prompts: dict[int, Line] = {}
        self.stages = memory.stages(shape, cost.tp, cost.pp)

    def step_ns(self, features: Features) -> int:
        """A whole step through all stages, at least 1."""
        fixed = self.fixed_ns(features.new, features.decodes + features.prompts)
        ns = round(fixed + self._layers * self.attention_ns(features))
        return ns if ns > 0 else 1

    def steps_ns(self, first: Features, growth: int, count: int) -> Durations:
        """The same for each of `core.features.repeated`."""
        fixed = self.fixed_ns(first.new, first.decodes + first.prompts)
        if count < FEW:
            return self._few_ns(fixed, first, growth, count)
        ns = np.rint(fixed + self._layers * self.attentions_ns(first, growth, count))
        whole: npt.NDArray[np.int64] = np.maximum(ns, 1).astype(np.int64)
        return whole

    def _few_ns(self, fixed: float, first: Features, growth: int, count: int) -> list[int]:
        decodes, context, prompts = first.decodes, first.decode_context, first.prompts or 1
        positions, area = first.new - decodes, first.new_context - context
        decode = self._decode(decodes) if decodes else None
        prompt = self._prompt(prompts) if positions else None
        few: list[int] = []
        for _ in range(count):
            ns = decode.at(context) if decode is not None else 0.0
            if prompt is not None:
                ns = ns + max(prompt.at(area), self._kv_ns * (area * (prompts / positions)))
            whole = round(fixed + self._layers * ns)
            few.append(whole if whole > 0 else 1)
            context += decodes
            area += growth - decodes
        return few

    def interval_ns(self, features: Features) -> int:
        """See `StepCost`: the slowest stage, with what it sends on. The output layer is the last stage's."""
        if self._pp == 1:
            return self.step_ns(features)
        rows = features.decodes + features.prompts
        layer = self.linear_ns(features.new) + self.attention_ns(features)
        first, last = self.stages[0][0] * layer, self.stages[-1][0] * layer
        slowest = max(first + self.send_ns(features.new), last + self.output_ns(rows))
        return max(1, round(self._overhead_ns + self._per_job_ns * rows + self._fudge * slowest))

    def fixed_ns(self, new: int, rows: int) -> float:
        """A whole step but for attention, overheads and fudge included."""
        stages = self._stages_ns.get(new)
        if stages is None:
            sends = (self._pp - 1) * self.send_ns(new) if self._pp > 1 else 0.0
            stages = self._stages_ns[new] = self._shape.layers * self.linear_ns(new) + sends
        return self._overhead_ns + self._per_job_ns * rows + self._fudge * (stages + self.output_ns(rows))

    def linear_ns(self, new: int) -> float:
        """All of a layer but attention."""
        found = self._linear.get(new) if new else 0.0
        if found is None:
            products = sum(gemm.ns(new) for gemm in self._gemms)
            small = small_kernel_bytes(self._shape, self._tp) * new / self._bandwidth
            found = products + small + self._kernel_ns + 2 * self._allreduce_ns(new)
            self._linear[new] = found
        return found

    def output_ns(self, rows: int) -> float:
        """The output layer, for the positions that give a token."""
        found = self._outputs.get(rows)
        if found is None:
            found = self._outputs[rows] = self._output.ns(rows) if rows else 0.0
        return found

    def send_ns(self, new: int) -> float:
        """From one stage to the next."""
        link = self._hardware.peer_link(self._tp * self._pp)
        return SEND_NS + self._hidden_bytes(new) / link * 1e9

    def _allreduce_ns(self, new: int) -> float:
        return self._kernels.allreduce_ns(self._tp, self._hidden_bytes(new)) if self._tp > 1 else 0.0

    def _hidden_bytes(self, new: int) -> int:
        return new * self._shape.hidden * self._shape.dtype_bytes

    def attention_ns(self, features: Features) -> float:
        """Of decodes and of prompts. Positions that no prompt is counted for are one."""
        decodes, context = features.decodes, features.decode_context
        ns = self._decode(decodes).at(context) if decodes else 0.0
        positions = features.new - decodes
        if positions:
            prompts, area = features.prompts or 1, features.new_context - context
            read = self._kv_ns * (area * (prompts / positions))
            chunks = self._prompt(prompts).at(area)
            ns = ns + (chunks if chunks > read else read)
        return ns

    def attentions_ns(self, first: Features, growth: int, count: int) -> Array:
        """The same for each of `core.features.repeated`, to the bit."""
        decodes, context = first.decodes, first.decode_context
        steps = np.arange(count)
        ns = self._decode(decodes).along(context + decodes * steps) if decodes else np.zeros(count)
        positions = first.new - decodes
        if positions:
            prompts, area = first.prompts or 1, (first.new_context - context) + (growth - decodes) * steps
            read = self._kv_ns * (area * (prompts / positions))
            ns = ns + np.maximum(self._prompt(prompts).along(area), read)
        return ns

    def _decode(self, decodes: int) -> Line:
        """Attention of so many decodes over the sum of their contexts."""
        line = self._decodes.get(decodes)
        if line is None:
            contexts = self._kernels.nodes("decode", self._shape.head_dim)
            ns = self._kernels.decode_ns(decodes, contexts, self._heads, self._kv_heads, self._shape.head_dim)
            line = self._decodes[decodes] = Line(np.append(0.0, decodes * contexts), np.append(ns[0], ns))
        return line

    def _prompt(self, prompts: int) -> Line:
        """Attention of so many prompts over the sum of their areas."""
        line = self._prompts.get(prompts)
        if line is None:
            lengths = self._lengths
            ns = self._kernels.prefill_ns(prompts, lengths, self._heads, self._kv_heads, self._shape.head_dim)
            areas = prompts * lengths * (lengths + 1) / 2
            line = self._prompts[prompts] = Line(np.append(0.0, areas), np.append(ns[0], ns))
        return line


def matrices(shape: Shape, tp: int) -> list[tuple[int, int]]:
    """(n, k) of the products of a layer on one of `tp` GPUs: q k v; output; up, with gate where there is one; down."""
    heads, kv_heads, intermediate = shape.heads // tp, max(1, shape.kv_heads // tp), shape.intermediate // tp
    return [
        ((heads + 2 * kv_heads) * shape.head_dim, shape.hidden),
        (shape.hidden, heads * shape.head_dim),
        ((2 if shape.gated else 1) * intermediate, shape.hidden),
        (shape.hidden, intermediate),
    ]


def between(nodes: Array) -> Array:
    """The nodes, and some evenly in proportion between two of them."""
    steps = np.arange(_BETWEEN) / _BETWEEN
    inner = (nodes[:-1, None] * (nodes[1:] / nodes[:-1])[:, None] ** steps).ravel()
    return np.append(inner, nodes[-1])


def small_kernel_bytes(shape: Shape, tp: int) -> int:
    """What norms, residual, rotation, cache writes and activation of a layer read and write for one position."""
    heads, kv_heads, intermediate = shape.heads // tp, max(1, shape.kv_heads // tp), shape.intermediate // tp
    norms = 2 * 4 * shape.hidden  # each reads input and residual, writes both
    rotation_and_cache = (2 * heads + 6 * kv_heads) * shape.head_dim
    activation = (3 if shape.gated else 2) * intermediate
    return (norms + rotation_and_cache + activation) * shape.dtype_bytes
