"""SLOs in multiples of idle time: one yardstick for all options."""

import pytest

from penstock.cli.main import main
from penstock.core.slo import Slo
from penstock.cost import named
from penstock.metrics.curves import judge
from penstock.plan import idle
from penstock.plan.bounds import FREE, Bounds, Filter
from penstock.plan.search import Terms, find
from penstock.plan.space import Cluster, Space, options
from penstock.plan.trial import Goal, Load, trial

COST = "distserve/opt-13b/tp{tp}/pp{pp}"
SLO = Slo.parse("ttft=4x,tpot=3x")
LOAD = Load(lengths="uniform:100-900", output_lengths="uniform:5-60", num_prompts=40, duration_s=0.0)
SPACE = Space(model="opt-13b", cluster=Cluster.parse("a100:2"), slo=SLO, pps=[1], ratios=[(1, 1)], cost=COST)


def test_the_yardstick_is_the_smallest_instance_of_all() -> None:
    found, said = idle.reference(options(SPACE), LOAD, 0)
    assert said == "opt-13b, tp 1, pp 1"
    for tokens in (200, 500, 800):
        first_ns, pace_ns = named.resolve("distserve/opt-13b/tp1/pp1").cost.request_ns(tokens, 32)
        assert found.ttft_base_ns + found.ttft_token_ns * tokens == pytest.approx(first_ns, rel=0.25)
        assert found.tpot_ns == pytest.approx(pace_ns, rel=0.1)
    wider, said = idle.reference([option for option in options(SPACE) if option.name == "fcfs,i=1xtp2pp1"], LOAD, 0)
    assert said == "opt-13b, tp 2, pp 1"
    assert wider.tpot_ns < found.tpot_ns


def test_multiples_are_judged_as_the_times_that_they_are() -> None:
    goal = Goal(SLO, idle=idle.reference(options(SPACE), LOAD, 0)[0])
    option = options(SPACE)[0]
    tally, records = trial(option, LOAD, goal, 6.0, 1)
    assert 0 < tally.late < tally.requests
    assert judge(records, goal.slo).share == pytest.approx(tally.share(goal))
    kept = 0
    for record in records:
        bounds = goal.bounds(record.prompt_tokens, record.output_tokens)
        kept += bounds.met(record.ttft_ns or 0, record.tpot_ns, record.e2e_ns or 0)
    assert kept == tally.requests - tally.late


def test_bounds_agree_with_the_twin() -> None:
    goal = Goal(SLO, idle=idle.reference(options(SPACE), LOAD, 0)[0])
    terms = Terms(goal=goal, load=LOAD, seeds=[0], rate_max=16.0, precision=0.0, step=1.0)
    sieve = Filter(LOAD, goal, [0])
    for option in options(SPACE):
        plain = find(option, Bounds(0.0, FREE, "", 0.0), 0.0, terms=terms)
        assert find(option, sieve.bounds(option), 0.0, terms=terms).rate == plain.rate, option.name


def test_the_report_says_what_multiples_are_of(capsys: pytest.CaptureFixture[str]) -> None:
    flags = [
        "plan", "--model", "opt-13b", "--hardware", "a100:2", "--lengths", "uniform:100-500", "--output-lengths",
        "fixed:20", "--num-prompts", "40", "--duration", "0", "--seeds", "1", "--jobs", "1", "--disable-tqdm", "--pp",
        "1", "--cost", COST, "--best", "1", "--precision", "0.2",
    ]  # fmt: skip
    assert main([*flags, "--slo", "ttft=4x,tpot=3x"]) == 0
    said = capsys.readouterr().out
    assert "ttft=4x,tpot=3x: multiples of what an idle instance takes (opt-13b, tp 1, pp 1): TTFT" in said
    assert "% within ttft=4x,tpot=3x" in said
