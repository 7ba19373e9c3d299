"""Linear layers with packed bfloat16 weights: half the bytes of float32.

Two ways to multiply, chosen once by the clock. Weights are widened in registers as they are used, activations and sums
are float32: any processor can, and results are closer to the exact ones than those of a bfloat16 layer. Or the
processor multiplies pairs of bfloat16 into float32 sums (AVX512-BF16), activations rounded as any bfloat16 layer
rounds them.
"""

import functools
import time

import torch
from torch import Tensor, nn

from penstock.engine.cpu import kernels
from penstock.engine.cpu.simd import HAS_DOT, LANES, PANEL, ROWS

#: A thread's share of its second-level cache: what a ticket's weights, and a block's activations, may take.
CACHE_BYTES = 256 << 10


def can_pack(module: nn.Module) -> bool:
    return type(module) is nn.Linear and module.weight.dtype == torch.bfloat16 and module.in_features % 2 == 0


def pack(weight: Tensor) -> Tensor:
    """bfloat16 [outputs, inputs] to panels of pairs, int32 [outputs / PANEL, inputs / 2, PANEL], zeros at the end."""
    short = -weight.shape[0] % PANEL
    full = torch.cat([weight, weight.new_zeros(short, weight.shape[1])]) if short else weight
    pairs = full.contiguous().view(torch.int32).view(-1, PANEL, weight.shape[1] // 2)
    return pairs.transpose(1, 2).contiguous()


def alternate(gate: Tensor, up: Tensor) -> Tensor:
    """Rows of two matrices in turn, LANES of each, so that a panel holds both factors of a gated product."""
    rows, inputs = gate.shape
    both = gate.new_zeros(-(-rows // LANES), 2, LANES, inputs)
    for side, part in enumerate((gate, up)):
        whole = rows // LANES
        both[:whole, side] = part[: whole * LANES].view(whole, LANES, inputs)
        both[whole:, side, : rows % LANES] = part[whole * LANES :]
    return both.view(-1, inputs)


class Packed:
    """A packed matrix and its bias. `mode` is what becomes of the product (see `kernels`)."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None, mode: int = kernels.STORE) -> None:
        self.weights = pack(weight)
        self.outputs, self.inputs = weight.shape[0] // (2 if mode == kernels.SILU_MUL else 1), weight.shape[1]
        self.panels = len(self.weights)
        self.bias = torch.zeros(self.panels * PANEL)
        if bias is not None:
            self.bias[: len(bias)] = bias
        self.mode = mode
        self.width = self.panels * (LANES if mode == kernels.SILU_MUL else PANEL)

    def __call__(self, x: Tensor, out: Tensor | None = None, pairs: bool | None = None) -> Tensor:
        """float32 x [rows, inputs], contiguous, to float32 [rows, outputs]; into (or onto) `out` [rows, width].
        `pairs` is whether to multiply pairs of bfloat16; None is the faster way."""
        rows = len(x)
        pairs = pairs_are_faster() if pairs is None else pairs
        x = x.bfloat16() if pairs else x
        if out is None:
            out = torch.empty(rows, self.width)
        block = min(max(ROWS, CACHE_BYTES // (4 * self.inputs) // ROWS * ROWS), kernels.BLOCK_ROWS)
        chunk = max(1, min(CACHE_BYTES // (2 * PANEL * self.inputs), self.panels // (4 * torch.get_num_threads())))
        kernels.linear(
            rows, x.data_ptr(), x.element_size() * self.inputs, self.weights.data_ptr(), self.inputs // 2, self.panels,
            out.data_ptr(), 4 * self.width, self.bias.data_ptr(), self.mode, int(pairs), block, chunk,
        )  # fmt: skip
        return out if self.outputs == self.width else out[:, : self.outputs]


@functools.cache
def pairs_are_faster() -> bool:
    """Whether this processor multiplies pairs of bfloat16, rightly, and faster than what it widens."""
    if not HAS_DOT:
        return False
    packed, x = Packed(torch.randn(1024, 1024).bfloat16()), torch.randn(48, 1024)
    exact = packed(x.bfloat16().float(), pairs=False)
    if not torch.allclose(packed(x, pairs=True), exact, rtol=1e-3, atol=1e-2):
        return False
    return _seconds(packed, x, True) < _seconds(packed, x, False)


def _seconds(packed: Packed, x: Tensor, pairs: bool) -> float:
    times = []
    for _ in range(5):
        start_s = time.perf_counter()
        packed(x, pairs=pairs)
        times.append(time.perf_counter() - start_s)
    return min(times)


class PackedLinear(nn.Module):
    """In the place of an nn.Linear; takes any float, gives float32."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.packed = Packed(linear.weight, linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1]).float().contiguous()
        return self.packed(flat).view(*x.shape[:-1], self.packed.outputs)
