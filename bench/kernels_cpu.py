"""Speed of the CPU kernels: plain torch, ours, and the floor that memory or arithmetic sets. One table.

    python bench/kernels_cpu.py [--threads 2] [--linear]

With --linear another table: GFLOP/s of the linear layers by rows, ours and those of a float32 product by torch.

The floor is measured here first: reading memory (a sum over 512 MB) and multiplying float32 matrices (a product of
2048 x 2048). Shapes are those of a 0.29 B Llama (hidden 1024, 16 heads, 4 KV heads of 64, MLP 2816). Weights and caches
are spread over more memory than the caches hold, as in a model of 24 layers. Times are the best of several.
"""

import argparse
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle

import numpy as np
import torch
import torch.nn.functional as F

from penstock.engine.backend import Kv, Step
from penstock.engine.cpu import kernels, simd
from penstock.engine.cpu.backend import Cpu
from penstock.engine.cpu.layers import Norm
from penstock.engine.cpu.linear import Packed, alternate
from penstock.engine.plain import Plain

HIDDEN, MLP, HEADS, KV_HEADS, DIM, PAGE_TOKENS, VOCABULARY = 1024, 2816, 16, 4, 64, 16, 8192
#: Outputs and inputs of linear layers.
SHAPES = {"q, k, v": (1536, HIDDEN), "output": (HIDDEN, HIDDEN), "down": (HIDDEN, MLP)}
ROWS = 1, 8, 16, 30, 32, 36, 64, 128, 256, 2048
#: Copies of what a kernel reads, used in turn.
COPIES = 12
BF16 = torch.bfloat16
Case = tuple[str, Callable[[], object], Callable[[], object], float, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--linear", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    read_gbs, gflops = memory_gbs(), product_gflops()
    print(f"{torch.get_num_threads()} threads, {simd.LANES} lanes, bfloat16 products: {simd.HAS_DOT}")
    print(f"memory read {read_gbs:.1f} GB/s, float32 product {gflops:.0f} GFLOP/s\n")
    torch.manual_seed(0)
    if args.linear:
        print_rates()
        return
    print(f"{'kernel':34} {'torch us':>10} {'ours us':>10} {'ratio':>7} {'floor us':>10}")
    with torch.inference_mode():
        for name, plain, ours, read_bytes, flops in (*linears(), *norms(), *attentions()):
            plain_s, ours_s = best_s(plain), best_s(ours)
            floor_s = max(read_bytes / read_gbs, flops / gflops) / 1e9
            print(f"{name:34} {plain_s * 1e6:10.0f} {ours_s * 1e6:10.0f} {plain_s / ours_s:7.1f} {floor_s * 1e6:10.0f}")


def best_s(run: Callable[[], object], budget_s: float = 0.4) -> float:
    """Seconds of the fastest call, of at least COPIES and for at least the budget; the first is not counted."""
    run()
    times: list[float] = []
    while len(times) < COPIES or sum(times) < budget_s:
        start_s = time.perf_counter()
        run()
        times.append(time.perf_counter() - start_s)
        if sum(times) > 5 * budget_s:
            break
    return min(times)


def memory_gbs() -> float:
    numbers = torch.ones(1 << 27)
    return numbers.numel() * 4 / best_s(numbers.sum) / 1e9


def product_gflops() -> float:
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    return 2 * 2048**3 / best_s(lambda: a @ b) / 1e9


def linears() -> Iterator[Case]:
    """The four products of a layer, in bfloat16 (torch) and packed (ours)."""
    for rows in (1, 8, 32, 128):
        for name, (outputs, inputs) in SHAPES.items():
            weights = [torch.randn(outputs, inputs).to(BF16) for _ in range(COPIES)]
            yield linear_case(f"{name}, {rows} rows", rows, weights, [Packed(w) for w in weights])
        yield gated_case(rows)


def linear_case(name: str, rows: int, weights: list[torch.Tensor], packed: list[Packed]) -> Case:
    x = torch.randn(rows, weights[0].shape[1])
    short = x.to(BF16)
    plain, ours = cycle(weights), cycle(packed)
    size = weights[0].numel()
    return name, lambda: F.linear(short, next(plain)), lambda: next(ours)(x), 2.0 * size, 2.0 * rows * size


def gated_case(rows: int) -> Case:
    x = torch.randn(rows, HIDDEN)
    short = x.to(BF16)
    pairs = [(torch.randn(MLP, HIDDEN).to(BF16), torch.randn(MLP, HIDDEN).to(BF16)) for _ in range(COPIES)]
    plain = cycle(pairs)
    ours = cycle([Packed(alternate(*pair), mode=kernels.SILU_MUL) for pair in pairs])

    def reference() -> torch.Tensor:
        gate, up = next(plain)
        return F.silu(F.linear(short, gate)) * F.linear(short, up)

    size = 2 * MLP * HIDDEN
    return f"gate, up and SiLU, {rows} rows", reference, lambda: next(ours)(x), 2.0 * size, 2.0 * rows * size


def print_rates() -> None:
    shapes = {**SHAPES, "gate, up and SiLU": (2 * MLP, HIDDEN), "vocabulary": (VOCABULARY, HIDDEN)}
    print(f"{'GFLOP/s, rows':30}", *(f"{rows:6}" for rows in ROWS))
    with torch.inference_mode():
        for name, (outputs, inputs) in shapes.items():
            weights = [torch.randn(outputs, inputs).to(BF16) for _ in range(COPIES)]
            mode = kernels.SILU_MUL if "SiLU" in name else kernels.STORE
            packed = cycle([Packed(weight, mode=mode) for weight in weights])
            wide = cycle([weight.float() for weight in weights])
            for whose, product in (
                ("", lambda x, packed=packed: next(packed)(x)),
                (", float32", lambda x, wide=wide: F.linear(x, next(wide))),
            ):
                times = [best_s(partial(product, torch.randn(rows, inputs))) for rows in ROWS]
                rates = (2e-9 * rows * outputs * inputs / s for rows, s in zip(ROWS, times, strict=True))
                print(f"{name + whose:30}", *(f"{rate:6.1f}" for rate in rates), flush=True)


def norms() -> Iterator[Case]:
    norm = torch.nn.RMSNorm(HIDDEN).requires_grad_(False)
    norm.variance_epsilon = 1e-6  # type: ignore[assignment]
    ours = Norm(norm)
    for rows in (1, 32, 512):
        x = torch.randn(rows, HIDDEN)
        yield f"RMS norm, {rows} rows", lambda x=x: norm(x), lambda x=x: ours(x), 0.0, 0.0  # type: ignore[misc]


def attentions() -> Iterator[Case]:
    """Jobs of one new token each, and whole prompts; the cache is bfloat16."""
    for jobs, new, context in ((1, 1, 160), (32, 1, 160), (8, 1, 2048), (1, 128, 128), (1, 512, 2048)):
        step, kv = paged(jobs, new, context)
        q, k, v = (torch.randn(jobs * new, heads, DIM) for heads in (HEADS, KV_HEADS, KV_HEADS))
        short = [part.to(BF16) for part in (q, k, v)]
        plain, ours, backends = cycle(range(COPIES)), cycle(range(COPIES)), (Plain(), Cpu())
        pairs = jobs * new * (context - new / 2)
        yield (
            f"attention, {jobs} x {new} of {context}",
            lambda p=plain, s=short, a=(kv, step), b=backends[0]: b.attend(next(p), *s, *a, 0.125),  # type: ignore[misc]
            lambda p=ours, s=(q, k, v), a=(kv, step), b=backends[1]: b.attend(next(p), *s, *a, 0.125),  # type: ignore[misc]
            4.0 * jobs * context * KV_HEADS * DIM,
            4.0 * pairs * HEADS * DIM,
        )


def paged(jobs: int, new: int, context: int) -> tuple[Step, Kv]:
    """A step over shuffled pages; as many layers as COPIES."""
    most = -(-context // PAGE_TOKENS)
    tables = (np.random.default_rng(0).permutation(jobs * most) + 1).reshape(jobs, most).astype(np.int32)
    positions = np.tile(np.arange(context - new, context), jobs)
    job = np.repeat(np.arange(jobs), new)
    starts = np.arange(jobs + 1) * new
    step = Step(
        ids=np.zeros_like(positions),
        positions=positions,
        slots=tables[job, positions // PAGE_TOKENS].astype(np.int64) * PAGE_TOKENS + positions % PAGE_TOKENS,
        query_start=starts.astype(np.int32),
        contexts=np.full(jobs, context, np.int32),
        tables=tables,
        decodes=jobs if new == 1 else 0,
        emit=starts[1:] - 1,
    )
    shape = COPIES, jobs * most + 1, KV_HEADS, PAGE_TOKENS, DIM
    return step, Kv(torch.randn(shape).to(BF16), torch.randn(shape).to(BF16))


if __name__ == "__main__":
    main()
