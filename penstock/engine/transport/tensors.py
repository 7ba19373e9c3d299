"""The store of an engine's KV tensors, wherever they are."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from penstock.engine.backend import Kv
from penstock.engine.transport.layout import Layout
from penstock.engine.transport.store import Bytes, HostStore, Piece, Region, Store, no_store


def store_of(kvs: Sequence[Kv], kv_heads: int | None = None, start: int = 0) -> Store:
    """The store of these tensors, which hold, one after the other, heads from `start` on of the model's `kv_heads`
    (None: all of them); of an engine without tensors if there are none. On a GPU there can be only one."""
    if not kvs:
        return no_store()
    layout = layout_of(kvs, kv_heads, start)
    if kvs[0].keys.device.type != "cpu":
        (kv,) = kvs
        return CudaStore(layout, integers(kv.keys), integers(kv.values))
    pieces = []
    for kv in kvs:
        pieces.append(Piece(start, integers(kv.keys).numpy(), integers(kv.values).numpy()))
        start = pieces[-1].end
    return HostStore(layout, pieces)


def layout_of(kvs: Sequence[Kv], kv_heads: int | None, start: int) -> Layout:
    keys, values = kvs[0].keys, kvs[0].values
    heads = sum(kv.keys.shape[2] for kv in kvs)
    return Layout(
        layers=keys.shape[0],
        pages=keys.shape[1],
        kv_heads=heads if kv_heads is None else kv_heads,
        start=start,
        end=start + heads,
        page_tokens=keys.shape[3],
        key_dim=keys.shape[4],
        value_dim=values.shape[4],
        dtype=str(keys.dtype).removeprefix("torch."),
        itemsize=keys.itemsize,
    )


def integers(tensor: Tensor) -> Tensor:
    """The same memory as integers of the same size: numpy knows no bfloat16, and copies need not know either."""
    return tensor.view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.itemsize])


class CudaStore:
    """KV on a GPU. Chunks pass through pinned host memory, on a stream of their own beside the engine's."""

    def __init__(self, layout: Layout, keys: Tensor, values: Tensor) -> None:
        self.layout = layout
        self.keys = keys
        self.values = values
        self.device: int | None = keys.device.index
        self._stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        self._pinned = torch.empty(0, dtype=torch.uint8)

    def gather(self, pages: Sequence[int], start: int, end: int) -> Bytes:
        """The steps that wrote the pages are over when their numbers are given away, so nothing is waited for here."""
        host = self._host(len(pages) * self.layout.page_bytes(end - start))
        first, last = start - self.layout.start, end - self.layout.start
        with torch.inference_mode(), torch.cuda.stream(self._stream):
            chosen = self._index(pages)
            found = [tensor[:, :, first:last].index_select(1, chosen).view(-1) for tensor in (self.keys, self.values)]
            middle = found[0].nbytes
            host[:middle].copy_(found[0].view(torch.uint8), non_blocking=True)
            host[middle:].copy_(found[1].view(torch.uint8), non_blocking=True)
            self._stream.synchronize()
        return host.numpy().copy()

    def scatter(self, pages: Sequence[int], start: int, end: int, chunk: Bytes | Tensor) -> None:
        first, last = start - self.layout.start, end - self.layout.start
        shape = (self.layout.layers, len(pages), end - start, self.layout.page_tokens)
        middle = len(chunk) * self.layout.key_dim // (self.layout.key_dim + self.layout.value_dim)
        with torch.inference_mode(), torch.cuda.stream(self._stream):
            chosen = self._index(pages)
            came = chunk if isinstance(chunk, Tensor) else self._upload(chunk)
            for tensor, data in ((self.keys, came[:middle]), (self.values, came[middle:])):
                tensor[:, :, first:last].index_copy_(1, chosen, data.view(tensor.dtype).view(*shape, tensor.shape[4]))
            self._stream.synchronize()

    def regions(self) -> list[Region]:
        return [Region(self.layout.start, self.layout.end, self.keys.data_ptr(), self.values.data_ptr())]

    def landing(self, size: int) -> tuple[Tensor, int]:
        memory = torch.empty(size, dtype=torch.uint8, device=self.keys.device)
        return memory, memory.data_ptr()

    def _upload(self, chunk: Bytes) -> Tensor:
        host = self._host(len(chunk))
        np.copyto(host.numpy(), chunk)
        return host.to(self.keys.device, non_blocking=True)

    def _index(self, pages: Sequence[int]) -> Tensor:
        return torch.tensor(pages, dtype=torch.int64).to(self.keys.device)

    def _host(self, size: int) -> Tensor:
        """Pinned memory of so many bytes, the same again and again: a chunk is through before the next begins."""
        if len(self._pinned) < size:
            self._pinned = torch.empty(size, dtype=torch.uint8, pin_memory=True)
        return self._pinned[:size]
