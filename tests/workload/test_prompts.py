"""Prompts share exactly what their requests say, and lengths are as asked."""

from collections import Counter

import numpy as np
import pytest

from penstock.workload.prompts import WORDS, Prompts, at_times, prefix_requests, random_requests
from penstock.workload.trace import Request, scale_lengths


def request(tokens: int, *hash_ids: int, block: int = 16) -> Request:
    return Request(arrival_s=0, prompt_tokens=tokens, output_tokens=1, hash_ids=hash_ids, block_tokens=block)


def shared(a: list[int], b: list[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def test_equal_names_give_equal_blocks_and_the_rest_is_own() -> None:
    prompts = Prompts(500, seed=1)
    one, two = prompts.of(request(60, 7, 8), 0), prompts.of(request(45, 7, 9), 1)
    assert (len(one), len(two)) == (60, 45)
    assert 16 <= shared(one, two) < 20
    same = prompts.of(request(40, 7, 8), 2)
    assert 32 <= shared(one, same) < 36
    assert prompts.of(request(20, 7, 8), 3) == one[:20]


def test_a_named_block_is_the_same_wherever_it_stands() -> None:
    prompts = Prompts(500)
    assert prompts.of(request(32, 1, 2), 0)[16:] == prompts.of(request(32, 3, 2), 1)[16:]


def test_what_is_its_own_is_nobody_elses_block() -> None:
    prompts = Prompts(500)
    assert prompts.of(request(16), 7) != prompts.of(request(16, 7), 8)


def test_symbols_are_spread_over_the_alphabet() -> None:
    drawn = Counter(Prompts(10, seed=2).of(request(5000), 0))
    assert sorted(drawn) == list(range(10))
    assert min(drawn.values()) > 400


def test_seeded() -> None:
    assert Prompts(500, 1).of(request(30, 4), 0) == Prompts(500, 1).of(request(30, 4), 0)
    assert Prompts(500, 1).of(request(30, 4), 0) != Prompts(500, 2).of(request(30, 4), 0)
    assert Prompts(500, 1).of(request(30), 0) != Prompts(500, 1).of(request(30), 1)


def test_scaled_lengths_share_as_large_a_part() -> None:
    long = [request(1024, 1, 2, block=512), request(1024, 1, 3, block=512)]
    prompts = Prompts(500)
    one, two = (prompts.of(r, i) for i, r in enumerate(scale_lengths(long, 0.1)))
    assert len(one) == 102
    assert 51 <= shared(one, two) <= 53


def test_random_lengths() -> None:
    requests = random_requests(4000, 100, 50, range_ratio=0.2, seed=1)
    for lengths, mean in (([r.prompt_tokens for r in requests], 100), ([r.output_tokens for r in requests], 50)):
        assert (min(lengths), max(lengths)) == (0.8 * mean, 1.2 * mean)
        assert np.mean(lengths) == pytest.approx(mean, rel=0.01)
    assert {(r.prompt_tokens, r.output_tokens) for r in random_requests(5, 100, 50)} == {(100, 50)}
    with pytest.raises(ValueError, match="range ratio"):
        random_requests(5, 100, 50, range_ratio=1.0)


def test_prefix_groups_are_even_and_shuffled() -> None:
    requests = prefix_requests(100, prefixes=4, prefix_len=32, suffix_len=8, output_len=5, seed=1)
    groups = [r.hash_ids for r in requests]
    assert Counter(groups) == {(g,): 25 for g in range(4)}
    assert groups != sorted(groups)
    prompts = Prompts(500)
    texts = [prompts.of(r, i) for i, r in enumerate(requests)]
    assert {len(t) for t in texts} == {40}
    assert len({tuple(t[:32]) for t in texts}) == 4
    assert len({tuple(t[32:]) for t in texts}) == 100


def test_at_times() -> None:
    assert [r.arrival_s for r in at_times([request(1), request(2)], np.array([0.5, 1.5]))] == [0.5, 1.5]


def test_words_are_distinct() -> None:
    assert len(set(WORDS)) == len(WORDS) > 100
