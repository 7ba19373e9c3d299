"""How long single kernels take on a GPU: matrix products, attention, all-reduce.

A kernel's *roofline* is the time that its arithmetic or its bytes would take at the data sheet's rates; its
*utilisation* is roofline over measured time. `data/` has the utilisations measured at the nodes of a grid, written by
`scripts/distill_costs.py`; between nodes the logarithm of the utilisation is interpolated over the logarithms of the
sizes, and beyond them it is held, so that time goes on along the roofline. Knows nothing of models and steps.
"""

import math
from bisect import bisect_right
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from penstock.cost.hardware import Hardware

Array = npt.NDArray[np.float64]

#: All were measured in bfloat16.
DTYPE_BYTES = 2
#: With this many KV heads and more, so many more KV heads are so much more batch: they are independent work.
KV_HEADS_MEASURED = 2
#: Likewise the heads of prompts beyond the last of these. Fewer than the first take as long as the first.
HEADS_MEASURED = (4, 8, 32, 64)
_FOLDER = Path(__file__).parent / "data"


class Table(msgspec.Struct, frozen=True):
    """Utilisations, the last axis running fastest."""

    axes: dict[str, list[int]]
    utilisation: list[float]


class Tables(msgspec.Struct, frozen=True):
    """What is known of one GPU's kernels."""

    provenance: dict[str, str]
    #: Operation -> statistic -> relative error of the rows that are not nodes.
    errors: dict[str, dict[str, float]]
    tables: dict[str, Table]


class Grid:
    """Utilisations over some axes. Fixing the first of them leaves a grid over the others."""

    def __init__(self, axes: Sequence[Array], log_values: Array) -> None:
        self.axes = axes
        self._logs = log_values

    def fix(self, size: float) -> "Grid":
        """The grid where the first axis has this size."""
        low, share = _place(self.axes[0], size)
        logs = self._logs[low]
        return Grid(self.axes[1:], logs if share == 0 else logs * (1 - share) + self._logs[low + 1] * share)

    def lists(self) -> tuple[list[float], list[float]]:
        """Of a grid with a single axis left: the logarithms of its nodes and of their utilisations."""
        return self.axes[0].tolist(), self._logs.tolist()

    def along(self, sizes: Array) -> Array:
        """Utilisations of a grid with a single axis left."""
        return np.exp(np.interp(np.log(sizes), self.axes[0], self._logs))

    def at(self, *sizes: float) -> float:
        """The utilisation at a size for every axis."""
        grid = self
        for size in sizes:
            grid = grid.fix(size)
        return math.exp(grid._logs)


def _place(axis: Array | list[float], size: float) -> tuple[int, float]:
    """(Index of the node below, share of the node above), held at both ends."""
    where = math.log(size)
    low = bisect_right(axis, where) - 1
    if low < 0 or low >= len(axis) - 1:
        return max(low, 0), 0.0
    return low, float((where - axis[low]) / (axis[low + 1] - axis[low]))


def gemm_roofline_ns(hardware: Hardware, m: float, n: float, k: float) -> float:
    """An (m, k) by (k, n) product in two-byte numbers."""
    return max(2 * m * n * k / hardware.flops, 2 * (m * n + n * k + m * k) / hardware.bandwidth) * 1e9


def prefill_roofline_ns(
    hardware: Hardware, batch: float, length: float, heads: int, kv_heads: int, head_dim: int
) -> float:
    """Causal attention of `batch` prompts of `length` positions, none computed before."""
    flops = 2 * batch * heads * head_dim * length * (length + 1)
    read = 4 * batch * length * head_dim * (heads + kv_heads)
    return max(flops / hardware.flops, read / hardware.bandwidth) * 1e9


def decode_roofline_ns(
    hardware: Hardware, batch: float, context: float, heads: int, kv_heads: int, head_dim: int
) -> float:
    """Attention of one position each of `batch` jobs, to `context` positions, itself included."""
    flops = 4 * batch * heads * head_dim * context
    read = 4 * batch * head_dim * (heads + kv_heads * context)
    return max(flops / hardware.flops, read / hardware.bandwidth) * 1e9


