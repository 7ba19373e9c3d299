"""The plain backend: the model as it is, attention by gathering pages. Slow, for any device; the reference for others.

Jobs with several new tokens go one by one; jobs with a single one are gathered and padded, many in one call.
"""

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from penstock.engine.backend import Int32, Int64, Kv, Paged, Step, call_model, store, to_tensor

#: Positions, padding included, whose keys and values are gathered at once: 64 MB of each, where a token has 1 kB.
_GATHERED_MOST = 1 << 16


class Plain:
    """Runs on the device of the model."""

    name = "plain"

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = device

    def prepare(self, model: nn.Module) -> None:
        """The model stays as it is."""

    def forward(self, model: nn.Module, step: Step, kv: Kv) -> Tensor:
        ids, positions, emit = (to_tensor(a, self.device) for a in (step.ids, step.positions, step.emit))
        return call_model(model, ids, positions, emit, Paged(self, step, kv))

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, kv: Kv, step: Step, scale: float) -> Tensor:
        store(layer, k, v, kv, to_tensor(step.slots, self.device))
        keys, values = kv.keys[layer], kv.values[layer]
        tables = to_tensor(step.tables, self.device)
        out = q.new_empty(*q.shape[:2], values.shape[-1])
        contexts = to_tensor(step.contexts, self.device)
        for group in alike(step.contexts[: step.decodes], _GATHERED_MOST):
            jobs = to_tensor(group, self.device)
            pages = tables[jobs, : -(-int(step.contexts[group[0]]) // kv.page_tokens)]
            out[jobs] = attend_decodes(q[jobs], keys, values, pages, contexts[jobs], scale)
        for job in range(step.decodes, len(step.contexts)):
            rows = slice(step.query_start[job], step.query_start[job + 1])
            out[rows] = attend_one(q[rows], keys, values, tables[job], int(step.contexts[job]), scale)
        return out


def alike(contexts: Int32, most: int) -> Iterator[Int64]:
    """Jobs in groups of similar context, the longest first: padded to its first one's, a group has no more than `most`
    positions, or is a single job. One long job among many short ones else makes all of them long."""
    order = np.argsort(-contexts, kind="stable")
    while len(order):
        count = max(1, most // int(contexts[order[0]]))
        yield order[:count]
        order = order[count:]


def gather(cache: Tensor, table: Tensor) -> Tensor:
    """Pages of `cache` [pages, kv_heads, page_tokens, dim] side by side; [..., kv_heads, positions, dim]."""
    pages = cache[table].transpose(-4, -3)
    return pages.reshape(*pages.shape[:-3], -1, cache.shape[-1])


def attend_one(q: Tensor, keys: Tensor, values: Tensor, table: Tensor, context: int, scale: float) -> Tensor:
    """Causal attention of one job's last rows q [n, heads, dim] over its `context` positions."""
    pages = table[: -(-context // keys.shape[2])].long()
    k, v = gather(keys, pages)[:, :context], gather(values, pages)[:, :context]
    position = torch.arange(context, device=q.device)
    mask = position <= position[context - len(q) :, None]
    out = F.scaled_dot_product_attention(
        q.transpose(0, 1)[None],
        k[None],
        v[None],
        attn_mask=mask,
        scale=scale,
        enable_gqa=q.shape[1] != k.shape[0],
    )
    return out[0].transpose(0, 1)


def attend_decodes(q: Tensor, keys: Tensor, values: Tensor, tables: Tensor, contexts: Tensor, scale: float) -> Tensor:
    """Attention of one row per job, q [jobs, heads, dim], all jobs in one call.

    The query heads of a group take the place of query positions: no copy of K and V for grouped queries.
    """
    k, v = gather(keys, tables.long()), gather(values, tables.long())
    valid = torch.arange(k.shape[2], device=q.device) < contexts[:, None]
    # Beyond the context anything may lie in a page, and NaN times a weight of zero is NaN.
    v = v.masked_fill(~valid[:, None, :, None], 0)
    k = k.masked_fill(~valid[:, None, :, None], 0)
    grouped = q.reshape(len(q), k.shape[1], -1, q.shape[-1])
    out = F.scaled_dot_product_attention(grouped, k, v, attn_mask=valid[:, None, None, :], scale=scale)
    return out.reshape(len(q), -1, v.shape[-1])
