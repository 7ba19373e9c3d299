"""The sizes of a decoder-only transformer that decide what it costs: its matrices, its attention heads, its KV.

Knows nothing of hardware, and of weights only how many there are. Norms, biases and learned positions are left out of
every count: together below half a percent.
"""

from pathlib import Path
from typing import Any

import msgspec


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """A dense transformer; sizes in elements."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    #: The MLP has three matrices (up, gate, down), not two.
    gated: bool
    vocab: int
    #: The output layer is the embedding.
    tied: bool
    #: Bytes of one weight, and of one number in the KV cache.
    dtype_bytes: int = 2

    @property
    def attention_weights(self) -> int:
        """Elements of the q, k, v and output matrices of a layer."""
        return 2 * self.hidden * (self.heads + self.kv_heads) * self.head_dim

    @property
    def mlp_weights(self) -> int:
        """Elements of the two or three MLP matrices of a layer."""
        return (3 if self.gated else 2) * self.hidden * self.intermediate

    @property
    def layer_bytes(self) -> int:
        """Weights of one layer."""
        return (self.attention_weights + self.mlp_weights) * self.dtype_bytes

    @property
    def embedding_bytes(self) -> int:
        """The embedding table; the output layer, where it is not tied, is as large again."""
        return self.vocab * self.hidden * self.dtype_bytes

    @property
    def weight_bytes(self) -> int:
        """All weights, once."""
        return self.layers * self.layer_bytes + self.embedding_bytes * (1 if self.tied else 2)

    @property
    def kv_bytes_per_token(self) -> int:
        """Keys and values of one position in all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim * self.dtype_bytes


def check_split(shape: Shape, tp: int, pp: int) -> None:
    """ValueError unless heads, KV heads and MLP divide over `tp` GPUs and there are layers for `pp` stages.

    With fewer KV heads than GPUs, each KV head is held by several.
    """
    if tp < 1 or pp < 1:
        raise ValueError(f"tp {tp} and pp {pp} count GPUs and stages: each is at least 1")
    if shape.heads % tp or shape.intermediate % tp:
        raise ValueError(f"{shape.heads} heads and an MLP of {shape.intermediate} do not divide over tp {tp}")
    if shape.kv_heads % tp and tp % shape.kv_heads:
        raise ValueError(f"{shape.kv_heads} KV heads neither divide over tp {tp} nor repeat evenly on it")
    if pp > shape.layers:
        raise ValueError(f"{shape.layers} layers do not fill pp {pp} stages")


def from_config(config: dict[str, Any]) -> Shape:
    """The shape that a Hugging Face config.json describes.

    Raises ValueError for a `model_type` other than llama, mistral, qwen2, qwen3, phi3, opt and gpt_neox, and for a
    config without one of the sizes.
    """
    kind = config.get("model_type")
    if kind not in _GATED:
        raise ValueError(f"model_type {kind!r} is none of {', '.join(_GATED)}: give the sizes as a Shape instead")
    if kind == "opt" and config.get("word_embed_proj_dim", config.get("hidden_size")) != config.get("hidden_size"):
        raise ValueError(
            "this OPT projects its embedding to another size (word_embed_proj_dim), which Shape cannot say"
        )
    try:
        heads = config["num_attention_heads"]
        return Shape(
            hidden=config["hidden_size"],
            layers=config["num_hidden_layers"],
            heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or config["hidden_size"] // heads,
            intermediate=config["ffn_dim" if kind == "opt" else "intermediate_size"],
            gated=_GATED[kind],
            vocab=config["vocab_size"],
            tied=config.get("tie_word_embeddings", kind == "opt"),
            dtype_bytes=_dtype_bytes(config),
        )
    except KeyError as error:
        raise ValueError(f"the config of this {kind} model has no {error}") from None


#: Families whose configs are understood -> whether their MLP is gated.
_GATED = {
    "llama": True, "mistral": True, "qwen2": True, "qwen3": True, "phi3": True, "opt": False, "gpt_neox": False
}  # fmt: skip
_DTYPE_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


def _dtype_bytes(config: dict[str, Any]) -> int:
    name = str(config.get("dtype") or config.get("torch_dtype") or "bfloat16")
    if name not in _DTYPE_BYTES:
        raise ValueError(f"dtype {name} is none of {', '.join(_DTYPE_BYTES)}")
    return _DTYPE_BYTES[name]


def named(name: str) -> Shape:
    """A shape by name, or from a folder with a config.json. Raises ValueError, listing the names, for neither."""
    if name in NAMED:
        return NAMED[name]
    path = Path(name) / "config.json"
    if path.is_file():
        try:
            return from_config(msgspec.json.decode(path.read_bytes(), type=dict[str, Any]))
        except msgspec.DecodeError as error:
            raise ValueError(f"{path} is not a model's config: {error}") from None
    raise ValueError(f"no model {name!r}: give a folder with a config.json, or one of {', '.join(NAMED)}")


def _opt(layers: int, heads: int, head_dim: int) -> Shape:
    hidden = heads * head_dim
    return Shape(
        hidden=hidden, layers=layers, heads=heads, kv_heads=heads, head_dim=head_dim, intermediate=4 * hidden,
        gated=False, vocab=50272, tied=True,
    )  # fmt: skip


def _gated(
    hidden: int, layers: int, heads: int, kv_heads: int, intermediate: int, vocab: int, head_dim: int = 128
) -> Shape:
    return Shape(
        hidden=hidden, layers=layers, heads=heads, kv_heads=kv_heads, head_dim=head_dim, intermediate=intermediate,
        gated=True, vocab=vocab, tied=False,
    )  # fmt: skip


#: As their published configs have them; OPT-175B as in its paper (arXiv 2205.01068).
NAMED = {
    "opt-1.3b": _opt(24, 32, 64),
    "opt-13b": _opt(40, 40, 128),
    "opt-30b": _opt(48, 56, 128),
    "opt-66b": _opt(64, 72, 128),
    "opt-175b": _opt(96, 96, 128),
    "llama-7b": _gated(4096, 32, 32, 32, 11008, 32000),
    "llama-13b": _gated(5120, 40, 40, 40, 13824, 32000),
    "llama-30b": _gated(6656, 60, 52, 52, 17920, 32000),
    "llama-65b": _gated(8192, 80, 64, 64, 22016, 32000),
    "llama-2-7b": _gated(4096, 32, 32, 32, 11008, 32000),
    "llama-2-13b": _gated(5120, 40, 40, 40, 13824, 32000),
    "llama-2-70b": _gated(8192, 80, 64, 8, 28672, 32000),
    "lwm-7b": _gated(4096, 32, 32, 32, 11008, 32000),
    "llama-3.1-8b": _gated(4096, 32, 32, 8, 14336, 128256),
    "llama-3.1-70b": _gated(8192, 80, 64, 8, 28672, 128256),
    "qwen2.5-7b": _gated(3584, 28, 28, 4, 18944, 152064),
    "qwen2.5-32b": _gated(5120, 64, 40, 8, 27648, 152064),
    "qwen3-8b": _gated(4096, 36, 32, 8, 12288, 151936),
    "qwen3-32b": _gated(5120, 64, 64, 8, 25600, 151936),
    "mistral-7b": _gated(4096, 32, 32, 8, 14336, 32768),
}
