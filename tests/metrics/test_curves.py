"""Curves and where they fall: against plain computations, and in words and pictures that say so when they do not."""

import csv
import struct
from pathlib import Path
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_summary import record

from penstock.core.slo import MS, Slo, Target
from penstock.metrics import curve_plot, curve_table, curves, layout
from penstock.metrics.confidence import student, wilson
from penstock.metrics.curves import Point, Series, crossing, judge, scaled
from penstock.metrics.layout import Cell
from penstock.metrics.record import Record
from penstock.metrics.result import Result
from penstock.metrics.summary import summarize

SLO = Slo.parse("ttft=100ms,tpot=10ms")


def run(ttfts_ms: list[float], lost: int = 0) -> list[Record]:
    """A request every 100 ms with these times to first token; and some that fail."""
    done = [record(i, 100 * i, [100 * i + ttft, 100 * i + ttft + 5]) for i, ttft in enumerate(ttfts_ms)]
    return [*done, *(record(len(done) + i, 0, outcome="failed") for i in range(lost))]


def point(rate: float, *shares: float, cv: float | None = None, n: int | None = None) -> Point:
    """A repeat for each share, of 20 requests."""
    repeats = [run([50.0] * round(20 * share) + [150.0] * round(20 * (1 - share))) for share in shares]
    return Point(Cell(rate, cv, n), tuple(judge(records, SLO, [2.0, 0.4]) for records in repeats))


def test_crossing_on_known_curves() -> None:
    assert crossing([(1, 1.0), (2, 0.95), (4, 0.85), (8, 0.1)], 0.9) == pytest.approx(3.0)
    assert crossing([(2, 1.0), (1, 0.8), (0.5, 0.2)], 0.9) == pytest.approx(1.5)
    assert crossing([(1, 0.9), (2, 0.8)], 0.9) == pytest.approx(1.0)
    assert crossing([(1, 0.89), (2, 0.95)], 0.9) is None
    assert crossing([(1, 0.95), (2, 0.9)], 0.9) is None
    assert crossing([], 0.9) is None


@given(st.lists(st.floats(0, 1), min_size=2, max_size=8), st.floats(0.05, 0.95))
def test_crossing_is_the_first_point_of_the_drawn_line_at_the_target(shares: list[float], target: float) -> None:
    points = list(enumerate(shares))
    at = crossing(points, target)
    below = next((x for x, y in points if y < target), None)
    if below is None or below == 0:
        assert at is None
        return
    assert at is not None
    assert below - 1 <= at <= below
    (x, y), (_, y_next) = points[below - 1], points[below]
    assert y + (at - x) * (y_next - y) == pytest.approx(target)


def test_what_is_said_of_a_crossing() -> None:
    assert curve_table.crossing_said([(1, 1.0), (2, 0.8)], 0.9, " req/s") == "1.500 req/s"
    assert curve_table.crossing_said([(1, 0.8), (2, 1.0)], 0.9) == "no crossing: 80.00 % at 1 already"
    assert curve_table.crossing_said([(1, 1.0), (2, 0.95)], 0.9) == "no crossing: still 95.00 % at 2"
    assert curve_table.crossing_said([(1, 1.0), (2, 0.8), (3, 1.0)], 0.9) == "1.500; back above it at 3"


@given(
    st.lists(st.floats(1, 400), min_size=1, max_size=12), st.sampled_from([0.25, 0.8, 1.0, 1.5, 3.0]), st.integers(0, 3)
)
def test_a_scale_is_the_slo_with_its_targets_times_that(ttfts_ms: list[float], scale: float, lost: int) -> None:
    records = run(ttfts_ms, lost)
    again = summarize(records, Slo(Target(round(100 * MS * scale)), Target(round(10 * MS * scale)))).goodput
    assert again is not None
    assert judge(records, SLO, [scale]).attained[scale] == (again.good, len(records))


def test_a_run_judged_again_is_the_run_judged_at_the_time() -> None:
    records = run([20.0, 99.0, 101.0, 300.0], lost=1)
    assert judge(records, SLO).summary.goodput == summarize(records, SLO).goodput
    late = judge(records, SLO, [2.0], warmup_requests=2)
    # Left out are the first, and the failed one, which was sent together with it.
    assert late.attained[2.0] == (2, 3)
    with pytest.raises(ValueError, match="no SLO to judge by"):
        judge(records, Slo())


def test_scaled() -> None:
    assert scaled(Slo.parse("ttft=3x,tpot=10ms"), 0.5) == Slo.parse("ttft=1.5x,tpot=5ms")
    own = record(0, 0, [20], slo=Slo.parse("ttft=15ms"))
    assert judge([own], SLO, [1.5]).attained == {1.0: (0, 1), 1.5: (1, 1)}
    with pytest.raises(ValueError, match="must be positive"):
        scaled(SLO, 0)


