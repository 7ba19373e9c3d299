"""A file of measured times: it keeps setups apart, goes on, takes in others once, and refuses what it is not."""

import sqlite3
from pathlib import Path

import msgspec
import pytest

from penstock.core.features import features
from penstock.core.step import Slice, StepPlan
from penstock.cost import grid
from penstock.cost.profile import Overhead, Profile, Setup

SETUP = Setup(hardware="h", model="m", config="c", dtype="bfloat16", engine="e", threads=2, page_tokens=16)
STEPS = grid.steps("coarse", 2048)


def filled(path: Path, setup: Setup = SETUP, first: int = 1000) -> Path:
    with Profile(path) as profile:
        at = profile.setup_id(setup)
        for i, step in enumerate(STEPS[:4]):
            profile.add(at, step, grid.features(step), [(first + i, 0), (first + 2 + i, 5)], at_s=float(i))
        profile.add(at, STEPS[0], grid.features(STEPS[0]), [(first + 9, 7), (9 * first, 8 * first)], at_s=9.0)
        profile.add_overhead(at, Overhead("deciding", "8 running", 2e4, 1e3, 9))
    return path


def test_what_is_written_is_read(tmp_path: Path) -> None:
    with Profile(filled(tmp_path / "p.sqlite")) as profile:
        ((at, setup),) = profile.setups()
        assert setup == SETUP
        points = profile.points(at)
        assert [point.step for point in points] == STEPS[:4]
        assert [point.features for point in points] == [grid.features(step) for step in STEPS[:4]]
        assert points[0].took == [1000, 1002, 1009]
        assert points[0].median == 1002
        assert points[3].deviation == pytest.approx(2**0.5 / 1004)
        assert profile.visits(at) == {STEPS[0]: 2} | dict.fromkeys(STEPS[1:4], 1)
        assert profile.overheads(at) == [Overhead("deciding", "8 running", 2e4, 1e3, 9)]


def test_times_during_which_others_had_the_cores_count_only_where_there_are_no_better_ones(tmp_path: Path) -> None:
    step = STEPS[0]
    with Profile(tmp_path / "p.sqlite") as profile:
        at = profile.setup_id(SETUP)
        profile.add(at, step, grid.features(step), [(5000, 900), (4000, 300)], 0.0)
        assert profile.points(at)[0].took == [4000]
        assert profile.visits(at) == {}
        profile.add(at, step, grid.features(step), [(1000, 20), (1010, 0)], 1.0)
        assert profile.points(at)[0].took == [1000, 1010]
        assert profile.visits(at) == {step: 1}


def test_setups_that_differ_in_anything_are_kept_apart(tmp_path: Path) -> None:
    with Profile(tmp_path / "p.sqlite") as profile:
        ids = [profile.setup_id(SETUP)]
        for name in Setup.__struct_fields__:
            value = getattr(SETUP, name)
            other = msgspec.structs.replace(SETUP, **{name: value + 1 if isinstance(value, int) else value + "x"})
            ids += [profile.setup_id(other), profile.setup_id(other)]
        assert len(set(ids)) == 1 + len(Setup.__struct_fields__)


def test_another_file_is_taken_in_once(tmp_path: Path) -> None:
    filled(tmp_path / "a.sqlite")
    filled(tmp_path / "b.sqlite", first=5000)
    filled(tmp_path / "c.sqlite", msgspec.structs.replace(SETUP, hardware="other"))
    with Profile(tmp_path / "a.sqlite") as profile:
        for name, expected in (("b", (0, 10)), ("b", (0, 0)), ("c", (4, 10))):
            with Profile(tmp_path / f"{name}.sqlite") as other:
                assert profile.merge(other) == expected
        assert [setup.hardware for _, setup in profile.setups()] == ["h", "other"]
        assert sorted(profile.points(1)[3].took) == [1003, 1005, 5003, 5005]


def test_what_an_interrupted_run_measured_is_there(tmp_path: Path) -> None:
    def interrupted() -> None:
        with Profile(tmp_path / "p.sqlite") as profile:
            profile.add(profile.setup_id(SETUP), STEPS[0], grid.features(STEPS[0]), [(7, 7)], 0.0)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with Profile(tmp_path / "p.sqlite") as profile:
        assert profile.points(1)[0].took == [7]


def test_files_that_are_something_else_are_refused_and_stay_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not a database, but long enough to look like one " * 50)
    with sqlite3.connect(tmp_path / "other.sqlite") as db:
        db.execute("CREATE TABLE things (id INTEGER)")
    db.close()
    filled(tmp_path / "newer.sqlite")
    with sqlite3.connect(tmp_path / "newer.sqlite") as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    for name, words in (("text", "not a profile"), ("other.sqlite", "another SQLite"), ("newer.sqlite", "version 99")):
        before = (tmp_path / name).read_bytes()
        with pytest.raises(ValueError, match=words):
            Profile(tmp_path / name)
        assert (tmp_path / name).read_bytes() == before
    with pytest.raises(FileNotFoundError, match="penstock profile"):
        Profile(tmp_path / "none.sqlite", must_exist=True)
    with pytest.raises(FileNotFoundError, match="no folder"):
        Profile(tmp_path / "none" / "p.sqlite")


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE repeats SET ns = -5 WHERE rowid = 1",
        "UPDATE repeats SET ns = 'soon' WHERE rowid = 1",
        "UPDATE points SET step = '[[1, 2' WHERE id = 1",
        "UPDATE points SET new = 'many'",
        "UPDATE points SET decodes = -3",
        "UPDATE points SET new = new + 1",
        "UPDATE setups SET threads = 'two'",
        "DROP TABLE repeats",
    ],
)
def test_damaged_rows_are_found_and_not_taken_in(tmp_path: Path, damage: str) -> None:
    filled(tmp_path / "bad.sqlite")
    with sqlite3.connect(tmp_path / "bad.sqlite") as db:
        db.execute(damage)
    db.close()
    filled(tmp_path / "good.sqlite", first=1)
    with (
        Profile(tmp_path / "good.sqlite") as profile,
        Profile(tmp_path / "bad.sqlite") as other,
        pytest.raises((ValueError, OSError), match=r"bad\.sqlite"),
    ):
        profile.merge(other)
    with Profile(tmp_path / "good.sqlite") as profile:
        assert sum(len(point.repeats) for point in profile.points(1)) == 10


def test_a_grid_s_features_are_those_of_its_plans_and_stopping_early_leaves_a_spread() -> None:
    for name in grid.NAMES:
        steps = grid.steps(name, 2048)
        assert len(set(steps)) == len(steps)
        for step in steps[:200]:
            each = [(start, count) for jobs, start, count in step for _ in range(jobs)]
            plan = StepPlan(0, [Slice(job, start, count) for job, (start, count) in enumerate(each)])
            assert grid.features(step) == features(plan.slices)
            assert grid.size(step) <= 2048
    early = [grid.features(step) for step in STEPS[: len(STEPS) // 3]]
    assert {bool(f.decodes) + 2 * bool(f.prompts) for f in early} == {1, 2, 3}
    assert min(f.new for f in early) <= 2
    assert max(f.new for f in early) >= 1000
    assert max(f.decodes for f in early) == 128
