"""Output that must match a grammar of llguidance. The front makes and checks grammars; here they are followed.

No tensors: a mask is an array of booleans.
"""

from collections import OrderedDict
from pathlib import Path

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher, LLTokenizer


class GrammarState:
    """Where one job's output stands in its grammar."""

    def __init__(self, matcher: LLMatcher, vocab: int) -> None:
        self._matcher = matcher
        self._vocab = vocab

    def allowed(self) -> npt.NDArray[np.bool_]:
        """Which tokens may come next, [vocab]."""
        mask = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        bits = np.unpackbits(mask, count=self._vocab, bitorder="little")
        return bits.view(np.bool_)

    def accept(self, token: int) -> str:
        """Go on by one token; what is wrong with it, or ""."""
        return "" if self._matcher.consume_token(token) else self._matcher.get_error() or "rejected"

    @property
    def complete(self) -> bool:
        """Whether nothing can follow."""
        return bool(self._matcher.is_stopped())


class Grammars:
    """Compiles grammars for one vocabulary; the last ones are kept, since requests often share a schema."""

    def __init__(self, folder: Path, vocab: int, eos_token_ids: list[int], kept: int = 64) -> None:
        self._vocab = vocab
        self._kept = kept
        #: Loaded at once: it takes from a tenth of a second to some, in which no request could go on.
        self._tokenizer = _load(folder, vocab, eos_token_ids)
        self._fresh: OrderedDict[str, LLMatcher] = OrderedDict()

    def start(self, grammar: str) -> GrammarState:
        """The state before any output. Raises ValueError if the grammar or the tokenizer cannot be used."""
        if grammar not in self._fresh:
            self._fresh[grammar] = self._compile(grammar)
            if len(self._fresh) > self._kept:
                self._fresh.popitem(last=False)
        self._fresh.move_to_end(grammar)
        return GrammarState(self._fresh[grammar].deep_copy(), self._vocab)

    def _compile(self, grammar: str) -> LLMatcher:
        if isinstance(self._tokenizer, str):
            raise ValueError(f"grammar: {self._tokenizer}")
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0)
        if matcher.is_error():
            raise ValueError(f"grammar: {matcher.get_error()}")
        return matcher


def _load(folder: Path, vocab: int, eos_token_ids: list[int]) -> LLTokenizer | str:
    """The model's tokenizer; or why there is none, which concerns nobody but who asks for a grammar."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        return f"{folder} has no tokenizer.json, which structured output needs"
    try:
        return LLTokenizer(str(path), n_vocab=vocab, eos_token=eos_token_ids or None)
    except Exception as error:
        # The library names no errors of its own.
        return f"{path} cannot be used for structured output: {error}"
