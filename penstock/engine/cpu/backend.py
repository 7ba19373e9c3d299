"""The backend for CPUs: packed bfloat16 weights, fused layers where the family is known, paged attention kernels.

`prepare` turns a bfloat16 model into one whose activations are float32: on processors without bfloat16 instructions
that is the faster way, and it is never the less exact one. Models in other dtypes keep their layers and get the
attention kernels where they are float32, or plain attention.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from penstock.engine.backend import Int32, Kv, Paged, Step, call_model
from penstock.engine.cpu import kernels
from penstock.engine.cpu.layers import FusedLayer, Norm, can_fuse
from penstock.engine.cpu.linear import PackedLinear, can_pack, pairs_are_faster
from penstock.engine.cpu.simd import LANES
from penstock.engine.plain import Plain


class Cpu:
    """Runs on the threads of torch."""

    def __init__(self) -> None:
        self.name = "cpu"
        self._plain = Plain("cpu")
        #: The step that `_items` belong to.
        self._step: Step | None = None
        self._items: Int32 = np.zeros((0, 4), np.int32)

    def prepare(self, model: nn.Module) -> None:
        if next(model.parameters()).dtype != torch.bfloat16:
            return
        products = "bfloat16" if pairs_are_faster() else "float32"
        self.name = f"cpu: {LANES} lanes, packed bfloat16 weights, {products} products"
        _replace(model, lambda module: FusedLayer(module, self) if can_fuse(module) else None)
        _replace(model, lambda module: PackedLinear(module) if can_pack(module) else None)  # type: ignore[arg-type]
        _widen(model)

    def forward(self, model: nn.Module, step: Step, kv: Kv) -> Tensor:
        ids, positions, emit = (torch.from_numpy(a) for a in (step.ids, step.positions, step.emit))
        return call_model(model, ids, positions, emit, Paged(self, step, kv))

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, kv: Kv, step: Step, scale: float) -> Tensor:
        if not _supported(q, kv):
            return self._plain.attend(layer, q, k, v, kv, step, scale)
        q, k, v = (_heads_together(part.float()) for part in (q, k, v))
        return self.rotate_and_attend(layer, q, k, v, kv, step, scale)

    def rotate_and_attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, kv: Kv, step: Step, scale: float,
        rotation: tuple[Tensor, Tensor] | None = None, norms: list[Norm] | tuple[()] = (),
    ) -> Tensor:  # fmt: skip
        """As `attend`, on float32 whose heads lie side by side. First the heads of q and k are normalised, if `norms`
        has a norm for each, and rotated, if `rotation` is cosines and sines ([1, T, head_dim]); in place."""
        (rows, heads, dim), kv_heads, value_dim = q.shape, k.shape[1], v.shape[2]
        keys, values = kv.keys[layer].data_ptr(), kv.values[layer].data_ptr()
        half_width = int(kv.keys.dtype == torch.bfloat16)
        cos, sin = (part.data_ptr() for part in rotation) if rotation else (0, 0)
        weights = [norm.weight.data_ptr() for norm in norms] or [0, 0]
        eps = kernels.float_bits(norms[0].eps if norms else 0.0)
        kernels.rotate_and_write(
            rows, q.data_ptr(), 4 * q.stride(0), heads, k.data_ptr(), 4 * k.stride(0), v.data_ptr(), 4 * v.stride(0),
            kv_heads, dim, value_dim, cos, sin, 4 * dim, step.slots.ctypes.data, kv.page_tokens, keys, values,
            half_width, 8, *weights, eps, threads=1 if rows < 16 else 0,
        )  # fmt: skip
        items, tables = self._plan(step, heads // kv_heads), step.tables
        assert tables.strides[1] == tables.itemsize, "page tables must lie row by row"
        out = torch.empty(rows, heads, value_dim)
        kernels.attend(
            items.ctypes.data, len(items), q.data_ptr(), 4 * q.stride(0), out.data_ptr(), 4 * out.stride(0),
            heads // kv_heads, dim, value_dim, kv_heads, keys, values, tables.ctypes.data, tables.strides[0],
            kv.page_tokens, half_width, kernels.float_bits(scale * kernels.LOG2E),
        )  # fmt: skip
        return out

    def _plan(self, step: Step, group: int) -> Int32:
        """The step as pieces of attention: job, first row, rows, positions that the first row sees."""
        if self._step is not step:
            most = max(1, kernels.QUERY_ROWS // group)
            starts, counts = step.query_start[:-1], np.diff(step.query_start)
            pieces = -(-counts // most)
            job = np.repeat(np.arange(len(counts)), pieces)
            offset = (np.arange(len(job)) - np.repeat(np.cumsum(pieces) - pieces, pieces)) * most
            rows = np.minimum(most, counts[job] - offset)
            sees = step.contexts[job] - counts[job] + offset + 1
            self._step, self._items = step, np.stack([job, starts[job] + offset, rows, sees], 1).astype(np.int32)
        return self._items


def _supported(q: Tensor, kv: Kv) -> bool:
    dims, group = (kv.keys.shape[4], kv.values.shape[4]), q.shape[1] // kv.keys.shape[2]
    return (
        kv.keys.dtype in (torch.float32, torch.bfloat16)
        and all(dim % 16 == 0 and dim <= kernels.HEAD_DIM_MOST for dim in dims)
        and group <= kernels.QUERY_ROWS_MOST
    )


def _heads_together(x: Tensor) -> Tensor:
    """[T, heads, dim] with heads of a token side by side."""
    return x if x.stride(2) == 1 and x.stride(1) == x.shape[2] else x.contiguous()


def _replace(model: nn.Module, make: Callable[[nn.Module], nn.Module | None]) -> None:
    """Put what `make` gives in the place of each submodule, where it gives something."""
    for name, module in list(model.named_modules()):
        new = make(module) if name else None
        if new is not None:
            model.set_submodule(name, new)


def _widen(model: nn.Module) -> None:
    """Everything float32, but for embedding tables: of those, what is looked up."""
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            module.register_forward_hook(lambda module, args, out: out.float())
            continue
        for part in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            if part.dtype == torch.bfloat16:
                part.data = part.data.float()
