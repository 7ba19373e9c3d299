"""The seam between the engine and what makes it fast: how a model runs, and how attention reads the paged KV.

A backend knows steps, pages and tensors. It knows nothing of jobs, sampling or plans, and allocates no page.

A step is one flattened batch: the new tokens of all jobs, one job after the other, jobs of a single token
first. With three jobs, two decoding and one in the middle of its prompt:

    row          0      1      2  3  4  5
    job          A      B      C  C  C  C        decodes = 2
    position    17      8     32 33 34 35        contexts = [18, 9, 36]
    query_start  0      1      2           6
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]

#: The page that padding points to. It belongs to nobody; its content means nothing, and padding may write it.
NULL_PAGE = 0
#: The name under which transformers' models find our attention.
ATTENTION = "penstock"


@dataclass(slots=True)
class Kv:
    """The paged cache. Slot s is position `s % page_tokens` of page `s // page_tokens`.

    Content beyond a job's context may be anything, NaN included: never let it take part, not even times zero.
    """

    #: [layers, pages, kv_heads, page_tokens, head_dim]
    keys: Tensor
    #: [layers, pages, kv_heads, page_tokens, value_dim]; value_dim is head_dim for nearly all models.
    values: Tensor
    #: The same pages on the other ranks of this instance, each with the KV heads that come next. Steps know nothing of
    #: them; they are there for what moves pages.
    peers: tuple["Kv", ...] = ()

    @property
    def page_tokens(self) -> int:
        return self.keys.shape[3]


@dataclass(slots=True)
class Step:
    """One flattened batch of T tokens of J jobs, on the host; the backend moves it to its device."""

    #: int64 [T], each
    ids: Int64
    positions: Int64
    #: int64 [T]: the slot that takes each token's key and value.
    slots: Int64
    #: int32 [J + 1]: job j has rows query_start[j] to query_start[j + 1].
    query_start: Int32
    #: int32 [J]: positions of job j that its last row sees, those of this step included.
    contexts: Int32
    #: int32 [J, most pages]: pages of each job in order, padded with NULL_PAGE.
    tables: Int32
    #: The first so many jobs have one row each; all others have more.
    decodes: int
    #: int64 [E]: rows whose logits are wanted, ascending.
    emit: Int64


class Backend(Protocol):
    """A way to run models on one kind of device."""

    name: str

    def prepare(self, model: nn.Module) -> None:
        """Change the loaded model in place for speed (pack weights, fuse, replace submodules). Called once.
        Logits stay the same up to rounding: the start-up probe compares them with the untouched model's."""

    def forward(self, model: nn.Module, step: Step, kv: Kv) -> Tensor:
        """Run a step, writing its keys and values to `kv`; logits [E, vocab] on the device, in any dtype."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, kv: Kv, step: Step, scale: float) -> Tensor:
        """Write k and v to their slots, then causal attention of each job over its own pages.

        q [T, heads, head_dim], k [T, kv_heads, head_dim], v [T, kv_heads, value_dim], possibly strided;
        query head h reads KV head h // (heads // kv_heads). Returns [T, heads, value_dim].
        """


@dataclass(slots=True)
class Paged:
    """What the attention function needs of the step that runs; handed through the model as a keyword."""

    backend: Backend
    step: Step
    kv: Kv


def call_model(model: nn.Module, ids: Tensor, positions: Tensor, emit: Tensor, paged: Paged) -> Tensor:
    """Call a causal LM on a flattened batch (ids and positions [T], emit [E]); logits [E, vocab].

    A backend without graphs or other tricks has this as its whole `forward`.
    """
    out = model(input_ids=ids[None], position_ids=positions[None], use_cache=False, logits_to_keep=emit, paged=paged)
    logits: Tensor = out.logits[0]
    return logits


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    paged: Paged,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Our function in transformers' AttentionInterface. Tensors come as [1, heads, T, dim] and leave as
    [1, T, heads, dim].

    The keywords that it ignores are those that the probe found to have no effect (see `probe`).
    """
    q, k, v = query[0].transpose(0, 1), key[0].transpose(0, 1), value[0].transpose(0, 1)
    scale = q.shape[-1] ** -0.5 if scaling is None else scaling
    layer: int = module.layer_idx  # type: ignore[assignment]
    return paged.backend.attend(layer, q, k, v, paged.kv, paged.step, scale)[None], None


def store(layer: int, k: Tensor, v: Tensor, kv: Kv, slots: Tensor) -> None:
    """Write k and v ([T, kv_heads, dim]) of new tokens to their slots (int64 [T], on the device of `kv`)."""
    pages, offsets = slots // kv.page_tokens, slots % kv.page_tokens
    kv.keys[layer][pages, :, offsets] = k
    kv.values[layer][pages, :, offsets] = v


def to_tensor(array: Int32 | Int64, device: torch.device | str = "cpu") -> Tensor:
    """A tensor over the array's memory (on the host), or a copy of it on the device."""
    return torch.from_numpy(array).to(device)
