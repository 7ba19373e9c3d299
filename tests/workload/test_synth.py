"""The synthesizer gives back what it was fitted to."""

import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from penstock.workload import synth, trace
from penstock.workload.synth import AZURE_CONV_2023, draw, fit

#: Where the trace is at hand: azure_2023_conv.csv (Azure/AzurePublicDataset, CC-BY 4.0), in a folder that we are told.
TRACE = Path(os.environ.get("PENSTOCK_TRACES", "traces")) / "azure_2023_conv.csv"


def columns(requests: list[trace.Request]) -> dict[str, np.ndarray]:
    return {
        "prompt": np.array([r.prompt_tokens for r in requests]),
        "output": np.array([r.output_tokens for r in requests]),
        "gap": np.diff([r.arrival_s for r in requests]),
    }


def test_fit_of_what_was_drawn_is_the_shape() -> None:
    again = fit(draw(AZURE_CONV_2023, 19_000, seed=5))
    assert again.cv == pytest.approx(AZURE_CONV_2023.cv, rel=0.05)
    assert again.rates == pytest.approx(AZURE_CONV_2023.rates[: len(again.rates)], rel=0.1)
    assert again.prompts[1:-1] == pytest.approx(AZURE_CONV_2023.prompts[1:-1], rel=0.07)
    medians = [[row[3] for row in shape.outputs] for shape in (again, AZURE_CONV_2023)]
    assert medians[0] == pytest.approx(medians[1], rel=0.25)


def test_first_at_zero_seeded_and_longer_than_the_hour() -> None:
    one, two = draw(count=100, seed=1), draw(count=100, seed=1)
    assert one == two != draw(count=100, seed=2)
    assert one[0].arrival_s == 0
    times = [r.arrival_s for r in draw(count=40_000)]
    assert all(a <= b for a, b in pairwise(times))
    hour_s = len(AZURE_CONV_2023.rates) * synth.WINDOW_S
    first, second = (np.sum((times >= np.float64(k * hour_s)) & (times < np.float64((k + 1) * hour_s))) for k in (0, 1))
    assert second == pytest.approx(first, rel=0.03)


def test_short_traces_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 300 s"):
        fit(draw(count=10))


def test_against_the_trace() -> None:
    if not TRACE.exists():
        pytest.skip(f"the Azure 2023 conversation trace is not at {TRACE}; PENSTOCK_TRACES may name its folder")
    real = trace.load(TRACE)
    assert fit(real) == AZURE_CONV_2023
    theirs, ours = columns(real), columns(draw(count=len(real)))
    for name, values in theirs.items():
        assert ours[name].mean() == pytest.approx(values.mean(), rel=0.05), name
        for q in (5, 10, 25, 50, 75, 90, 95, 99):
            assert np.percentile(ours[name], q) == pytest.approx(np.percentile(values, q), rel=0.2), (name, q)
    correlations = [np.corrcoef(c["prompt"], c["output"])[0, 1] for c in (theirs, ours)]
    assert correlations[0] == pytest.approx(correlations[1], abs=0.05)
