"""The flags that say which engine and how much memory it may have: the same for every verb that loads one."""

import argparse
from typing import Any

from penstock.engine.hub import DEMO
from penstock.engine.null import NullOptions
from penstock.engine.options import EngineOptions

_COUNTS = (
    "kv_pages", "kv_cache_bytes", "page_tokens", "block_tokens", "max_model_len", "threads", "tensor_parallel_size",
)  # fmt: skip


def engine_arguments(group: Any) -> None:
    """The flags, for a group of a parser; the model itself is the verb's own argument."""
    group.add_argument("--engine", choices=("auto", "plain", "null"), default="auto", help="plain: the slow reference")
    group.add_argument("--dtype", default="auto", help="auto, float32, bfloat16, float16")
    group.add_argument("--device", default="auto", help="auto, cpu or cuda")
    group.add_argument("--max-model-len", type=int, help="most tokens of a request, prompt and output")
    group.add_argument(
        "--tensor-parallel-size", "-tp", type=int, default=1, help="ranks that share the model, each a process"
    )
    group.add_argument("--load-format", choices=("auto", "dummy"), default="auto", help="dummy: random weights")
    group.add_argument("--download-dir", default="", help="where hub models are kept")
    group.add_argument(
        "--gpu-memory-utilization",
        type=float,
        default=0.9,
        help="share of the GPU's memory to use (default: %(default)s)",
    )
    group.add_argument("--kv-cache-bytes", type=int, help="memory for KV pages, of each rank")
    group.add_argument("--kv-pages", type=int, help="number of KV pages, instead of the memory")
    group.add_argument(
        "--swap-space", type=float, default=0.0, help="GiB of host memory for the KV of preempted requests (default: 0)"
    )
    group.add_argument("--page-tokens", type=int, default=16, help="tokens in a KV page (default: %(default)s)")
    group.add_argument("--block-tokens", type=int, default=64, help="tokens in a shared prefix block")
    group.add_argument("--threads", type=int, help="CPU threads of all ranks together (default: all cores)")
    group.add_argument(
        "--null-cost", default="", help="null engine: ms a step, us a prompt token, us a decode: 5,20,100"
    )


def engine_options(args: argparse.Namespace, step_tokens: int) -> EngineOptions | NullOptions:
    """What the flags say, for steps of at most so many positions. Raises ValueError for what cannot be."""
    _check_positive(args)
    if args.engine == "null":
        if args.tensor_parallel_size > 1:
            raise ValueError(f"--tensor-parallel-size {args.tensor_parallel_size}: the null engine has no ranks")
        return _null_options(args)
    return EngineOptions(
        model=args.model or str(DEMO),
        download_dir=args.download_dir,
        load_format=args.load_format,
        dtype=args.dtype,
        device=args.device,
        tensor_parallel_size=args.tensor_parallel_size,
        backend=args.engine,
        memory_share=args.gpu_memory_utilization,
        step_tokens=step_tokens,
        max_len=args.max_model_len,
        kv_bytes=args.kv_cache_bytes,
        pages=args.kv_pages,
        swap_bytes=round(args.swap_space * 2**30),
        page_tokens=args.page_tokens,
        block_tokens=args.block_tokens,
        threads=args.threads,
    )


def _check_positive(args: argparse.Namespace) -> None:
    for name in _COUNTS:
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} {value}: at least 1 is needed")
    if args.swap_space < 0:
        raise ValueError(f"--swap-space {args.swap_space:g}: 0 or more is needed")
    if args.gpu_memory_utilization <= 0:
        raise ValueError(f"--gpu-memory-utilization {args.gpu_memory_utilization:g}: more than 0 is needed")


def _null_options(args: argparse.Namespace) -> NullOptions:
    cost = NullOptions().cost
    if args.null_cost:
        try:
            step_ms, prompt_us, decode_us = map(float, args.null_cost.split(","))
        except ValueError:
            raise ValueError(f"--null-cost {args.null_cost}: three numbers are needed, as in 5,20,100") from None
        cost = (step_ms * 1e6, prompt_us * 1e3, 0.0, decode_us * 1e3, 0.0)
    return NullOptions(
        pages=args.kv_pages or NullOptions().pages,
        page_tokens=args.page_tokens,
        block_tokens=args.block_tokens,
        max_len=args.max_model_len or NullOptions().max_len,
        cost=cost,
    )
