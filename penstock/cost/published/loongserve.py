"""LoongServe: elastic sequence parallelism on A800-80G (LWM-7B), and the coefficients of a fork for Llama-3.1-8B.

The authors published times, not coefficients: those of LWM-7B are fitted here to the published times.
"""

from penstock.cost.published.entry import Published
from penstock.cost.published.forms import Decode, GroupPhases, Prefill

_PAPER = "Wu et al., LoongServe, SOSP 2024 (arXiv 2404.09526)"
_SOURCE = "github.com/LoongServe/LoongServe, test/longserve/6-data-analyse-evaluation.ipynb (2024-11-11)"

#: (sp, tp) -> prefill of LWM-7B, ms: base, per token, per squared length; and decode, ms: base, per job of the fullest
#: master, per token of KV in the whole group, with several masters.
LWM_7B: dict[tuple[int, int], tuple[tuple[float, float, float], tuple[float, float, float, float]]] = {
    (1, 8): ((30, 0.01505, 1.786e-7), (9.7, 0.0126, 4.3e-5, 0.0)),
    (2, 4): ((30, 0.01108, 1.876e-7), (9.7, 0.0198, 4.55e-5, 0.35)),
    (4, 2): ((30, 0.01003, 1.939e-7), (9.7, 0.027, 4.8e-5, 0.7)),
}

#: sp -> prefill of LWM-7B with tp 2, ms, for simulations that change sp: interpolated, only sp 4 rests on measurements.
LWM_7B_TP2: dict[int, tuple[float, float, float]] = {
    1: (17, 0.0373, 7.15e-7),
    2: (22, 0.0191, 3.75e-7),
    3: (30, 0.0130, 2.55e-7),
    4: (33, 0.01003, 1.939e-7),
}

#: (sp, tp) -> prefill of Llama-3.1-8B as the fork has it, ms.
LLAMA_8B: dict[tuple[int, int], tuple[float, float, float]] = {
    (1, 1): (18.43, 0.13795, 5.002e-6),
    (2, 1): (22.67, 0.06862, 2.514e-6),
    (1, 2): (16.86, 0.07985, 2.508e-6),
    (4, 1): (29.53, 0.04191, 1.285e-6),
    (2, 2): (21.78, 0.04647, 1.294e-6),
    (1, 4): (16.78, 0.05623, 1.301e-6),
    (8, 1): (43.51, 0.02703, 6.226e-7),
    (4, 2): (32.82, 0.06623, 3.467e-7),
    (2, 4): (17.65, 0.06410, 7.429e-7),
    (1, 8): (17.78, 0.06489, 6.576e-7),
    (3, 1): (27.75, 0.04895, 1.612e-6),
    (3, 2): (29.82, 0.04071, 7.731e-7),
    (5, 1): (35.84, 0.03605, 9.960e-7),
    (6, 1): (42.53, 0.03001, 1.172e-6),
    (7, 1): (42.95, 0.02764, 1.056e-6),
}
#: ms: what that fork's scheduler takes every decode step to last; it has no other decode model.
LLAMA_8B_DECODE_MS = 41.0


def costs() -> dict[str, Published]:
    """By name: `loongserve/lwm-7b/spNtpN`, `loongserve/lwm-7b-tp2/spN`, `loongserve/llama-3.1-8b/spNtpN`."""
    found = {f"loongserve/lwm-7b/sp{sp}tp{tp}": _measured(sp, tp) for sp, tp in LWM_7B}
    found |= {f"loongserve/lwm-7b-tp2/sp{sp}": _interpolated(sp) for sp in LWM_7B_TP2}
    return found | {f"loongserve/llama-3.1-8b/sp{sp}tp{tp}": _forked(sp, tp) for sp, tp in sorted(LLAMA_8B)}


def _measured(sp: int, tp: int) -> Published:
    prefill, (base, job, context, gather) = LWM_7B[sp, tp]
    cost = _cost(prefill, Decode(base * 1e6, job * 1e6, context * 1e6), gather)
    basis = "derived: fitted to six published prefills and decodes, prefill base set to 30 ms"
    if (sp, tp) == (2, 4):
        basis += "; decode coefficients are the means of sp1tp8 and sp4tp2"
    return _published(cost, f"LWM-7B (Llama-2-7B), sp {sp}, tp {tp}, A800-80G", sp, basis)


def _interpolated(sp: int) -> Published:
    (base, job, context, gather), share = LWM_7B[4, 2][1], 4 / sp
    cost = _cost(LWM_7B_TP2[sp], Decode(base * 1e6, job * 1e6, context * share * 1e6), gather)
    basis = "derived and interpolated; only sp 4 rests on measurements; decode as sp4tp2, KV spread over sp instances"
    return _published(cost, f"LWM-7B (Llama-2-7B), sp {sp}, tp 2, A800-80G, to compare sp", sp, basis)


def _forked(sp: int, tp: int) -> Published:
    cost = _cost(LLAMA_8B[sp, tp], Decode(LLAMA_8B_DECODE_MS * 1e6, 0.0, 0.0), 0.0)
    provenance = {
        "hardware": "not named; the kernels are built for sm_86",
        "model": "llama-3.1-8b",
        "dtype": "fp16",
        "engine": "LoongServe, forked",
        "from": f"github.com/ydshi0/LoongServe; {_PAPER}",
        "licence": "Apache-2.0 (LoongServe)",
        "basis": "prefill fitted by the fork; decode is the constant its scheduler assumes",
    }
    return Published(cost, f"Llama-3.1-8B, sp {sp}, tp {tp}, a fork's coefficients; decode constant", provenance)


def _cost(prefill: tuple[float, float, float], decode: Decode, gather: float) -> GroupPhases:
    base, token, square = prefill
    return GroupPhases(Prefill(base * 1e6, token * 1e6, square * 1e6), decode, gather=gather * 1e6)


def _published(cost: GroupPhases, about: str, sp: int, basis: str) -> Published:
    provenance = {
        "hardware": "A800-80G SXM, NVLink 400 GB/s",
        "model": "lwm-7b",
        "dtype": "fp16",
        "engine": "LoongServe (LightLLM)",
        "from": f"{_PAPER}; {_SOURCE}",
        "licence": "Apache-2.0",
        "basis": basis,
    }
    return Published(cost, about, provenance, {"masters": tuple(range(2, sp + 1))})
