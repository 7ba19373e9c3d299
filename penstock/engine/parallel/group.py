"""What the ranks of one instance compute together: sums and concatenations of tensors.

gloo between processes on CPUs, NCCL between GPUs. The group is this object alone: torch's default world is not touched,
so a process may be in several groups, or leave one.
"""

from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch.distributed import FileStore, ProcessGroupGloo  # type: ignore[attr-defined]

#: How long a rank waits for the others within a step. A layer's work on a long prompt is the most that they differ by,
#: and what the first step compiles.
WAIT_S = 120


class RankLost(BaseException):
    """Another rank is gone, or out of step with this one: the instance cannot go on.

    No Exception, as nothing that handles a failed step could go on with the next.
    """


class Group:
    """Rank `rank` of `size`. `store` is a file's path, the same for all; it is not needed once a group is made."""

    def __init__(self, store: str, rank: int, size: int, device: torch.device) -> None:
        self.rank = rank
        self.size = size
        make = _nccl if device.type == "cuda" else _gloo
        try:
            self._process_group = make(FileStore(store, size), rank, size)
            # Everyone has come, and connections are made, when this is through.
            self.sum(torch.zeros(1, device=device))
        except RuntimeError as error:
            raise RankLost(f"rank {rank} of {size} could not reach the others: {error}") from error

    def sum(self, x: Tensor) -> Tensor:
        """The sum over all ranks, in place; x is contiguous."""
        try:
            self._process_group.allreduce([x]).wait()
        except RuntimeError as error:
            raise RankLost(f"rank {self.rank}: {error}") from error
        return x

    def gather(self, x: Tensor) -> Tensor:
        """All ranks' x [rows, n] side by side: [rows, size * n]."""
        x = x.contiguous()
        parts = [torch.empty_like(x) for _ in range(self.size)]
        try:
            self._process_group.allgather([parts], [x]).wait()
        except RuntimeError as error:
            raise RankLost(f"rank {self.rank}: {error}") from error
        return torch.cat(parts, dim=-1)


def _gloo(store: FileStore, rank: int, size: int) -> Any:
    """Over loopback: gloo knows no authentication, and all ranks are on this host."""
    options = ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    options._devices = [ProcessGroupGloo.create_device(hostname="127.0.0.1")]
    options._timeout = timedelta(seconds=WAIT_S)
    return ProcessGroupGloo(store, rank, size, options)


def _nccl(store: FileStore, rank: int, size: int) -> Any:
    from torch.distributed import ProcessGroupNCCL  # only where torch is built with it

    options = ProcessGroupNCCL.Options()
    options._timeout = timedelta(seconds=WAIT_S)
    return ProcessGroupNCCL(store, rank, size, options)
