"""The CUDA backend without CUDA: its integers, and whole models through Triton's interpreter against the plain one."""
# ruff: noqa: E402

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields

import pytest

# Triton reads this when it is imported. TRITON_INTERPRET=0 runs the tests of the kernels on a GPU.
os.environ.setdefault("TRITON_INTERPRET", "1")
triton = pytest.importorskip("triton")
if os.environ["TRITON_INTERPRET"] == "1" and isinstance(triton.language.max, triton.JITFunction):
    pytest.skip("another test imported Triton first: set TRITON_INTERPRET=1 before pytest", allow_module_level=True)

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from penstock.engine import cuda, probe
from penstock.engine.backend import ATTENTION, Kv, Step
from penstock.engine.batch import Piece, build
from penstock.engine.cuda import Cuda, Run, budget_bytes, choose_splits, graph_size, pack, pad, padded
from penstock.engine.plain import Plain

assert probe.AttentionInterface  # importing the probe registers our attention
PAGE_TOKENS, PAGES = 4, 40


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The tensors are tiny: threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def decode_step(jobs: int, pages: int = 3) -> Step:
    rows = np.arange(jobs)
    tables = np.arange(1, jobs * pages + 1, dtype=np.int32).reshape(jobs, pages)
    contexts = np.full(jobs, 2 * PAGE_TOKENS + 1, np.int32)
    start = np.arange(jobs + 1, dtype=np.int32)
    return Step(rows + 7, rows * 0 + 8, tables[:, 2] * PAGE_TOKENS + 0 * rows, start, contexts, tables, jobs, rows)


def test_sizes() -> None:
    assert [padded(n) for n in (1, 2, 3, 5, 8, 9, 16, 17, 255, 256)] == [1, 2, 4, 8, 8, 16, 16, 32, 256, 256]


def test_only_steps_of_single_tokens_that_fit_are_replayed() -> None:
    assert graph_size(decode_step(3)) == 4
    assert graph_size(decode_step(256)) == 256
    assert graph_size(decode_step(257)) is None
    mixed = decode_step(3)
    mixed.decodes = 2
    assert graph_size(mixed) is None


def test_padding_adds_jobs_without_context_on_the_null_page() -> None:
    step = decode_step(3)
    padded_step = pad(step, 4, 5)
    assert padded_step.ids.tolist() == [7, 8, 9, 0]
    assert padded_step.slots.tolist() == [*step.slots.tolist(), 0]
    assert padded_step.contexts.tolist() == [9, 9, 9, 0]
    assert padded_step.query_start.tolist() == [0, 1, 2, 3, 4]
    assert padded_step.tables.shape == (4, 5)
    assert (padded_step.tables[:3, :3] == step.tables).all()
    assert not padded_step.tables[3].any()
    assert not padded_step.tables[:, 3:].any()
    assert padded_step.decodes == 4
    for field in fields(Step):
        if field.name != "decodes":
            assert getattr(padded_step, field.name).dtype == getattr(step, field.name).dtype
    with pytest.raises(ValueError, match="does not fit 2 jobs"):
        pad(step, 2, 5)
    with pytest.raises(ValueError, match="of 2 pages"):
        pad(step, 4, 2)


def test_a_packed_step_comes_apart_into_its_arrays() -> None:
    step = decode_step(3)
    step.emit = np.array([0, 2])
    live = cuda._Resident(step, torch.from_numpy(pack(step)))
    for name in cuda.ARRAYS:
        assert np.array_equal(getattr(live, name).numpy(), getattr(step, name)), name


@pytest.mark.parametrize(
    ("jobs", "kv_heads", "processors", "splits"),
    [(1, 8, 132, 32), (4, 8, 132, 8), (32, 8, 132, 1), (256, 8, 132, 1), (1, 1, 132, 32), (1, 8, 1, 1), (8, 4, 64, 4)],
)
def test_splits_fill_the_device(jobs: int, kv_heads: int, processors: int, splits: int) -> None:
    assert choose_splits(jobs, kv_heads, processors) == splits


