"""The Chrome trace: its format, its laws, and that it shows what the records say."""

import json
from collections import defaultdict
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import msgspec
import pytest

from penstock.core.config import ClusterConfig, InstanceConfig
from penstock.core.slo import MS
from penstock.core.step import Features
from penstock.cost.linear import Linear
from penstock.drivers import timeline
from penstock.drivers.scenario import Failure, MemberConfig, SimConfig, alike
from penstock.drivers.sim import Simulation
from penstock.drivers.timeline import Timeline
from penstock.metrics.record import Record
from penstock.workload.trace import Request

COST = Linear(10.0 * MS, 1.0 * MS, 0.0, 0.1 * MS, 0.0)
Event = dict[str, Any]


class Halves(Linear, frozen=True, tag=True):
    """A pipeline of two stages: another step may start when half of one is over."""

    def interval_ns(self, features: Features) -> int:
        return self.step_ns(features) // 2


def requests(count: int = 40) -> list[Request]:
    return [
        Request(arrival_s=i / 20, prompt_tokens=20 + i, output_tokens=1 + i % 13, cancel_s=0.05 if i % 7 == 3 else None)
        for i in range(count)
    ]


def draw(path: Path, *, cost: Linear = COST, stages: int = 1, **settings: Any) -> Any:
    """Simulate on two instances; the events of each row by (process, row), and the records."""
    config = alike(InstanceConfig(pages=1000, stages=stages), 2)
    config = msgspec.structs.replace(config, **settings)
    shown = Timeline()
    records = Simulation(config, cost, shown).run(requests())
    shown.write(path, records)
    return load(path), records


def load(path: Path) -> dict[tuple[int, int], list[Event]]:
    written = json.loads(path.read_bytes())
    assert written["displayTimeUnit"] == "ms"
    rows: dict[tuple[int, int], list[Event]] = defaultdict(list)
    for event in written["traceEvents"]:
        assert event["ph"] in "XM"
        assert event["pid"] > 0
        assert isinstance(event["name"], str)
        assert event["name"]
        if event["ph"] == "M":
            assert set(event["args"]) == {"name"}
        else:
            assert event["ts"] >= 0
            assert event["dur"] >= 0
            assert event["tid"] > 0
            rows[event["pid"], event["tid"]].append(event)
    return rows


def check_rows(rows: dict[tuple[int, int], list[Event]]) -> None:
    """Bars of a row come one after the other; a thousandth of a us is a ns, and rounding less."""
    for events in rows.values():
        for before, after in pairwise(events):
            assert after["ts"] >= before["ts"]
            assert after["ts"] >= before["ts"] + before["dur"] - 1e-4


@pytest.mark.parametrize("stages", [1, 2])
def test_bars_of_a_row_do_not_overlap_and_times_ascend(tmp_path: Path, stages: int) -> None:
    rows, _ = draw(tmp_path / "t.json", cost=Halves(10.0 * MS, 1.0 * MS, 0.0, 0.0, 0.0), stages=stages)
    check_rows(rows)
    assert max(row for process, row in rows if process > 1) == stages


def test_every_request_is_there_with_its_times(tmp_path: Path) -> None:
    rows, records = draw(tmp_path / "t.json")
    bars: dict[int, list[Event]] = defaultdict(list)
    for (process, _), events in rows.items():
        for event in events if process == 1 else []:
            bars[event["args"]["request"]].append(event)
    assert set(bars) == {record.id for record in records}
    for record in records:
        first, *second = bars[record.id]
        assert first["ts"] == pytest.approx(record.sent_ns / 1000)
        assert first["args"]["outcome"] == record.outcome
        if record.times_ns:
            assert first["dur"] == pytest.approx((record.times_ns[0] - record.sent_ns) / 1000)
            assert second[0]["ts"] + second[0]["dur"] == pytest.approx(record.end_ns / 1000)


def test_stepping_draws_what_leaping_draws(tmp_path: Path) -> None:
    draw(tmp_path / "leaping.json")
    draw(tmp_path / "stepping.json", stepping=True)
    assert (tmp_path / "leaping.json").read_bytes() == (tmp_path / "stepping.json").read_bytes()


def test_every_token_comes_at_the_end_of_a_step(tmp_path: Path) -> None:
    rows, records = draw(tmp_path / "t.json", failures=[Failure(instance=0, at_ns=700 * MS, down_ns=100 * MS)])
    check_rows(rows)
    steps = [event for (process, _), events in rows.items() if process > 1 for event in events]
    assert {event["name"] for event in steps} == {"prefill", "decode", "mixed"}
    ends = {round((event["ts"] + event["dur"]) * 1000) for event in steps}
    assert {at for record in records for at in record.times_ns} <= ends


def test_a_move_is_an_arrow_between_two_instances(tmp_path: Path) -> None:
    members = [
        MemberConfig(instance=InstanceConfig(policy="distserve", pages=1000, role=role), kv_bytes_per_token=1000)
        for role in ("prefill", "prefill", "decode")
    ]
    config = SimConfig(members=members, cluster=ClusterConfig(policy="distserve"), move_bytes_per_s=1e6)
    shown = Timeline()
    simulation = Simulation(config, COST, shown)
    simulation.run(requests())
    shown.write(tmp_path / "t.json", [])
    events = json.loads((tmp_path / "t.json").read_bytes())["traceEvents"]
    bars = [event for event in events if event["ph"] == "X"]

    def under(end: Event) -> list[Event]:
        """The bars that the arrow's end is on, but for phases."""
        return [
            bar
            for bar in bars
            if (bar["pid"], bar["tid"]) == (end["pid"], end["tid"])
            and bar["ts"] <= end["ts"] < bar["ts"] + bar["dur"] + 1e-4
            and "request" in bar["args"]
        ]

    starts = {event["id"]: event for event in events if event["ph"] == "s"}
    finishes = {event["id"]: event for event in events if event["ph"] == "f"}
    assert len(starts) == len(finishes) == simulation.moves > 20
    for number, start in starts.items():
        pairs = product(under(start), under(finishes[number]))
        leaves, arrives = next(pair for pair in pairs if pair[0]["args"] == pair[1]["args"])
        assert leaves["args"]["why"] == "hand-off"
        assert (leaves["pid"] in (2, 3), arrives["pid"]) == (True, 4)
        assert leaves["ts"] <= arrives["ts"]
    assert {bar["name"] for bar in bars} >= {"copying", "prefill", "decode"}


def test_beyond_the_last_row_bars_share_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeline, "ROWS", 3)
    records = [Record(id=i, scheduled_ns=i, sent_ns=i, end_ns=1000 + i, prompt_tokens=1) for i in range(6)]
    Timeline().write(tmp_path / "t.json", records)
    rows = load(tmp_path / "t.json")
    assert [len(rows[1, row]) for row in (1, 2, 3)] == [1, 1, 4]


def test_steps_without_room_are_counted(tmp_path: Path) -> None:
    shown = Timeline(steps_max=5)
    for step in range(4):
        shown.steps(0, 20 * step, [20 * step + 10, 20 * step + 20], Features(1, 1, 1, 1))
    shown.write(tmp_path / "t.json", [])
    assert len(load(tmp_path / "t.json")[2, 1]) == 5
    assert shown.left_out == 3


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="none"):
        Timeline().write(tmp_path / "none" / "t.json", [])
