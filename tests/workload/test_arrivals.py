"""Statistics of arrival processes, with fixed seeds."""

import numpy as np
import pytest

from penstock.workload.arrivals import arrivals


def gaps(kind: str, cv: float = 1.0) -> np.ndarray:
    return np.diff(arrivals(kind, 40_000, 5.0, cv=cv, seed=3), prepend=0.0)


@pytest.mark.parametrize(("kind", "cv"), [("poisson", 1.0), ("gamma", 0.5), ("gamma", 3.0), ("constant", 0.0)])
def test_rate_and_burstiness(kind: str, cv: float) -> None:
    drawn = gaps(kind, cv or 1.0)
    assert drawn.min() >= 0
    assert drawn.mean() == pytest.approx(1 / 5.0, rel=0.05)
    assert drawn.std() / drawn.mean() == pytest.approx(cv, rel=0.03, abs=1e-6)


def test_poisson_gaps_are_exponential_and_independent() -> None:
    drawn = np.sort(gaps("poisson"))
    expected = 1 - np.exp(-5.0 * drawn)
    assert np.abs(expected - np.arange(1, len(drawn) + 1) / len(drawn)).max() < 0.01
    one = gaps("poisson")
    assert abs(np.corrcoef(one[:-1], one[1:])[0, 1]) < 0.02


def test_poisson_ignores_the_cv() -> None:
    assert (gaps("poisson", 3.0) == gaps("poisson")).all()


def test_seeded() -> None:
    first, again, other = (arrivals("poisson", 5, 1.0, seed=seed) for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).all()


def test_all_at_once() -> None:
    assert not arrivals("closed", 7, 3.0).any()
    assert not arrivals("poisson", 7, float("inf")).any()


@pytest.mark.parametrize(("kind", "rate", "cv"), [("weekly", 1, 1), ("trace", 1, 1), ("gamma", 0, 1), ("gamma", 1, 0)])
def test_bad_arguments(kind: str, rate: float, cv: float) -> None:
    with pytest.raises(ValueError, match="must be"):
        arrivals(kind, 3, rate, cv=cv)
