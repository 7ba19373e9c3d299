"""Llumnix: LLaMA-7B on an A10 and LLaMA-30B on four, from the points of its migration figure.

The figure gives, by sequence length, what a prefill takes (there: to recompute a sequence), a decode step of as many
sequences as make 8192 tokens, and a copy of the KV to another instance. The coefficients are fitted to them here.
"""

from penstock.cost.published.entry import Published
from penstock.cost.published.forms import Decode, Phases, Prefill

_PAPER = "Sun et al., Llumnix, OSDI 2024 (arXiv 2406.03243), fig. 10"
_SOURCE = "github.com/AlibabaPAI/llumnix branch osdi24ae, artifact/62_migration_efficiency/plot/plot.py"

#: Sequence lengths of the points below.
LENGTHS = (256, 512, 1024, 2048, 4096, 8192)

#: Model -> ms, by length.
RECOMPUTE_MS = {"llama-7b": (58, 110, 220, 436, 940, 1995), "llama-30b": (115, 235, 443, 829, 1712, 3546)}
COPY_MS = {"llama-7b": (68, 129, 226, 451, 909, 1682), "llama-30b": (118, 181, 272, 604, 1203, 1730)}
DECODE_MS = {
    "llama-7b": (46.80, 44.39, 43.30, 42.85, 42.90, 43.62),
    "llama-30b": (65.74, 61.76, 59.15, 58.91, 60.64, 65.76),
}

#: What each step takes beyond that where Llumnix served, ms: with it the mean decode, L-L at 2.6 req/s is the published
#: one, (25.4 - 0.303) s / 512 = 49 ms. One number from one point; the others of its figure 11 are there to check it.
SERVED_MS = 5.5

#: Model -> a copy of n tokens in ms as (base, per token), fitted to the points; between A10 hosts on 64 Gb/s.
COPY_FIT_MS = {"llama-7b": (15.2, 0.2111), "llama-30b": (58.6, 0.2325)}

#: Tokens that a step may prefill -> blocks of 16 tokens that are left for KV: LLaMA-7B on an A10, 90 % of its memory.
BLOCKS = {4400: 862, 7500: 832, 8700: 831, 12000: 792}

#: Model -> hardware, prefill (ms: base, per token, per squared length) with its error, decode (base, job, context).
_FITS = {
    "llama-7b": ("A10 24 GB", (5.6, 0.2028, 5.09e-6), "2 %", (35.6, 0.12, 0.00087)),
    "llama-30b": ("4x A10 24 GB, tp 4", (12.1, 0.4115, 1.82e-6), "5 %", (53.3, 0.20, 0.00067)),
}


def costs() -> dict[str, Published]:
    """By name: `llumnix/llama-7b` and `llumnix/llama-30b`; and `llumnix/llama-7b/served`, as where Llumnix served."""
    return {f"llumnix/{model}": _fitted(model) for model in _FITS} | {
        "llumnix/llama-7b/served": _fitted("llama-7b", SERVED_MS)
    }


def kv_tokens(prefill_tokens: int) -> int:
    """Tokens of KV on an A10 beside LLaMA-7B, where a step prefills up to so many. Raises ValueError if unpublished."""
    if prefill_tokens not in BLOCKS:
        raise ValueError(f"no KV capacity was published for steps of {prefill_tokens} tokens, only {sorted(BLOCKS)}")
    return BLOCKS[prefill_tokens] * 16


def _fitted(model: str, more_ms: float = 0.0) -> Published:
    hardware, (base, token, square), error, (decode, job, context) = _FITS[model]
    cost = Phases(
        Prefill((base + more_ms) * 1e6, token * 1e6, square * 1e6),
        Decode((decode + more_ms) * 1e6, job * 1e6, context * 1e6),
    )
    provenance = {
        "hardware": hardware,
        "model": model,
        "dtype": "fp16",
        "engine": "vLLM of 2024, under Llumnix",
        "from": f"{_PAPER}; {_SOURCE}",
        "licence": "Apache-2.0",
        "basis": f"derived: fitted to six published prefills (within {error}) and six decode steps of 8192 tokens; "
        "what a token of context takes assumes that KV is read at 600 GB/s"
        + f"; {more_ms:g} ms a step more, so that the mean decode of fig. 11, L-L at 2.6 req/s, is met"
        * bool(more_ms),
    }
    about = f"{model.replace('llama', 'LLaMA').replace('b', 'B')}, {hardware}"
    return Published(cost, about + ", as served in fig. 11" * bool(more_ms), provenance)
