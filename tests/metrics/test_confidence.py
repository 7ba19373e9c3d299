"""Intervals against scipy, against their own definition, and against what they promise."""

import random
from math import sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from penstock.metrics.confidence import student, wilson

VALUES = st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=9)


@settings(deadline=None, max_examples=40)
@given(VALUES, st.sampled_from([0.8, 0.95, 0.99]))
def test_student_is_scipys(values: list[float], confidence: float) -> None:
    found = student(values, confidence)
    half = stats.t.ppf((1 + confidence) / 2, len(values) - 1) * np.std(values, ddof=1) / sqrt(len(values))
    assert (found.low, found.high) == pytest.approx((found.value - half, found.value + half), abs=1e-9)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 400), st.integers(1, 400), st.sampled_from([0.8, 0.95, 0.99]))
def test_wilson_is_scipys(hits: int, trials: int, confidence: float) -> None:
    hits = min(hits, trials)
    found = wilson(hits, trials, confidence)
    theirs = stats.binomtest(hits, trials).proportion_ci(confidence, method="wilson")
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


@pytest.mark.parametrize(("hits", "trials"), [(0, 7), (3, 10), (90, 100), (100, 100)])
def test_wilson_bounds_are_the_shares_that_a_z_test_just_allows(hits: int, trials: int) -> None:
    found = wilson(hits, trials)
    for share in (found.low, found.high):
        assert share is not None
        if 0 < share < 1:
            z = abs(hits / trials - share) / sqrt(share * (1 - share) / trials)
            assert z == pytest.approx(1.959964, rel=1e-6)


def test_a_95_percent_interval_holds_the_truth_95_times_in_a_hundred() -> None:
    draw = random.Random(5)
    found = [student([draw.gauss(3.0, 2.0) for _ in range(4)]) for _ in range(3000)]
    held = sum(i.low <= 3.0 <= i.high for i in found if i.low is not None and i.high is not None)
    assert held / len(found) == pytest.approx(0.95, abs=0.015)


def test_little_data() -> None:
    assert student([0.7]).low is None
    assert student([0.7]).value == 0.7
    assert student([1.0, 1.0, 1.0]).low == 1.0
    assert wilson(5, 5).low == pytest.approx(0.5655, abs=1e-4)
    with pytest.raises(ValueError, match="at least one trial"):
        wilson(0, 0)
    with pytest.raises(ValueError, match="not 3 of 2"):
        wilson(3, 2)