def allreduce_roofline_ns(hardware: Hardware, gpus: int, size: float) -> float:
    """Each GPU sends all but its own share twice: to be summed, and as part of the sum."""
    return 2 * (gpus - 1) / gpus * size / hardware.link * 1e9


class Kernels:
    """The kernels of one GPU."""

    def __init__(self, hardware: Hardware, tables: Tables) -> None:
        self.hardware = hardware
        self.provenance, self.errors = tables.provenance, tables.errors
        self._grids = {name: _grid(table) for name, table in tables.tables.items()}

    def gemm(self, n: int, k: int) -> "Gemm":
        """Products by a matrix of k rows and n columns."""
        return Gemm(self.hardware, n, k, self._grids["gemm"].fix(n).fix(k))

    def decode_ns(self, batch: float, contexts: Array, heads: int, kv_heads: int, head_dim: int) -> Array:
        """One position each of `batch` jobs, for each of several contexts."""
        measured = min(kv_heads, KV_HEADS_MEASURED)
        grid = self._heads_grid("decode", head_dim).fix(measured).fix(heads / kv_heads).fix(batch * kv_heads / measured)
        roofline = [decode_roofline_ns(self.hardware, batch, x, heads, kv_heads, head_dim) for x in contexts]
        return np.array(roofline) / grid.along(contexts)

    def prefill_ns(self, batch: float, lengths: Array, heads: int, kv_heads: int, head_dim: int) -> Array:
        """`batch` whole prompts of one length, for each of several lengths."""
        batch = max(batch, HEADS_MEASURED[0] / heads)
        measured = min(max(heads, HEADS_MEASURED[0]), HEADS_MEASURED[-1])
        grid = self._heads_grid("prefill", head_dim)
        grid = grid.fix(measured).fix(heads / kv_heads).fix(batch * heads / measured)
        roofline = [prefill_roofline_ns(self.hardware, batch, x, heads, kv_heads, head_dim) for x in lengths]
        return np.array(roofline) / grid.along(lengths)

    def nodes(self, name: str, head_dim: int) -> Array:
        """The contexts or lengths that `decode` or `prefill` was measured at."""
        return np.exp(self._heads_grid(name, head_dim).axes[-1]).round()

    def allreduce_ns(self, gpus: int, size: float) -> float:
        """A sum of `size` bytes over the GPUs of a node."""
        grid = self._grids["allreduce"]
        size = max(size, math.exp(grid.axes[-1][0]))  # below the least measured, time does not shrink
        return allreduce_roofline_ns(self.hardware, gpus, size) / grid.at(gpus, size)

    def _heads_grid(self, name: str, head_dim: int) -> Grid:
        """The grid of the nearest head size measured."""
        small = self._grids.get(f"{name}_64")
        return small if small is not None and head_dim <= 64 else self._grids[f"{name}_128"]


class Gemm:
    """Products by one matrix."""

    def __init__(self, hardware: Hardware, n: int, k: int, grid: Grid) -> None:
        self._hardware, self._n, self._k = hardware, n, k
        # Asked for one number of rows at a time, where lists are quicker than arrays.
        self._axis, self._logs = grid.lists()

    def ns(self, rows: int) -> float:
        """With so many rows on the left."""
        low, share = _place(self._axis, rows)
        log = self._logs[low]
        if share:
            log = log * (1 - share) + self._logs[low + 1] * share
        return gemm_roofline_ns(self._hardware, rows, self._n, self._k) / math.exp(log)


def _grid(table: Table) -> Grid:
    axes = [np.log(np.array(nodes, float)) for nodes in table.axes.values()]
    return Grid(axes, np.log(np.array(table.utilisation)).reshape([len(axis) for axis in axes]))


@cache
def load(hardware: Hardware) -> Kernels:
    """The kernels of a GPU; where it has none measured, with the utilisations of the GPU it names."""
    return Kernels(hardware, msgspec.json.decode((_FOLDER / f"{hardware.kernels}.json").read_bytes(), type=Tables))
