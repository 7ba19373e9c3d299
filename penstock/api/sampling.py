"""From a request's fields to how its jobs sample, and to how their text is read; checks against the model's sizes."""

import secrets
from typing import TypeVar

import msgspec

from penstock.api.errors import bad
from penstock.api.protocol import ChatRequest, CompletionRequest, SampledRequest
from penstock.engine.base import EngineInfo
from penstock.engine.params import Sampling

T = TypeVar("T")


#: Below this (vLLM's bound) a temperature is as good as 0, and dividing by it could overflow.
_COLD = 1e-5


class TextRules(msgspec.Struct, frozen=True, kw_only=True):
    """How the front turns an answer's tokens into text."""

    stops: tuple[str, ...] = ()
    include_stop: bool = False
    skip_special: bool = True
    #: Stop strings do not count before so many tokens.
    min_tokens: int = 0


def text_rules(request: SampledRequest, show_special: bool = False) -> TextRules:
    stops = (request.stop,) if isinstance(request.stop, str) else tuple(request.stop or ())
    return TextRules(
        stops=stops,
        include_stop=bool(request.include_stop_str_in_output),
        skip_special=request.skip_special_tokens is not False and not show_special,
        min_tokens=request.min_tokens or 0,
    )


def room(wanted: int | None, prompt: int, info: EngineInfo, param: str = "max_tokens") -> int:
    """Tokens that the answer may have: what is wanted, or all that fits. ApiError (400) where it does not fit."""
    most = min(info.max_len, info.pages * info.page_tokens)
    if prompt >= most:
        message = f"The prompt has {prompt} tokens, and the model's context is {most} tokens: shorten the prompt."
        raise bad(message, "prompt", "context_length_exceeded")
    if wanted is not None and prompt + wanted > most:
        message = (
            f"The prompt has {prompt} tokens and {param} is {wanted}, together {prompt + wanted}, "
            f"and the model's context is {most} tokens: shorten the prompt or lower {param}."
        )
        raise bad(message, param, "context_length_exceeded")
    return most - prompt if wanted is None else wanted


def check_tokens(tokens: list[int], info: EngineInfo, param: str) -> None:
    if not tokens:
        raise bad("The prompt must have at least one token.", param)
    if (largest := max(tokens)) >= info.vocab or min(tokens) < 0:
        raise bad(f"Token id {largest} is not in the vocabulary: ids go from 0 to {info.vocab - 1}.", param)


def sampling_of(
    request: ChatRequest | CompletionRequest, max_tokens: int, info: EngineInfo, grammar: str, logprobs: int | None
) -> Sampling:
    """Of choice 0; the others differ by `choice` only."""
    temperature = _or(request.temperature, 1.0)
    bias = {int(token): value for token, value in (request.logit_bias or {}).items()}
    stop_ids = request.stop_token_ids or []
    for name, ids in (("logit_bias", [*bias]), ("stop_token_ids", stop_ids)):
        if ids and max(ids) >= info.vocab:
            raise bad(f"{name}: token id {max(ids)} is not in the vocabulary: ids go from 0 to {info.vocab - 1}.", name)
    if (request.min_tokens or 0) > max_tokens:
        raise bad(f"min_tokens is {request.min_tokens}, more than max_tokens ({max_tokens}): lower it.", "min_tokens")
    return Sampling(
        max_tokens=max_tokens,
        temperature=0.0 if 0 < temperature < _COLD else temperature,
        top_k=_or(request.top_k, 0),
        top_p=_or(request.top_p, 1.0),
        min_p=_or(request.min_p, 0.0),
        repetition_penalty=_or(request.repetition_penalty, 1.0),
        presence_penalty=_or(request.presence_penalty, 0.0),
        frequency_penalty=_or(request.frequency_penalty, 0.0),
        logit_bias=bias,
        seed=secrets.randbits(63) if request.seed is None else request.seed % 2**63,
        logprobs=logprobs,
        stop_token_ids=stop_ids,
        min_tokens=request.min_tokens or 0,
        ignore_eos=bool(request.ignore_eos),
        grammar=grammar,
    )


def chat_logprobs(request: ChatRequest, most: int) -> int | None:
    """Alternatives to report with each token; None: no logprobs."""
    if not request.logprobs:
        if request.top_logprobs:
            raise bad("top_logprobs needs logprobs to be true.", "top_logprobs")
        return None
    return _at_most(request.top_logprobs or 0, most, "top_logprobs")


def completion_logprobs(request: CompletionRequest, most: int) -> int | None:
    return None if request.logprobs is None else _at_most(request.logprobs, most, "logprobs")


def _at_most(value: int, most: int, param: str) -> int:
    if value > most:
        raise bad(f"{param} is {value}, and this server gives at most {most}: lower it.", param)
    return value


def _or(value: T | None, default: T) -> T:
    return default if value is None else value
