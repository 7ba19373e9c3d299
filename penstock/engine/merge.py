"""Partial attention results over disjoint sets of keys, merged into the result over all of them.

Softmax is a weighted mean, and the log-sum-exp of a part's scores is the logarithm of that part's whole weight, so
parts merge exactly (as online softmax does: Milakov and Gimelshein 2018). Plain torch, for any device: it neither
computes attention nor knows where the parts come from.
"""

import torch
from torch import Tensor


def merge(outs: Tensor, lses: Tensor) -> tuple[Tensor, Tensor]:
    """Merge `outs` [parts, tokens, heads, head_dim] by `lses` [parts, tokens, heads] into (out [tokens, heads,
    head_dim] in the dtype of `outs`, lse [tokens, heads]).

    Works in float32 at least. A part that saw no key has lse = -inf and counts for nothing; where no part saw any, out
    is 0 and lse is -inf. Raises ValueError if the shapes do not belong together.
    """
    if outs.shape[:-1] != lses.shape:
        raise ValueError(f"outs {tuple(outs.shape)} and lses {tuple(lses.shape)} are not parts of one attention")
    wide = torch.promote_types(lses.dtype, torch.float32)
    lses = lses.to(wide)
    lse = torch.logsumexp(lses, dim=0)
    weights = torch.exp(lses - torch.where(lse == -torch.inf, 0.0, lse))
    # A part without keys may hold anything, NaN included; 0 x NaN must not reach the sum.
    parts = torch.where(weights[..., None] > 0, outs.to(wide), 0.0)
    return (weights[..., None] * parts).sum(0).to(outs.dtype), lse
