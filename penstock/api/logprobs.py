"""Log-probabilities in OpenAI's two shapes: chat's list of tokens, and text completion's parallel lists."""

from collections.abc import Sequence

from penstock.api.protocol import ChatLogprobs, CompletionLogprobs, TokenLogprob, TopLogprob
from penstock.api.reader import Piece
from penstock.api.tokenizer import TextTokenizer
from penstock.engine.params import Logprobs

#: JSON has no -inf; OpenAI writes this for "impossible".
FLOOR = -9999.0


def chat_logprobs(tokenizer: TextTokenizer, piece: Piece) -> ChatLogprobs:
    return ChatLogprobs(
        content=[
            _token(tokenizer, token, logprobs) for token, logprobs in zip(piece.tokens, piece.logprobs, strict=True)
        ]
    )


def completion_logprobs(tokenizer: TextTokenizer, pieces: Sequence[Piece], top: int) -> CompletionLogprobs:
    tokens = [token for piece in pieces for token in piece.tokens]
    logprobs = [entry for piece in pieces for entry in piece.logprobs]
    return CompletionLogprobs(
        text_offset=[at for piece in pieces for at in piece.offsets],
        token_logprobs=[_finite(entry.chosen) for entry in logprobs],
        tokens=[token_text(tokenizer, token) for token in tokens],
        top_logprobs=[_alternatives(tokenizer, *pair) for pair in zip(tokens, logprobs, strict=True)] if top else None,
    )


def token_text(tokenizer: TextTokenizer, token: int) -> str:
    return tokenizer.token_bytes(token).decode("utf-8", "replace")


def _token(tokenizer: TextTokenizer, token: int, logprobs: Logprobs) -> TokenLogprob:
    raw = tokenizer.token_bytes(token)
    return TokenLogprob(
        token=raw.decode("utf-8", "replace"),
        logprob=_finite(logprobs.chosen),
        bytes=list(raw),
        top_logprobs=[_top(tokenizer, other, logprob) for other, logprob in logprobs.top],
    )


def _top(tokenizer: TextTokenizer, token: int, logprob: float) -> TopLogprob:
    raw = tokenizer.token_bytes(token)
    return TopLogprob(token=raw.decode("utf-8", "replace"), logprob=_finite(logprob), bytes=list(raw))


def _alternatives(tokenizer: TextTokenizer, token: int, logprobs: Logprobs) -> dict[str, float]:
    """The most likely tokens and the chosen one. Different tokens of one text share an entry: the likeliest counts."""
    found = {token_text(tokenizer, other): _finite(logprob) for other, logprob in reversed(logprobs.top)}
    found.setdefault(token_text(tokenizer, token), _finite(logprobs.chosen))
    return found


def _finite(logprob: float) -> float:
    return max(logprob, FLOOR)