def test_intervals_are_over_repeats_or_over_requests() -> None:
    assert point(1, 0.5, 0.7, 0.9).attained() == student([0.5, 0.7, 0.9])
    assert point(1, 0.75).attained() == wilson(15, 20)
    assert point(1, 0.75).attained(2.0) == wilson(20, 20)
    assert point(1, 0.75).goodput_per_s.low is None
    assert point(1, 0.5, 1.0).latency_ms("ttft", 50.0) == pytest.approx(fmean([100, 50]))


def test_one_repeat_by_itself() -> None:
    one = Series("", SLO, (point(1, 1.0, 1.0), point(2, 0.8, 0.8), point(4, 0.1, 0.1)))
    assert one.repeats_crossing(0.9) == student([1.5, 1.5])
    assert Series("", SLO, (point(1, 1.0, 0.8), point(2, 0.8, 0.8))).repeats_crossing(0.9) is None
    assert Series("", SLO, (point(1, 1.0), point(2, 0.8))).repeats_crossing(0.9) is None


def test_what_sets_curves_apart_names_them() -> None:
    grid = [point(rate, 1.0, cv=cv) for cv in (10.0, 2.0) for rate in (2, 1)]
    found = curves.series("sim", SLO, grid)
    assert [one.label for one in found] == ["sim CV 2", "sim CV 10"]
    assert [[p.cell.rate for p in one.points] for one in found] == [[1, 2], [1, 2]]
    # Prompts that grow with the rate, as in the papers' guides, are one curve.
    assert [one.label for one in curves.series("", SLO, [point(1, 1.0, n=10), point(2, 1.0, n=20)])] == [""]
    assert [one.label for one in curves.series("", SLO, [point(1, 1.0, n=10), point(1, 1.0, n=20)])] == ["n 10", "n 20"]


def test_cells_of_runs() -> None:
    records = run([20.0] * 5)

    def cell(**said: object) -> Cell:
        return layout.cell_of(Result(run=dict(said), summary=summarize(records), records=records))

    assert cell() == Cell(10.0)
    assert cell(request_rate=3.0, burstiness=0.25, num_prompts=9) == Cell(3.0, 2.0, 9)
    assert cell(request_rate=3.0, burstiness=1.0, arrival="trace") == Cell(3.0)
    origin = {"cell": {"rate": 7.5, "cv": 2.0}, "repeat": 1, "seed": 3, "version": "0"}
    assert cell(request_rate=3.0, sweep=origin) == Cell(7.5, 2.0)
    at_once = [record(i, 0, [20]) for i in range(3)]
    with pytest.raises(ValueError, match="no request rate"):
        layout.cell_of(Result(run={}, summary=summarize(at_once), records=at_once))


@pytest.mark.parametrize("repeats", [1, 3])
def test_table_csv_and_picture(tmp_path: Path, repeats: int) -> None:
    shares = {1: 1.0, 2: 0.95, 4: 0.85}
    found = curves.series("live", SLO, [point(rate, *[share] * repeats) for rate, share in shares.items()])
    text = curve_table.render(found, 0.9, [2.0, 0.4], ["rate=8 repeat 0: no server"])
    lines = text.splitlines()
    assert "no server" in text
    assert ("Wilson" in text, "Student" in text) == (repeats == 1, repeats > 1)
    assert next(line for line in lines if line.startswith("live")).split()[1:3] == ["3.000", "req/s"]
    assert [line.split()[0] for line in lines if line.startswith("rate=")] == ["rate=1", "rate=2", "rate=4"] * 2 + [
        "rate=8"
    ]
    assert {len(line) for line in lines if line.startswith(("=", "-"))} == {117}
    curve_table.write_csv(found, str(tmp_path / "t.csv"))
    rows = list(csv.DictReader((tmp_path / "t.csv").read_text().splitlines()))
    assert [(row["rate_req_per_s"], row["slo_scale"]) for row in rows[:3]] == [("1", "2.0"), ("1", "1.0"), ("1", "0.4")]
    assert float(rows[4]["attained"]) == pytest.approx(0.95)
    curve_plot.draw(found, str(tmp_path / "t.png"), 0.9, [2.0, 0.4])
    width, height = struct.unpack(">II", (tmp_path / "t.png").read_bytes()[16:24])
    assert min(width, height) > 500
    with pytest.raises(ValueError, match="there are 1, 2, 4"):
        curve_plot.draw(found, str(tmp_path / "t.png"), 0.9, [2.0], rate=3.0)


def test_names_are_exact() -> None:
    rates = [0.1 + 0.2, 0.0625, 1e-7, 123456.5]
    assert len({Cell(rate).name for rate in rates}) == 4
    assert Cell(0.0625, 1.5, 200).name == "rate=0.0625,cv=1.5,n=200"
