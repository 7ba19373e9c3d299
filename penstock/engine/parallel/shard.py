"""From a plain model to one rank's share of it: the modules of the plan get a part of their weights, the rest all.

The model's code runs as it is; it finds fewer heads and a narrower MLP. A `Reduced` layer adds the ranks' sums up, a
`Gathered` one puts their parts side by side.
"""

from collections.abc import Sequence
from pathlib import Path
from socket import socket

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationConfig, PretrainedConfig
from transformers.initialization import no_init_weights

from penstock.engine import load
from penstock.engine.load import Unsupported
from penstock.engine.member import Member
from penstock.engine.options import EngineOptions
from penstock.engine.parallel.group import Group, Nccl, Sockets
from penstock.engine.parallel.layers import Gathered, Reduced
from penstock.engine.parallel.messages import Join
from penstock.engine.parallel.plan import Cut, cuts
from penstock.engine.parallel.weights import Weights

#: GPT-NeoX's checkpoints have the output layer under a name of their own.
_GPT_NEOX_HEAD = "embed_out.weight"


def load_share(join: Join, peers: Sequence[socket]) -> Member:
    """A rank's share of the model, ready for its next steps, with sockets to the other ranks. Raises Unsupported or
    ValueError, saying what to change."""
    options, folder = join.options, Path(join.folder)
    torch.set_num_threads(options.threads or 1)
    config = load.load_config(folder)
    device = rank_device(options, join.rank)
    on_gpu = device.type == "cuda"
    group = Nccl(join.store, join.rank, join.size, device) if on_gpu else Sockets(peers, join.rank)
    model = skeleton(folder, config, options)
    shard(model, Weights(folder, config, options), group, device)
    return Member(model, config, options)


def rank_device(options: EngineOptions, rank: int) -> torch.device:
    """Of GPUs, a rank takes the one that comes so many after the one that is named."""
    device = load.choose_device(options.device)
    if device.type != "cuda":
        return device
    index, count = (device.index or 0) + rank, torch.cuda.device_count()
    if index >= count:
        raise ValueError(
            f"tensor_parallel_size {options.tensor_parallel_size} needs a GPU for each rank, and cuda:{index} is none "
            f"of the {count} here; choose less, or device cpu"
        )
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def skeleton(folder: Path, config: PretrainedConfig, options: EngineOptions) -> nn.Module:
    """The model in eval mode on the host, its weights undefined: memory that nobody touches is not taken."""
    dtype = load.choose_dtype(options.dtype, config)
    try:
        with no_init_weights():
            model: nn.Module = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="eager")  # type: ignore[no-untyped-call]
    except (ValueError, NotImplementedError, ImportError) as error:
        raise Unsupported(f"model type {config.model_type!r} could not be made: {error}") from error
    if (folder / "generation_config.json").exists() and options.load_format != "dummy":
        model.generation_config = GenerationConfig.from_pretrained(folder)  # type: ignore[assignment]
    return model.eval().requires_grad_(False)


def tie(model: nn.Module, weights: Weights) -> None:
    """Say where the checkpoint has the output layer: where it has none of its own, it is the input embedding."""
    names = {id(module): name for name, module in model.named_modules()}
    inputs, outputs = (
        f"{names[id(module)]}.weight"
        for module in (model.get_input_embeddings(), model.get_output_embeddings())  # type: ignore[operator]
    )
    tied = model.config.get_text_config().tie_word_embeddings  # type: ignore[operator, union-attr]
    for name in (_GPT_NEOX_HEAD, inputs) if tied else (_GPT_NEOX_HEAD,):
        if outputs not in weights and name in weights:
            weights.aliases.setdefault(outputs, name)


def shard(model: nn.Module, weights: Weights, group: Group, device: torch.device) -> None:
    """Give the model this rank's weights, on the device, in place."""
    tie(model, weights)
    plan: dict[str, Cut] = cuts(model)
    head = model.get_output_embeddings()  # type: ignore[operator]
    split_head = type(head) is nn.Linear and head.out_features % group.size == 0
    for name, module in list(model.named_modules()):
        cut = "colwise" if module is head and split_head else plan.get(name)
        for key, empty in module.named_parameters(recurse=False):
            read = _part(weights, f"{name}.{key}", empty, cut, group)
            setattr(module, key, nn.Parameter(read.to(device, empty.dtype).contiguous(), requires_grad=False))
        if cut == "colwise":
            module.out_features //= group.size
        if cut == "rowwise":
            module.in_features //= group.size
            model.set_submodule(name, Reduced(module, group))
        elif module is head and split_head:
            model.set_submodule(name, Gathered(module, group))
    model.to(device)


def _part(weights: Weights, name: str, whole: Tensor, cut: Cut | None, group: Group) -> Tensor:
    """This rank's part of a parameter of a module that is cut so."""
    if cut is None:
        return weights.read(name, whole.shape)
    if cut == "rowwise" and whole.ndim == 1:
        bias = weights.read(name, whole.shape)
        return torch.zeros_like(bias) if group.rank else bias  # the sum has it once
    return weights.read(name, whole.shape, int(cut == "rowwise"), (group.rank, group.size))


def stream(model: nn.Module, weights: Weights, device: torch.device) -> None:
    """Have each module of a skeleton read its weights when it is called and drop them thereafter: the whole model runs
    on the device, slowly, in the memory of its largest module."""
    tie(model, weights)
    for name, module in model.named_modules():
        own = dict(module.named_parameters(recurse=False))
        shapes = {key: parameter.shape for key, parameter in own.items()}
        for parameter in own.values():
            parameter.data = torch.empty(0, dtype=parameter.dtype, device=device)

        def fetch(module: nn.Module, _: object, name: str = name, shapes: dict[str, torch.Size] = shapes) -> None:
            for key, shape in shapes.items():
                parameter = getattr(module, key)
                parameter.data = weights.read(f"{name}.{key}", shape).to(device, parameter.dtype)

        def drop(module: nn.Module, _: object, out: object, shapes: dict[str, torch.Size] = shapes) -> None:
            for key in shapes:
                parameter = getattr(module, key)
                parameter.data = parameter.data.new_empty(0)

        if own:
            module.register_forward_pre_hook(fetch)
            module.register_forward_hook(drop)
    model.to(device)
