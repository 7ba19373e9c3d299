"""Logs: what is written is read back; a changed command is found; junk is refused."""

from pathlib import Path

import pytest

from penstock.core.commands import Report
from penstock.core.config import InstanceConfig
from penstock.core.events import Load, StepDone, Submitted
from penstock.core.spec import JobSpec, Unit
from penstock.drivers.log import Header, InstanceEntry, LogWriter, observe, read, replay
from penstock.policies.bundles import make_instance

CONFIG = InstanceConfig(pages=50)


def record(path: Path, wrong: int = -1) -> None:
    """One job of a ten-token prompt and three tokens, a step every 5 ms, in a log; entry `wrong` lies."""
    core, writer = make_instance(CONFIG), LogWriter(path, Header(instance=CONFIG))
    spec = JobSpec(id=0, units=(Unit("lm", 12),), known=10, arrival=0)
    events = [Submitted(spec, 1), StepDone(0), StepDone(1), StepDone(2)]
    for number, event in enumerate(events):
        now = 2_000_000 + number * 5_000_000
        commands = core.handle(event, now)
        writer.write(InstanceEntry(now, event, commands if number != wrong else [Report(Load())]))
    writer.close()


def test_a_true_log_replays_without_a_difference(tmp_path: Path) -> None:
    record(tmp_path / "log")
    found = replay(tmp_path / "log")
    assert (found.events, found.difference) == (4, None)


def test_the_first_difference_is_named(tmp_path: Path) -> None:
    record(tmp_path / "log", wrong=2)
    difference = replay(tmp_path / "log").difference
    assert difference is not None
    assert (difference.entry, difference.event) == (2, StepDone(1))
    assert difference.recorded == [Report(Load())] != difference.replayed


def test_step_times_and_delays_are_read_from_a_log(tmp_path: Path) -> None:
    record(tmp_path / "log")
    seen = observe(tmp_path / "log")
    assert [(features.new, ns) for features, ns in seen.steps] == [(10, 5_000_000), (1, 5_000_000), (1, 5_000_000)]
    assert seen.delays == [2_000_000]


def test_the_time_of_a_step_that_waited_for_another_counts_from_the_end_of_that(tmp_path: Path) -> None:
    """With two steps in flight; the last was composed when nothing else ran."""
    config = InstanceConfig(pages=50, depth=2)
    core, writer = make_instance(config), LogWriter(tmp_path / "log", Header(instance=config))
    jobs = [JobSpec(id=n, units=(Unit("lm", 10 + n),), known=10, arrival=0) for n in (0, 1)]
    happened = [(0, Submitted(jobs[0], 1)), (1, Submitted(jobs[1], 1)), (5, StepDone(0)), (12, StepDone(1))]
    for now, event in [*happened, (15, StepDone(2))]:
        writer.write(InstanceEntry(now, event, core.handle(event, now)))
    writer.close()
    assert [(features.new, ns) for features, ns in observe(tmp_path / "log").steps] == [(10, 5), (10, 7), (1, 3)]


def test_a_last_frame_cut_off_by_a_crash_is_left_out(tmp_path: Path) -> None:
    record(tmp_path / "log")
    whole = (tmp_path / "log").read_bytes()
    (tmp_path / "cut").write_bytes(whole[:-3])
    assert replay(tmp_path / "cut").events == 3


def test_what_is_no_log_is_refused(tmp_path: Path) -> None:
    (tmp_path / "junk").write_bytes(b"\x05\x00\x00\x00hello")
    with pytest.raises(ValueError, match="--record"):
        read(tmp_path / "junk")
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(ValueError, match="--record"):
        read(tmp_path / "empty")
