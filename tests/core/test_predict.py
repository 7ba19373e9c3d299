"""The running correction: it finds how wrong a model is, for each kind of step, and a stall does not throw it off."""

import pytest

from penstock.core.predict import Predictor, regime
from penstock.core.step import Features

DECODE, PREFILL, MIXED = Features(4, 400, 4, 400, 0), Features(100, 5050, 0, 0, 1), Features(104, 5450, 4, 400, 1)


class Flat:
    """Every step takes 1 ms, it says."""

    def step_ns(self, features: Features) -> int:
        return 1_000_000

    def steps_ns(self, first: Features, growth: int, count: int) -> list[int]:
        return [self.step_ns(first)] * count

    interval_ns = step_ns


def test_regimes_are_told_apart() -> None:
    assert [regime(f) for f in (DECODE, PREFILL, MIXED)] == ["decode", "prefill", "mixed"]


def test_each_regime_is_corrected_by_its_own_steps() -> None:
    predictor = Predictor(Flat())
    for _ in range(5):
        predictor.learn(DECODE, 1_200_000)
        predictor.learn(PREFILL, 500_000)
    assert predictor.step_ns(DECODE) == 1_200_000
    assert predictor.step_ns(PREFILL) == 500_000
    assert predictor.step_ns(MIXED) == 1_000_000


def test_a_stall_moves_it_little_and_a_lasting_change_is_followed() -> None:
    predictor = Predictor(Flat())
    for _ in range(100):
        predictor.learn(DECODE, 1_000_000)
    predictor.learn(DECODE, 5_000_000_000)
    assert predictor.step_ns(DECODE) < 1_100_000
    for _ in range(150):
        predictor.learn(DECODE, 2_000_000)
    assert 1_950_000 < predictor.step_ns(DECODE) <= 2_000_000


@pytest.mark.parametrize("times", [0.02, 0.8, 1.25, 50.0])
def test_a_model_far_from_the_truth_is_right_after_a_few_steps(times: float) -> None:
    predictor = Predictor(Flat())
    for _ in range(20):
        predictor.learn(MIXED, round(times * 1_000_000))
    assert predictor.step_ns(MIXED) == pytest.approx(times * 1_000_000, rel=0.1)


def test_a_stall_of_the_very_first_step_is_forgotten() -> None:
    predictor = Predictor(Flat())
    predictor.learn(DECODE, 5_000_000_000)
    for _ in range(20):
        predictor.learn(DECODE, 1_000_000)
    assert predictor.step_ns(DECODE) < 1_050_000


def test_steps_that_vary_are_corrected_to_their_mean() -> None:
    predictor = Predictor(Flat())
    for step in range(500):
        predictor.learn(MIXED, 900_000 if step % 2 else 1_300_000)
    assert predictor.step_ns(MIXED) == pytest.approx(1_100_000, rel=0.02)


def test_without_correction_the_model_has_the_last_word() -> None:
    predictor = Predictor(Flat(), corrected=False)
    predictor.learn(DECODE, 9_000_000)
    assert predictor.step_ns(DECODE) == 1_000_000
