"""DistServe and its vLLM baseline: OPT in fp16 on A100-80G, from the profiles of the published simulator.

The simulator's coefficients are fits times an overhead factor; both are kept here, apart. OPT-175B is not among them:
its fits are older ones of single stages, the only published ones that agree with its weights and operations.
"""

from penstock.cost.published.entry import Published
from penstock.cost.published.forms import Decode, PipelinePhases, Prefill

Row = tuple[float, float, float]

_PAPER = "Zhong et al., DistServe, OSDI 2024 (arXiv 2401.09670)"
_SOURCE = "github.com/LLMServe/DistServe 82831f1, simdistserve/estimators/profile_data"
_OLDER = "github.com/LLMServe/DistServe 5227397, simdisagg/timemodule/worktime_v1.csv"

#: Layers of each model: its number of stages divides them.
LAYERS = {"opt-13b": 40, "opt-66b": 64, "opt-175b": 96}

#: Engine -> what the authors multiplied their prefill and decode fits by.
FACTORS = {"distserve": (1.1, 1.0), "vllm-0.2": (1.4, 1.2)}

#: (engine, model, tp) -> as published, so with the factor in them, ms: prefill (base, per token, per squared length),
#: decode of fewer than `SPLIT` jobs and of more (base, per token of context, per job).
ROWS: dict[tuple[str, str, int], tuple[Row, Row, Row]] = {
    ("distserve", "opt-13b", 1): (
        (18.1025, 0.1019123, 7.12e-6),
        (19.9347, 6.269e-4, 0.038507),
        (7.16619, 5.798e-4, 0.158311),
    ),
    ("distserve", "opt-13b", 2): (
        (14.7430, 0.0685772, 2.45e-6),
        (13.2948, 3.411e-4, 0.062964),
        (10.6387, 3.118e-4, 0.085629),
    ),
    ("distserve", "opt-13b", 4): (
        (12.0623, 0.0380814, 5.23e-7),
        (10.2562, 1.879e-4, 0.032693),
        (10.4835, 1.712e-4, 0.045667),
    ),
    ("distserve", "opt-66b", 2): (
        (43.0588, 0.2742293, 2.25e-5),
        (48.2880, 9.424e-4, 0.127550),
        (28.7277, 4.745e-4, 0.296178),
    ),
    ("distserve", "opt-66b", 3): (
        (32.9982, 0.1956826, 1.22e-5),
        (35.8015, 5.845e-4, 0.095267),
        (22.6539, 5.358e-4, 0.208514),
    ),
    ("distserve", "opt-66b", 4): (
        (29.4416, 0.1513522, 8.32e-6),
        (30.7603, 4.519e-4, 0.063284),
        (27.4708, 4.047e-4, 0.124807),
    ),
    ("distserve", "opt-66b", 8): (
        (25.4907, 0.1065918, 3.39e-6),
        (23.1551, 2.269e-4, 0.048006),
        (21.7177, 3.758e-4, 0.089786),
    ),
    ("vllm-0.2", "opt-13b", 1): (
        (22.0522, 0.1405092, 8.08e-6),
        (23.4750, 5.929e-4, 0.060727),
        (20.2064, 4.908e-4, 0.120003),
    ),
    ("vllm-0.2", "opt-13b", 2): (
        (27.4408, 0.0905453, 8.45e-6),
        (24.5406, 2.244e-4, 0.087158),
        (17.9478, 4.571e-4, 0.111791),
    ),
    ("vllm-0.2", "opt-13b", 4): (
        (30.5363, 0.0515064, 4.23e-7),
        (25.9011, 7.75e-5, 0.055281),
        (23.8839, 2.840e-4, 0.062765),
    ),
    ("vllm-0.2", "opt-66b", 2): (
        (58.3822, 0.3826408, -7.11e-6),
        (57.0734, 3.6461e-3, 0.224937),
        (26.9838, 6.2001e-3, 0.448257),
    ),
    ("vllm-0.2", "opt-66b", 3): (
        (45.7445, 0.2778128, 3.65e-5),
        (44.9396, 8.096e-4, 0.212880),
        (43.6960, 8.403e-4, 0.240065),
    ),
    ("vllm-0.2", "opt-66b", 4): (
        (42.9655, 0.2128658, 4.60e-5),
        (39.5818, 6.946e-4, 0.135809),
        (40.8597, 4.265e-4, 0.195084),
    ),
    ("vllm-0.2", "opt-66b", 8): (
        (38.9312, 0.1573682, 4.53e-6),
        (31.1760, 2.756e-4, 0.067977),
        (29.0878, 6.028e-4, 0.138961),
    ),
}
SPLIT = 95

