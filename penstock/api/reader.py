"""One answer's tokens to its text: detokenizes, finds stop strings, tells the end. No I/O, no JSON."""

from collections.abc import Collection, Sequence

import msgspec

from penstock.api.detokenize import Detokenizer
from penstock.api.sampling import TextRules
from penstock.api.stops import StopScanner
from penstock.engine.params import Logprobs


class Piece(msgspec.Struct):
    """What some more tokens add to an answer."""

    text: str
    tokens: list[int]
    #: One for each token, where asked for.
    logprobs: Sequence[Logprobs]
    #: Where in the answer's text each token begins (a part of a character: where that character does).
    offsets: list[int]
    #: "stop" or "length" at the end of the answer.
    finish: str | None = None
    #: The stop string or the stop token's id.
    stop_reason: str | int | None = None


class Reader:
    """Turns an answer's chunks into pieces. After a piece with `finish` there is no other."""

    def __init__(self, detokenizer: Detokenizer, rules: TextRules, eos: Collection[int] = ()) -> None:
        """`eos`: tokens that are not to be shown where they end the answer."""
        self._detokenizer = detokenizer
        self._scanner = StopScanner(rules.stops, rules.include_stop)
        self._rules = rules
        self._eos = eos
        self._chars = 0
        #: Output tokens so far.
        self.tokens = 0

    def push(self, tokens: list[int], logprobs: Sequence[Logprobs] | None, finish: str | None) -> Piece:
        """`finish` as in the driver's Chunk: "stop", "stop:<token id>" or "length"."""
        piece = Piece("", [], logprobs or (), [])
        for index, token in enumerate(tokens):
            ends_here = finish is not None and index == len(tokens) - 1 and self._is_end(token, finish)
            piece.tokens.append(token)
            piece.offsets.append(self._chars)
            piece.text += self._feed(token, hidden=ends_here and not self._rules.include_stop)
            if self._scanner.found is not None:
                return self._stopped(piece)
        if finish is not None:
            self._finish(piece, finish)
        return piece

    def _is_end(self, token: int, finish: str) -> bool:
        """Whether the last token only ends the answer; where a grammar is complete it belongs to it."""
        return finish.startswith("stop:") or (finish == "stop" and token in self._eos)

    def _feed(self, token: int, hidden: bool) -> str:
        self.tokens += 1
        text = "" if hidden else self._detokenizer.push((token,))
        self._chars += len(text)
        return self._scan(text)

    def _scan(self, text: str) -> str:
        if not self._rules.stops or self.tokens <= self._rules.min_tokens:
            return text
        return self._scanner.push(text)

    def _stopped(self, piece: Piece) -> Piece:
        piece.logprobs = piece.logprobs[: len(piece.tokens)]
        piece.finish, piece.stop_reason = "stop", self._scanner.found
        return piece

    def _finish(self, piece: Piece, finish: str) -> None:
        piece.text += self._scan(self._detokenizer.end())
        if self._scanner.found is not None:
            self._stopped(piece)
            return
        piece.text += self._scanner.end()
        piece.finish, _, token = finish.partition(":")
        piece.stop_reason = int(token) if token else None
