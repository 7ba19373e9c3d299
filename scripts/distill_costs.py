"""Turn tables of measured kernel times into the utilisation grids that `penstock.cost.kernels` reads.

    python scripts/distill_costs.py FOLDER [--out penstock/cost/data]

FOLDER has, for each GPU, a folder h200_sxm, h100_sxm or a100_sxm with gemm_bf16.csv.gz, context_attention_bf16.csv.gz,
generation_attention_bf16.csv.gz and custom_allreduce.csv, as ai-dynamo/aiconfigurator publishes them (Apache-2.0). Of
the all-reduces, those in CUDA graphs are taken: past a few MB they are NCCL's own, so that one grid has both.

A grid has the rows all of whose sizes are nodes; every other row is left for testing, and the errors there are stored
with the grids. Two corrections: a node of attention or all-reduce that took longer than a later one of its last axis
takes the later one's time, which removes single bad measurements; and a node that was not measured takes the
utilisation of the nearest that was.
"""

import argparse
import csv
import gzip
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from itertools import product
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from penstock.cost import kernels
from penstock.cost.hardware import Hardware, named
from penstock.cost.kernels import Kernels

Array = npt.NDArray[np.float64]
#: Sizes, in the order of the operation's axes -> ns.
Rows = dict[tuple[int, ...], float]

ENGINES = {"h200": "vLLM 0.24", "h100": "vLLM 0.24", "a100": "vLLM 0.14"}
_POWERS = [2**i for i in range(18)]
GEMM_NK = [32, 128, 512, 1024, 2048, 4096, 8192, 16384, 65536]
GEMM_M = {
    "h200": [1, 16, 32, 64, 128, 192, 256, 512, 1024, 2048, 4096, 8192, 32768],
    "h100": [1, 16, 32, 64, 128, 192, 256, 512, 1024, 2048, 4096, 8192, 32768],
    "a100": [1, 2, 4, 8, 16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048, 8192],
}
AXES = {
    "decode": {
        "kv_heads": [1, kernels.KV_HEADS_MEASURED],
        "group": [1, 2, 8, 32],
        "batch": _POWERS[:12],
        "context": [2, 8, *_POWERS[5:]],
    },
    "prefill": {
        "heads": list(kernels.HEADS_MEASURED),
        "group": [1, 4, 8],
        "batch": _POWERS[:9],
        "length": [1, 16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384],
    },
    "allreduce": {"gpus": [2, 4, 8], "bytes": [*(4**i for i in range(4, 11)), 2**21, *(4**i for i in range(11, 15))]},
}


def axes(gpu: str, name: str) -> dict[str, list[int]]:
    """The nodes of a grid. `name` may end in _64 or _128, the head size."""
    if name == "gemm":
        return {"n": GEMM_NK, "k": GEMM_NK, "m": GEMM_M[gpu]}
    return AXES[name.removesuffix("_64").removesuffix("_128")]


