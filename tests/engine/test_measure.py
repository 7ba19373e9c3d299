"""The measuring driver runs the very steps that it is asked for, and leaves nothing behind."""

from pathlib import Path

import pytest
import tiny

from penstock.core.features import features
from penstock.core.step import Features, StepPlan
from penstock.cost.linear import Linear
from penstock.engine.base import Output
from penstock.engine.measure import Bench, Group, hardware
from penstock.engine.null import NullEngine, NullOptions, null_info
from penstock.engine.runner import TransformersEngine

COST = Linear(4e5, 0.0, 0.0, 0.0, 0.0)


class Watched(NullEngine):
    """Keeps the steps, and holds that each slice is executed in full."""

    def __init__(self, **options: int) -> None:
        super().__init__(null_info(NullOptions(**options)), COST)
        self.plans: list[StepPlan] = []
        self.bound: dict[int, tuple[int, ...]] = {}

    def bind(self, job: int, keys: tuple[int, ...]) -> None:
        self.bound[job] = keys
        super().bind(job, keys)

    def run(self, plan: StepPlan) -> list[Output]:
        self.plans.append(plan)
        outputs = super().run(plan)
        assert all(output.executed for output in outputs)
        return outputs


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> TransformersEngine:
    return tiny.engine(tiny.build("Llama", tmp_path_factory.mktemp("llama")), pages=64)


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ([(1, 0, 20)], Features(20, 210, 0, 0, 1)),
        ([(3, 16, 1)], Features(3, 51, 3, 51, 0)),
        ([(2, 0, 2), (1, 8, 4)], Features(8, 48, 0, 0, 3)),
        ([(2, 24, 1), (1, 8, 8)], Features(10, 50 + 100, 2, 50, 1)),
        ([(1, 13, 1), (1, 3, 5)], Features(6, 14 + 30, 1, 14, 1)),
    ],
)
def test_a_real_engine_executes_the_step_asked_for(
    engine: TransformersEngine, groups: list[Group], expected: Features
) -> None:
    with Bench(engine) as bench:
        found, took = bench.measure(groups, 3)
    assert found == expected
    assert len(took) == 3
    assert all(one.seconds > 0 and one.waited_s >= 0 for one in took)
    assert engine.used() == 0


def test_times_are_those_of_the_step_alone() -> None:
    engine = Watched()
    with Bench(engine) as bench:
        _, took = bench.measure([(2, 130, 1)], 2)
    assert all(4e-4 <= one.seconds < 0.4 for one in took)
    assert [features(plan.slices) for plan in engine.plans[-2:]] == [Features(2, 262, 2, 262, 0)] * 2


def test_jobs_read_different_context_as_far_as_it_is_computed() -> None:
    engine = Watched()
    with Bench(engine, context_tokens=512) as bench:
        bench.measure([(4, 128, 1)])
        jobs = [piece.job for piece in engine.plans[-1].slices]
        assert len({key for job in jobs for key in engine.bound[job]}) == 8
        bench.measure([(8, 128, 1)])
        jobs = [piece.job for piece in engine.plans[-1].slices]
        assert len({key for job in jobs for key in engine.bound[job]}) == 8
    made = sum(piece.count for plan in engine.plans for piece in plan.slices if piece.count > 1)
    assert made == 512


def test_what_has_no_room_is_said_and_the_rest_has_it_in_any_order(engine: TransformersEngine) -> None:
    # 64 pages of 4 positions, blocks of 8, jobs of up to 256 positions.
    with Bench(engine) as bench:
        assert not bench.fits([(1, 0, 256)])
        assert bench.fits([(1, 0, 255)])
        assert not bench.fits([(1, 0, 129)], 2)
        assert not bench.fits([(65, 0, 4)])
        for groups in ([(20, 8, 1)], [(1, 200, 8)], [(60, 0, 4)], [(20, 8, 1)]):
            assert bench.fits(groups)
            bench.measure(groups)
    assert engine.used() == 0


def test_an_interruption_leaves_nothing_behind(engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(plan: StepPlan) -> list[Output]:
        raise KeyboardInterrupt

    def interrupted() -> None:
        with Bench(engine) as bench, monkeypatch.context() as patch:
            bench.measure([(2, 8, 1)])
            patch.setattr(engine, "run", broken)
            bench.measure([(2, 8, 1)])

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert engine.used() == 0


def test_hardware_is_told_apart(tmp_path: Path) -> None:
    info = null_info(NullOptions())
    assert hardware(info) == "none"
    (tmp_path / "cpuinfo").write_text("cpu family\t: 25\nmodel\t\t: 1\nmodel name\t: AMD EPYC: 9\n\nflags : x\n")
    changed = {name: getattr(info, name) for name in info.__struct_fields__} | {"device": "cpu", "threads": 2}
    assert hardware(type(info)(**changed), tmp_path / "cpuinfo") == "AMD EPYC: 9, family 25 model 1, 2 threads"
    assert hardware(type(info)(**changed), tmp_path / "none") == "CPU of unknown make, 2 threads"
