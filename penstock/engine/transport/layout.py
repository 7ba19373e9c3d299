"""How a process keeps its part of the KV, and which part of it another needs. Integers only.

The heads of an instance's KV may be split over ranks (tensor parallelism), or held by several where there are fewer
heads than ranks. Page numbers mean the same on all ranks of an instance.
"""

from collections.abc import Sequence

import msgspec


class Layout(msgspec.Struct, frozen=True, kw_only=True):
    """The KV tensors of one rank: [layers, pages, heads, page_tokens, dim], keys and values."""

    layers: int
    pages: int
    #: Heads of the model, and the range of them that is here.
    kv_heads: int
    start: int
    end: int
    page_tokens: int
    key_dim: int
    value_dim: int
    dtype: str
    itemsize: int

    @property
    def heads(self) -> int:
        return self.end - self.start

    @property
    def token_bytes(self) -> int:
        """Of one head, in one layer."""
        return (self.key_dim + self.value_dim) * self.itemsize

    def page_bytes(self, heads: int) -> int:
        """Of so many heads of one page, in all layers."""
        return self.layers * heads * self.page_tokens * self.token_bytes


class Part(msgspec.Struct, frozen=True):
    """Heads [start, end) of the model are to come from the peer's rank `rank`."""

    rank: int
    start: int
    end: int


#: What two layouts must have in common for pages to go from one to the other.
_COMMON = ("layers", "kv_heads", "page_tokens", "key_dim", "value_dim", "dtype")


def check(own: Layout, peer: Layout) -> None:
    """Raise ValueError, saying what differs, if pages of one mean nothing to the other."""
    differing = [
        f"{name} is {getattr(peer, name)} there and {getattr(own, name)} here"
        for name in _COMMON
        if getattr(own, name) != getattr(peer, name)
    ]
    if differing:
        raise ValueError(
            f"KV pages do not fit: {', '.join(differing)}; start both instances with the same model "
            "and the same options for dtype and page_tokens"
        )


def parts(own: Layout, peers: Sequence[Layout]) -> list[Part]:
    """Who of the peer's ranks sends which of our heads; each head comes once. Raises ValueError if they do not fit."""
    for peer in peers:
        check(own, peer)
    found, have = [], own.start
    for rank, peer in sorted(enumerate(peers), key=lambda item: item[1].start):
        end = min(peer.end, own.end)
        if peer.start <= have < end:
            found.append(Part(rank, have, end))
            have = end
    if have < own.end:
        raise ValueError(
            f"KV heads {have} to {own.end - 1} are on none of the peer's {len(peers)} ranks that are known"
        )
    return found
