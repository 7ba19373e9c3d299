"""A network that transfers share. Each transfer uses some ends of it (the ports of two instances; the one port of a
store), every end has the same bandwidth and gives each of its transfers an equal part, and a transfer goes as fast as
its most crowded end lets it.

On one end that is processor sharing; on several it is a little less than max-min fairness would give, since what a
transfer cannot use is not passed on. Knows nothing of what is transferred.
"""

from collections import Counter
from math import ceil

#: Sums of sizes such as those of weights are no more exact than this, in bytes.
_BYTE_PART = 1e-3


class Link:
    """`bytes_per_s` 0 stands for a link that takes no time."""

    def __init__(self, bytes_per_s: float) -> None:
        if bytes_per_s < 0:
            raise ValueError(f"a link of {bytes_per_s:g} bytes/s: it must be positive, or 0 for one that takes no time")
        self._bytes_per_ns = bytes_per_s / 1e9
        #: Transfer -> bytes left at `_at`, and the ends that it uses.
        self._left: dict[int, float] = {}
        self._ends: dict[int, tuple[int, ...]] = {}
        #: End -> transfers that use it.
        self._users: Counter[int] = Counter()
        self._at = 0

    def begin(self, transfer: int, size: int, now: int, ends: tuple[int, ...] = (0,)) -> None:
        """A transfer of so many bytes starts, at `now` in ns."""
        self._move_on(now)
        self._left[transfer] = size if self._bytes_per_ns else 0.0
        self._ends[transfer] = ends
        self._users.update(ends)

    def due(self) -> int | None:
        """When the next transfer ends if no other starts; None: there is none."""
        if not self._left:
            return None
        if not self._bytes_per_ns:
            return self._at
        each = ((left * self._crowd(transfer)) for transfer, left in self._left.items())
        return self._at + ceil(min(each) / self._bytes_per_ns)

    def ended(self, now: int) -> list[int]:
        """Transfers that are through by now; they are told once."""
        self._move_on(now)
        # Rounding leaves less than what a ns moves, or on a very slow link a tiny part of a byte.
        least = max(self._bytes_per_ns, _BYTE_PART)
        through = [transfer for transfer, left in self._left.items() if left <= least]
        for transfer in through:
            del self._left[transfer]
            self._users.subtract(self._ends.pop(transfer))
        return through

    def _crowd(self, transfer: int) -> int:
        """Transfers on the most crowded of its ends."""
        return max(self._users[end] for end in self._ends[transfer])

    def _move_on(self, now: int) -> None:
        span = now - self._at
        if self._left and span:
            moved = {transfer: span * self._bytes_per_ns / self._crowd(transfer) for transfer in self._left}
            self._left = {transfer: max(0.0, left - moved[transfer]) for transfer, left in self._left.items()}
        self._at = now
