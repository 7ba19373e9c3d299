"""Shapes: sizes from configs and by name, and the weights and KV that follow from them."""

import json
from pathlib import Path
from typing import Any

import pytest

from penstock.cost import hardware, shapes
from penstock.cost.shapes import Shape

LLAMA: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 128256, "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("opt-1.3b", 1.316), ("opt-13b", 12.853), ("opt-30b", 29.975), ("opt-66b", 65.72), ("llama-7b", 6.738),
        ("llama-13b", 13.016), ("llama-30b", 32.529), ("llama-65b", 65.286), ("llama-2-70b", 68.977),
        ("llama-3.1-8b", 8.030), ("llama-3.1-70b", 70.554), ("qwen2.5-7b", 7.616), ("qwen2.5-32b", 32.764),
        ("qwen3-8b", 8.191), ("qwen3-32b", 32.762), ("mistral-7b", 7.248),
    ],
)  # fmt: skip
def test_weights_are_as_many_as_the_models_publish(name: str, billions: float) -> None:
    assert shapes.named(name).weight_bytes / 2e9 == pytest.approx(billions, rel=0.005)


def test_kv_of_a_token() -> None:
    assert shapes.named("llama-7b").kv_bytes_per_token == 512 * 1024
    assert shapes.named("llama-3.1-8b").kv_bytes_per_token == 128 * 1024
    assert shapes.named("opt-13b").kv_bytes_per_token == 4 * 40 * 5120


def test_a_config_gives_the_shape_of_its_name() -> None:
    assert shapes.from_config(LLAMA) == shapes.named("llama-3.1-8b")
    opt = {
        "model_type": "opt", "hidden_size": 5120, "num_hidden_layers": 40, "num_attention_heads": 40,
        "ffn_dim": 20480, "vocab_size": 50272, "torch_dtype": "float16",
    }  # fmt: skip
    assert shapes.from_config(opt) == shapes.named("opt-13b")
    neox = LLAMA | {"model_type": "gpt_neox", "num_key_value_heads": None, "head_dim": None}
    assert not shapes.from_config(neox).gated
    assert shapes.from_config(neox).kv_heads == 32
    assert shapes.from_config(LLAMA | {"torch_dtype": "float32"}).dtype_bytes == 4


def test_a_folder_is_read_and_comes_to_the_same(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    assert shapes.named(str(tmp_path)) == shapes.named("llama-3.1-8b")


def test_what_cannot_be_read_says_what_to_change(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"opt-13b.*mistral-7b"):
        shapes.named("llama-8b")
    with pytest.raises(ValueError, match="model_type 'falcon'"):
        shapes.from_config({"model_type": "falcon"})
    with pytest.raises(ValueError, match="intermediate_size"):
        shapes.from_config({name: value for name, value in LLAMA.items() if name != "intermediate_size"})
    with pytest.raises(ValueError, match="word_embed_proj_dim"):
        shapes.from_config({"model_type": "opt", "hidden_size": 1024, "word_embed_proj_dim": 512})
    with pytest.raises(ValueError, match="dtype int8"):
        shapes.from_config(LLAMA | {"torch_dtype": "int8"})
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="not a model's config"):
        shapes.named(str(tmp_path))
    with pytest.raises(ValueError, match=r"h200.*a10"):
        hardware.named("b200")


@pytest.mark.parametrize(("tp", "pp", "message"), [(3, 1, "heads"), (0, 1, "at least 1"), (1, 33, "layers")])
def test_a_split_must_come_out_even(tp: int, pp: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        shapes.check_split(shapes.named("llama-3.1-8b"), tp, pp)


def test_kv_heads_may_repeat_over_gpus_but_evenly() -> None:
    few: Shape = shapes.named("qwen2.5-7b")
    shapes.check_split(few, 4, 1)
    three = Shape(
        hidden=768, layers=2, heads=12, kv_heads=3, head_dim=64, intermediate=3072, gated=True, vocab=10, tied=True
    )
    with pytest.raises(ValueError, match="KV heads"):
        shapes.check_split(three, 4, 1)
