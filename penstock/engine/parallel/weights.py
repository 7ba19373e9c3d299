"""A checkpoint's tensors by name, whole or in part: a rank reads no more than its own. Knows nothing of models' plans.

Only safetensors that hold the weights under the model's own names, as the families that can be cut all do.
"""

import json
from pathlib import Path

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PretrainedConfig

from penstock.engine import load
from penstock.engine.load import Unsupported
from penstock.engine.options import EngineOptions


class Weights:
    """Random ones where the options say so: those that the whole model would have."""

    def __init__(self, folder: Path, config: PretrainedConfig, options: EngineOptions) -> None:
        if getattr(config, "quantization_config", None) is not None:
            raise Unsupported("quantised weights cannot be cut for tensor parallelism; use tensor_parallel_size 1")
        self._type = config.model_type
        self._drawn: dict[str, Tensor] = {}
        self._files: dict[str, Path] = {}
        #: Name -> the name that the checkpoint has it under.
        self.aliases: dict[str, str] = {}
        if options.load_format == "dummy":
            whole = load.load_model(folder, config, msgspec.structs.replace(options, device="cpu"))
            self._drawn = dict(whole.state_dict())
        else:
            self._files = _files(folder)

    def __contains__(self, name: str) -> bool:
        return name in self._drawn or name in self._files

    def read(self, name: str, shape: torch.Size, dim: int = 0, part: tuple[int, int] = (0, 1)) -> Tensor:
        """The `part[0]`th of `part[1]` equal parts along `dim`, on the host. Raises Unsupported if the checkpoint has
        no such tensor, or not of this (whole) shape."""
        name = self.aliases.get(name, name)
        size = shape[dim] // part[1]
        cut = (*[slice(None)] * dim, slice(part[0] * size, (part[0] + 1) * size))
        if name in self._drawn:
            return self._drawn[name][cut].clone()
        if name not in self._files:
            raise Unsupported(
                f"model type {self._type!r} cannot be cut for tensor parallelism: its safetensors have no {name!r}; "
                "use tensor_parallel_size 1"
            )
        try:
            with safe_open(self._files[name], framework="pt") as file:
                stored = file.get_slice(name)
                if list(stored.get_shape()) != list(shape):
                    raise Unsupported(f"tensor {name!r} is {stored.get_shape()} in the checkpoint, not {list(shape)}")
                read: Tensor = stored[cut]
        except (SafetensorError, OSError) as error:
            raise Unsupported(f"{self._files[name]} cannot be read: {error}") from error
        return read


def _files(folder: Path) -> dict[str, Path]:
    """Tensor -> its file. One file, or several with an index, as transformers saves them."""
    index = folder / "model.safetensors.index.json"
    single = folder / "model.safetensors"
    try:
        if not single.exists() and index.exists():
            return {name: folder / file for name, file in json.loads(index.read_text())["weight_map"].items()}
        with safe_open(single, framework="pt") as file:
            return dict.fromkeys(file.keys(), single)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise Unsupported(f"{folder} has no model.safetensors, or none that can be read: {error}") from error
