"""Whether a model's attention is one that we compute rightly. Asked at every start; a model that fails is refused.

transformers calls our attention only where a model's code asks for it, and many do not: they would answer wrongly
without a word. So before serving:

1. the configuration is looked at for what is known not to work (recurrent state, position encodings that change
   with the longest sequence of a batch);
2. the model runs once with an attention that only takes notes: one call for each layer, of equal shapes, and every
   keyword one that we honour;
3. the model, as the backend prepared it, runs two prompts in chunks over shuffled pages, longer than any window
   that its configuration speaks of, and gives the logits that the untouched model gave.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PretrainedConfig

from penstock.engine.backend import ATTENTION, Backend, Int64, Kv, attention
from penstock.engine.batch import Piece, build
from penstock.engine.load import Unsupported
from penstock.engine.pool import Pool, Table

_NOTES = "penstock-notes"
#: Keywords that carry nothing for attention to honour, whatever their value.
_HARMLESS = {"position_ids", "cache_position", "position_embeddings", "use_cache", "scaling", "dropout", "layer_idx"}
#: Prompts longer than this take too long at start; a wider window must come to our attention as a keyword.
_LONGEST_PROMPT = 2048
#: Attributes by which configurations speak of windows.
_WINDOWS = ("sliding_window", "attention_chunk_size", "window_size", "local_attention", "attention_window")


@dataclass(frozen=True)
class Shape:
    """What of a model the KV pool depends on."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int


@dataclass
class Notes:
    """What the attention calls of one forward pass asked for."""

    layers: list[int] = field(default_factory=list)
    shapes: set[tuple[int, int, int, int]] = field(default_factory=set)
    keywords: set[str] = field(default_factory=set)
    #: The smallest window that any layer attends to.
    window: float = float("inf")
    masked: bool = False
    causal: bool = True


