"""The running correction: it finds how wrong a model is, for each kind of step, and a stall does not throw it off."""

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


def test_without_correction_the_model_has_the_last_word() -> None:
    predictor = Predictor(Flat(), corrected=False)
    predictor.learn(DECODE, 9_000_000)
    assert predictor.step_ns(DECODE) == 1_000_000
