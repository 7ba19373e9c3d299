"""How far composed step costs are from measurements: kernels that no grid has, and whole steps that others published.

    python bench/composed.py FOLDER

FOLDER has the tables of `scripts/distill_costs.py`. Three tables are printed, in Markdown: relative errors of the rows
that are not in the grids; steps as published and as composed; decode steps beside the time that reading weights and KV
takes at the data sheet's bandwidth.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec

from penstock.core.step import Features
from penstock.cost import kernels, shapes
from penstock.cost.composed import compose
from penstock.cost.hardware import named
from penstock.cost.models import Model
from penstock.cost.named import resolve
from penstock.cost.published import llumnix
from penstock.cost.published.forms import PipelinePhases
from penstock.cost.rank import matrices

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
from distill_costs import ENGINES, held_out, read, statistics

LLAMAS = ("llama-3.1-8b", "llama-3.1-70b")
DEGREES = (1, 2, 4, 8)

#: LWM-7B on eight A800 with tp 8: (batch, length) -> ms of the prefill and of a decode step after it. From
#: LoongServe/LoongServe (Apache-2.0), test/longserve/6-data-analyse-evaluation.ipynb.
LWM_TP8_MS = {
    (512, 1000): (7757, 38.9), (128, 5000): (10157, 37.8), (64, 10000): (10792, 36.4), (16, 50000): (19506, 42.9),
    (4, 100000): (13546, 26.4), (1, 500000): (51135, 37.6),
}  # fmt: skip
#: And on one of them.
LWM_TP1_MS = {(1, 10): (18.58, 11.38), (1, 1000): (68.89, 13.01)}

#: What, hardware, model, tp, features, published ms.
Case = tuple[str, str, str, int, Features, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    print("Relative errors of kernel times that are not in the grids, in percent\n")
    print("| GPU | operation | of | rows | median | mean | P90 | worst |\n|---|---|---|---|---|---|---|---|")
    for gpu in ENGINES:
        print_errors(gpu, folder / f"{gpu}_sxm")
    print("\nSteps, in ms: published, composed, and the part of it that is kernels (without overheads)\n")
    print("| source | hardware | model, tp | step | published | composed | off | kernels |")
    print("|---|---|---|---|---|---|---|---|")
    for case in (*distserve(), *loongserve(), *llumnix_cases()):
        print_case(case)
    print("\nDecode steps of Llama-3.1-8B, tp 1, context 1000, in ms: to read weights and KV, and as composed\n")
    print("| GPU | jobs | floor | kernels | composed | kernels / floor |\n|---|---|---|---|---|---|")
    for gpu in ENGINES:
        print_floor(gpu)


def print_errors(gpu: str, folder: Path) -> None:
    measured = kernels.load(named(gpu))
    for name, rows in read(folder).items():
        errors = held_out(measured, name, rows)
        print_row(gpu, name, "everything", errors)
        if name in ("gemm", "prefill_128", "decode_128"):
            for tp in DEGREES:
                found = {sizes: error for sizes, error in errors.items() if sizes[:2] in llama_sizes(name, tp)}
                print_row(gpu, name, f"Llama-3.1 8B and 70B, tp {tp}", found)
        if name == "decode_128":
            print_row(gpu, name, "each context from half and double, straight", neighbours(rows))


def neighbours(rows: dict[tuple[int, ...], float]) -> dict[tuple[int, ...], float]:
    """Relative errors of decodes whose context is taken from the next shorter and the next longer one measured."""
    errors = {}
    for (*job, context), ns in rows.items():
        below, above = rows.get((*job, context // 2)), rows.get((*job, context * 2))
        if below is not None and above is not None:
            errors[*job, context] = abs((below + (above - below) / 3) / ns - 1)
    return errors


def print_row(gpu: str, name: str, of: str, errors: dict[tuple[int, ...], float]) -> None:
    numbers = " | ".join(f"{100 * value:.1f}" for value in statistics(errors).values())
    print(f"| {gpu} | {name} | {of} | {len(errors)} | {numbers} |")


def llama_sizes(name: str, tp: int) -> set[tuple[int, int]]:
    """The first two sizes of the rows of both models: n and k of products, else KV heads and heads."""
    models = [shapes.named(model) for model in LLAMAS]
    if name == "gemm":
        return {size for model in models for size in matrices(model, tp)}
    return {(model.kv_heads // tp, model.heads // tp) for model in models}


def decode(batch: int, context: int) -> Features:
    return Features(batch, batch * context, batch, batch * context)


def prefill(batch: int, length: int) -> Features:
    return Features(batch * length, batch * length * (length + 1) // 2, 0, 0, batch)


def distserve() -> Iterator[Case]:
    """OPT on A100: fits of the authors, without the factors and the driver's time that their simulator adds."""
    for model, tp in (("opt-13b", 1), ("opt-13b", 2), ("opt-13b", 4), ("opt-66b", 2), ("opt-66b", 4), ("opt-66b", 8)):
        published = raw(resolve(f"distserve/{model}/tp{tp}").cost)
        for what, step in (
            ("prefill of 512", prefill(1, 512)),
            ("prefill of 2000", prefill(1, 2000)),
            ("32 decodes at 800", decode(32, 800)),
            ("128 decodes at 800", decode(128, 800)),
        ):
            yield f"DistServe|{what}", "a100", model, tp, step, published.step_ns(step) / 1e6


