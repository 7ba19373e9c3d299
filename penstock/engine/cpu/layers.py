"""Whole decoder layers as seven kernel calls, for the families whose layers are known line by line.

A layer of Llama, Mistral, Qwen2 or Qwen3 is: norm, attention with rotary embedding, norm, gated MLP, each pair
added to the residual stream. The stream is float32 and changes in place. Everything else of the model stays
transformers' own, and a layer of any other class stays as it is. A rank of several has its part of the heads and of the
MLP, and adds what all ranks found.
"""

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from penstock.engine.backend import Paged
from penstock.engine.cpu import kernels
from penstock.engine.cpu.linear import Packed, alternate, can_pack
from penstock.engine.cpu.simd import PANEL
from penstock.engine.parallel.layers import Reduced

if TYPE_CHECKING:
    from penstock.engine.cpu.backend import Cpu

_KNOWN = {f"{family}DecoderLayer" for family in ("Llama", "Mistral", "Qwen2", "Qwen3")}


def can_fuse(layer: nn.Module) -> bool:
    """Whether `FusedLayer` computes what this layer computes."""
    kind = type(layer)
    if kind.__name__ not in _KNOWN or not kind.__module__.startswith("transformers.models."):
        return False
    attention, mlp = layer.get_submodule("self_attn"), layer.get_submodule("mlp")
    linears = [_linear(attention, name) for name in "qkvo"] + [_linear(mlp, name) for name in ("gate", "up", "down")]
    dim: int = attention.head_dim  # type: ignore[assignment]
    hidden: int = linears[0].in_features  # type: ignore[assignment]
    silu = type(mlp.act_fn).__name__ in ("SiLU", "SiLUActivation")
    return all(map(can_pack, linears)) and silu and dim % 16 == 0 and hidden % PANEL == 0


class Norm:
    """RMS norm."""

    def __init__(self, module: nn.Module) -> None:
        self.weight = module.weight.float().contiguous()  # type: ignore[operator]
        self.eps: float = module.variance_epsilon  # type: ignore[assignment]

    def __call__(self, x: Tensor) -> Tensor:
        """float32 [rows, width], contiguous."""
        out = torch.empty_like(x)
        rows, width = x.shape
        kernels.rms_norm(
            rows, x.data_ptr(), 4 * width, self.weight.data_ptr(), out.data_ptr(), 4 * width, width,
            kernels.float_bits(self.eps), max(8, (1 << 15) // width), threads=1 if rows * width < 1 << 16 else 0,
        )  # fmt: skip
        return out


class FusedLayer(nn.Module):
    """In the place of a decoder layer."""

    def __init__(self, layer: nn.Module, backend: "Cpu") -> None:
        super().__init__()
        attention, mlp = layer.get_submodule("self_attn"), layer.get_submodule("mlp")
        q, k, v, o = (_linear(attention, name) for name in "qkvo")
        gate, up, down = (_linear(mlp, name) for name in ("gate", "up", "down"))
        reduced = mlp.get_submodule("down_proj")
        self.group = reduced.group if isinstance(reduced, Reduced) else None
        onto = kernels.ADD if self.group is None else kernels.STORE
        self.backend = backend
        self.index: int = attention.layer_idx  # type: ignore[assignment]
        self.scale: float = attention.scaling  # type: ignore[assignment]
        self.dim: int = attention.head_dim  # type: ignore[assignment]
        self.heads, self.kv_heads = (part.out_features // self.dim for part in (q, k))  # type: ignore[operator]
        self.norms = [Norm(layer.get_submodule(name)) for name in ("input_layernorm", "post_attention_layernorm")]
        self.head_norms = [
            Norm(m) for m in (getattr(attention, n, None) for n in ("q_norm", "k_norm")) if m is not None
        ]
        self.qkv = Packed(_rows(q, k, v), _biases(q, k, v))
        self.o = Packed(_rows(o), _biases(o), onto)
        biases = [b[:, None] for b in (_biases(gate), _biases(up)) if b is not None]
        self.gate_up = Packed(
            alternate(_rows(gate), _rows(up)), alternate(*biases)[:, 0] if biases else None, kernels.SILU_MUL
        )
        self.down = Packed(_widened(_rows(down), self.gate_up.width), _biases(down), onto)

    def forward(self, x: Tensor, *, position_embeddings: tuple[Tensor, Tensor], paged: Paged, **_: Any) -> Tensor:
        """float32 [1, T, hidden], changed in place."""
        stream = x[0]
        qkv = self.qkv(self.norms[0](stream)).view(len(stream), -1, self.dim)
        ends = self.heads, self.heads + self.kv_heads, self.heads + 2 * self.kv_heads
        q, k, v = (qkv[:, start:end] for start, end in zip((0, *ends), ends, strict=False))
        attended = self.backend.rotate_and_attend(
            self.index, q, k, v, paged.kv, paged.step, self.scale, position_embeddings, self.head_norms
        )
        self._add(self.o, attended.view(len(qkv), -1), stream)
        self._add(self.down, self.gate_up(self.norms[1](stream)), stream)
        return x

    def _add(self, packed: Packed, x: Tensor, stream: Tensor) -> None:
        if self.group is None:
            packed(x, stream)
        else:
            stream += self.group.sum(packed(x))


def _linear(parent: nn.Module, name: str) -> nn.Module:
    """The linear layer of that name, be it a part."""
    module = parent.get_submodule(f"{name}_proj")
    return module.linear if isinstance(module, Reduced) else module


def _rows(*linears: nn.Module) -> Tensor:
    return torch.cat([cast(Tensor, linear.weight) for linear in linears])


def _biases(*linears: nn.Module) -> Tensor | None:
    biases = [cast(Tensor | None, linear.bias) for linear in linears]
    return torch.cat([bias.float() for bias in biases if bias is not None]) if biases[0] is not None else None


def _widened(weight: Tensor, inputs: int) -> Tensor:
    """Zero columns for inputs that the gated product has in excess."""
    return nn.functional.pad(weight, (0, inputs - weight.shape[1]))
