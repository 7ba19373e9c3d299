"""What we cannot compute rightly is refused by name, at start; what looks like it but is harmless is served."""

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM

from penstock.engine.load import Unsupported
from penstock.engine.plain import Plain
from penstock.engine.probe import inspect

_SMALL = {"vocab_size": 96, "hidden_size": 64, "num_attention_heads": 4, "eos_token_id": None, "bos_token_id": None}
_LAYERS = {"num_hidden_layers": 2, "intermediate_size": 96, "max_position_embeddings": 256, "pad_token_id": None}
_GROUPED = _SMALL | _LAYERS | {"head_dim": 16, "num_key_value_heads": 2}
_ROPE = {
    "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 8, "long_factor": [4.0] * 8,
}  # fmt: skip
_LONGROPE = {"rope_parameters": _ROPE, "original_max_position_embeddings": 64}

REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("Mistral", {"sliding_window": 32}, r"'mistral'.* window of 32 tokens.*max_len 32"),
    ("Phi3", {"sliding_window": 100}, r"'phi3'.* window of 100 tokens"),
    ("Phi3", _LONGROPE, r"'phi3'.* longrope .*max_len 64"),
    ("Gemma2", _GROUPED | {"sliding_window": 32}, r"'gemma2'.*window of 32"),
    ("Gemma2", _GROUPED | {"sliding_window": 512}, r"'gemma2'.*softcap"),
    ("Falcon", _SMALL | {"num_hidden_layers": 2}, r"'falcon' does not take its attention"),
    ("GPTJ", {"vocab_size": 96, "n_embd": 64, "n_layer": 2, "n_head": 4, "rotary_dim": 8}, r"'gptj' does not take"),
    ("GPTNeo", _SMALL | {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]}, r"'gpt_neo'"),
    ("Bloom", {"vocab_size": 96, "hidden_size": 64, "n_layer": 2, "n_head": 4}, r"'bloom'"),
    ("GptOss", _GROUPED | {"num_local_experts": 4}, r"'gpt_oss'"),
    ("Mamba", {"vocab_size": 96, "hidden_size": 64, "num_hidden_layers": 2}, r"'mamba' has recurrent state"),
]  # fmt: skip


@pytest.mark.parametrize(("family", "changes", "message"), REFUSED)
def test_refused_by_name(family: str, changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match=message):
        tiny.engine(tiny.build(family, tmp_path, **changes))


def test_encoder_decoder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "t5", "is_encoder_decoder": true}')
    with pytest.raises(Unsupported, match="'t5' is an encoder-decoder"):
        tiny.engine(tmp_path)


def test_unknown_type_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(Unsupported, match="'vit' is not a causal language model"):
        tiny.engine(tmp_path)


@pytest.mark.parametrize(
    ("family", "changes", "max_len"),
    [
        ("Mistral", {"sliding_window": 32}, 32),
        ("Phi3", _LONGROPE, 64),
    ],
)
def test_served_as_far_as_it_is_right(family: str, changes: dict[str, Any], max_len: int, tmp_path: Path) -> None:
    assert tiny.engine(tiny.build(family, tmp_path, **changes), max_len=max_len).info.max_len == max_len


def test_a_window_that_no_job_can_reach_is_served(tmp_path: Path) -> None:
    assert tiny.engine(tiny.build("Mistral", tmp_path, sliding_window=256)).info.max_len == 256


def test_the_smallest_window_of_any_layer_counts(tmp_path: Path) -> None:
    """Whichever layer has it: the first here, and the last one's is wide enough."""
    model = AutoModelForCausalLM.from_pretrained(tiny.build("Qwen2", tmp_path))
    for layer, window in zip(model.model.layers, (32, 300), strict=True):
        layer.self_attn.sliding_window = window
    with pytest.raises(Unsupported, match=r"'qwen2'.* window of 32 tokens"):
        inspect(model, model.config, max_len=256)
    assert inspect(model, model.config, max_len=32).layers == 2


class _Wrong(Plain):
    """Attention with one thing wrong."""

    def __init__(self, wrong: str) -> None:
        super().__init__()
        self.wrong = wrong

    def attend(self, layer: int, q: Any, k: Any, v: Any, kv: Any, step: Any, scale: float) -> torch.Tensor:
        if self.wrong == "scale":
            scale *= 1.02
        if self.wrong == "page":
            step.tables[:, :1] = step.tables[::-1, :1].copy()
        if self.wrong == "mask":
            step.contexts[:] = (step.contexts - 1).clip(min=step.query_start[1:] - step.query_start[:-1])
        return super().attend(layer, q, k, v, kv, step, scale)


@pytest.mark.parametrize("wrong", ["scale", "page", "mask"])
def test_a_backend_that_computes_wrongly_is_refused(
    wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penstock.engine.member.choose_backend", lambda *_: _Wrong(wrong))
    with pytest.raises(Unsupported, match=r"'llama'.*differ from the model's own"):
        tiny.engine(tiny.build("Llama", tmp_path))


def test_bfloat16_passes_within_its_precision(tmp_path: Path) -> None:
    assert tiny.engine(tiny.build("Llama", tmp_path, spread=1.0), dtype="bfloat16").info.dtype == "bfloat16"
