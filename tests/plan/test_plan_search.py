from collections.abc import Sequence
from pathlib import Path

import pytest

from penstock.core.slo import Slo
from penstock.metrics.summary import summarize
from penstock.plan import finalists, search
from penstock.plan.bounds import Bounds, Filter
from penstock.plan.search import Answer, Terms, Trials
from penstock.plan.space import Cluster, Option, Space, options
from penstock.plan.trial import Goal, Load, Tally, trial

SLO = Slo.parse("ttft=300ms,tpot=60ms")
GOAL = Goal(SLO)
LOAD = Load(lengths="uniform:100-900", output_lengths="uniform:5-60", num_prompts=50, duration_s=0.0)
SPACE = Space(
    model="opt-13b", cluster=Cluster.parse("a100:3"), slo=SLO, pps=[1], cost="distserve/opt-13b/tp{tp}/pp{pp}",
    ratios=[(1, 1), (2, 1)],
)  # fmt: skip
TERMS = Terms(goal=GOAL, load=LOAD, seeds=[0, 1], rate_max=16.0, step=0.25, best=2)


def possible() -> list[tuple[Option, Bounds]]:
    sieve = Filter(LOAD, GOAL, TERMS.seeds)
    return [(option, sieve.bounds(option)) for option in options(SPACE)]


def rates(answers: Sequence[Answer]) -> list[tuple[str, float, float]]:
    return [(answer.option.name, answer.rate, answer.above) for answer in answers]


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Answer]]:
    folder = tmp_path_factory.mktemp("search")
    return folder, search.search(possible(), TERMS, folder)


@pytest.mark.parametrize("rate", [2.0, 9.0])
def test_a_whole_trial_counts_as_the_report_does(rate: float) -> None:
    for option, _ in possible():
        tally, records = trial(option, LOAD, GOAL, rate * option.gpus, 0)
        goodput = summarize(records, SLO).goodput
        assert goodput is not None
        assert tally.judged == tally.requests == len(records)
        assert tally.share(GOAL) == pytest.approx(goodput.share)
        assert max(tally.ttft, tally.tpot) <= tally.late <= tally.ttft + tally.tpot


def test_what_ends_early_has_the_verdict_of_the_whole() -> None:
    option, _ = possible()[0]
    for rate in (1.0, 4.0, 6.0, 12.0):
        trials = Trials(option, TERMS, None)
        whole = Tally(requests=0)
        for seed in TERMS.seeds:
            whole = whole.plus(trial(option, LOAD, GOAL, rate * option.gpus, seed)[0])
        assert trials.carries(rate) == (whole.missed(GOAL) <= GOAL.allowed(whole.requests))


def test_rates_and_deployments_share_their_random_numbers() -> None:
    slow, fast = LOAD.requests(1.0, 3), LOAD.requests(4.0, 3)
    for one, other in zip(slow, fast, strict=True):
        assert (one.prompt_tokens, one.output_tokens) == (other.prompt_tokens, other.output_tokens)
        assert one.arrival_s == pytest.approx(4 * other.arrival_s, abs=1e-5)


def test_longer_runs_begin_like_short_ones() -> None:
    load = Load(lengths="distserve:sharegpt", num_prompts=10, duration_s=5.0)
    short, long = load.requests(1.0, 0), load.requests(8.0, 0)
    assert (len(short), len(long)) == (10, 40)
    assert [r.output_tokens for r in short] == [r.output_tokens for r in long[:10]]


def test_the_best_is_that_of_a_search_to_the_end(searched: tuple[Path, list[Answer]]) -> None:
    _, found = searched
    every = [search.find(option, bounds, 0.0, terms=TERMS) for option, bounds in possible()]
    whole = sorted(every, key=lambda answer: answer.order)
    assert rates(found)[: TERMS.best] == rates(whole)[: TERMS.best]
    truth = {answer.option.name: answer.rate for answer in whole}
    for answer in found:
        if answer.left:
            assert truth[answer.option.name] < answer.above
        else:
            assert truth[answer.option.name] == answer.rate


def test_processes_do_not_change_the_answer(searched: tuple[Path, list[Answer]]) -> None:
    folder, found = searched
    assert rates(search.search(possible(), TERMS, folder, jobs=2)) == rates(found)


def test_runs_that_are_there_are_not_run_again(
    searched: tuple[Path, list[Answer]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, found = searched
    monkeypatch.setattr(search, "trial", None)
    assert rates(search.search(possible(), TERMS, folder)) == rates(found)


def test_a_bound_that_is_wrong_from_below_is_found_out() -> None:
    option, bounds = possible()[0]
    right = search.find(option, bounds, 0.0, terms=TERMS)
    wrong = Bounds(low=4 * (right.rate + 1) * option.gpus, high=1e9, limit="", likely=0.0)
    assert search.find(option, wrong, 0.0, terms=TERMS).rate == right.rate


def test_what_fails_says_why(searched: tuple[Path, list[Answer]]) -> None:
    _, found = searched
    assert all(answer.limit for answer in found)


def test_the_cheapest_carries_the_load_with_the_fewest_gpus(searched: tuple[Path, list[Answer]]) -> None:
    _, found = searched
    best = found[0]
    rate = 2.2 * best.rate * best.option.gpus
    chosen = finalists.cheapest(found, rate, 100, TERMS)
    assert chosen is not None
    option, units = chosen
    assert units * option.gpus * best.rate >= rate or units >= 2
    assert finalists.cheapest(found, rate, 1, TERMS) is None


def test_finalists_are_whole_runs_of_every_seed(searched: tuple[Path, list[Answer]], tmp_path: Path) -> None:
    _, found = searched
    (series,) = finalists.over_rate(found[:1], TERMS, tmp_path)
    assert [point.cell.rate / found[0].rate for point in series.points] == pytest.approx(finalists.AROUND)
    assert all(point.requests == [50, 50] for point in series.points)
    again = finalists.over_rate(found[:1], TERMS, tmp_path)[0]
    assert again.over_rate == series.over_rate


@pytest.mark.parametrize("slo", ["tpot=50ms", "ttft=3x,tpot=50ms", ""])
def test_goals_without_a_time_to_first_token_are_refused(slo: str) -> None:
    with pytest.raises(ValueError, match="TTFT"):
        Filter(LOAD, Goal(Slo.parse(slo)), [0])
