"""The CPU backend against the plain one, over whole models."""

from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
import transformers
from torch import Tensor, nn

from penstock.engine.backend import ATTENTION, Backend, Kv
from penstock.engine.batch import Piece, build
from penstock.engine.cpu.backend import Cpu
from penstock.engine.cpu.jit import cache_folder
from penstock.engine.cpu.layers import FusedLayer
from penstock.engine.cpu.linear import PackedLinear
from penstock.engine.plain import Plain

FUSED = {"Llama", "Mistral", "Qwen2", "Qwen3"}


def load(folder: Path, dtype: torch.dtype) -> nn.Module:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval().requires_grad_(False)
    model.set_attn_implementation(ATTENTION)
    return model


def run(model: nn.Module, backend: Backend, kv: Kv) -> list[Tensor]:
    """Logits of three steps: a prompt, another beside a token of the first, a token of each."""
    prompts = [np.array(prompt) for prompt in tiny.prompts([37, 18])]
    tables = np.array([[5, 2, 7, 4], [1, 6, 3, 8]], np.int32)
    logits = []
    for cuts in ([(0, 0, 36)], [(0, 36, 1), (1, 0, 17)], [(1, 17, 1), (0, 35, 1)]):
        pieces = [Piece(prompts[row][start : start + n], start, row, (n - 1,)) for row, start, n in cuts]
        logits.append(backend.forward(model, build(pieces, tables, 16), kv).float())
    return logits


def make_kv(model: nn.Module, dtype: torch.dtype) -> Kv:
    config = model.config
    heads = getattr(config, "num_key_value_heads", config.num_attention_heads)
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    tensors = (torch.full((config.num_hidden_layers, 9, heads, 16, dim), torch.nan, dtype=dtype) for _ in range(2))
    return Kv(*tensors)


@pytest.fixture(scope="module", params=sorted(tiny.FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def folder(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose numbers are bfloat16 ones; odd widths, so that panels are not full."""
    path = tiny.build(family, tmp_path_factory.mktemp(family), vocab_size=101)
    load(path, torch.bfloat16).save_pretrained(path)
    return path


@torch.inference_mode()
def test_bfloat16_weights_give_the_float32_logits(family: str, folder: Path) -> None:
    """With a float32 cache, nothing is rounded to bfloat16 on the way: the logits are those of a float32 model."""
    exact, packed, backend = load(folder, torch.float32), load(folder, torch.bfloat16), Cpu()
    backend.prepare(packed)
    assert any(isinstance(m, FusedLayer) for m in packed.modules()) == (family in FUSED)
    assert not any(isinstance(m, nn.Linear) for m in packed.modules())
    assert any(isinstance(m, PackedLinear) for m in packed.modules())
    expected = run(exact, Plain(), make_kv(exact, torch.float32))
    for got, wanted in zip(run(packed, backend, make_kv(packed, torch.float32)), expected, strict=True):
        assert (got - wanted).abs().max() <= 1e-4 * wanted.abs().max()


@torch.inference_mode()
def test_a_bfloat16_cache_costs_its_rounding_only(folder: Path) -> None:
    exact, plain, packed, backend = load(folder, torch.float32), *(load(folder, torch.bfloat16) for _ in "ab"), Cpu()
    backend.prepare(packed)
    wanted = run(exact, Plain(), make_kv(exact, torch.float32))
    ours = run(packed, backend, make_kv(packed, torch.bfloat16))
    theirs = run(plain, Plain(), make_kv(plain, torch.bfloat16))
    error, plain_error = (
        sum((a - b).pow(2).mean().sqrt() for a, b in zip(some, wanted, strict=True)) for some in (ours, theirs)
    )
    assert error < plain_error


def test_float32_models_give_the_tokens_of_generate(family: str, tmp_path: Path) -> None:
    tiny.build(family, tmp_path)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    driver = tiny.Driver(tiny.engine(tmp_path, backend="cpu", page_tokens=8))
    prompts = tiny.prompts([1, 9, 40])
    for job, prompt in enumerate(prompts):
        driver.add(job, prompt, tiny.greedy(8))
    outputs = driver.finish_all(chunk=7)
    for job, prompt in enumerate(prompts):
        out = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=8, pad_token_id=0)
        assert outputs[job] == out[0, len(prompt) :].tolist()


def test_several_threads_give_what_one_gives(folder: Path) -> None:
    packed, backend = load(folder, torch.bfloat16), Cpu()
    backend.prepare(packed)
    threads = torch.get_num_threads()
    try:
        logits = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            logits.append(run(packed, backend, make_kv(packed, torch.bfloat16)))
    finally:
        torch.set_num_threads(threads)
    for some in logits[1:]:
        assert all(torch.equal(a, b) for a, b in zip(some, logits[0], strict=True))


def test_kernels_are_kept_where_one_can_write(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert cache_folder().startswith(str(tmp_path / "cache" / "penstock"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert cache_folder().startswith(str(tmp_path / "cache-"))
