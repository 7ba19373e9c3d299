"""Gumbel noise that depends on a request and a position only: not on the batch, the device or the time.

Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): a keyed bijection of counters,
so that noise needs no state and a resumed or moved job draws what it would have drawn. Counter and key are

    counter = (token id // 4, output index, choice, 0)      key = (seed mod 2^32, seed div 2^32)

and token id takes word `id % 4` of the result.
"""

import numpy as np
import torch
from torch import Tensor

from penstock.engine.backend import Int64

MULTIPLY = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
_MASK = 0xFFFFFFFF


def gumbel(
    seeds: list[int], choices: list[int], indices: list[int], vocab: int, device: torch.device | str = "cpu"
) -> Tensor:
    """Standard Gumbel noise, float32 [len(seeds), vocab]; a row for each (seed, choice, output index)."""
    return to_gumbel(philox_rows(requests_of(seeds, choices, indices), -(-vocab // 4), device)[:, :vocab].float())


def requests_of(seeds: list[int], choices: list[int], indices: list[int]) -> Int64:
    """What noise depends on beside the token, [n, 4]: rows of (seed low, seed high, choice, output index)."""
    rows = zip(seeds, choices, indices, strict=True)
    return np.array([(seed & _MASK, seed >> 32 & _MASK, choice, index) for seed, choice, index in rows], np.int64)


def to_gumbel(words: Tensor) -> Tensor:
    """Words of 32 bits, as float32, to Gumbel noise; in place. -log(-log(1 - u)) is precise where noise is large."""
    uniform = words.add_(0.5).mul_(2.0**-32)
    # Near 1 a float32 rounds to 1: that is noise of minus infinity, a token that cannot win.
    return uniform.neg_().log1p_().neg_().log_().neg_()


def philox(counter: list[Tensor], key: list[Tensor]) -> list[Tensor]:
    """Four words for each counter (four words) and key (two); int64 tensors that broadcast. For any device."""
    (x0, x1, x2, x3), (k0, k1) = counter, key
    for _ in range(10):
        # The product of 32-bit words can exceed 63 bits: it wraps, which the masks undo.
        p0, p1 = x0 * MULTIPLY[0], x2 * MULTIPLY[1]
        x0, x1, x2, x3 = (p1 >> 32) & _MASK ^ x1 ^ k0, p1 & _MASK, (p0 >> 32) & _MASK ^ x3 ^ k1, p0 & _MASK
        k0, k1 = (k0 + WEYL[0]) & _MASK, (k1 + WEYL[1]) & _MASK
    return [x0, x1, x2, x3]


def philox_rows(requests: Int64, blocks: int, device: torch.device | str) -> Tensor:
    """Words [n, 4 blocks] of requests [n, 4] (see `requests_of`)."""
    low, high, choice, index = torch.from_numpy(requests).to(device).T[:, :, None]
    block = torch.arange(blocks, device=device)
    return torch.stack(philox([block, index, choice, torch.zeros_like(choice)], [low, high]), dim=-1).flatten(1)
