"""Broken lines: they never fall, many steps at once give the very numbers of each alone, a fit finds bends again."""

import random
import time

import msgspec
import pytest

from penstock.core.features import repeated
from penstock.core.step import Features
from penstock.cost.piecewise import Curve, Knots, Piecewise, fit

KNOTS = Knots((1, 2, 4, 16, 64, 256), (1, 8), (4096,))
TRUTH = Piecewise(
    Curve([0, 1, 16, 64], [4e5, 1e6, 1.3e6, 5e6], [6e5, 2e4, 77083.3, 61111.7]),
    Curve([0, 8], [0.0, 8 * 3.1e4], [3.1e4, 9e3]),
    Curve([0, 4096], [0.0, 4096 * 11.7], [11.7, 29.3]),
    25e3,
    4e3,
    7.3,
)


def steps(count: int, seed: int = 1) -> list[Features]:
    draw = random.Random(seed)
    made = []
    for _ in range(count):
        prompt = draw.choice((0, 0, 3, 16, 200, 800))
        decodes = draw.randrange(0, 60) if prompt else draw.randrange(1, 60)
        context = decodes * draw.randrange(20, 2000)
        area = prompt * draw.randrange(10, 900)
        made.append(Features(prompt + decodes, area + context, decodes, context, 1 + prompt % 3 if prompt else 0))
    return made


def test_repeated_steps_take_exactly_what_each_takes_alone() -> None:
    for first in steps(200):
        for growth, count in ((first.decodes, 1), (first.decodes, 40), (5000, 300)):
            alone = [TRUTH.step_ns(features) for features in repeated(first, growth, count)]
            assert list(TRUTH.steps_ns(first, growth, count)) == alone


def test_halves_are_rounded_alike() -> None:
    cost = Piecewise(Curve([0], [0.0], [0.0]), Curve([0], [0.0], [0.0]), Curve([0], [0.5], [0.5]), 0.0, 0.0, 0.0)
    first = Features(1, 10, 1, 10)
    assert list(cost.steps_ns(first, 1, 50)) == [cost.step_ns(features) for features in repeated(first, 1, 50)]


def test_a_larger_step_never_takes_less() -> None:
    draw = random.Random(5)
    samples = [(f, round(TRUTH.step_ns(f) * draw.uniform(0.5, 2))) for f in steps(80)]
    found = fit(samples, KNOTS)
    for features in steps(300, seed=2):
        for name in Features.__struct_fields__:
            larger = msgspec.structs.replace(features, **{name: getattr(features, name) + draw.randrange(1, 300)})
            if name in ("new", "new_context", "prompts"):
                assert found.step_ns(larger) >= found.step_ns(features)
        one_more = Features(
            features.new + 1, features.new_context + 500, features.decodes + 1, features.decode_context + 500,
            features.prompts,
        )  # fmt: skip
        assert found.step_ns(one_more) >= found.step_ns(features)


def test_a_fit_finds_what_it_was_drawn_from_where_knots_are_the_same() -> None:
    samples = [(f, TRUTH.step_ns(f)) for f in steps(400)]
    found = fit(samples, Knots((1, 16, 64), (8,), (4096,)))
    assert max(abs(found.step_ns(f) / ns - 1) for f, ns in samples) < 0.04


def test_a_few_stalled_steps_change_little() -> None:
    samples = [(f, TRUTH.step_ns(f)) for f in steps(400)]
    stalled = [(f, ns * 10 if i % 20 == 0 else ns) for i, (f, ns) in enumerate(samples)]
    found = fit(stalled, Knots((1, 16, 64), (8,), (4096,)))
    errors = sorted(abs(found.step_ns(f) / ns - 1) for f, ns in samples)
    assert errors[len(errors) // 2] < 0.05


def test_knots_that_no_sample_reaches_are_left_out_and_what_is_beyond_goes_on() -> None:
    samples = [(Features(n, n * (n + 1) // 2, 0, 0, 1), 1000 * n) for n in (1, 2, 4, 8, 16, 32)]
    found = fit(samples, KNOTS)
    assert found.rows.knots == [0, 1, 2, 4, 16]
    assert found.decodes.knots == found.contexts.knots == [0]
    assert found.step_ns(Features(320, 320, 0, 0, 1)) > found.step_ns(Features(32, 320, 0, 0, 1))


def test_what_is_no_rising_line_is_refused() -> None:
    for knots, ns, slopes in (
        ([1], [0.0], [0.0]),
        ([0, 0], [0.0, 0.0], [0.0, 0.0]),
        ([0, 1], [2.0, 1.0], [0.0, 0.0]),
        ([0], [0.0], [-1.0]),
        ([0], [float("nan")], [0.0]),
        ([0, 1], [0.0], [0.0]),
    ):
        with pytest.raises(ValueError, match=r"knots|curve"):
            Curve(knots, ns, slopes)
    with pytest.raises(ValueError, match="measure"):
        fit([], KNOTS)


def test_a_step_is_quickly_said() -> None:
    """The simulator asks millions of times. The bound is far above the microsecond or two that it takes."""
    some = steps(100)
    began = time.process_time()
    for features in some * 10:
        TRUTH.step_ns(features)
    assert (time.process_time() - began) / 1000 < 1e-4
