"""Plans over a trace: its arrivals, its prefixes, its stretches, and the whole of it in the end."""

from itertools import pairwise
from pathlib import Path

import pytest

from penstock.cli.main import main
from penstock.core.slo import Slo
from penstock.plan import finalists, stretch
from penstock.plan.bounds import FREE, Bounds, Filter
from penstock.plan.search import Answer, Terms, find
from penstock.plan.space import Cluster, Space, options
from penstock.plan.trial import Goal, Load, trial
from penstock.workload import trace
from penstock.workload.compose import Plan, synthesize
from penstock.workload.trace import Request

COST = "distserve/opt-13b/tp{tp}/pp{pp}"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Bursty, with prefixes that many share."""
    plan = Plan(
        lengths="uniform:10-200", output_lengths="uniform:5-40", arrival="gamma", cv=1.5, count=400, rate=7.0,
        prefixes=2, prefix_len=512, block_tokens=64, seed=5,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("trace") / "trace.jsonl"
    trace.save(synthesize(plan), path)
    return str(path)


def load_of(file: str, num_prompts: int = 80) -> Load:
    return Load(trace=file, num_prompts=num_prompts, duration_s=0.0)


def shape(requests: list[Request]) -> list[tuple[int, int, tuple[int, ...]]]:
    return [(r.prompt_tokens, r.output_tokens, r.hash_ids) for r in requests]


def test_a_run_has_the_rate_that_is_tried_and_the_traces_own_pattern(file: str) -> None:
    load = load_of(file)
    whole = stretch.whole(file)
    for seed in (0, 1, 2):
        slow, fast = load.requests(2.0, seed), load.requests(8.0, seed)
        assert trace.mean_rate(slow) == pytest.approx(2)
        assert trace.mean_rate(fast) == pytest.approx(8)
        assert shape(slow) == shape(fast)
        start = shape(whole).index(shape(slow)[0])
        assert shape(slow) == (shape(whole) * 2)[start : start + 80]
        gaps = [b.arrival_s - a.arrival_s for a, b in pairwise(slow)]
        there = [b.arrival_s - a.arrival_s for a, b in pairwise(whole[start : start + 80])]
        assert gaps[: len(there)] == pytest.approx([gap * gaps[0] / there[0] for gap in there])


def test_seeds_are_stretches_of_their_own(file: str) -> None:
    starts = {shape(stretch.of(file, seed, 50))[0] for seed in range(8)}
    assert len(starts) == 8
    assert shape(stretch.of(file, 0, 400)) == shape(stretch.whole(file))


def test_a_stretch_goes_on_from_the_start(file: str) -> None:
    requests = stretch.of(file, 1, 400)
    times = [r.arrival_s for r in requests]
    assert times == sorted(times)
    assert times[0] == 0
    assert sorted(shape(requests)) == sorted(shape(stretch.whole(file)))


def test_prefixes_are_kept(file: str) -> None:
    promised = Slo.parse("ttft=1s,tpot=100ms")
    space = Space(model="opt-13b", cluster=Cluster.parse("a100:1"), slo=promised, policies=["fcfs"], cost=COST)
    (option,) = options(space)
    bare = Load(lengths=f"trace:{file}", num_prompts=80, duration_s=0.0)
    first_s = [
        sum(r.ttft_ns or 0 for r in trial(option, load, Goal(promised), 1.0, 0)[1]) for load in (load_of(file), bare)
    ]
    assert first_s[0] < 0.7 * first_s[1]


def test_bounds_know_that_prefixes_are_shared(file: str) -> None:
    promised = Slo.parse("ttft=400ms,tpot=100ms")
    space = Space(model="opt-13b", cluster=Cluster.parse("a100:2"), slo=promised, pps=[1], ratios=[(1, 1)], cost=COST)
    load, goal = load_of(file, 50), Goal(promised)
    terms = Terms(goal=goal, load=load, seeds=[0, 1], rate_max=64.0, precision=0.0, step=1.0)
    sieve = Filter(load, goal, terms.seeds)
    for option in options(space):
        bounds = sieve.bounds(option)
        plain = find(option, Bounds(0.0, FREE, "", 0.0), 0.0, terms=terms)
        assert plain.rate > 0.5
        assert find(option, bounds, 0.0, terms=terms).rate == plain.rate, (option.name, bounds)


SMALL = [
    "plan", "--model", "opt-13b", "--hardware", "a100:2", "--slo", "ttft=300ms,tpot=80ms", "--num-prompts", "60",
    "--duration", "0", "--seeds", "2", "--jobs", "1", "--disable-tqdm", "--pp", "1", "--cost", COST, "--best", "1",
    "--precision", "0.2",
]  # fmt: skip


def test_the_winner_is_confirmed_on_the_whole_trace(
    file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*SMALL, "--trace", file, "--csv", str(tmp_path / "all.csv")]) == 0
    said = capsys.readouterr().out
    assert "Over the whole trace: 400 requests" in said
    row = said.split("Over the whole trace")[1].splitlines()[1].split()
    best = said.split("Best: ")[1]
    assert row[4] in best
    assert f"{float(row[0]) * int(row[1]):.4g} req/s" in best


@pytest.mark.parametrize("found", [0.5, 2.0, 8.0], ids=["too low", "about right", "far too high"])
def test_what_short_runs_found_does_not_change_what_the_whole_trace_gives(
    file: str, tmp_path: Path, found: float
) -> None:
    goal = Goal(Slo.parse("ttft=300ms,tpot=60ms"))
    terms = Terms(goal=goal, load=load_of(file).whole, seeds=[0], rate_max=16.0, step=0.25)
    space = Space(model="opt-13b", cluster=Cluster.parse("a100:2"), slo=goal.slo, pps=[1], cost=COST)
    every = options(space)
    plain = {o.name: find(o, Bounds(0.0, FREE, "", 0.0), 0.0, terms=terms) for o in every if not o.reason}
    answers = [Answer(option=option, rate=found) for option in every if not option.reason]
    whole = finalists.on_the_whole(answers, terms, tmp_path)
    assert {a.option.name: a.rate for a in whole} == {name: a.rate for name, a in plain.items()}
    assert [a.rate for a in whole] == sorted((a.rate for a in whole), reverse=True)


def test_a_trace_needs_times_and_no_lengths(file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "--trace", file, "--lengths", "fixed:5"]) == 2
    assert "leave --lengths" in capsys.readouterr().err
    timeless = tmp_path / "timeless.jsonl"
    trace.save([Request(arrival_s=0.0, prompt_tokens=5, output_tokens=5)] * 3, timeless)
    assert main([*SMALL, "--trace", str(timeless)]) == 2
    assert "no arrival times; for their lengths use --lengths trace:" in capsys.readouterr().err
