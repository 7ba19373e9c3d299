"""The first measurements cover prompts and batches, and leave nothing behind."""

from pathlib import Path

import tiny


def test_points_cover_what_a_fit_needs(tmp_path: Path) -> None:
    engine = tiny.engine(tiny.build("Llama", tmp_path), pages=256)
    points = engine.warm(budget_s=30)
    assert all(seconds > 0 for _, seconds in points)
    found = [f for f, _ in points]
    assert {f.new for f in found if not f.decodes} >= {8, 32, 128}
    assert any(not f.decodes and f.new_context > f.new * (f.new + 1) // 2 for f in found)
    batches = [f for f in found if f.decodes == f.new]
    assert {f.decodes for f in batches} >= {1, 8, 32}
    assert len({f.decode_context // f.decodes for f in batches}) > 1
    assert engine.used() == 0
    driver = tiny.Driver(engine)
    driver.add(-2, [5, 6, 7], tiny.greedy(2))
    assert len(driver.finish_all()[-2]) == 2


def test_no_time_still_gives_something_and_leaves_nothing(tmp_path: Path) -> None:
    engine = tiny.engine(tiny.build("Llama", tmp_path), pages=20)
    assert len(engine.warm(budget_s=0)) == 2
    assert engine.used() == 0
