"""NeuStream: step times by batch of diffusion models, and fits and tables of LLMs, from its artifact.

A step of a diffusion model is one position of each of its jobs; what comes before and after the loop is a module of its
own: text encoder (clip), decoder (vae), safety checker.
"""

from penstock.cost.published.entry import Published, ms
from penstock.cost.published.forms import BucketPhases, Decode, Prefill, Table

_PAPER = "NeuStream, EuroSys 2025, doi 10.1145/3689031.3717489"
_SOURCE = "github.com/Fjallraven-hc/NeuStream-AE 57fb0c5"

_GPUS = {"4090": "RTX 4090", "h100": "H100", "a6000": "RTX A6000"}

#: model/hardware/module -> ms at batch 1, 2, 3, ...
MODULES_MS: dict[str, str] = {
    "sd-v1.5-256/4090/unet": (
        "33.06 32.46 33.34 35.92 34.63 36.78 38.73 39.45 46.87 46.28 49.98 55.46 65.71 71.00 73.28 75.92 81.46 "
        "81.57 84.68 88.15 92.09 98.70 101.55 103.91 111.52 119.50 122.19 125.48 128.60 132.06 134.03 135.87 146.20 "
        "147.60 150.95 154.30 159.10 161.61 173.68 176.32"
    ),
    "sd-v1.5-256/4090/clip": "12.47",
    "sd-v1.5-256/4090/vae": "10.1 15.8 23.0 31.2",
    "sd-v1.5-256/4090/safety": "41.7 41.6 62.8 84.1",
    "sd-v1.5-512/4090/unet": (
        "29.34 40.98 53.19 69.00 85.11 92.27 114.69 133.17 141.25 154.39 166.39 194.92 217.99 260.70 276.55"
    ),
    "sd-v1.5-512/4090/clip": "11.82",
    "sd-v1.5-512/4090/vae": "33.8 74.0 110.0 143.5",
    "sd-v1.5-512/4090/safety": "30.6 48.0 67.2 84.4",
    "sd-v1.5-512/h100/unet": (
        "26.41 31.87 41.27 49.57 61.05 68.56 78.74 87.75 99.65 108.81 116.14 126.09 134.61 144.21 153.26"
    ),
    "sd-v1.5-512/h100/clip": "10.73",
    "sd-v1.5-512/h100/vae": "26.0 44.0 58.6 73.0",
    "sd-v1.5-512/h100/safety": "40.0 65.8 90.6 117.4",
    "sd-v1.5-256/h100/unet": "25.4 25.9 26.7 28.4 29.3 30.4 31.1 31.5 32.7 33.9 35.3 36.8 39.3 41.4 43.6",
    "dit-s-2-256/4090/dit": (
        "8.64 9.17 9.59 9.84 10.19 10.42 10.93 11.31 11.76 12.18 12.50 12.82 13.19 13.79 14.10 14.40 14.64 15.10 "
        "15.47 15.80"
    ),
    "dit-s-2-256/4090/vae": "10.92 18.19 26.86 35.19",
    "dit-s-2-512/4090/dit": (
        "8.53 9.05 9.52 9.98 11.59 14.03 15.90 17.79 19.69 21.48 24.45 26.67 28.74 30.59 32.73 34.06 36.80 38.92 "
        "41.13 43.59"
    ),
    "dit-s-2-512/4090/vae": "37.11",
    "dit-xl-2-256/4090/dit": (
        "17.60 17.83 18.48 24.69 29.42 32.73 35.35 46.66 50.23 51.10 57.88 59.99 71.22 67.25 79.45 81.29 86.50 "
        "91.08 94.63 97.74"
    ),
    "dit-xl-2-256/4090/vae": "16.487 31.215",
    "palette-256/4090/unet": "18.00 19.53 24.30 29.58 38.95 45.84 54.62 61.91 72.27 80.18 89.31",
}

#: Model -> prefill by tokens of the batch in ms, 32 tokens an entry.
_OPT_13B = (
    "42 48 47 49 66 62 67 68 122 119 94 98 137 133 130 133 151 159 174 168 191 187 190 192 232 231 232 233 245 245 "
    "262 262 291 294 298 308 333 344 318 325 369 354 354 359 366 388 393 391 438 438 462 467 471 469 485 508 510 "
    "517 485 487 513 521 524 519"
)
_OPT_30B = (
    "55 57 62 72 86 93 98 102 128 131 135 138 182 187 192 197 207 208 243 241 266 276 280 270 323 325 330 340 342 "
    "346 388 391 380 384 386 413 450 454 458 474 497 502 514 519 500 529 534 536 589 592 617 624 603 607 613 636 "
    "642 646 650 653 711 723 720 725"
)
_OPT_66B = (
    "74 78 86 91 120 130 135 142 191 198 205 211 268 274 280 286 313 313 365 372 393 399 406 409 459 486 494 500 "
    "493 499 525 534 542 547 554 615 623 630 637 645 690 696 703 711 718 777 782 795 809 820 863 873 877 883 898 "
    "919 962 969 970 978 1020 1030 1032 1042"
)
_CODELLAMA_7B = (
    "18 20 20 20 26 26 25 28 42 42 43 43 45 48 49 49 60 60 60 61 80 80 81 81 82 82 82 82 89 89 89 90 111 111 111 "
    "112 112 113 113 113 133 133 134 135 141 141 142 142 148 149 149 150 166 166 167 168 183 174 175 175 177 177 "
    "178 178 203 203 204 204 210 211 212 212 224 225 226 233 233 233 234 235 247 247 248 248 255 256 257 257 264 "
    "265 271 266 273 274 274 275 294 294 295 296 302 302 308 305 322 322 324 324 325 326 327 327 340 344 341 342 "
    "355 355 357 357 359 360 364 361 370 370 371 371"
)

