"""Gumbel noise that depends on a request and a position only: not on the batch, the device or the time.

Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): a keyed bijection of counters,
so that noise needs no state and a resumed or moved job draws what it would have drawn. Counter and key are

    counter = (token id // 4, output index, choice, 0)      key = (seed mod 2^32, seed div 2^32)

and token id takes word `id % 4` of the result.
"""

import numpy as np
import torch
from torch import Tensor

_MULTIPLY = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_MASK = 0xFFFFFFFF


def philox(counter: list[Tensor], key: list[Tensor]) -> list[Tensor]:
    """Four words of 32 bits for each counter (four) and key (two); int64 tensors that broadcast."""
    (x0, x1, x2, x3), (k0, k1) = counter, key
    for _ in range(10):
        # The product of 32-bit words can exceed 63 bits: it wraps, which the masks undo.
        p0, p1 = x0 * _MULTIPLY[0], x2 * _MULTIPLY[1]
        x0, x1, x2, x3 = (p1 >> 32) & _MASK ^ x1 ^ k0, p1 & _MASK, (p0 >> 32) & _MASK ^ x3 ^ k1, p0 & _MASK
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return [x0, x1, x2, x3]


def gumbel(
    seeds: list[int], choices: list[int], indices: list[int], vocab: int, device: torch.device | str = "cpu"
) -> Tensor:
    """Standard Gumbel noise, float32 [len(seeds), vocab]; a row for each (seed, choice, output index)."""
    words = [
        (seed & _MASK, seed >> 32 & _MASK, choice, index)
        for seed, choice, index in zip(seeds, choices, indices, strict=True)
    ]
    low, high, choice, index = torch.from_numpy(np.array(words, np.int64)).to(device).T[:, :, None]
    block = torch.arange(-(-vocab // 4), device=device)
    bits = torch.stack(philox([block, index, choice, torch.zeros_like(choice)], [low, high]), dim=-1)
    return to_gumbel(bits.flatten(1)[:, :vocab])


def to_gumbel(bits: Tensor) -> Tensor:
    """Words of 32 bits to Gumbel noise: -log(-log(1 - u)), which keeps all 32 bits where noise is large."""
    uniform = (bits.float() + 0.5) * 2.0**-32
    # Near 1 a float32 rounds to 1: that is noise of minus infinity, a token that cannot win.
    return -torch.log(-torch.log1p(-uniform))
