"""Token ids to text as they come: never half a character, in all the very text that decoding the whole would give.

Byte-level vocabularies (GPT-2's kind, most of today's): each token is some bytes, and a UTF-8 decoder holds back the
incomplete character. Others (sentencepiece's kind) mark spaces in ways that depend on the neighbours: decode a short
window and show what it grew by.
"""

import codecs
from collections.abc import Callable, Sequence
from typing import Protocol


class Detokenizer(Protocol):
    def push(self, ids: Sequence[int]) -> str:
        """More tokens; returns the text that they complete."""

    def end(self) -> str:
        """No more tokens: what was held back."""


class ByteDetokenizer:
    """`bytes_of` gives the bytes of a token, none for one that is not to be shown."""

    def __init__(self, bytes_of: Callable[[int], bytes]) -> None:
        self._bytes_of = bytes_of
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, ids: Sequence[int]) -> str:
        return self._decoder.decode(b"".join(map(self._bytes_of, ids)))

    def end(self) -> str:
        return self._decoder.decode(b"", final=True)


class WindowDetokenizer:
    """`decode` turns ids into text; `shown` tells tokens that have text; `is_byte` those of one raw byte."""

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        shown: Callable[[int], bool],
        is_byte: Callable[[int], bool],
    ) -> None:
        self._decode = decode
        self._shown = shown
        self._is_byte = is_byte
        #: Tokens whose text is out, needed only as neighbours of what follows.
        self._context: list[int] = []
        self._pending: list[int] = []

    def push(self, ids: Sequence[int]) -> str:
        self._pending.extend(filter(self._shown, ids))
        # One bad byte spoils its whole run of byte tokens, so a run is shown when it is over.
        if not self._pending or self._is_byte(self._pending[-1]):
            return ""
        return self._show()

    def end(self) -> str:
        return self._show() if self._pending else ""

    def _show(self) -> str:
        before = self._decode(self._context) if self._context else ""
        text = self._decode(self._context + self._pending)[len(before) :]
        # A window must not begin with tokens that have no text: the decoder would strip the next one's space.
        self._context = self._pending if text else self._context + self._pending
        self._pending = []
        return text
