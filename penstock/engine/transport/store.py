"""The KV tensors as a transport sees them: pages go out as bytes, and bytes come in as pages.

A chunk is so many pages of a range of heads, as bytes: keys [layers, pages, heads, page_tokens, key_dim], then values
alike. Copies run in the transport's thread while the engine works in its own: with numpy, which lets go of the GIL for
them, and never with torch on a CPU, whose OpenMP pool of a second thread slows the first thread's down.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from penstock.engine.transport.layout import Layout

if TYPE_CHECKING:
    from torch import Tensor

Bytes = npt.NDArray[np.uint8]
Array = npt.NDArray[Any]


class Region(NamedTuple):
    """Where the tensors of heads `start` to `end` are."""

    start: int
    end: int
    keys_address: int
    values_address: int


class Store(Protocol):
    """Heads are the model's own numbers, from `layout.start` to `layout.end`. One thread calls it."""

    layout: Layout
    #: The GPU that has the tensors; None: they are in host memory.
    device: int | None

    def gather(self, pages: Sequence[int], start: int, end: int) -> Bytes:
        """A chunk of these pages' heads [start, end); the memory is the caller's."""

    def scatter(self, pages: Sequence[int], start: int, end: int, chunk: "Bytes | Tensor") -> None:
        """Write a chunk, in host memory or as from `landing`, to these pages. On return the bytes are there for any
        step that starts later."""

    def regions(self) -> list[Region]:
        """The tensors, for one-sided reads."""

    def landing(self, size: int) -> "tuple[Bytes | Tensor, int]":
        """Memory for a chunk of so many bytes beside the tensors, and its address."""


class Piece(NamedTuple):
    """Keys and values [layers, pages, heads, page_tokens, dim] of heads `start` on; C-contiguous, written in place."""

    start: int
    keys: Array
    values: Array

    @property
    def end(self) -> int:
        return self.start + int(self.keys.shape[2])


class HostStore:
    """KV in host memory, in pieces that follow one another in the order of the heads."""

    device: int | None = None

    def __init__(self, layout: Layout, pieces: Sequence[Piece]) -> None:
        self.layout = layout
        self.pieces = pieces

    def gather(self, pages: Sequence[int], start: int, end: int) -> Bytes:
        chunk = np.empty(len(pages) * self.layout.page_bytes(end - start), np.uint8)
        for tensor, here, part, there in self._meet(chunk, len(pages), start, end):
            for i, page in enumerate(pages):
                part[:, i, there] = tensor[:, page, here]
        return chunk

    def scatter(self, pages: Sequence[int], start: int, end: int, chunk: "Bytes | Tensor") -> None:
        assert isinstance(chunk, np.ndarray)
        for tensor, here, part, there in self._meet(chunk, len(pages), start, end):
            for i, page in enumerate(pages):
                tensor[:, page, here] = part[:, i, there]

    def regions(self) -> list[Region]:
        return [Region(p.start, p.end, p.keys.ctypes.data, p.values.ctypes.data) for p in self.pieces]

    def landing(self, size: int) -> tuple[Bytes, int]:
        memory = np.empty(size, np.uint8)
        return memory, memory.ctypes.data

    def _meet(self, chunk: Bytes, pages: int, start: int, end: int) -> Iterator[tuple[Array, slice, Array, slice]]:
        """For each tensor that a chunk of heads [start, end) concerns: it and its heads, the chunk's half and its."""
        keys, values = split(self.layout, chunk, pages, end - start)
        for piece in self.pieces:
            first, last = max(start, piece.start), min(end, piece.end)
            if first < last:
                here, there = slice(first - piece.start, last - piece.start), slice(first - start, last - start)
                yield piece.keys, here, keys, there
                yield piece.values, here, values, there


def split(layout: Layout, chunk: Bytes, pages: int, heads: int) -> tuple[Array, Array]:
    """A chunk's keys and values, each [layers, pages, heads, page_tokens, dim] of integers of the dtype's size."""
    shape = (layout.layers, pages, heads, layout.page_tokens)
    middle = layout.layers * pages * heads * layout.page_tokens * layout.key_dim * layout.itemsize
    typed = f"i{layout.itemsize}"
    return (
        chunk[:middle].view(typed).reshape(*shape, layout.key_dim),
        chunk[middle:].view(typed).reshape(*shape, layout.value_dim),
    )


def no_store() -> HostStore:
    """That of an engine without tensors."""
    layout = Layout(
        layers=0, pages=0, kv_heads=0, start=0, end=0, page_tokens=1, key_dim=0, value_dim=0, dtype="none", itemsize=1
    )
    return HostStore(layout, [])
