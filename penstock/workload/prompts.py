"""What a request's prompt says, and the synthetic datasets. Seeded; knows no tokenizer and no server.

A prompt is a list of symbols, numbers below the size of whatever alphabet the server takes: `target` turns
them into token ids or words. Two prompts share a prefix exactly as far as their requests share `hash_ids`
from the start.
"""

from functools import lru_cache

import msgspec
import numpy as np

from penstock.workload.arrivals import Times
from penstock.workload.trace import Request

#: Plain words for servers that take text only. Most tokenizers have each, with its blank, as one token.
_TEXT = """
    the of and to in a is that for it as was with be by on not he his but at are this have from or had an
    they which one you were all her she there would their we him been has when who will no more if out so
    up said what its about than into them can only other time new some could these two may first then do
    any like my now over such our man me even most made after also well many must before great back through
    long where much should down own good each how just people too still day here old life both world year
    water little work left another end state house right small place home never again under last might
    while part same high once use city light night found hand head young white open near green school door
    face book word river road tree money
"""
WORDS = _TEXT.split()


class Prompts:
    """Draws the symbols of prompts; the same seed gives the same prompts."""

    def __init__(self, symbols: int, seed: int = 0) -> None:
        self._symbols = symbols
        self._seed = seed
        self._block = lru_cache(4096)(self._draw)

    def of(self, request: Request, index: int) -> list[int]:
        """The prompt of request number `index`: `request.prompt_tokens` symbols."""
        prompt: list[int] = []
        for key in request.hash_ids:
            prompt += self._block(request.block_tokens, 0, key % 2**64)
        own = request.prompt_tokens - len(prompt)
        return prompt + self._draw(own, 1, index) if own > 0 else prompt[: request.prompt_tokens]

    def _draw(self, count: int, stream: int, key: int) -> list[int]:
        rng = np.random.default_rng([self._seed, 3 + stream, key])
        drawn: list[int] = rng.integers(0, self._symbols, count).tolist()
        return drawn


def random_requests(
    count: int, input_len: int, output_len: int, *, range_ratio: float = 0.0, seed: int = 0
) -> list[Request]:
    """Lengths uniform within `range_ratio` of their means, nothing shared; all arrive at 0 s.

    `vllm bench serve`'s `random`. Raises ValueError unless 0 <= range_ratio < 1.
    """
    if not 0 <= range_ratio < 1:
        raise ValueError(f"the range ratio {range_ratio:g} must be at least 0 and below 1")
    rng = np.random.default_rng([seed, 5])
    prompts, outputs = (_around(rng, count, mean, range_ratio) for mean in (input_len, output_len))
    return [Request(arrival_s=0.0, prompt_tokens=p, output_tokens=o) for p, o in zip(prompts, outputs, strict=True)]


def prefix_requests(
    count: int, *, prefixes: int, prefix_len: int, suffix_len: int, output_len: int, seed: int = 0
) -> list[Request]:
    """Each prompt is one of `prefixes` shared prefixes, drawn evenly, and a suffix of its own; all arrive
    at 0 s.

    `vllm bench serve`'s `prefix_repetition`.
    """
    groups = np.random.default_rng([seed, 6]).permutation(np.arange(count) % prefixes)
    return [
        Request(
            arrival_s=0.0,
            prompt_tokens=prefix_len + suffix_len,
            output_tokens=output_len,
            hash_ids=(group,) if prefix_len else (),
            block_tokens=max(1, prefix_len),
        )
        for group in groups.tolist()
    ]


def at_times(requests: list[Request], times: Times) -> list[Request]:
    """The requests in their order, arriving at these times (s, ascending)."""
    return [msgspec.structs.replace(r, arrival_s=t) for r, t in zip(requests, times.tolist(), strict=True)]


def _around(rng: np.random.Generator, count: int, mean: int, ratio: float) -> list[int]:
    low, high = max(1, round(mean * (1 - ratio))), max(1, round(mean * (1 + ratio)))
    drawn: list[int] = rng.integers(low, high, count, endpoint=True).tolist()
    return drawn
