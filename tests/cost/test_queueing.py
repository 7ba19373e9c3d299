"""M/D/1 averages: equal to an exact simulation of the queue, and to the published formulas."""

import random

import pytest

from penstock.cost.queueing import mean_ttft_inter_op_s, mean_ttft_intra_op_s, mean_ttft_s


def simulated(rate: float, service_s: float, interval_s: float, count: int = 100_000) -> float:
    """Mean of wait and service where starts are at least `interval_s` apart, in order of arrival."""
    draw, now, free, total = random.Random(7), 0.0, 0.0, 0.0
    for _ in range(count):
        now += draw.expovariate(rate)
        start = max(now, free)
        free = start + interval_s
        total += start + service_s - now
    return total / count


@pytest.mark.parametrize("load", [0.1, 0.5, 0.8])
def test_one_gpu(load: float) -> None:
    assert mean_ttft_s(load / 0.2, 0.2) == pytest.approx(simulated(load / 0.2, 0.2, 0.2), rel=0.03)


@pytest.mark.parametrize("load", [0.1, 1.0, 1.6])
def test_two_as_a_pipeline(load: float) -> None:
    assert mean_ttft_inter_op_s(load / 0.2, 0.2) == pytest.approx(simulated(load / 0.2, 0.2, 0.1), rel=0.03)


@pytest.mark.parametrize("load", [0.1, 1.0, 1.4])
def test_two_on_every_operation(load: float) -> None:
    took = 0.2 / 1.7
    assert mean_ttft_intra_op_s(load / 0.2, 0.2, 1.7) == pytest.approx(simulated(load / 0.2, took, took), rel=0.03)


@pytest.mark.parametrize(("rate", "d", "k"), [(0.0, 0.3, 1.5), (2.0, 0.3, 1.5), (3.0, 0.25, 1.9)])
def test_the_published_formulas(rate: float, d: float, k: float) -> None:
    assert mean_ttft_s(rate, d) == pytest.approx(d + rate * d**2 / (2 * (1 - rate * d)))
    assert mean_ttft_inter_op_s(rate, d) == pytest.approx(d + rate * d**2 / (4 * (2 - rate * d)))
    assert mean_ttft_intra_op_s(rate, d, k) == pytest.approx(d / k + rate * d**2 / (2 * k * (k - rate * d)))


def test_intra_op_wins_at_a_low_rate_and_inter_op_at_a_high_one() -> None:
    assert mean_ttft_intra_op_s(1, 0.2, 1.6) < mean_ttft_inter_op_s(1, 0.2)
    assert mean_ttft_intra_op_s(7.5, 0.2, 1.6) > mean_ttft_inter_op_s(7.5, 0.2)


def test_saturation_and_nonsense_are_errors() -> None:
    for call in (
        lambda: mean_ttft_s(5, 0.2),
        lambda: mean_ttft_inter_op_s(10, 0.2),
        lambda: mean_ttft_intra_op_s(8, 0.2, 1.6),
    ):
        with pytest.raises(ValueError, match="saturated"):
            call()
    with pytest.raises(ValueError, match="more than 1"):
        mean_ttft_intra_op_s(1, 0.2, 1.0)
    with pytest.raises(ValueError, match="rate of 0 or more"):
        mean_ttft_s(-1, 0.2)
