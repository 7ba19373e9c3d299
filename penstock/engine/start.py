"""From options to an engine that is ready: find, load, probe, make room. Says on the way what it is doing."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import torch
from transformers import PretrainedConfig

from penstock.engine import load, probe
from penstock.engine.base import EngineInfo
from penstock.engine.grammar import Grammars
from penstock.engine.host import cores
from penstock.engine.hub import resolve
from penstock.engine.member import Member
from penstock.engine.options import EngineOptions
from penstock.engine.params import Sampling
from penstock.engine.pool import Pool
from penstock.engine.runner import TransformersEngine
from penstock.engine.sampling import Row, sample

if TYPE_CHECKING:
    from penstock.engine.parallel.team import Team


def start_engine(options: EngineOptions, say: Callable[[str], None] = lambda text: None) -> TransformersEngine:
    """Load a model and make it ready. Raises Unsupported (a ValueError) if it cannot be served, FileNotFoundError if
    it is not there, ValueError if the options cannot be met; each says what to change."""
    options = msgspec.structs.replace(options, threads=options.threads or cores())
    say(f"loading {options.model}")
    folder = resolve(options.model, options.download_dir, weights=options.load_format != "dummy")
    config = load.load_config(folder)
    if options.tensor_parallel_size == 1:
        return _start(Member.load(folder, config, options), folder, config, options, say)
    from penstock.engine.parallel.team import Team

    team = Team(folder, config, options)
    try:
        engine = _start(team, folder, config, options, say)
        team.guard()
        return engine
    except BaseException:
        team.close()
        raise


def _start(
    member: "Member | Team", folder: Path, config: PretrainedConfig, options: EngineOptions, say: Callable[[str], None]
) -> TransformersEngine:
    max_len = load.max_len(config, options.max_len)
    say("checking that its attention is supported")
    pages = member.measure(max_len)
    if pages * options.page_tokens < 2 * options.block_tokens:
        raise ValueError(f"{pages} KV pages of {member.page_bytes} bytes are too few; give more kv_bytes or pages")
    max_len = min(max_len, pages * options.page_tokens)
    vocab = config.get_text_config().vocab_size
    prompts = probe.prompts(config, vocab, max_len, pages * options.page_tokens)
    expected = member.reference(prompts)
    say(f"preparing {member.backend.name}")
    kv = member.allocate(pages)
    pool = Pool(pages, options.page_tokens, options.block_tokens, max_len)
    probe.verify(member.model, member.backend, kv, pool, prompts, expected)
    if kv.keys.device.type == "cuda":
        say("recording decode steps")
    notes = [f"backend {member.backend.name}", member.capture(pool.tables.shape[1])]
    # What this compiles should not wait for the first request.
    sample(torch.zeros(1, vocab, device=kv.keys.device), [Row(Sampling(max_tokens=1), np.zeros(1, np.int64), 1)])
    info = EngineInfo(
        model=options.model,
        vocab=vocab,
        max_len=max_len,
        pages=pages,
        page_tokens=options.page_tokens,
        block_tokens=options.block_tokens,
        kv_bytes_per_token=member.page_bytes // options.page_tokens,
        host_pages=options.swap_bytes // member.page_bytes,
        dtype=str(kv.keys.dtype).removeprefix("torch."),
        device=str(kv.keys.device),
        threads=options.threads or 0,
        tensor_parallel_size=options.tensor_parallel_size,
        eos_token_ids=load.eos_token_ids(member.model),
        notes=[note for note in notes if note],
    )
    return TransformersEngine(member.model, member.backend, kv, pool, info, Grammars(folder, vocab, info.eos_token_ids))
