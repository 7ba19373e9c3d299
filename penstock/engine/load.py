"""From a folder to a transformers causal LM. Knows nothing of paged KV; whether the model can be served is the probe's.

Remote code is never run, and weights come from safetensors only.
"""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging

from penstock.engine.options import EngineOptions


class Unsupported(ValueError):
    """This model cannot be served; the message names it and says why."""


def load_config(folder: Path) -> PretrainedConfig:
    """The model's configuration. Raises Unsupported if it is not that of a decoder-only language model."""
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(folder)
    except (ValueError, KeyError, OSError) as error:
        raise Unsupported(f"{folder}: its config.json cannot be used: {error}") from error
    if config.is_encoder_decoder:
        raise Unsupported(
            f"model type {config.model_type!r} is an encoder-decoder; only decoder-only models are served"
        )
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise Unsupported(f"model type {config.model_type!r} is not a causal language model of transformers")
    return config


def load_model(folder: Path, config: PretrainedConfig, options: EngineOptions) -> nn.Module:
    """The model in eval mode on its device, with transformers' eager attention."""
    device, dtype = choose_device(options.device), choose_dtype(options.dtype, config)
    args: dict[str, Any] = {"dtype": dtype, "attn_implementation": "eager"}
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        if options.load_format == "dummy":
            torch.manual_seed(options.seed)
            model = AutoModelForCausalLM.from_config(config, **args)  # type: ignore[no-untyped-call]
        else:
            model = AutoModelForCausalLM.from_pretrained(folder, config=config, use_safetensors=True, **args)
    except (ValueError, OSError, NotImplementedError, ImportError) as error:
        raise Unsupported(f"model type {config.model_type!r} could not be loaded: {error}") from error
    loaded: nn.Module = model.eval().requires_grad_(False).to(device)
    return loaded


def choose_device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def choose_dtype(name: str, config: PretrainedConfig) -> torch.dtype:
    """The named dtype; `auto` is the checkpoint's own, float32 where it does not say."""
    dtype = (config.dtype or torch.float32) if name == "auto" else getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f"dtype {name!r}: choose auto, float32, bfloat16, float16 or float64")
    return dtype


def eos_token_ids(model: nn.Module) -> list[int]:
    """Tokens that end an answer, as the checkpoint's generation settings say, else its configuration."""
    for settings in (getattr(model, "generation_config", None), model.config):
        eos = getattr(settings, "eos_token_id", None)
        if eos is not None:
            return [eos] if isinstance(eos, int) else list(eos)
    return []


def max_len(config: PretrainedConfig, wanted: int | None) -> int:
    """The most tokens of a job: what is wanted, no more than the model has positions for."""
    text = config.get_text_config()
    names = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
    most: int | None = next((getattr(text, n) for n in names if isinstance(getattr(text, n, None), int)), None)
    if wanted is not None and most is not None and wanted > most:
        raise ValueError(f"max_len {wanted}: the model has {most} positions")
    return wanted or most or 2048