#: ms: what each stage adds to a prefill, times the number of stages; what the driver adds to every step, and per token.
BOUNDARY_MS, DRIVER_MS, DRIVER_TOKEN_MS = 1.0, 2.0, 1e-4

#: (tp, pp) -> ms of one stage of OPT-175B: prefill (per token, per squared number of whole blocks of 64 tokens, base),
#: decode (per token of context, per job, base).
STAGES_175B: dict[tuple[int, int], tuple[Row, Row]] = {
    (1, 8): ((0.1666373, 0.0200766, 10.6558), (4.4479e-4, 0.073252, 26.6432)),
    (2, 4): ((0.1814047, 0.0214254, 16.9879), (4.0571e-4, 0.0367495, 29.6836)),
    (3, 3): ((0.1630374, 0.0134404, 22.4602), (3.6655e-4, 0.01202, 27.3981)),
    (4, 2): ((0.1836736, 0.0347393, 22.9764), (5.6531e-4, 0.004327, 32.9079)),
    (4, 4): ((0.0937901, 0.0189697, 14.8263), (1.1299e-3, 0.887315, 17.0044)),
}
_BLOCK = 64


def costs() -> dict[str, Published]:
    """By name: `engine/model/tpN`, and `engine/opt-175b/tpN[/ppN]`."""
    found = {f"{engine}/{model}/tp{tp}": _profiled(engine, model, tp) for engine, model, tp in ROWS}
    for (tp, pp), (prefill, decode) in STAGES_175B.items():
        what = "fit of the authors for one stage, times the number of stages"
        if (tp, pp) == (4, 4):
            what += "; its decode coefficients are outliers"
        found[f"distserve/opt-175b/tp{tp}/pp{pp}"] = _staged("distserve", tp, pp, prefill, decode, what)
    found["distserve/opt-175b/tp4/pp3"] = _between_tp4()
    # Eight GPUs as one stage do the two stages of (4, 2) in half the time each: together, in the time of one.
    prefill, decode = STAGES_175B[4, 2]
    what = "derived, not measured: the two stages of tp4/pp2 at half time each, times vLLM's overhead factors"
    found["vllm-0.2/opt-175b/tp8"] = _staged("vllm-0.2", 8, 1, prefill, decode, what)
    return dict(sorted(found.items()))


def kv_tokens(model: str, tp: int, pp: int) -> int:
    """Tokens of KV that an instance holds: A100-80G, 95 % of memory, blocks of 16. Raises ValueError if unpublished."""
    try:
        return KV_TOKENS[model][tp][pp]
    except KeyError:
        raise ValueError(f"no KV capacity was published for {model} with tp {tp}, pp {pp}") from None


def _profiled(engine: str, model: str, tp: int) -> Published:
    (base, token, square), few, many = ROWS[engine, model, tp]
    factor, decode_factor = FACTORS[engine]
    cost = PipelinePhases(
        prefill=Prefill(base * 1e6 / factor, token * 1e6 / factor, square * 1e6 / factor),
        few=_decode(few, decode_factor),
        many=_decode(many, decode_factor),
        split=SPLIT,
        prefill_factor=factor,
        decode_factor=decode_factor,
        boundary=BOUNDARY_MS * 1e6,
        driver=DRIVER_MS * 1e6,
        driver_token=DRIVER_TOKEN_MS * 1e6,
    )
    basis = (
        f"fits of the authors, least relative error; overhead factors {factor} on prefill, {decode_factor} on decode"
    )
    if (engine, model, tp) == ("distserve", "opt-66b", 8):
        basis += "; its commit says that this row follows vLLM's curve"
    if square < 0:
        basis += "; the square's coefficient is negative: not for prompts beyond OPT's 2048 tokens"
    stages = tuple(pp for pp in range(2, 9) if LAYERS[model] % pp == 0)
    about = f"{model.upper()}, tp {tp}, A100-80G, {_ENGINES[engine]}"
    return Published(cost, about, _provenance(engine, model, _SOURCE, basis), {"pp": stages})


