"""Speed of the CUDA path on the GPU at hand: the attention kernel, and decode steps with and without graphs.

    python bench/kernels_cuda.py [--layers 16]

Attention is set beside torch's scaled_dot_product_attention over the same keys and values, already gathered to be
contiguous: what paging costs is then in our column only. Times are medians of 30 runs after 5 that are not counted; the
shapes are those of an 8 B Llama (32 heads, 8 KV heads of 128, bfloat16), the decode steps those of a model of random
weights with `--layers` such layers of hidden size 2048. Without a GPU it says so and ends well.
"""

import argparse
import statistics
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from penstock.engine.backend import ATTENTION, Backend, Int32, Kv, Step

HEADS, KV_HEADS, DIM, PAGE_TOKENS = 32, 8, 128, 16
DTYPE = torch.bfloat16


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--layers", type=int, default=16, help="layers of the model whose decode steps are timed")
    chosen = arguments.parse_args()
    if not torch.cuda.is_available():
        print("No CUDA GPU is present: nothing was measured.")
        return
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {DTYPE}, {PAGE_TOKENS} tokens a page")
    with torch.inference_mode():
        decode_attention()
        chunk_attention()
        decode_steps(chosen.layers)


def decode_attention() -> None:
    """One token of each of many jobs."""
    print("\ndecode attention, one layer")
    print("  jobs  context  splits   ours ms   SDPA ms   ours GB/s of keys and values   greatest difference")
    for jobs, context in [(1, 1024), (1, 8192), (1, 65536), (32, 1024), (32, 8192), (128, 1024), (128, 4096)]:
        ours, theirs, splits = attention_pair(jobs, 1, context)
        error = (ours() - theirs()).abs().max().item()
        ours_ms, theirs_ms = time_ms(ours), time_ms(theirs)
        rate = jobs * context * KV_HEADS * DIM * 2 * DTYPE.itemsize / ours_ms / 1e6
        print(f"{jobs:6} {context:8} {splits:7} {ours_ms:9.3f} {theirs_ms:9.3f} {rate:30.0f} {error:21.4f}")


def chunk_attention() -> None:
    """A chunk of a prompt behind what is there already."""
    print("\nchunk attention, one layer")
    print("  jobs  queries  context   ours ms   SDPA ms   ours TFLOP/s   greatest difference")
    for jobs, queries, context in [(1, 512, 512), (1, 2048, 2048), (1, 2048, 16384), (8, 256, 2048), (1, 8192, 8192)]:
        ours, theirs, _ = attention_pair(jobs, queries, context)
        error = (ours() - theirs()).abs().max().item()
        ours_ms, theirs_ms = time_ms(ours), time_ms(theirs)
        pairs = queries * (context - queries) + queries * (queries + 1) / 2
        rate = 4 * jobs * pairs * HEADS * DIM / ours_ms / 1e9
        print(f"{jobs:6} {queries:8} {context:8} {ours_ms:9.3f} {theirs_ms:9.3f} {rate:14.1f} {error:21.4f}")


