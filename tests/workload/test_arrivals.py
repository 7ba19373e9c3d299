"""Statistics of arrival processes, with fixed seeds."""

import numpy as np
import pytest

from penstock.workload.arrivals import arrivals, diurnal


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


@pytest.mark.parametrize("kind", ["distserve", "loongserve", "llumnix"])
def test_papers_begin_at_zero(kind: str) -> None:
    times = arrivals(kind, 1000, 5.0, seed=3)
    assert times[0] == 0
    assert (np.diff(times) >= 0).all()
    assert len(arrivals(kind, 1, 5.0)) == 1
    assert len(arrivals(kind, 0, 5.0)) == 0


def test_distserve_is_gamma_after_the_first() -> None:
    drawn = np.diff(arrivals("distserve", 40_000, 5.0, cv=2.0, seed=3))
    assert drawn.mean() == pytest.approx(0.2, rel=0.05)
    assert drawn.std() / drawn.mean() == pytest.approx(2.0, rel=0.03)


@pytest.mark.parametrize("rate", [0.7, 20.0])
def test_loongserve_ends_where_it_should_and_keeps_its_form(rate: float) -> None:
    times = arrivals("loongserve", 500, rate, seed=3)
    assert times[-1] == pytest.approx(500 / rate, rel=1e-12)
    assert times * rate == pytest.approx(arrivals("loongserve", 500, 1.0, seed=3))
    assert np.diff(times).std() / np.diff(times).mean() == pytest.approx(1.0, rel=0.1)


def test_loongserve_draws_as_its_artifact() -> None:
    state, times = np.random.RandomState(0), [0.0]
    for _ in range(200):
        times.append(times[-1] + state.exponential(1.0))
    expected = [(t - times[1]) * (200 / 2.5) / (times[-1] - times[1]) for t in times[1:]]
    assert arrivals("loongserve", 200, 2.5, seed=0) == pytest.approx(expected)


@pytest.mark.parametrize("cv", [1.0, 4.0])
def test_llumnix_draws_gaps_one_by_one_after_its_lengths(cv: float) -> None:
    state = np.random.RandomState(0xCADE)
    for weights in (np.arange(1, 256) ** -2.0, np.arange(1, 512) ** -1.5):
        state.choice(len(weights), 300, p=weights / weights.sum())
    mean_s, times = 1 / 26.0, [0.0]
    for _ in range(299):
        gap_s = state.exponential(mean_s) if cv == 1 else state.gamma(1 / cv**2, cv**2 * mean_s)
        times.append(times[-1] + gap_s)
    assert arrivals("llumnix", 300, 26.0, cv=cv, seed=0xCADE) == pytest.approx(times, rel=1e-9)


def test_diurnal_follows_its_rate() -> None:
    times = diurnal(60_000, 2.0, 10.0, 1000.0, seed=3)
    expected_s = np.arange(10_001.0)
    expected = 6 * expected_s - 4 * 1000 / (2 * np.pi) * np.sin(2 * np.pi * expected_s / 1000)
    counted = np.searchsorted(times, expected_s)
    # A Poisson process strays from its mean by a few times the square root of it.
    assert np.abs(counted - expected).max() < 4 * 60_000**0.5
    rates = np.bincount((times[times < 9_000] % 1000 // 100).astype(int)) / 900
    # The mean over a tenth of a period, next to the trough and next to the peak.
    assert rates[[0, 9, 4, 5]] == pytest.approx([2.26, 2.26, 9.74, 9.74], rel=0.06)


@pytest.mark.parametrize("cv", [0.5, 1.0, 3.0])
def test_diurnal_is_as_bursty_as_asked_once_its_rate_is_made_even(cv: float) -> None:
    times = diurnal(40_000, 0.0, 8.0, 500.0, cv=cv, seed=3)
    even = 4 * times - 4 * 500 / (2 * np.pi) * np.sin(2 * np.pi * times / 500)
    gaps = np.diff(even)
    assert gaps.mean() == pytest.approx(1.0, rel=0.03)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.03)


def test_a_flat_day_is_poisson() -> None:
    assert diurnal(1000, 5.0, 5.0, 60.0, seed=3) == pytest.approx(arrivals("poisson", 1000, 5.0, seed=3))


@pytest.mark.parametrize("bad", [(-1, 2, 60), (3, 2, 60), (0, 0, 60), (1, 2, 0)])
def test_bad_days(bad: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match="trough"):
        diurnal(3, *bad)
