"""From options to an engine that is ready: find, load, probe, make room. Says on the way what it is doing."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from penstock.engine import load, probe
from penstock.engine.backend import ATTENTION, Backend, Kv
from penstock.engine.base import EngineInfo
from penstock.engine.grammar import Grammars
from penstock.engine.host import cores, free_bytes
from penstock.engine.hub import resolve
from penstock.engine.options import EngineOptions
from penstock.engine.params import Sampling
from penstock.engine.plain import Plain
from penstock.engine.pool import Pool
from penstock.engine.runner import TransformersEngine
from penstock.engine.sampling import Row, sample

if TYPE_CHECKING:
    from penstock.engine.cuda import Cuda

#: Jobs of the greatest length that KV memory is made for where nobody says how much to take.
_JOBS = 256


def start_engine(options: EngineOptions, say: Callable[[str], None] = lambda text: None) -> TransformersEngine:
    """Load a model and make it ready. Raises Unsupported (a ValueError) if it cannot be served, FileNotFoundError if
    it is not there, ValueError if the options cannot be met; each says what to change."""
    threads = options.threads or cores()
    torch.set_num_threads(threads)
    say(f"loading {options.model}")
    folder = resolve(options.model, options.download_dir, weights=options.load_format != "dummy")
    config = load.load_config(folder)
    model = load.load_model(folder, config, options)
    max_len = load.max_len(config, options.max_len)
    say("checking that its attention is supported")
    probe.check_config(model, config, max_len)
    shape = probe.inspect(model, config, max_len)
    device, dtype = probe.device_of(model), probe.dtype_of(model)
    backend = choose_backend(options.backend, device)
    page_bytes = token_bytes(shape, dtype) * options.page_tokens
    pages = options.pages or (options.kv_bytes or _kv_bytes(options, model, backend, shape, max_len)) // page_bytes
    if pages * options.page_tokens < 2 * options.block_tokens:
        raise ValueError(f"{pages} KV pages of {page_bytes} bytes are too few; give more kv_bytes or pages")
    max_len = min(max_len, pages * options.page_tokens)
    vocab = config.get_text_config().vocab_size
    prompts = probe.prompts(config, vocab, max_len, pages * options.page_tokens)
    expected = probe.reference(model, prompts)
    say(f"preparing {backend.name}")
    backend.prepare(model)
    kv = make_kv(shape, pages, options.page_tokens, device, dtype)
    pool = Pool(pages, options.page_tokens, options.block_tokens, max_len)
    probe.verify(model, backend, kv, pool, prompts, expected)
    notes = [f"backend {backend.name}"]
    if (cuda := as_cuda(backend)) is not None:
        say("recording decode steps")
        try:
            cuda.capture(model, kv, pool.tables.shape[1])
        except RuntimeError as error:
            notes.append(f"decode steps without CUDA graphs, which could not be recorded: {error}")
    # What this compiles should not wait for the first request.
    sample(torch.zeros(1, vocab, device=device), [Row(Sampling(max_tokens=1), np.zeros(1, np.int64), 1)])
    info = EngineInfo(
        model=options.model,
        vocab=vocab,
        max_len=max_len,
        pages=pages,
        page_tokens=options.page_tokens,
        block_tokens=options.block_tokens,
        kv_bytes_per_token=token_bytes(shape, dtype),
        dtype=str(dtype).removeprefix("torch."),
        device=str(device),
        threads=threads,
        eos_token_ids=load.eos_token_ids(model),
        notes=notes,
    )
    return TransformersEngine(model, backend, kv, pool, info, Grammars(folder, vocab, info.eos_token_ids))


def choose_backend(name: str, device: torch.device) -> Backend:
    """The named backend; `auto` is the fastest for the device."""
    if name == "auto":
        name = {"cpu": "cpu", "cuda": "cuda"}.get(device.type, "plain")
    if name == "plain":
        return Plain(device)
    if name == device.type == "cpu":
        from penstock.engine.cpu.backend import Cpu

        return Cpu()
    if name == device.type == "cuda":
        from penstock.engine.cuda import Cuda

        return Cuda(device)
    raise ValueError(f"backend {name!r} on {device.type}: choose auto, plain, or one that has the device's name")


def as_cuda(backend: Backend) -> "Cuda | None":
    """The backend if it is that of CUDA, whose module needs Triton: not installed everywhere."""
    if backend.name != "cuda":
        return None
    from penstock.engine.cuda import Cuda

    return backend if isinstance(backend, Cuda) else None


def make_kv(shape: probe.Shape, pages: int, page_tokens: int, device: torch.device, dtype: torch.dtype) -> Kv:
    """Tensors for so many pages and the null page. Not cleared: what nobody has written is never read (see `Kv`), and
    on a CPU, memory that is not touched is not taken."""
    keys, values = (
        torch.empty(shape.layers, pages + 1, shape.kv_heads, page_tokens, dim, device=device, dtype=dtype)
        for dim in (shape.head_dim, shape.value_dim)
    )
    return Kv(keys, values)


def token_bytes(shape: probe.Shape, dtype: torch.dtype) -> int:
    return shape.layers * shape.kv_heads * (shape.head_dim + shape.value_dim) * dtype.itemsize


def _kv_bytes(options: EngineOptions, model: nn.Module, backend: Backend, shape: probe.Shape, max_len: int) -> int:
    """Memory for KV where nobody says how much."""
    device, dtype = probe.device_of(model), probe.dtype_of(model)
    if (cuda := as_cuda(backend)) is not None:
        model.set_attn_implementation(ATTENTION)  # type: ignore[operator]
        little = make_kv(shape, 1, options.page_tokens, device, dtype)
        return cuda.kv_budget_bytes(model, little, min(options.step_tokens, max_len), options.memory_share)
    return min(free_bytes() // 4, _JOBS * max_len * token_bytes(shape, dtype))
