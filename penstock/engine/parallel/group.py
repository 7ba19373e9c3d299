"""What the ranks of one instance compute together: sums and concatenations of tensors.

Between processes on CPUs each sends its part to each, over sockets made for them; between GPUs it is NCCL. (Not gloo:
its sums of a decode step's size took ten times as long, see docs/journal.md.) A group is its object alone: torch's
default world is not touched.
"""

from collections.abc import Sequence
from datetime import timedelta
from socket import SO_RCVBUF, SO_SNDBUF, SOL_SOCKET, socket
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

#: How long a rank waits for the others within a step. A layer's work on a long prompt is the most that they differ by,
#: and what the first step compiles.
WAIT_S = 120
#: What is under way to a rank at a time: all of it must find room in a socket, as all send before they receive.
_CHUNK_BYTES = 1 << 16


class RankLost(BaseException):
    """Another rank is gone, or out of step with this one: the instance cannot go on.

    No Exception, as nothing that handles a failed step could go on with the next.
    """


class Group(Protocol):
    """The place of rank `rank` among `size`. All ranks call the same verbs in the same order, with equal shapes. They
    raise RankLost if another has not come for WAIT_S."""

    rank: int
    size: int

    def sum(self, x: Tensor) -> Tensor:
        """The sum over all ranks, to the last bit the same on each; x may be overwritten."""

    def gather(self, x: Tensor) -> Tensor:
        """All ranks' x [..., n] side by side: [..., size * n]."""


class Sockets:
    """`peers`: a connected socket to each other rank, in their order."""

    def __init__(self, peers: Sequence[socket], rank: int) -> None:
        self.rank, self.size = rank, len(peers) + 1
        self._peers = peers
        for peer in peers:
            peer.settimeout(WAIT_S)
            for buffer in (SO_SNDBUF, SO_RCVBUF):
                peer.setsockopt(SOL_SOCKET, buffer, 2 * _CHUNK_BYTES)

    def sum(self, x: Tensor) -> Tensor:
        first, second, *others = self._exchange(x)
        total = first + second
        for part in others:
            total += part
        return total

    def gather(self, x: Tensor) -> Tensor:
        return torch.cat(self._exchange(x), dim=-1)

    def _exchange(self, x: Tensor) -> list[Tensor]:
        """Every rank's x, in the order of ranks."""
        own = x.contiguous()
        theirs = [torch.empty_like(own) for _ in self._peers]
        sent, taken = _bytes(own), [_bytes(part) for part in theirs]
        try:
            for start in range(0, len(sent), _CHUNK_BYTES):
                for peer in self._peers:
                    peer.sendall(sent[start : start + _CHUNK_BYTES])
                for peer, part in zip(self._peers, taken, strict=True):
                    _receive(peer, part[start : start + _CHUNK_BYTES])
        except OSError as error:
            raise RankLost(f"rank {self.rank} cannot reach another: {error}") from error
        return [*theirs[: self.rank], own, *theirs[self.rank :]]


def _bytes(x: Tensor) -> memoryview:
    flat: npt.NDArray[np.uint8] = x.flatten().view(torch.uint8).numpy()
    return memoryview(flat)  # type: ignore[arg-type]


def _receive(peer: socket, part: memoryview) -> None:
    while len(part):
        count = peer.recv_into(part)
        if not count:
            raise ConnectionError("it has closed its socket")
        part = part[count:]


class Nccl:
    """Between GPUs. `store` is a file's path, the same for all; it is not needed once a group is made."""

    def __init__(self, store: str, rank: int, size: int, device: torch.device) -> None:
        from torch.distributed import FileStore, ProcessGroupNCCL  # type: ignore[attr-defined]

        self.rank, self.size = rank, size
        options = ProcessGroupNCCL.Options()
        options._timeout = timedelta(seconds=WAIT_S)
        try:
            self._group: Any = ProcessGroupNCCL(FileStore(store, size), rank, size, options)
            # Everyone has come, and connections are made, when this is through.
            self.sum(torch.zeros(1, device=device))
            torch.cuda.synchronize(device)
        except RuntimeError as error:
            raise RankLost(f"rank {rank} of {size} could not reach the others: {error}") from error

    def sum(self, x: Tensor) -> Tensor:
        x = x.contiguous()
        try:
            self._group.allreduce([x]).wait()
        except RuntimeError as error:
            raise RankLost(f"rank {self.rank}: {error}") from error
        return x

    def gather(self, x: Tensor) -> Tensor:
        x = x.contiguous()
        parts = [torch.empty_like(x) for _ in range(self.size)]
        try:
            self._group.allgather([parts], [x]).wait()
        except RuntimeError as error:
            raise RankLost(f"rank {self.rank}: {error}") from error
        return torch.cat(parts, dim=-1)
