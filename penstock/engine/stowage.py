"""KV in host memory: what preempted jobs keep while they wait. Pages like those of the pool, which no step can use.

The core counts them (`core.pages.Host`); which is which is decided here. Copies happen in the engine's thread, between
steps, so they are through when the next step begins.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from penstock.engine.backend import Kv


class Stowage:
    """`pages` pages of the same shape as those of each cache in `kvs`."""

    def __init__(self, kvs: Sequence[Kv], pages: int) -> None:
        self._kvs = kvs
        self._kept = [Kv(_like(kv.keys, pages), _like(kv.values, pages)) for kv in kvs]
        self._free = list(range(pages))
        self._jobs: dict[int, list[int]] = {}
        self.pages = pages

    def used(self) -> int:
        return self.pages - len(self._free)

    def keep(self, job: int, pages: list[int]) -> None:
        """Copy these pages of the pool, the job's first ones."""
        assert job not in self._jobs, f"job {job} is kept already"
        mine = self._jobs[job] = [self._free.pop() for _ in pages]
        for kv, kept in zip(self._kvs, self._kept, strict=True):
            _copy(kv.keys, pages, kept.keys, mine)
            _copy(kv.values, pages, kept.values, mine)

    def give(self, job: int, pages: list[int]) -> None:
        """Copy what is kept of the job to these pages of the pool, and forget it."""
        mine = self._jobs[job]
        assert len(mine) == len(pages), f"job {job}: {len(mine)} pages are kept, {len(pages)} asked for"
        for kv, kept in zip(self._kvs, self._kept, strict=True):
            _copy(kept.keys, mine, kv.keys, pages)
            _copy(kept.values, mine, kv.values, pages)
        self.drop(job)

    def drop(self, job: int) -> None:
        """Forget what is kept of the job, if anything."""
        self._free += self._jobs.pop(job, [])


def _like(cache: Tensor, pages: int) -> Tensor:
    """Host memory for so many pages [layers, pages, kv_heads, page_tokens, dim]; pinned where a GPU is to reach it."""
    shape = (cache.shape[0], pages, *cache.shape[2:])
    return torch.empty(shape, dtype=cache.dtype, pin_memory=cache.is_cuda)


def _copy(source: Tensor, pages: list[int], target: Tensor, to: list[int]) -> None:
    """Pages of one cache to pages of another."""
    moved = source[:, torch.tensor(pages, device=source.device)].to(target.device)
    target[:, torch.tensor(to, device=target.device)] = moved
