"""What Llumnix's figures rest on: instances that are drained, downtime, fleets by cost, rows that are told nothing."""

from pathlib import Path

import msgspec
import pytest

from penstock.core.slo import Slo
from penstock.drivers.deployment import Deployment, FailureSpec
from penstock.metrics.record import COMPLETED
from penstock.reproduce import claims, figure, twin
from penstock.reproduce.figure import Claim
from penstock.reproduce.numbers import Numbers
from penstock.reproduce.runs import Store, cell
from penstock.workload.request import Request

FIGURE_11 = [name for name in figure.names() if name.startswith("llumnix/fig11")]


def two(**more: object) -> Deployment:
    raw = {
        "model": "llama-7b",
        "policy": "least-loaded",
        "move_gb_per_s": 2.4,
        "delays": {"dispatch_ms": 1, "report_ms": 1, "peer_ms": 1, "pull_ms": 15.2},
        "pools": [{"instances": 2, "hardware": "a10", "cost": "llumnix/llama-7b", "kv_tokens": 12672}],
    }
    return msgspec.convert(raw | more, Deployment)


def asked(count: int, **more: object) -> list[Request]:
    return [
        Request(arrival_s=0.1 * n, prompt_tokens=100 + n, output_tokens=100, **more)  # type: ignore[arg-type]
        for n in range(count)
    ]


@pytest.mark.parametrize("copies", [True, False])
def test_a_drained_instance_goes_and_its_requests_are_answered_elsewhere(copies: bool) -> None:
    drained = two(failures=[{"instance": 0, "at_s": 2.0, "drain": True}], moves={"copies": copies})
    watched = twin.Watched(drained, stages=True)
    records = watched.simulation.run(asked(8))
    assert [(record.outcome, len(record.times_ns)) for record in records] == [(COMPLETED, 100)] * 8
    assert watched.simulation.moves == len(watched.seen.switched) > 0
    assert bool(watched.pulled) == copies
    first, second = watched.simulation.members
    assert first.there_ns(0, 10**10) < second.there_ns(0, 10**10) == 10**10
    assert not first.core.jobs


def test_what_is_drained_does_not_come_back() -> None:
    lost = msgspec.structs.replace(two(), failures=[FailureSpec(instance=0, at_s=1.0, down_s=2.0, drain=True)])
    with pytest.raises(ValueError, match=r"failures\[0\]\.down_s"):
        lost.check()


def test_live_migration_stands_still_least_and_computing_again_most() -> None:
    second = {"instance": 1, "at_s": 0, "down_s": 0.01}
    alone = [Request(arrival_s=0.001, prompt_tokens=2000, output_tokens=200)]

    def halt_ms(**moves: object) -> float:
        drained = two(failures=[second, {"instance": 0, "at_s": 2.0, "drain": True}], moves=moves)
        return twin.run(drained, alone, Slo()).values["halt_mean_ms"]

    live = halt_ms(stages=1, compute_us_per_token=100_000)
    blocking = halt_ms(stages=0, compute_us_per_token=100_000)
    again = halt_ms(copies=False)
    # 2000 tokens of 0.524 MB at 2.4 GB/s, and as many prefilled.
    assert live < 50 < 437 < blocking < 500
    assert 350 < again < 450
    assert halt_ms() < live


def test_a_row_that_is_told_nothing_serves_all_alike_and_counts_the_urgent() -> None:
    some = [msgspec.structs.replace(r, priority=-1 if n % 4 == 0 else 0) for n, r in enumerate(asked(40))]
    deployment = two(policy="llumnix")
    blind = twin.run(deployment, some, Slo(), blind=True).values
    alike = twin.run(deployment, asked(40), Slo()).values
    assert {key: blind[key] for key in alike} == alike
    assert (blind["urgent_completed"], blind["normal_completed"]) == (10, 30)


def test_what_a_p99_costs_is_read_from_the_larger_fleet_to_the_smaller(tmp_path: Path) -> None:
    one = figure.load("llumnix/fig15")
    store = Store(tmp_path, one)
    for row, shift in (("llumnix", 0.0), ("infaas++", 2.0)):
        for place, x in enumerate(one.panels["cost"].places):
            values = {"ttft_p99_s": 9.0 - 2 * place, "instances": 10.0 + place + shift}
            store.save(cell(one, "cost", row, x), 0, Numbers(values=values))
    asks = Claim(says="", panel="cost", take="crossing", level=6, of="llumnix", over="infaas++", most=1)
    (verdict,) = claims.judge(Store(tmp_path, msgspec.structs.replace(one, claims=[asks])))
    assert verdict.ours == pytest.approx(11.5 / 13.5)


@pytest.mark.parametrize("name", FIGURE_11)
def test_the_loads_of_figure_11_are_served_alike_but_for_the_threshold(name: str) -> None:
    this, model = figure.load(name), figure.load("llumnix/fig11-l-l")
    for row in model.rows:
        mine, theirs = this.deployment(row, {}), model.deployment(row, {})
        assert msgspec.structs.replace(mine, balance=theirs.balance) == theirs
        assert mine.balance.out_tokens == mine.balance.in_tokens