def attention_pair(jobs: int, queries: int, context: int) -> tuple[Callable[[], Tensor], Callable[[], Tensor], int]:
    """Our attention and torch's of the same random jobs, both giving [jobs x queries, heads, dim]; and our splits."""
    from penstock.engine import cuda
    from penstock.engine.triton_attention import Batch, paged_attention, tile_queries, tile_rows

    torch.manual_seed(0)
    count = -(-context // PAGE_TOKENS)
    keys, values = torch.randn(2, jobs * count, KV_HEADS, PAGE_TOKENS, DIM, device="cuda", dtype=DTYPE)
    q = torch.randn(jobs * queries, HEADS, DIM, device="cuda", dtype=DTYPE)
    tables = torch.randperm(jobs * count, device="cuda").view(jobs, count)
    k, v = (pages[tables].transpose(1, 2).reshape(jobs, KV_HEADS, -1, DIM)[:, :, :context] for pages in (keys, values))
    decodes = jobs if queries == 1 else 0
    start = np.arange(jobs + 1, dtype=np.int32) * queries
    tiles = tile_queries(start, decodes, tile_rows(q, HEADS // KV_HEADS) * KV_HEADS // HEADS)
    contexts = torch.full((jobs,), context, dtype=torch.int32, device="cuda")
    batch = Batch(on_gpu(start), contexts, tables.int(), decodes, on_gpu(tiles))
    processors = torch.cuda.get_device_properties("cuda").multi_processor_count
    splits = cuda.choose_splits(jobs, KV_HEADS, processors)
    wide = q.view(jobs, queries, HEADS, DIM).transpose(1, 2)
    mask = causal_mask(queries, context)

    def ours() -> Tensor:
        return paged_attention(q, keys, values, batch, DIM**-0.5, splits)[0]

    def theirs() -> Tensor:
        causal = queries == context
        out = F.scaled_dot_product_attention(
            wide, k, v, attn_mask=None if causal else mask, is_causal=causal, enable_gqa=True
        )
        return out.transpose(1, 2).reshape(q.shape)

    return ours, theirs, splits


def causal_mask(queries: int, context: int) -> Tensor | None:
    """[queries, context] of what the last queries of a context see; None for a single one, which sees all."""
    if queries == 1:
        return None
    place = torch.arange(context, device="cuda")
    return place <= place[context - queries :, None]


def decode_steps(layers: int) -> None:
    """Whole forward passes of a model, one token a job."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    from penstock.engine.cuda import SIZES, Cuda
    from penstock.engine.member import make_kv
    from penstock.engine.probe import Shape

    config = LlamaConfig(
        vocab_size=32000, hidden_size=2048, intermediate_size=5632, num_hidden_layers=layers,
        num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, head_dim=DIM,
    )  # fmt: skip
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(config, dtype=DTYPE).eval()  # type: ignore[no-untyped-call]
    model.set_attn_implementation(ATTENTION)
    context, sizes = 1024, (1, 8, 32, 128)
    width = context // PAGE_TOKENS
    shape = Shape(layers, HEADS, KV_HEADS, DIM, DIM)
    kv = make_kv(shape, width * sizes[-1], PAGE_TOKENS, torch.device("cuda"), DTYPE)
    eager, graphs = Cuda(), Cuda()
    taken_ms = once_ms(lambda: graphs.capture(model, kv, width))
    weights_gb = sum(p.numel() * p.element_size() for p in model.parameters()) / 1e9
    print(f"\ndecode steps, {layers} layers, {weights_gb:.1f} GB of weights, context {context}")
    print(f"recording {len(SIZES)} sizes took {taken_ms / 1000:.1f} s")
    print("  jobs  eager ms  graph ms   tokens/s with graphs   greatest difference")
    for jobs in sizes:
        report_step(model, kv, decode_step(jobs, context), eager, graphs)


def report_step(model: torch.nn.Module, kv: Kv, step: Step, eager: Backend, graphs: Backend) -> None:
    """One line of the table."""
    plain, replayed = (backend.forward(model, step, kv).float().clone() for backend in (eager, graphs))
    error = (plain - replayed).abs().max().item()
    eager_ms = time_ms(lambda: eager.forward(model, step, kv))
    graph_ms = time_ms(lambda: graphs.forward(model, step, kv))
    jobs = step.decodes
    print(f"{jobs:6} {eager_ms:9.3f} {graph_ms:9.3f} {jobs / graph_ms * 1000:22.0f} {error:21.4f}")


def decode_step(jobs: int, context: int) -> Step:
    """The last token of each of so many jobs, on pages of their own."""
    rows = np.arange(jobs)
    tables = np.random.default_rng(0).permutation(jobs * context // PAGE_TOKENS).reshape(jobs, -1) + 1
    return Step(
        ids=rows + 1,
        positions=np.full(jobs, context - 1),
        slots=tables[:, -1] * PAGE_TOKENS + PAGE_TOKENS - 1,
        query_start=np.arange(jobs + 1, dtype=np.int32),
        contexts=np.full(jobs, context, np.int32),
        tables=tables.astype(np.int32),
        decodes=jobs,
        emit=rows,
    )


def on_gpu(array: Int32) -> Tensor:
    return torch.from_numpy(array).cuda()


def time_ms(work: Callable[[], object]) -> float:
    for _ in range(5):
        work()
    return statistics.median(once_ms(work) for _ in range(30))


def once_ms(work: Callable[[], object]) -> float:
    """From the first launch to the end of the last, in the GPU's own time."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    start.record()
    work()
    end.record()
    end.synchronize()
    elapsed_ms: float = start.elapsed_time(end)
    return elapsed_ms


if __name__ == "__main__":
    main()