def raw(cost: Model) -> Model:
    assert isinstance(cost, PipelinePhases)
    return msgspec.structs.replace(
        cost, prefill_factor=1.0, decode_factor=1.0, boundary=0.0, driver=0.0, driver_token=0.0
    )


def loongserve() -> Iterator[Case]:
    for tp, points in ((1, LWM_TP1_MS), (8, LWM_TP8_MS)):
        for (batch, length), (prefill_ms, decode_ms) in points.items():
            yield f"LoongServe|prefill of {batch} x {length}", "a800", "lwm-7b", tp, prefill(batch, length), prefill_ms
            yield f"LoongServe|{batch} decodes at {length}", "a800", "lwm-7b", tp, decode(batch, length), decode_ms


def llumnix_cases() -> Iterator[Case]:
    for model, tp in (("llama-7b", 1), ("llama-30b", 4)):
        for i, length in enumerate(llumnix.LENGTHS):
            batch = llumnix.LENGTHS[-1] // length
            prefill_ms, decode_ms = llumnix.RECOMPUTE_MS[model][i], llumnix.DECODE_MS[model][i]
            yield f"Llumnix|prefill of {length}", "a10", model, tp, prefill(1, length), prefill_ms
            yield f"Llumnix|{batch} decodes at {length}", "a10", model, tp, decode(batch, length), decode_ms


def print_case(case: Case) -> None:
    what, hardware, model, tp, step, published_ms = case
    composed_ms, kernels_ms = times_ms(hardware, model, tp, step)
    source, what = what.split("|")
    off = f"{100 * (composed_ms / published_ms - 1):+.0f} %"
    print(
        f"| {source} | {hardware} | {model}, {tp} | {what} | {published_ms:.1f} | {composed_ms:.1f} | {off} "
        f"| {kernels_ms:.1f} |"
    )


def times_ms(hardware: str, model: str, tp: int, step: Features) -> tuple[float, float]:
    """A composed step, and without its overheads."""
    cost = compose(hardware, model, tp).cost
    bare = msgspec.structs.replace(cost, overhead_ns=0.0, per_job_ns=0.0)
    return cost.step_ns(step) / 1e6, bare.step_ns(step) / 1e6


def print_floor(gpu: str) -> None:
    shape = shapes.named("llama-3.1-8b")
    for jobs in (1, 32, 128):
        read_bytes = shape.weight_bytes - shape.embedding_bytes + jobs * 1000 * shape.kv_bytes_per_token
        floor_ms = read_bytes / named(gpu).bandwidth * 1e3
        composed_ms, kernels_ms = times_ms(gpu, "llama-3.1-8b", 1, decode(jobs, 1000))
        ratio = kernels_ms / floor_ms
        print(f"| {gpu} | {jobs} | {floor_ms:.1f} | {kernels_ms:.1f} | {composed_ms:.1f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
