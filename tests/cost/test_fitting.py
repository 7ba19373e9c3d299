"""Choosing a cost model: every point is predicted by one that has not seen it, and the form that does so best wins."""

import random
from collections.abc import Sequence

import pytest

from penstock.core.predict import regime
from penstock.core.step import Features
from penstock.cost import fitting, grid
from penstock.cost.fitting import Sample
from penstock.cost.linear import Linear
from penstock.cost.piecewise import Curve, Piecewise

LINEAR = Linear(2e6, 1.1e5, 20.0, 1.4e5, 60.0)
#: Weights are read once for up to 8 rows; from 64 on, multiplying is dearer.
BENT = Piecewise(
    Curve([0, 8, 64], [2e6, 2.08e6, 6e6], [1e4, 7e4, 1.6e5]),
    Curve([0], [0.0], [2e4]),
    Curve([0], [0.0], [40.0]),
    1e5,
    0.0,
    9.0,
)


def samples(truth: Linear | Piecewise, noise: float = 0.0, name: str = "coarse") -> list[Sample]:
    draw = random.Random(3)
    steps = [grid.features(step) for step in grid.steps(name, 2048)]
    return [(what, round(truth.step_ns(what) * draw.uniform(1 - noise, 1 + noise))) for what in steps]


def test_each_form_finds_itself() -> None:
    assert fitting.choose(samples(LINEAR)).name == "linear"
    bent = fitting.choose(samples(BENT))
    assert bent.name != "linear"
    assert fitting.errors(samples(BENT), bent.held_out)["all"]["mean"] < 0.03
    assert bent.candidates["linear"] > 2 * bent.candidates[bent.name]


def test_with_noisy_points_the_error_held_out_is_about_the_noise() -> None:
    noisy = samples(BENT, noise=0.1)
    found = fitting.choose(noisy)
    assert 0.03 < fitting.errors(noisy, found.held_out)["all"]["mean"] < 0.08
    truth = [BENT.step_ns(what) for what, _ in noisy]
    clean = [(what, ns) for (what, _), ns in zip(noisy, truth, strict=True)]
    assert fitting.errors(clean, [found.cost.step_ns(what) for what, _ in clean])["all"]["mean"] < 0.05


def test_no_point_is_predicted_by_a_model_that_has_seen_it() -> None:
    points = samples(LINEAR)
    seen: list[set[Features]] = []

    class Watched(Linear, frozen=True):
        def step_ns(self, features: Features) -> int:
            assert features not in seen[-1]
            return 7

    def fit(some: Sequence[Sample]) -> Watched:
        seen.append({what for what, _ in some})
        return Watched(0, 0, 0, 0, 0)

    assert fitting.hold_out(points, fit) == [7] * len(points)
    assert len(seen) == fitting.FOLDS
    assert all(len(points) - len(some) in (len(points) // 8, len(points) // 8 + 1) for some in seen)


def test_folds_do_not_depend_on_the_order_of_points() -> None:
    points = samples(BENT, noise=0.1)
    again = points[::-1]
    assert fitting.choose(points).held_out == fitting.choose(again).held_out[::-1]


def test_errors_are_said_by_regime() -> None:
    prefill, decode, mixed = Features(8, 36, 0, 0, 1), Features(2, 20, 2, 20), Features(9, 46, 1, 10, 1)
    points = [(prefill, 100), (decode, 100), (decode, 200), (mixed, 1000)]
    found = fitting.errors(points, [110, 100, 150, 1400])
    assert found["prefill"]["mean"] == pytest.approx(0.1)
    assert found["prefill"]["bias"] == pytest.approx(0.1)
    assert found["decode"] == pytest.approx(
        {"points": 2, "mean": 0.125, "geometric": (1e-4 * 0.25) ** 0.5, "median": 0.125, "p90": 0.25, "worst": 0.25,
         "bias": -0.125}
    )  # fmt: skip
    assert found["all"]["points"] == 4
    assert found["all"]["worst"] == pytest.approx(0.4)
    assert list(fitting.errors(points[:1], [100])) == ["prefill", "all"]


def test_a_recorded_run_counts_each_kind_of_step_once_by_its_median() -> None:
    alike = [(Features(4, 4000 + i, 4, 4000 + i), 1000 + i) for i in range(50)]
    stalled = [(Features(4, 4010, 4, 4010), 90_000)] * 9
    other = [(Features(5, 4000, 5, 4000), 1300)]
    found = fitting.condense([*alike, *stalled, *other, (Features(6, 10, 6, 10), 0)])
    assert len(found) == 2
    assert 1000 <= found[0][1] <= 1050
    assert found[1] == other[0]


def test_too_few_points_are_refused() -> None:
    with pytest.raises(ValueError, match="too few"):
        fitting.choose(samples(LINEAR)[:7])
    assert fitting.choose(samples(LINEAR)[:8])


def test_recorded_steps_take_together_what_they_took_in_each_regime() -> None:
    """One in ten is stalled: the typical one is not, and all of them are."""
    truth = samples(BENT)
    steps = [(what, 5 * ns if number % 10 == 0 else ns) for number, (what, ns) in enumerate(truth * 3)]
    found = fitting.of_steps(steps)
    assert found.steps == len(steps)
    for name in {regime(what) for what, _ in steps}:
        some = [(what, ns) for what, ns in steps if regime(what) == name]
        told = sum(found.cost.step_ns(what) for what, _ in some)
        assert told == pytest.approx(sum(ns for _, ns in some), rel=1e-3)
    assert found.over > 1.05
    assert f"then times {found.over:.3f}" in found.said("a log")
    with pytest.raises(ValueError, match="say them with --cost"):
        fitting.of_steps(steps[:3])