def test_budget() -> None:
    assert budget_bytes(free_bytes=90, total_bytes=100, share=0.75, working_bytes=15) == 50
    assert budget_bytes(free_bytes=20, total_bytes=100, share=0.75, working_bytes=15) == 0


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    """Weights spread enough that a wrong scale, mask or page shows in the logits."""
    config = LlamaConfig(
        vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, attn_implementation="eager",
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    for name, weight in model.named_parameters():
        if weight.dim() == 2 and "embed" not in name:
            weight.data.mul_(5)
    model.set_attn_implementation(ATTENTION)
    return model


def empty_kv() -> Kv:
    keys, values = (torch.full((2, PAGES, 2, PAGE_TOKENS, 8), torch.nan) for _ in range(2))
    return Kv(keys, values)


def random_steps() -> list[Step]:
    """Three jobs in chunks and single tokens, then alone on single tokens, over shuffled pages."""
    rng = np.random.default_rng(0)
    tables = rng.permutation(np.arange(1, PAGES - 3)).reshape(3, 12).astype(np.int32)
    done = [0, 0, 0]
    steps = []
    for counts in ([5, 0, 9], [1, 7, 6], [1, 1, 3], [1, 1, 1], [0, 1, 1], [1, 0, 0], [1, 1, 1]):
        pieces = []
        for job in sorted(range(3), key=lambda j: counts[j] > 1):
            if counts[job]:
                ids = rng.integers(0, 61, counts[job])
                emit = tuple(range(counts[job])) if job else (counts[job] - 1,) * (done[job] % 2)
                pieces.append(Piece(ids, done[job], job, emit))
                done[job] += counts[job]
        steps.append(build(pieces, tables, PAGE_TOKENS))
    return steps


def compare(model: LlamaForCausalLM, backend: Cuda, kv: Kv) -> None:
    plain, plain_kv = Plain(), empty_kv()
    with torch.inference_mode():
        for step in random_steps():
            expected = plain.forward(model, step, plain_kv)
            torch.testing.assert_close(backend.forward(model, step, kv), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("splits", [None, 3])
def test_a_model_gives_the_plain_backends_logits(model: LlamaForCausalLM, splits: int | None) -> None:
    compare(model, Cuda("cpu", splits), empty_kv())


def test_replayed_steps_give_the_plain_backends_logits(
    model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With recordings that repeat their function on their own memory, as a graph does."""
    monkeypatch.setattr(cuda, "SIZES", (1, 2, 4))
    replayed = []

    def record(run: Run) -> Run:
        number = len(replayed)
        replayed.append(0)

        def replay() -> None:
            replayed[number] += 1
            run()

        return replay

    kv = empty_kv()
    backend = Cuda("cpu", record=record)
    backend.capture(model, kv, 12)
    compare(model, backend, kv)
    assert replayed == [2, 1, 1]  # of 4, 2 and 1 jobs


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from penstock.engine import triton_attention as kernels

BF16, INTS = "*bf16", ("tiles_ptr", "query_start_ptr", "contexts_ptr", "tables_ptr", "slots_ptr")

def build(kernel, arch, out="*bf16", warps=4, **constants):
    kinds = {name: "i32" for name in kernel.arg_names} | dict.fromkeys(INTS, "*i32") | {"scale_log2": "fp32"}
    kinds |= {name: "*bf16" for name in kernel.arg_names if name.endswith("_ptr") and name not in INTS}
    kinds |= {"lse_ptr": "*fp32", "lses_ptr": "*fp32", "outs_ptr": "*fp32", "out_ptr": out}
    kinds |= dict.fromkeys(constants, "constexpr")
    source = ASTSource(
        kernel,
        signature={name: kinds[name] for name in kernel.arg_names},
        constexprs={(kernel.arg_names.index(name),): value for name, value in constants.items()},
        attrs={(i,): [["tt.divisibility", 16]] for i, n in enumerate(kernel.arg_names) if kinds[n] in ("i32", BF16)},
    )
    options = {"num_warps": warps, "num_stages": 2, **kernels.FUSED}
    built = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    assert built.asm["cubin"] and built.metadata.shared < limit[arch], built.metadata.shared
    return built.asm["ptx"]

limit = {80: 99 << 10, 90: 227 << 10}
head = dict(HEAD_DIM=128, BLOCK_D=128, VALUE_DIM=128, BLOCK_V=128, KV_HEADS=2, PAGE_TOKENS=16)
fixed = dict(GROUP=4, BLOCK_N=64, CAUSAL=True, PRECISION="tf32", **head)
assert "mma" in build(kernels._attend, 90, warps=8, BLOCK_M=128, SINGLE=False, SPLITS=1, **fixed)
assert "mma" in build(kernels._attend, 80, out="*fp32", BLOCK_M=16, SINGLE=True, SPLITS=4, **fixed)
build(kernels._merge, 80, VALUE_DIM=128, BLOCK_V=128, SPLITS=4, BLOCK_S=4)
build(kernels._write, 80, BLOCK_H=2, **head)
print("compiled")
"""


def test_kernels_compile_for_gpus_that_are_not_here() -> None:
    """To machine code of Ampere and Hopper, with tensor cores, within their shared memory. In a process of its own,
    since Triton either interprets or compiles."""
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    done = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "compiled\n", done.stderr


WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None
import penstock.engine.backend, penstock.engine.merge
try:
    import penstock.engine.cuda
except ImportError as error:
    print(error)
"""


def test_without_triton_the_message_names_the_extra() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_TRITON], capture_output=True, text=True, check=False)
    assert "penstock[cuda]" in done.stdout, done.stderr
