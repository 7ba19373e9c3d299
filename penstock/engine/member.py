"""A model, or one rank's share of it, on one device: its backend, its KV tensors, and what a start does with them.

Where ranks share a model, all of them take these steps together, as each but the loading runs the model, in which they
meet. Knows nothing of processes.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from penstock.engine import load, probe
from penstock.engine.backend import ATTENTION, Backend, Int64, Kv
from penstock.engine.host import cores, free_bytes
from penstock.engine.options import EngineOptions
from penstock.engine.plain import Plain

if TYPE_CHECKING:
    from penstock.engine.cuda import Cuda

#: Jobs of the greatest length that KV memory is made for where nobody says how much to take.
_JOBS = 256


class Member:
    """In the order of a start: `measure`, `reference`, `allocate`, `capture`."""

    @classmethod
    def load(cls, folder: Path, config: PretrainedConfig, options: EngineOptions) -> "Member":
        """One that has the whole model."""
        torch.set_num_threads(options.threads or cores())
        return cls(load.load_model(folder, config, options), config, options)

    def __init__(self, model: nn.Module, config: PretrainedConfig, options: EngineOptions) -> None:
        self.model = model
        self.config = config
        self.options = options
        self.device, self.dtype = probe.device_of(model), probe.dtype_of(model)
        self.backend = choose_backend(options.backend, self.device)

    def measure(self, max_len: int) -> int:
        """How many KV pages there is room for. Raises Unsupported if the model's attention cannot be served."""
        probe.check_config(self.model, self.config, max_len)
        self.shape = probe.inspect(self.model, self.config, max_len)
        options = self.options
        return options.pages or (options.kv_bytes or self._kv_bytes(max_len)) // self.page_bytes

    @property
    def page_bytes(self) -> int:
        return token_bytes(self.shape, self.dtype) * self.options.page_tokens

    def reference(self, prompts: list[Int64]) -> list[Tensor]:
        """Logits that `probe.verify` expects; before `allocate` changes the model."""
        return probe.reference(self.model, prompts)

    def allocate(self, pages: int, kv: Kv | None = None) -> Kv:
        """Make the model ready to run, and the tensors of its KV if they are not there yet."""
        self.backend.prepare(self.model)
        self.model.set_attn_implementation(ATTENTION)  # type: ignore[operator]
        self.kv = kv or make_kv(self.shape, pages, self.options.page_tokens, self.device, self.dtype)
        return self.kv

    def capture(self, width: int) -> str:
        """Record what can be recorded, for jobs of at most `width` pages; why it could not be, if so."""
        cuda = as_cuda(self.backend)
        try:
            if cuda is not None:
                cuda.capture(self.model, self.kv, width)
        except RuntimeError as error:
            return f"decode steps without CUDA graphs, which could not be recorded: {error}"
        return ""

    def forget(self) -> None:
        """Drop what was recorded."""
        if (cuda := as_cuda(self.backend)) is not None:
            cuda.forget()

    def _kv_bytes(self, max_len: int) -> int:
        """Memory for KV where nobody says how much."""
        options = self.options
        if (cuda := as_cuda(self.backend)) is not None:
            self.model.set_attn_implementation(ATTENTION)  # type: ignore[operator]
            little = make_kv(self.shape, 1, options.page_tokens, self.device, self.dtype)
            most = min(options.step_tokens, max_len)
            budget = cuda.kv_budget_bytes(self.model, little, most, options.memory_share)
            return int(budget * options.host_share)
        here = int(free_bytes() * options.host_share) // 4 // options.tensor_parallel_size
        return min(here, _JOBS * max_len * token_bytes(self.shape, self.dtype))


def choose_backend(name: str, device: torch.device) -> Backend:
    """The named backend; `auto` is the fastest for the device."""
    if name == "auto":
        name = {"cpu": "cpu", "cuda": "cuda"}.get(device.type, "plain")
    if name == "plain":
        return Plain(device)
    if name == device.type == "cpu":
        from penstock.engine.cpu.backend import Cpu

        return Cpu()
    if name == device.type == "cuda":
        from penstock.engine.cuda import Cuda

        return Cuda(device)
    raise ValueError(f"backend {name!r} on {device.type}: choose auto, plain, or one that has the device's name")


def as_cuda(backend: Backend) -> "Cuda | None":
    """The backend if it is that of CUDA, whose module needs Triton: not installed everywhere."""
    if backend.name != "cuda":
        return None
    from penstock.engine.cuda import Cuda

    return backend if isinstance(backend, Cuda) else None


def make_kv(shape: probe.Shape, pages: int, page_tokens: int, device: torch.device, dtype: torch.dtype) -> Kv:
    """Tensors for so many pages and the null page. Not cleared: what nobody has written is never read (see `Kv`), and
    on a CPU, memory that is not touched is not taken."""
    keys, values = (
        torch.empty(shape.layers, pages + 1, shape.kv_heads, page_tokens, dim, device=device, dtype=dtype)
        for dim in (shape.head_dim, shape.value_dim)
    )
    return Kv(keys, values)


def token_bytes(shape: probe.Shape, dtype: torch.dtype) -> int:
    return shape.layers * shape.kv_heads * (shape.head_dim + shape.value_dim) * dtype.itemsize
