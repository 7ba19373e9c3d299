"""Every figure's folder makes sense: it loads at each scale, what it runs can be deployed, its claims can fail."""

import pytest

from penstock.drivers.deployment import lay_out
from penstock.reproduce import figure
from penstock.reproduce.runs import MEASURES, candidates


@pytest.mark.parametrize("name", figure.names())
@pytest.mark.parametrize("scale", figure.SCALES)
def test_a_figure_loads_and_its_rows_can_be_deployed(name: str, scale: str) -> None:
    if not figure.has(name, scale):
        assert scale == "live", "each figure has a quick form"
        return
    one = figure.load(name, scale)
    for key, panel in one.panels.items():
        assert panel.places, key
        assert all(other in one.rows for other in one.lines(panel))
    for row, spec in one.rows.items():
        if scale == "live":
            assert spec.serve, row
        elif spec.best_of is not None:
            assert candidates(one, row), row
        elif one.measure == "serving":
            for panel in one.panels.values():
                for change in list(panel.at.values()) or [{}]:
                    lay_out(one.deployment(row, change))
                    assert one.load_of(row, change).requests > 0
        else:
            assert one.measure in MEASURES


@pytest.mark.parametrize("name", figure.names())
def test_points_of_the_paper_are_of_panels_and_rows_that_there_are(name: str) -> None:
    one = figure.load(name)
    for point in figure.points(name):
        assert point.row in one.lines(one.panels[point.panel]), point
    for claim in one.claims:
        low, high = claim.bounds
        assert low <= high, claim.says
        if claim.take == "points":
            of = [point for point in figure.points(name) if (point.panel, point.row) == (claim.panel, claim.of)]
            assert of, claim.says


def test_a_beginning_means_all_that_begin_so_but_no_longer_number() -> None:
    eights = figure.chosen(["distserve/fig8"])
    assert len(eights) == 3
    assert figure.chosen(["distserve/fig1"]) == ["distserve/fig1"], "not figures 10 to 12"
    assert figure.chosen(["all"]) == figure.names()
    assert figure.chosen(["distserve/fig9", "distserve"])[:2] == figure.chosen(["distserve/fig9"])
    with pytest.raises(ValueError, match="there is no figure 'distserve/fig99'"):
        figure.chosen(["distserve/fig99"])


def test_merging_goes_down_into_mappings_and_none_takes_away() -> None:
    base = {"a": {"b": 1, "c": [1, 2]}, "d": 3}
    assert figure.merged(base, {"a": {"b": None, "c": [4]}, "e": 5}) == {"a": {"c": [4]}, "d": 3, "e": 5}
    assert base == {"a": {"b": 1, "c": [1, 2]}, "d": 3}
