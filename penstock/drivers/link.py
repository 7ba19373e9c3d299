"""A link that transfers share: each gets an equal part of its bandwidth while it lasts (processor sharing).

What max-min fairness gives on a single bottleneck. Knows nothing of what is transferred.
"""

from math import ceil

#: Sums of sizes such as those of weights are no more exact than this, in bytes.
_BYTE_PART = 1e-3


class Link:
    """`bytes_per_s` 0 stands for a link that takes no time."""

    def __init__(self, bytes_per_s: float) -> None:
        if bytes_per_s < 0:
            raise ValueError(f"a link of {bytes_per_s:g} bytes/s: it must be positive, or 0 for one that takes no time")
        self._bytes_per_ns = bytes_per_s / 1e9
        #: Transfer -> bytes left at `_at`.
        self._left: dict[int, float] = {}
        self._at = 0

    def begin(self, transfer: int, size: int, now: int) -> None:
        """A transfer of so many bytes starts, at `now` in ns."""
        self._move_on(now)
        self._left[transfer] = size if self._bytes_per_ns else 0.0

    def due(self) -> int | None:
        """When the next transfer ends if no other starts; None: there is none."""
        if not self._left:
            return None
        least = min(self._left.values())
        return self._at + (ceil(least * len(self._left) / self._bytes_per_ns) if self._bytes_per_ns else 0)

    def ended(self, now: int) -> list[int]:
        """Transfers that are through by now; they are told once."""
        self._move_on(now)
        # Rounding leaves less than what a ns moves, or on a very slow link a tiny part of a byte.
        least = max(self._bytes_per_ns, _BYTE_PART)
        through = [transfer for transfer, left in self._left.items() if left <= least]
        for transfer in through:
            del self._left[transfer]
        return through

    def _move_on(self, now: int) -> None:
        if self._left:
            moved = (now - self._at) * self._bytes_per_ns / len(self._left)
            self._left = {transfer: max(0.0, left - moved) for transfer, left in self._left.items()}
        self._at = now
