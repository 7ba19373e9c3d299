"""Noise is Philox, evenly spread, and a function of its arguments alone."""

import math

import numpy as np
import torch

from penstock.engine.noise import gumbel, philox, to_gumbel


def slow_philox(counter: list[int], key: list[int]) -> list[int]:
    """As the paper's definition, in Python's integers."""
    x, k = list(counter), list(key)
    for _ in range(10):
        a, b = 0xD2511F53 * x[0], 0xCD9E8D57 * x[2]
        x = [b >> 32 ^ x[1] ^ k[0], b % 2**32, a >> 32 ^ x[3] ^ k[1], a % 2**32]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return x


def run(counter: list[int], key: list[int]) -> list[int]:
    return [int(w) for w in philox([torch.tensor(c) for c in counter], [torch.tensor(k) for k in key])]


def test_published_vectors() -> None:
    """Known answers that come with the Random123 library."""
    ones = 0xFFFFFFFF
    assert run([0] * 4, [0] * 2) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert run([ones] * 4, [ones] * 2) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]


def test_equals_the_slow_definition() -> None:
    draw = np.random.default_rng(0)
    for _ in range(50):
        words = draw.integers(0, 2**32, 6).tolist()
        assert run(words[:4], words[4:]) == slow_philox(words[:4], words[4:])


def test_rows_follow_seed_choice_and_index() -> None:
    seed, choice, index, vocab = 2**63 + 12345, 3, 77, 11
    row = gumbel([5, seed], [0, choice], [1, index], vocab)[1]
    for token in range(vocab):
        word = slow_philox([token // 4, index, choice, 0], [seed % 2**32, seed // 2**32])[token % 4]
        assert math.isclose(row[token], -math.log(-math.log1p(-(word + 0.5) / 2**32)), rel_tol=1e-5, abs_tol=1e-6)


def test_extremes_are_numbers_or_cannot_win() -> None:
    noise = to_gumbel(torch.tensor([0.0, 1, 2**31, 2**32 - 1025, 2**32 - 1]))
    assert noise[0] > noise[1] > noise[2] > noise[3]
    assert 22 < noise[0] < 23
    assert not noise.isnan().any()
    assert noise[-1] == -math.inf


def test_noise_is_uniform_after_its_own_distribution_function() -> None:
    noise = gumbel(list(range(64)), [0] * 64, [9] * 64, 4096).double()
    counts = torch.histc((-(-noise).exp()).exp(), bins=100, min=0, max=1)
    expected = noise.numel() / 100
    chi2 = float(((counts - expected) ** 2 / expected).sum())
    assert 60 < chi2 < 150  # 99 degrees of freedom: both ends are four sigma or so away


def test_streams_do_not_correlate() -> None:
    """Neighbouring seeds, choices and indices give unrelated noise."""
    noise = gumbel([1, 2, 1, 1], [0, 0, 1, 0], [0, 0, 0, 1], 20000)
    off_diagonal = torch.corrcoef(noise).fill_diagonal_(0).abs().max()
    assert off_diagonal < 0.03


def test_winners_follow_the_softmax() -> None:
    """Chi-square of the argmax of logits plus noise against softmax, 20000 draws of one request's outputs."""
    logits = torch.tensor([2.0, 0.0, 1.0, -1.0, 0.5, 1.5, -2.0])
    draws = 20000
    noise = gumbel([42] * draws, [0] * draws, list(range(draws)), len(logits))
    counts = torch.bincount((logits + noise).argmax(1), minlength=len(logits))
    expected = logits.softmax(0) * draws
    assert float(((counts - expected) ** 2 / expected).sum()) < 22.5  # 0.1 % point, 6 degrees of freedom
