"""Bounds never contradict the twin: with them and without, the search has the same answer."""

import math

import numpy as np
import pytest

from penstock.core.slo import Slo
from penstock.plan.bounds import FREE, Bounds, Filter, mean_wait_s
from penstock.plan.search import Terms, find
from penstock.plan.space import Cluster, Space, options
from penstock.plan.trial import Goal, Load

OPEN = Bounds(0.0, FREE, "", 0.0)


@pytest.mark.parametrize(
    ("slo", "policies", "pool", "seed", "duration_s"),
    [
        ("ttft=250ms,tpot=100ms", ["distserve", "prefill-first"], {}, 0, 0.0),
        ("ttft=2s,tpot=45ms", ["distserve", "fcfs"], {}, 1, 0.0),
        ("ttft=2s,tpot=100ms", ["distserve", "fcfs"], {"kv_tokens": 8000}, 2, 0.0),
        ("ttft=150ms,tpot=30ms", ["distserve"], {}, 3, 0.0),
        ("ttft=1s,tpot=60ms", ["distserve"], {}, 4, 6.0),
    ],
)
def test_answers_are_those_without_bounds(
    slo: str, policies: list[str], pool: dict[str, int], seed: int, duration_s: float
) -> None:
    promised = Slo.parse(slo)
    space = Space(
        model="opt-13b", cluster=Cluster.parse("a100:3"), slo=promised, policies=policies, pps=[1], ratios=[(1, 1)],
        cost="distserve/opt-13b/tp{tp}/pp{pp}", pool=pool,
    )  # fmt: skip
    load, goal = Load(lengths="distserve:sharegpt", num_prompts=50, duration_s=duration_s), Goal(promised)
    terms = Terms(goal=goal, load=load, seeds=[seed], rate_max=8.0, precision=0.0, step=0.5)
    sieve = Filter(load, goal, [seed])
    for option in options(space):
        bounds = sieve.bounds(option)
        assert bounds.low <= bounds.high
        plain = find(option, OPEN, 0.0, terms=terms)
        assert find(option, bounds, 0.0, terms=terms).rate == plain.rate, (option.name, bounds)


def test_what_a_lone_request_misses_is_impossible() -> None:
    promised = Slo.parse("ttft=20ms,tpot=100ms")
    load = Load(lengths="fixed:1000", output_lengths="fixed:10", num_prompts=20)
    space = Space(
        model="opt-13b", cluster=Cluster.parse("a100:2"), slo=promised, cost="distserve/opt-13b/tp{tp}/pp{pp}"
    )
    sieve = Filter(load, Goal(promised), [0])
    for option in options(space):
        bounds = sieve.bounds(option)
        assert (bounds.high, bounds.low) == (0.0, 0.0)
        assert bounds.limit.startswith("prompt time")


def test_equal_prompts_wait_as_in_the_md1_queue() -> None:
    service = np.full(5, 0.1)
    assert mean_wait_s(5.0, service) == pytest.approx(5 * 0.1**2 / (2 * (1 - 0.5)))
    assert mean_wait_s(10.0, service) == math.inf
    assert mean_wait_s(5.0, service, cv=0.0) == pytest.approx(0.0)


def test_exponential_service_waits_as_in_the_mm1_queue() -> None:
    service = np.random.default_rng(0).exponential(0.1, 200_000)
    assert mean_wait_s(5.0, service) == pytest.approx(0.5 / (1 - 0.5) * 0.1, rel=0.03)


def test_even_arrivals_of_equal_prompts_do_not_wait() -> None:
    for service_s in (0.02519438, 0.1, 1 / 3):
        assert 0 <= mean_wait_s(0.5 / service_s, np.full(60, service_s), cv=0.0) < 1e-12
