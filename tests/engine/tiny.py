"""Tiny random checkpoints of each family, and a driver that calls an engine's verbs. For the tests beside it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from penstock.core.step import Slice, StepPlan
from penstock.engine.base import Engine, Output
from penstock.engine.options import EngineOptions
from penstock.engine.parallel.team import Team
from penstock.engine.params import Sampling
from penstock.engine.runner import TransformersEngine
from penstock.engine.start import start_engine

VOCAB = 96
_COMMON = {
    "vocab_size": VOCAB, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 256, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip
_GATED = _COMMON | {"intermediate_size": 96, "num_key_value_heads": 2}
#: What a family's configuration has beyond the common; the class comes from the name.
FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": _GATED,
    "Qwen2": _GATED,
    "Qwen3": _GATED | {"head_dim": 16},
    "Mistral": _GATED | {"sliding_window": None, "head_dim": 16},
    "OPT": _COMMON | {"ffn_dim": 96, "word_embed_proj_dim": 64, "pad_token_id": 2},
    "Phi3": _GATED | {"sliding_window": None},
    "GPTNeoX": _COMMON | {"intermediate_size": 96, "rotary_pct": 0.5},
}


#: Those that ranks can share.
CUT = ("GPTNeoX", "Llama", "Mistral", "Qwen2", "Qwen3")


def build(family: str, folder: Path, spread: float = 5.0, **changes: Any) -> Path:
    """Save a random float32 model; its matrices are spread so that a wrong mask, scale or page changes tokens."""
    config = getattr(transformers, f"{family}Config")(**(FAMILIES.get(family, {}) | changes))
    torch.manual_seed(3)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2 and "embed" not in name:
                weight.mul_(spread)
    model.generation_config.pad_token_id = 0
    model.save_pretrained(folder)
    return folder


def build_bytes(folder: Path) -> Path:
    """A Llama whose tokens are the 256 bytes, and 256 for the end, with its tokenizer."""
    build("Llama", folder, vocab_size=260, eos_token_id=256, spread=3)
    vocab = {char: i for i, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<end>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def engine(folder: Path, **changes: Any) -> TransformersEngine:
    options: dict[str, Any] = {"backend": "plain", "pages": 64, "page_tokens": 4, "block_tokens": 8, "threads": 1}
    return start_engine(EngineOptions(model=str(folder), **(options | changes)))


def close(engine: TransformersEngine) -> None:
    """End the other ranks, if it has any."""
    if isinstance(engine._backend, Team):
        engine._backend.close()


def greedy(count: int, **changes: Any) -> Sampling:
    return Sampling(max_tokens=count, temperature=0, ignore_eos=True, **changes)


def prompts(lengths: Sequence[int], seed: int = 0) -> list[list[int]]:
    draw = np.random.default_rng(seed)
    return [draw.integers(3, VOCAB, n).tolist() for n in lengths]


class Driver:
    """Runs jobs on an engine as a scheduler would, with the chunk sizes that a test asks for."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.seq = 0
        self.known: dict[int, int] = {}
        self.done: dict[int, int] = {}
        self.outputs: dict[int, list[int]] = {}
        self.finish: dict[int, str] = {}
        self.last: list[Output] = []

    def add(
        self, job: int, prompt: list[int], sampling: Sampling, delivered: Sequence[int] = (), keys: tuple[int, ...] = ()
    ) -> None:
        self.engine.add(job, [*prompt, *delivered], len(prompt), sampling)
        self.known[job] = len(prompt) + len(delivered)
        self.outputs[job] = list(delivered)
        self.bind(job, keys)

    def bind(self, job: int, keys: tuple[int, ...] = ()) -> None:
        self.engine.bind(job, keys)
        self.done[job] = len(keys) * self.engine.info.block_tokens

    def preempt(self, job: int) -> None:
        self.engine.release(job, forget=False)
        del self.done[job]

    def step(self, counts: dict[int, int]) -> list[Output]:
        """One step with at most so many positions of each job."""
        slices = [Slice(job, self.done[job], min(n, self.known[job] - self.done[job])) for job, n in counts.items()]
        self.last = self.engine.run(StepPlan(self.seq, slices))
        self.seq += 1
        reported = {out.job: out for out in self.last}
        for piece in slices:
            out = reported.get(piece.job)
            self.done[piece.job] += piece.count if out is None else out.executed
            if out is not None:
                assert out.index == len(self.outputs[piece.job])
                self.outputs[piece.job] += out.tokens
                self.known[piece.job] += len(out.tokens)
                if out.finish:
                    self.finish[piece.job] = out.finish
        return self.last

    def finish_all(self, chunk: int = 1 << 20) -> dict[int, list[int]]:
        """Run all bound jobs to their end, release them, and return their outputs."""
        while live := [job for job in self.done if job not in self.finish]:
            self.step(dict.fromkeys(live, chunk))
        for job in list(self.done):
            self.engine.release(job, forget=True)
            del self.done[job]
        return self.outputs