def read(folder: Path) -> dict[str, Rows]:
    """Every operation's rows for one GPU: sizes -> ns, the mean where a row was measured twice."""
    found: dict[str, dict[tuple[int, ...], list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in _csv(folder / "gemm_bf16.csv.gz"):
        _add(found["gemm"], row, "n", "k", "m")
    for name, file in (("prefill", "context"), ("decode", "generation")):
        for row in _csv(folder / f"{file}_attention_bf16.csv.gz"):
            row["context"] = str(int(row["isl"]) + int(row["step"]))
            _add(found[f"{name}_{row['head_dim']}"], row, "num_key_value_heads", "num_heads", "batch_size", "context")
    for row in _csv(folder / "custom_allreduce.csv"):
        if row["backend"] == "vllm_graph":
            _add(found["allreduce"], row, "num_gpus", "message_size")
    return {name: {sizes: sum(ns) / len(ns) for sizes, ns in rows.items()} for name, rows in found.items()}


def _csv(path: Path) -> Iterable[dict[str, str]]:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", newline="") as lines:
        yield from csv.DictReader(lines)


def _add(rows: dict[tuple[int, ...], list[float]], row: dict[str, str], *names: str) -> None:
    rows[tuple(int(row[name]) for name in names)].append(float(row["latency_ms"]) * 1e6)


def nodes(gpu: str, name: str) -> set[tuple[int, ...]]:
    """The sizes of a grid's nodes, measured or not."""
    return {sizes_at(name, node) for node in product(*axes(gpu, name).values())}


def sizes_at(name: str, node: tuple[int, ...]) -> tuple[int, ...]:
    """The sizes, as in `Rows`, of a node of a grid."""
    if name.startswith("decode"):
        kv_heads, group, batch, context = node
        return kv_heads, kv_heads * group, batch, context
    if name.startswith("prefill"):
        heads, group, batch, length = node
        return heads // group, heads, batch, length
    return node


def roofline_ns(hardware: Hardware, name: str, sizes: tuple[int, ...]) -> float:
    """Of a row."""
    if name == "gemm":
        n, k, m = sizes
        return kernels.gemm_roofline_ns(hardware, m, n, k)
    if name == "allreduce":
        return kernels.allreduce_roofline_ns(hardware, *sizes)
    kv_heads, heads, batch, length = sizes
    roofline = kernels.decode_roofline_ns if name.startswith("decode") else kernels.prefill_roofline_ns
    return roofline(hardware, batch, length, heads, kv_heads, int(name.rsplit("_", 1)[1]))


def distill(hardware: Hardware, name: str, rows: Rows) -> kernels.Table:
    """The grid of one operation."""
    found = axes(hardware.name, name)
    points = [sizes_at(name, node) for node in product(*found.values())]
    shape = [len(axis) for axis in found.values()]
    took = np.array([rows.get(point, math.nan) for point in points]).reshape(shape)
    if name != "gemm":  # a product with more rows may well be quicker, where it meets a better tile
        took = np.fmin.accumulate(took[..., ::-1], axis=-1)[..., ::-1]
    measured = np.array([point in rows for point in points]).reshape(shape)
    rooflines = np.array([roofline_ns(hardware, name, point) for point in points]).reshape(shape)
    utilisation = fill(np.where(measured, rooflines / took, math.nan))
    return kernels.Table(found, [float(f"{value:.3g}") for value in utilisation.ravel()])


def fill(values: Array) -> Array:
    """The nearest number along one axis in place of what is missing. The last axis but one (of attention: the batch)
    comes first: utilisation changes least along it where times are long."""
    values = values.copy()
    for axis in (values.ndim - 2, values.ndim - 1, *reversed(range(values.ndim - 2))):
        lines = np.moveaxis(values, axis, 0)
        for here in (*range(1, len(lines)), *range(len(lines) - 2, -1, -1)):
            for there in (here - 1, here + 1):
                if 0 <= there < len(lines):
                    lines[here] = np.where(np.isnan(lines[here]), lines[there], lines[here])
    return values


def held_out(gpu: Kernels, name: str, rows: Rows) -> dict[tuple[int, ...], float]:
    """|predicted - measured| / measured of every row that is not a node of its grid."""
    known = nodes(gpu.hardware.name, name)
    return {sizes: abs(predict_ns(gpu, name, sizes) / ns - 1) for sizes, ns in rows.items() if sizes not in known}


def predict_ns(gpu: Kernels, name: str, sizes: tuple[int, ...]) -> float:
    """Of a row."""
    if name == "gemm":
        n, k, m = sizes
        return gpu.gemm(n, k).ns(m)
    if name == "allreduce":
        return gpu.allreduce_ns(*sizes)
    kv_heads, heads, batch, length = sizes
    took = gpu.decode_ns if name.startswith("decode") else gpu.prefill_ns
    return float(took(batch, np.array([length], float), heads, kv_heads, int(name.rsplit("_", 1)[1]))[0])


def statistics(errors: Mapping[tuple[int, ...], float]) -> dict[str, float]:
    """Median, mean, 90th percentile and worst."""
    values = np.array(list(errors.values()))
    found = {"median": np.median(values), "mean": values.mean(), "p90": np.quantile(values, 0.9), "worst": values.max()}
    return {name: round(float(value), 4) for name, value in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path("penstock/cost/data"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for name, engine in ENGINES.items():
        measured = read(args.folder / f"{name}_sxm")
        tables = {operation: distill(named(name), operation, rows) for operation, rows in sorted(measured.items())}
        provenance = {
            "from": "ai-dynamo/aiconfigurator", "licence": "Apache-2.0", "engine": engine, "dtype": "bfloat16",
            "hardware": f"{name}, SXM",
        }  # fmt: skip
        gpu = Kernels(named(name), kernels.Tables(provenance, {}, tables))
        errors = {operation: statistics(held_out(gpu, operation, rows)) for operation, rows in sorted(measured.items())}
        found = msgspec.json.encode(kernels.Tables(provenance, errors, tables))
        path = args.out / f"{name}.json"
        path.write_bytes(found.replace(b'"utilisation"', b'\n"utilisation"') + b"\n")
        values = sum(len(table.utilisation) for table in tables.values())
        print(f"{path}: {values} utilisations, {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