#: What a bucket of the tables above holds more than the one before it, in tokens.
BUCKET = 32

#: model/hardware -> GPUs, prefill (ms, per token, per squared length), table, decode (ms, per token of context).
LLMS: dict[str, tuple[int, tuple[float, float, float], str, tuple[float, float]]] = {
    "opt-13b/a6000-tp1": (1, (13.51, 0.2468, -2.8e-6), _OPT_13B, (43.86, 1.053e-3)),
    "opt-30b/a6000-tp2": (2, (27.31, 0.3323, 8.7e-6), _OPT_30B, (54.60, 0.914e-3)),
    "opt-66b/a6000-tp4": (4, (33.31, 0.4740, 2.6e-5), _OPT_66B, (70.93, 0.763e-3)),
    "codellama-7b/4090": (1, (12.46, 0.0824, 2.0e-6), _CODELLAMA_7B, (15.83, 0.676e-3)),
    "llava-1.5-7b/4090": (1, (12.62, 0.0824, 1.9e-6), _CODELLAMA_7B, (15.81, 0.654e-3)),
}

#: ms: a decode step fitted above 45 gets 2 more, above 50 one more again, above 55 another.
OVERHEADS_MS = ((45.0, 2.0), (50.0, 1.0), (55.0, 1.0))


def costs() -> dict[str, Published]:
    """By name: `neustream/model/hardware/module` of diffusion models, `neustream/model/hardware` of LLMs."""
    found = {f"neustream/{name}": _module(name) for name in MODULES_MS}
    return found | {f"neustream/{name}": _llm(name) for name in LLMS}


def _module(name: str) -> Published:
    model, gpu, module = name.split("/")
    batch_ms = _numbers(MODULES_MS[name])
    batches = len(batch_ms)
    basis = f"as profiled by the authors, batch 1 to {batches}; beyond, along the last slope"
    if name == "dit-xl-2-256/4090/vae":
        basis = "the authors' line, 14.728 ms a sample and 1.759 ms"
    elif batches == 1:
        basis = "as profiled by the authors, batch 1 alone; beyond, in proportion to the batch"
    about = f"{model}, a step of {module} by batch, {_GPUS[gpu]}"
    where = f"{_SOURCE}, Diffusion/*/utils/worker.py"
    return Published(Table(ms(*batch_ms)), about, _provenance(model, gpu, where, basis))


def _llm(name: str) -> Published:
    gpus, (base, token, square), text, (decode, context) = LLMS[name]
    table = _numbers(text)
    model, gpu = name.split("/")[0], name.split("/")[1].split("-")[0]
    cost = BucketPhases(
        prefill=Prefill(base * 1e6, token * 1e6, square * 1e6),
        decode=Decode(decode * 1e6, 0.0, context * 1e6),
        bucket_ns=ms(*table),
        bucket=BUCKET,
        overheads=tuple((above * 1e6, more * 1e6) for above, more in OVERHEADS_MS),
    )
    basis = (
        f"measured table up to {BUCKET * len(table)} prompt tokens a step, whole ms; the authors' fits beyond it and "
    )
    basis += "for decode; overheads that they add above 45, 50 and 55 ms kept apart"
    if model == "llava-1.5-7b":
        basis += "; the table is CodeLlama-7B's, within 5 % of its own"
    if square < 0:
        basis += "; the square's coefficient is negative: not for prompts beyond OPT's 2048 tokens"
    if model.startswith("opt"):
        where, basis = f"{_SOURCE}, LLM-OPT/neusim/results", basis + "; the folder says H100, the predictor A6000"
    else:
        where = f"{_SOURCE}, Multi-Agent/profile_data"
    about = f"{model}, {gpus}x {_GPUS[gpu]}, prefill by table, tp {gpus}"
    return Published(cost, about, _provenance(model, gpu, where, basis))


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(map(float, text.split()))


def _provenance(model: str, gpu: str, where: str, basis: str) -> dict[str, str]:
    return {
        "hardware": _GPUS[gpu],
        "model": model,
        "dtype": "fp16",
        "engine": "NeuStream",
        "from": f"{_PAPER}; {where}",
        "licence": "MIT, (c) 2025 H. Yuan",
        "basis": basis,
    }
