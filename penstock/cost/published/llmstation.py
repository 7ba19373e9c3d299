"""LLMStation: serving beside LoRA fine-tuning, on RTX 3090.

The authors published times of whole variants on one GPU; what a tasklet (a pass through one layer) takes is derived
from them, and so is a starting point for two GPUs. Tasklets are tables by batch: one sample, and so on in proportion.
"""

from penstock.cost.published.entry import Published, ms
from penstock.cost.published.forms import Decode, Phases, Prefill, Table

_PAPER = "He et al., Resource Multiplexing in Tuning and Serving Large Language Models, USENIX ATC 2025"
_SOURCE = "github.com/llm-db/llmstation, CLAUDE.md (2026)"
_LAYERS = 32

#: Variant -> ms of decode (or of what it shares with the forward pass), forward, backward with optimizer, and in all,
#: of 2 decodes and a LoRA step on 300 tokens; None where it is part of another or not done. One RTX 3090.
VARIANTS_MS: dict[str, tuple[float | None, float | None, float | None, float]] = {
    "decode only, 1 request": (30.35, None, None, 30.35),
    "train only": (None, 129.43, 138.43, 267.86),
    "one after the other": (36.61, 130.07, 139.38, 306.06),
    "two processes, MPS": (142.46, None, 138.38, 280.84),
    "two processes": (157.4, None, 139.0, 296.47),
    "fused": (129.70, None, 141.17, 270.87),
    "fused, backward of training only": (129.94, None, 137.92, 267.86),
    "fused, adapters by pointer": (127.00, None, 137.67, 264.67),
}

#: How much slower decoding and a forward pass become beside each other: (decode, forward).
SLOWDOWN = {"MPS": (1.23, 1.09), "no MPS": (1.36, 1.20)}

#: Where -> ms of one layer, forward and backward, and tokens of the sample.
TASKLETS_MS = {
    "3090": (129.43 / _LAYERS, 138.43 / _LAYERS, 300),
    "3090-corun": (141.4 / _LAYERS, 138.43 / _LAYERS, 300),
    "2x3090-tp2": (3.4, 3.6, 500),
}


def costs() -> dict[str, Published]:
    """By name: `llmstation/llama-3.1-8b/2x3090-tp2`, and `llmstation/llama-3.1-8b/WHERE/{forward,backward}-layer`."""
    about = "Llama-3.1-8B, 2x RTX 3090, tp 2: a starting point"
    start = Phases(Prefill(10e6, 0.22e6, 0.0), Decode(15e6, 0.1e6, 100.0))
    basis = "derived from one GPU and unverified: half its work a GPU, no all-reduce measured"
    found = {
        "llmstation/llama-3.1-8b/2x3090-tp2": Published(start, about, _provenance("2x RTX 3090 24 GB, tp 2", basis))
    }
    for where, (forward, backward, tokens) in TASKLETS_MS.items():
        for way, took in (("forward", forward), ("backward", backward)):
            basis = f"derived: a {way} pass over {_LAYERS} layers, by layer, of a LoRA sample of {tokens} tokens"
            about = f"Llama-3.1-8B, a {way} pass through one layer, LoRA sample of {tokens} tokens"
            found[f"llmstation/llama-3.1-8b/{where}/{way}-layer"] = Published(
                Table(ms(took)), about, _provenance(where, basis)
            )
    return found


def _provenance(hardware: str, basis: str) -> dict[str, str]:
    return {
        "hardware": hardware,
        "model": "llama-3.1-8b",
        "dtype": "bf16",
        "engine": "LLMStation (PyTorch 2.4, vLLM 0.6.3)",
        "from": f"{_PAPER}; {_SOURCE}",
        "licence": "none found for the repository as a whole; figures only",
        "basis": basis,
    }
