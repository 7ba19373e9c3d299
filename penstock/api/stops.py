"""Stop strings in a text that arrives in pieces. Knows nothing of tokens.

The answer ends where, for the first time, some stop string is complete (of several complete there, the longest
counts): a definition that does not depend on how the text was cut into pieces.
"""

from collections.abc import Sequence


class StopScanner:
    """Lets text through, but for the end that could still become a stop string."""

    def __init__(self, stops: Sequence[str], include: bool = False) -> None:
        self._stops = stops
        self._include = include
        self._held = ""
        #: The stop string that was found; nothing comes out after that.
        self.found: str | None = None

    def push(self, text: str) -> str:
        """More of the text; returns what can be shown by now."""
        if self.found is not None or not text:
            return ""
        text = self._held + text
        hit = self._first(text)
        if hit is not None:
            end, start, self.found = hit
            self._held = ""
            return text[: end if self._include else start]
        cut = len(text) - max((overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[cut:]
        return text[:cut]

    def end(self) -> str:
        """The text is over: what was held back."""
        held, self._held = self._held, ""
        return held

    def _first(self, text: str) -> tuple[int, int, str] | None:
        """(end, start, stop) of the stop string that is complete first."""
        hits = [(start + len(stop), start, stop) for stop in self._stops if (start := text.find(stop)) >= 0]
        return min(hits, default=None)


def overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`, less than the whole of it."""
    start = max(0, len(text) - len(stop) + 1)
    while (start := text.find(stop[0], start)) >= 0:
        if stop.startswith(text[start:]):
            return len(text) - start
        start += 1
    return 0
