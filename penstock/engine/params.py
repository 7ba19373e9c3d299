"""How one job samples. Travels from the front to the engine; checked at the front. Knows no tensors."""

from math import inf, isfinite

import msgspec


class Sampling(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """OpenAI's and vLLM's parameters, under their names; defaults leave the distribution as it is."""

    max_tokens: int
    #: 0 is greedy.
    temperature: float = 1.0
    #: 0 or -1: all.
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    #: token id -> added to its logit
    logit_bias: dict[int, float] = {}
    #: Noise is Philox(seed, choice, index, token id); the front draws a seed where the client gives none.
    seed: int = 0
    #: Which of the request's n choices.
    choice: int = 0
    #: Number of alternatives to report with each token; None: no logprobs at all; 0: the chosen token's only.
    logprobs: int | None = None
    #: Ends the answer; the token itself is reported (the front decides whether to show it).
    stop_token_ids: list[int] = []
    #: Neither EOS nor a stop token is possible before so many tokens.
    min_tokens: int = 0
    ignore_eos: bool = False
    #: A llguidance grammar (its JSON form) that the output must match; "" for none.
    grammar: str = ""

    def __post_init__(self) -> None:
        """Raises ValueError for what means nothing."""
        for name, good, need in (
            ("max_tokens", self.max_tokens >= 1, "at least 1"),
            ("temperature", 0 <= self.temperature < inf, "0 (greedy) or more"),
            ("top_k", self.top_k >= -1, "at least 1; or 0 or -1 for all"),
            ("top_p", 0 < self.top_p <= 1, "more than 0 and at most 1"),
            ("min_p", 0 <= self.min_p <= 1, "from 0 to 1"),
            ("repetition_penalty", 0 < self.repetition_penalty < inf, "more than 0"),
            ("presence_penalty", isfinite(self.presence_penalty), "a number"),
            ("frequency_penalty", isfinite(self.frequency_penalty), "a number"),
            ("logit_bias", all(map(isfinite, self.logit_bias.values())), "of numbers"),
            ("logprobs", self.logprobs is None or self.logprobs >= 0, "0 or more, or None"),
            ("min_tokens", 0 <= self.min_tokens <= self.max_tokens, f"from 0 to max_tokens ({self.max_tokens})"),
        ):
            if not good:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be {need}")


class Logprobs(msgspec.Struct, array_like=True):
    """Natural log-probabilities, before penalties, bias, temperature and truncation (as OpenAI and vLLM report)."""

    chosen: float
    #: (token id, logprob), most likely first
    top: list[tuple[int, float]] = []
