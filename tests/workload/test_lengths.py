"""Lengths have the quantiles, the means and the laws that their names promise."""

import os
from pathlib import Path

import numpy as np
import pytest

from penstock.workload import lengths, quantiles
from penstock.workload.lengths import draw, one
from penstock.workload.published import DISTSERVE_SHAREGPT, LLUMNIX_SEED, LOONGSERVE_SHAREGPT

#: Where published traces are at hand, in a folder that we are told.
TRACES = Path(os.environ.get("PENSTOCK_TRACES", "traces"))
MANY = 400_000


def quantile(values: np.ndarray, *percents: float) -> list[float]:
    return np.percentile(values, percents).tolist()


def test_fixed_and_uniform() -> None:
    assert one("fixed:7", 3).tolist() == [7, 7, 7]
    drawn = one("uniform:3-5", 9_000)
    assert np.bincount(drawn)[3:] == pytest.approx([3_000] * 3, rel=0.05)


def test_lognormal_has_the_mean_asked_for_and_a_cap() -> None:
    drawn = one("lognormal:500:1", MANY)
    assert drawn.mean() == pytest.approx(500, rel=0.01)
    assert np.log(drawn).std() == pytest.approx(1.0, rel=0.01)
    assert np.median(drawn) == pytest.approx(500 * np.exp(-0.5), rel=0.01)
    assert one("lognormal:500:1:600", 1000).max() == 600


def test_power_law_is_one() -> None:
    drawn = one("powerlaw:1.5:4-6", MANY)
    weights = np.array([4.0, 5.0, 6.0]) ** -1.5
    assert np.bincount(drawn)[4:] / MANY == pytest.approx(weights / weights.sum(), rel=0.01)


@pytest.mark.parametrize(
    ("size", "published"),
    [("S", (35, 103, 412, 1682)), ("M", (30, 163, 1285, 4576)), ("L", (54, 596, 3127, 5262))],
)
def test_llumnix_has_its_published_percentiles(size: str, published: tuple[float, ...]) -> None:
    prompts, outputs = draw(f"llumnix:{size}-{size}", 200_000, seed=LLUMNIX_SEED)
    for drawn in (prompts, outputs):
        assert quantile(drawn, 50, 80, 95, 99) == pytest.approx(published, rel=0.05)
        assert drawn.max() <= 6144
    assert abs(np.corrcoef(prompts, outputs)[0, 1]) < 0.01


@pytest.mark.parametrize(
    ("size", "paper"), [("S", (38, 113, 413, 1464)), ("M", (32, 173, 1288, 4208)), ("L", (55, 582, 3113, 5166))]
)
def test_llumnix_with_its_seed_has_the_percentiles_of_the_paper_to_the_token(size: str, paper: tuple[int, ...]) -> None:
    prompts, _ = draw(f"llumnix:{size}-{size}", 10_000, seed=LLUMNIX_SEED)
    assert [round(q) for q in quantile(prompts, 50, 80, 95, 99)] == list(paper)


def test_llumnix_draws_as_numpy_does() -> None:
    state = np.random.RandomState(5)
    expected = []
    for mean, alpha in ((128, 2.0), (512, 1.15)):
        ranks = np.arange(1, 2 * mean)
        weights = ranks**-alpha
        drawn = state.choice(ranks, 1000, p=weights / weights.sum())
        expected.append(np.minimum(6144, np.ceil(drawn * (mean / drawn.mean()))).astype(int).tolist())
    assert [column.tolist() for column in draw("llumnix:S-L", 1000, seed=5)] == expected


def test_zipf_with_its_parameters_is_the_same_law() -> None:
    assert quantile(one("zipf:1.5:256:6144", MANY), 50, 80, 95, 99) == pytest.approx([30, 163, 1285, 4576], rel=0.05)
    assert one("zipf:1.5:256", 50_000).mean() == pytest.approx(256, rel=0.01)


@pytest.mark.parametrize(
    ("name", "mean", "published"),
    [
        ("1.0", 20_100, (1379, 73_900, 181_000)),
        ("1.2", 7_900, (160, 17_300, 147_000)),
        ("1.4", 2_500, (51, 2_000, 69_500)),
    ],
)
def test_loongserve_zipf_has_its_percentiles(name: str, mean: float, published: tuple[float, ...]) -> None:
    prompts, _ = draw(f"loongserve:zipf-{name}", MANY)
    assert prompts.mean() == pytest.approx(mean, rel=0.03)
    assert quantile(prompts, 50, 90, 99) == pytest.approx(published, rel=0.05)
    assert (prompts.min(), prompts.max() < 200_000) == (10, True)


def test_loongserve_sharegpt_has_its_percentiles() -> None:
    prompts, outputs = draw("loongserve:sharegpt", MANY)
    assert (prompts.mean(), outputs.mean()) == pytest.approx((897, 233), rel=0.02)
    assert quantile(prompts, 5, 25, 50, 75, 90, 95, 99) == pytest.approx(
        [28, 397, 822, 1345, 1826, 2020, 2202], rel=0.05
    )
    assert quantile(outputs, 25, 50, 75, 90, 99) == pytest.approx([22, 137, 383, 602, 974], rel=0.03)


