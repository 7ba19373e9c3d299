"""The linear step cost: it finds what it was drawn from, never goes negative, minds relative error."""

import random
from pathlib import Path

import pytest

from penstock.core.features import features, repeated
from penstock.core.predict import regime
from penstock.core.step import Features, Slice, StepPlan
from penstock.cost import models
from penstock.cost.linear import Linear, fit, relative_error


def steps(count: int = 200) -> list[Features]:
    draw = random.Random(1)
    made = []
    for _ in range(count):
        prompt = draw.choice((0, 0, 16, 200, 800))
        decodes = draw.randrange(0, 40) if prompt else draw.randrange(1, 40)
        context = decodes * draw.randrange(20, 2000)
        made.append(Features(prompt + decodes, prompt * draw.randrange(10, 900) + context, decodes, context))
    return made


def test_a_fit_finds_the_coefficients_again() -> None:
    truth = Linear(5e6, 2e4, 30.0, 1e5, 12.0)
    samples = [(f, truth.step_ns(f)) for f in steps()]
    assert max(relative_error(fit(samples), samples)) < 1e-4


def test_no_coefficient_is_negative_whatever_the_noise() -> None:
    draw = random.Random(2)
    for seed in range(20):
        samples = [(f, draw.randrange(1, 10**7)) for f in steps(6 + seed)]
        found = fit(samples)
        assert min(found.base, found.prompt, found.prompt_context, found.decode, found.decode_context) >= 0


def test_small_steps_count_as_much_as_large_ones() -> None:
    """The same relative noise on a 1 ms and a 1 s step must not leave the small one to chance."""
    small, large = Features(1, 10, 1, 10), Features(2000, 10**6, 0, 0)
    found = fit([(small, 10**6), (large, 10**9)])
    assert found.step_ns(small) == pytest.approx(10**6, rel=1e-3)
    assert found.step_ns(large) == pytest.approx(10**9, rel=1e-3)


def test_a_step_takes_at_least_a_nanosecond_and_nothing_cannot_be_fitted() -> None:
    assert Linear(0, 0, 0, 0, 0).step_ns(Features(1, 1, 1, 1)) == 1
    with pytest.raises(ValueError, match="record"):
        fit([])


def test_features_count_the_context_that_each_position_sees() -> None:
    plan = StepPlan(0, [Slice(0, 0, 4), Slice(1, 10, 3), Slice(2, 7, 1)])
    seen = [*range(1, 5), *range(11, 14), 8]
    assert features(plan.slices) == Features(len(seen), sum(seen), 1, 8, 2)


def test_an_idle_request_takes_its_prompt_then_its_decodes() -> None:
    cost = Linear(100.0, 10.0, 1.0, 5.0, 2.0)
    ttft, tpot = cost.request_ns(4, 6)
    assert ttft == 100 + 10 * 4 + 1 * (1 + 2 + 3 + 4)
    assert tpot == 100 + 5 + 2 * (4 + 3)


def test_repeated_steps_have_the_features_of_their_own_plans() -> None:
    counts, starts = (4, 3, 1), (0, 10, 7)
    plans = [
        StepPlan(i, [Slice(j, s + i * n, n) for j, (s, n) in enumerate(zip(starts, counts, strict=True))])
        for i in range(5)
    ]
    growth = sum(n * n for n in counts)
    assert list(repeated(features(plans[0].slices), growth, 5)) == [features(plan.slices) for plan in plans]
    cost = Linear(100.0, 10.0, 1.0, 5.0, 2.0)
    assert list(cost.steps_ns(features(plans[0].slices), growth, 5)) == [
        cost.step_ns(features(plan.slices)) for plan in plans
    ]


def test_a_cost_file_comes_back_as_it_was(tmp_path: Path) -> None:
    file = models.CostFile(
        cost=Linear(1.0, 2.0, 3.0, 4.0, 5.0), provenance={"hardware": "h"}, errors={"all": {"mean": 0.1}}
    )
    models.save(file, tmp_path / "a" / "cost.json")
    assert models.load(tmp_path / "a" / "cost.json") == file
    (tmp_path / "b.json").write_text('{"cost": 1}')
    with pytest.raises(ValueError, match="penstock fit"):
        models.load(tmp_path / "b.json")


def test_a_corrected_cost_gives_each_regime_the_time_that_it_took() -> None:
    cost = Linear(5e6, 2e4, 30.0, 1e5, 12.0)
    some = steps(60)
    slower = {"decode": 1.3, "mixed": 0.8, "prefill": 2.0}
    measured = [(f, round(cost.step_ns(f) * slower[regime(f)])) for f in some]
    scaled = models.corrected(cost, measured)
    assert scaled.regimes == pytest.approx({regime(f): slower[regime(f)] for f in some}, rel=1e-6)
    first = some[0]
    each = [scaled.step_ns(f) for f in repeated(first, 50, 20)]
    assert list(scaled.steps_ns(first, 50, 20)) == each
