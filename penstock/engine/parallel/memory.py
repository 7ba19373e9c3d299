"""KV tensors that two processes of a host share: those of a rank, which rank 0 reads and writes for transports.

A step is over when all ranks' sums are in, so what it wrote is there to be read; and what is written before a step is
told to the ranks is there when they run it.
"""

import mmap
import os
import tempfile
from typing import IO

import torch

from penstock.engine.backend import Kv
from penstock.engine.member import Member


def make_memory() -> IO[bytes]:
    """Memory without a name, still empty; a file without a name where the system has no such thing."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("penstock-kv"), "r+b", buffering=0)
    return tempfile.TemporaryFile(buffering=0)


def map_kv(memory: int, member: Member, pages: int) -> Kv:
    """As `member.make_kv`, over the memory behind this descriptor: all who call it alike see the same tensors."""
    shape, tokens = member.shape, member.options.page_tokens
    sizes = [(shape.layers, pages + 1, shape.kv_heads, tokens, dim) for dim in (shape.head_dim, shape.value_dim)]
    counts = [torch.Size(size).numel() for size in sizes]
    os.ftruncate(memory, sum(counts) * member.dtype.itemsize)
    flat = torch.frombuffer(mmap.mmap(memory, 0), dtype=member.dtype)
    keys, values = (part.view(size) for part, size in zip(torch.split(flat, counts), sizes, strict=True))
    return Kv(keys, values)