def _staged(engine: str, tp: int, pp: int, prefill: Row, decode: Row, basis: str) -> Published:
    """From the coefficients of one stage. Whole blocks squared, floor(n / 64)², are taken as x² - x + 1/3 with
    x = n / 64: their mean over the remainders."""
    token, block, base = prefill
    context, job, decode_base = decode
    part = Decode(decode_base * pp * 1e6, job * pp * 1e6, context * pp * 1e6)
    per_token, per_square, per_prompt = token - block / _BLOCK, block / _BLOCK**2, block / 3
    factor, decode_factor = (1.0, 1.0) if engine == "distserve" else FACTORS[engine]
    cost = PipelinePhases(
        prefill=Prefill(base * pp * 1e6, per_token * pp * 1e6, per_square * pp * 1e6, per_prompt * pp * 1e6),
        few=part,
        many=part,
        split=SPLIT,
        prefill_factor=factor,
        decode_factor=decode_factor,
        boundary=0.0,
        driver=DRIVER_MS * 1e6,
        driver_token=DRIVER_TOKEN_MS * 1e6,
        pp=pp,
    )
    basis += "; the driver's share is that of the later profiles"
    about = f"OPT-175B, tp {tp}, pp {pp}, A100-80G, {_ENGINES[engine]}"
    return Published(cost, about, _provenance(engine, "opt-175b", _OLDER, basis))


def _between_tp4() -> Published:
    """tp 4, pp 3: 32 layers a stage, between the 48 of pp 2 and the 24 of pp 4, by layers. The decode slopes of pp 4
    are outliers, so those of pp 2 are scaled instead."""
    (long, longer), (short, shorter) = STAGES_175B[4, 2], STAGES_175B[4, 4]
    share = (32 - 24) / (48 - 24)
    token, block, base = (s + share * (l_ - s) for s, l_ in zip(short, long, strict=True))
    context, job, _ = (value * 32 / 48 for value in longer)
    decode = (context, job, shorter[2] + share * (longer[2] - shorter[2]))
    basis = "interpolated by layers between tp4/pp2 and tp4/pp4; decode slopes scaled from tp4/pp2"
    return _staged("distserve", 4, 3, (token, block, base), decode, basis)


def _decode(row: Row, factor: float) -> Decode:
    base, context, job = row
    return Decode(base * 1e6 / factor, job * 1e6 / factor, context * 1e6 / factor)


_ENGINES = {"distserve": "DistServe's engine", "vllm-0.2": "vLLM 0.2"}


def _provenance(engine: str, model: str, source: str, basis: str) -> dict[str, str]:
    return {
        "hardware": "A100-80G SXM, NVLink",
        "model": model,
        "dtype": "fp16",
        "engine": _ENGINES[engine],
        "from": f"{_PAPER}; {source}",
        "licence": "Apache-2.0",
        "basis": basis,
        "mixed steps": "not published: prefill part and decode part less the smaller base",
    }


#: model -> tp -> pp -> tokens (max_num_tokens.csv, same source).
KV_TOKENS: dict[str, dict[int, dict[int, int]]] = {
    "opt-13b": {
        1: {1: 66144, 2: 163008, 4: 356752, 5: 453616, 8: 744224},
        2: {1: 163008, 2: 356752, 4: 744224, 5: 937968, 8: 1519184},
        4: {1: 356736, 2: 744224, 4: 1519168, 5: 1906656, 8: 3069088},
        5: {1: 453600, 2: 937952, 4: 1906640, 5: 2390992, 8: 3844032},
        8: {1: 744208, 2: 1519168, 4: 3069072, 5: 3844032, 8: 6168896},
    },
    "opt-66b": {
        1: {2: 11600, 4: 78512, 8: 212320},
        2: {1: 11600, 2: 78512, 4: 212320, 8: 479952},
        3: {1: 45056, 2: 145408, 4: 346128, 8: 747568},
        4: {1: 78496, 2: 212320, 4: 479936, 8: 1015200},
        6: {1: 145408, 2: 346128, 4: 747568, 8: 1550448},
        8: {1: 212304, 2: 479936, 4: 1015184, 8: 2085696},
    },
    "opt-175b": {
        1: {6: 26208, 8: 59536},
        2: {3: 26208, 4: 59536, 6: 126160, 8: 192800},
        3: {2: 26208, 3: 76192, 4: 126160, 6: 226112, 8: 326064},
        4: {2: 59520, 3: 126160, 4: 192800, 6: 326064, 8: 459328},
        6: {1: 26208, 2: 126160, 3: 226112, 4: 326064, 6: 525968, 8: 725872},
        8: {1: 59520, 2: 192784, 3: 326048, 4: 459328, 6: 725856, 8: 992400},
    },
}