def test_loongserve_sharegpt_is_of_its_file() -> None:
    path = TRACES / "sharegpt_lengths.csv"
    if not path.exists():
        pytest.skip(f"the lengths of LoongServe's ShareGPT run are not at {path}; PENSTOCK_TRACES may name the folder")
    columns = np.loadtxt(path, delimiter=",", skiprows=1).T
    kept = [np.quantile(column, LOONGSERVE_SHAREGPT.bands).round().tolist() for column in columns]
    assert kept == [list(LOONGSERVE_SHAREGPT.prompts), list(LOONGSERVE_SHAREGPT.outputs[0])]
    prompts, outputs = draw(f"trace:{path}", 3 * len(columns[0]))
    counts = np.unique(np.stack([prompts, outputs]), axis=1, return_counts=True)[1]
    assert set(counts % 3) == {0}


def test_distserve_sharegpt_has_its_percentiles() -> None:
    prompts, outputs = draw("distserve:sharegpt", MANY)
    assert (prompts.mean(), outputs.mean()) == pytest.approx((758.7, 186.3), rel=0.03)
    assert quantile(prompts, 50, 90, 99) == pytest.approx([680, 1543, 1922], rel=0.02)
    assert quantile(outputs, 50, 90, 99) == pytest.approx([76, 507, 968], rel=0.03)
    assert (prompts + outputs).max() < 2048 == DISTSERVE_SHAREGPT.total_max + 1


@pytest.mark.parametrize(
    ("spec", "means", "longest"),
    [("distserve:humaneval", (171.3, 98.2), 1000), ("distserve:longbench", (1738.3, 90.7), 2040)],
)
def test_distserve_others_have_their_means(spec: str, means: tuple[float, float], longest: int) -> None:
    prompts, outputs = draw(spec, MANY)
    assert (prompts.mean(), outputs.mean()) == pytest.approx(means, rel=0.025)
    assert (prompts + outputs).max() <= longest


@pytest.mark.parametrize(
    ("name", "prompt", "answer"),
    [
        ("sharegpt", (306, 74, 348, 1484, 3388), (500, 487, 781, 988, 1234)),
        ("burstgpt", (830, 582, 1427, 2345, 3549), (271, 243, 434, 669, 964)),
    ],
)
def test_llumnix_chats_have_their_mean_and_percentiles(
    name: str, prompt: tuple[float, ...], answer: tuple[float, ...]
) -> None:
    for drawn, published in zip(draw(f"llumnix:{name}", MANY), (prompt, answer), strict=True):
        assert [drawn.mean(), *quantile(drawn, 50, 80, 95, 99)] == pytest.approx(published, rel=0.03)


def test_azure_has_the_means_of_its_trace() -> None:
    prompts, outputs = draw("azure-conv-2023", 100_000)
    assert (prompts.mean(), outputs.mean()) == pytest.approx((1154.7, 211.1), rel=0.03)
    assert np.corrcoef(prompts, outputs)[0, 1] < -0.05


def test_a_table_gives_back_what_it_was_fitted_to() -> None:
    rng = np.random.default_rng(1)
    prompts = rng.lognormal(6, 1, 50_000)
    outputs = prompts * rng.uniform(0.5, 1.5, 50_000)
    again = quantiles.fit(prompts, outputs).draw(50_000, rng)
    for ours, theirs in zip(again, (prompts, outputs), strict=True):
        assert quantile(ours, 5, 25, 50, 75, 95) == pytest.approx(quantile(theirs, 5, 25, 50, 75, 95), rel=0.06)
    correlations = [np.corrcoef(*np.log(pair))[0, 1] for pair in (again, (prompts, outputs))]
    assert correlations[0] == pytest.approx(correlations[1], abs=0.05)


def test_answers_of_another_spec() -> None:
    prompts, outputs = draw("llumnix:S-S", 50, outputs="fixed:9", seed=1)
    assert prompts.tolist() == draw("llumnix:S-S", 50, seed=1)[0].tolist()
    assert set(outputs.tolist()) == {9}
    prompts, outputs = draw("uniform:1-1000", 50, outputs="uniform:1-1000")
    assert prompts.tolist() != outputs.tolist()


def test_seeded() -> None:
    for spec in ("azure-conv-2023", "llumnix:M-M", "loongserve:zipf-1.2", "distserve:sharegpt"):
        one_, again, other = (draw(spec, 50, seed=seed)[0].tolist() for seed in (1, 1, 2))
        assert one_ == again != other


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("fixed:0", "'0' must be a whole number of tokens, at least 1"),
        ("fixed", "must be a whole number"),
        ("zipf:1", "zipf takes 2 to 3 parts after its name"),
        ("fixed:1:2", "fixed takes 1 part after its name"),
        ("uniform:9-3", "from the shorter to the longer"),
        ("uniform:9", "must be a whole number"),
        ("zipf:0:9", "must be a positive number"),
        ("zipf:1:9:9:9", "zipf takes 2 to 3 parts"),
        ("powerlaw:1:1-99999999", "at most 10000000"),
        ("lognormal:many:1", "could not convert"),
        ("weibull:3", "write fixed:512, uniform:LO-HI"),
    ],
)
def test_bad_specs_are_told_how_they_are_written(spec: str, says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        lengths.one(spec, 3)
    assert spec in str(caught.value)
    assert "lognormal:MEAN:SIGMA[:CAP]" in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("llumnix:S", "input-output sizes"),
        ("llumnix:S-XL", "input-output sizes"),
        ("loongserve:zipf-3", "write sharegpt, zipf-1.0"),
        ("distserve:", "write distserve:sharegpt"),
        ("fixed:3", "say those of the answers too"),
    ],
)
def test_bad_names(spec: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        draw(spec, 3)