def _take_notes(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, *,
    paged: Notes, **keywords: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """An attention that computes nothing. Under the keyword that later carries the step."""
    paged.layers.append(getattr(module, "layer_idx", -1))
    paged.shapes.add((query.shape[1], key.shape[1], key.shape[3], value.shape[3]))
    paged.keywords |= {name for name, v in keywords.items() if v is not None and v is not False}
    paged.window = min(paged.window, keywords.get("sliding_window") or paged.window)
    paged.masked |= attention_mask is not None
    paged.causal &= bool(getattr(module, "is_causal", True)) and keywords.get("is_causal") is not False
    return query.new_zeros(1, query.shape[2], query.shape[1], value.shape[3]), None


AttentionInterface.register(_NOTES, _take_notes)
AttentionInterface.register(ATTENTION, attention)


def check_config(model: nn.Module, config: PretrainedConfig, max_len: int) -> None:
    """Raise Unsupported for what the configuration alone tells."""
    if getattr(model, "_is_stateful", False):
        raise Unsupported(f"model type {config.model_type!r} has recurrent state, which paged KV cannot hold")
    text = config.get_text_config()
    rope = getattr(text, "rope_parameters", None) or {}
    for entry in [rope, *(v for v in rope.values() if isinstance(v, dict))]:
        kind = entry.get("rope_type") or ""
        if "dynamic" not in kind and kind != "longrope":
            continue
        original = entry.get("original_max_position_embeddings") or text.max_position_embeddings
        if max_len > original:
            raise Unsupported(
                f"model type {config.model_type!r}: its {kind} position encoding changes for all sequences once one "
                f"is longer than {original} tokens; serve it with max_len {original} or less"
            )


def inspect(model: nn.Module, config: PretrainedConfig, max_len: int) -> Shape:
    """The shape of the model's KV. Raises Unsupported if our attention cannot stand in for the model's own."""
    notes = Notes()
    ids = torch.arange(8, device=device_of(model))[None]
    try:
        model.set_attn_implementation(_NOTES)  # type: ignore[operator]
        model(input_ids=ids, position_ids=ids, use_cache=False, logits_to_keep=ids[0, -1:], paged=notes)
    except Exception as error:
        # Whatever a model's own code raises here: it is not made for an attention from outside.
        raise Unsupported(f"{_ignores(config)}; it says: {error}") from error
    layers = config.get_text_config().num_hidden_layers
    if not notes.layers:
        raise Unsupported(_ignores(config))
    for wrong, reason in _objections(notes, layers, max_len):
        if wrong:
            raise Unsupported(f"model type {config.model_type!r}: {reason}")
    return Shape(layers, *next(iter(notes.shapes)))


def _ignores(config: PretrainedConfig) -> str:
    return f"model type {config.model_type!r} does not take its attention from transformers' interface, as we need"


def _objections(notes: Notes, layers: int, max_len: int) -> list[tuple[bool, str]]:
    unknown = sorted(notes.keywords - _HARMLESS - {"sliding_window", "is_causal"})
    return [
        (
            sorted(notes.layers) != list(range(layers)),
            f"attention ran in layers {notes.layers}, not once in each of {layers}",
        ),
        (len(notes.shapes) > 1, f"layers differ in the shape of their attention: {sorted(notes.shapes)}"),
        (
            notes.window < max_len,
            f"it attends to a sliding window of {notes.window} tokens; serve it with max_len {notes.window} or less",
        ),
        (bool(unknown), f"its attention needs {', '.join(unknown)}, which is not supported"),
        (notes.masked, "its attention brings a mask of its own"),
        (not notes.causal, "its attention is not causal"),
    ]


def prompts(config: PretrainedConfig, vocab: int, max_len: int, room: int) -> list[Int64]:
    """Two prompts, the first longer than any window that matters; together they fit in `room` positions of pages."""
    text = config.get_text_config()
    windows = [getattr(text, name, None) for name in _WINDOWS]
    longest = max([w for w in windows if isinstance(w, int) and w < max_len], default=0)
    length = min(max(53, longest + 20), max_len, _LONGEST_PROMPT, room * 3 // 5)
    if length <= longest:
        raise Unsupported(
            f"model type {config.model_type!r}: its configuration has a window of {longest} tokens; "
            f"serve it with max_len {longest} or less"
        )
    draw = np.random.default_rng(1)
    return [draw.integers(0, vocab, n) for n in (length, length // 2 + 1)]


def reference(model: nn.Module, prompts: list[Int64]) -> list[Tensor]:
    """Logits [n, vocab] of each prompt by the untouched model. Raises Unsupported if it cannot even do that."""
    model.set_attn_implementation("eager")  # type: ignore[operator]
    try:
        return _run_untouched(model, prompts)
    except Exception as error:
        raise Unsupported(f"model type {model.config.model_type!r} fails on a prompt: {error}") from error  # type: ignore[union-attr]


def _run_untouched(model: nn.Module, prompts: list[Int64]) -> list[Tensor]:
    with torch.inference_mode():
        return [
            model(input_ids=torch.from_numpy(p)[None].to(device_of(model)), use_cache=False).logits[0] for p in prompts
        ]


def verify(
    model: nn.Module, backend: Backend, kv: Kv, pool: Pool, prompts: list[Int64], expected: list[Tensor]
) -> None:
    """Raise Unsupported unless the prompts, in chunks, on scattered pages, side by side, give the expected logits."""
    model.set_attn_implementation(ATTENTION)  # type: ignore[operator]
    np.random.default_rng(2).shuffle(pool.free)
    tables = [pool.bind(()) for _ in prompts]
    done = [0] * len(prompts)
    turn = 0
    while any(n < len(p) for n, p in zip(done, prompts, strict=True)):
        parts = _next_chunks(prompts, done, turn)
        logits = _run_chunks(model, backend, kv, pool, tables, parts, prompts)
        for job, start, count in parts:
            _compare(model, logits[job], expected[job][start : start + count], start, kv.keys.dtype)
            done[job] += count
        turn += 1
    for table in tables:
        pool.release(table)
    pool.free.sort(reverse=True)


def _next_chunks(prompts: list[Int64], done: list[int], turn: int) -> list[tuple[int, int, int]]:
    """(job, start, count), chunks of several sizes, those of one token first."""
    sizes = (7, 1, 19, 1, 1, 30, max(64, len(prompts[0]) // 4))
    parts = [
        (job, start, min(sizes[(turn + 2 * job) % len(sizes)], len(prompts[job]) - start))
        for job, start in enumerate(done)
        if start < len(prompts[job])
    ]
    return sorted(parts, key=lambda part: part[2] > 1)


def _run_chunks(
    model: nn.Module,
    backend: Backend,
    kv: Kv,
    pool: Pool,
    tables: list[Table],
    parts: list[tuple[int, int, int]],
    prompts: list[Int64],
) -> dict[int, Tensor]:
    pieces = []
    for job, start, count in parts:
        pool.grow(tables[job], start + count)
        pieces.append(Piece(prompts[job][start : start + count], start, tables[job].row, tuple(range(count))))
    step = build(pieces, pool.tables, pool.page_tokens)
    with torch.inference_mode():
        logits = backend.forward(model, step, kv)
    split = torch.split(logits, [n for _, _, n in parts])
    return dict(zip([job for job, _, _ in parts], split, strict=True))


def _compare(model: nn.Module, got: Tensor, expected: Tensor, start: int, dtype: torch.dtype) -> None:
    """Float32 gives equal logits but for rounding; lower precision is held to a small share of their spread."""
    got, expected = got.double(), expected.double()
    exact = dtype in (torch.float32, torch.float64)
    error = (got - expected).abs().max() if exact else (got - expected).square().mean().sqrt()
    spread = expected.std()
    limit = (1e-3 if exact else 5e-2) * spread
    if not error <= limit:
        raise Unsupported(
            f"model type {model.config.model_type!r}: logits around position {start} differ from the model's own by "  # type: ignore[union-attr]
            f"{error:.3g} (allowed: {limit:.3g}); its attention is not one that is supported"
        )


def device_of(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def dtype_of(model: nn.Module) -> torch.dtype:
    return next(model.parameters()).dtype
