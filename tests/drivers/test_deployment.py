"""Deployments: files, what is laid out from them, and errors that name the key."""

from pathlib import Path

import msgspec
import pytest
import yaml

from penstock.core.config import Balance, MoveLimits
from penstock.core.slo import MS, SECOND
from penstock.cost import hardware, memory, shapes
from penstock.cost.linear import Linear
from penstock.cost.models import Scaled
from penstock.drivers.deployment import BalanceSpec, DelaySpec, Deployment, FailureSpec, MoveSpec, PoolSpec, lay_out
from penstock.drivers.sim import Simulation
from penstock.metrics.record import COMPLETED, FAILED
from penstock.workload.trace import Request

NUMBERS = "5e6,2e4,0,1e5,10"
WHOLE = Deployment(
    model="llama-3.1-8b",
    policy="priority",
    slo="ttft=500ms,tpot=3x",
    pools=[
        PoolSpec(instances=2, hardware="h200", start_s=3.0, max_num_seqs=64),
        PoolSpec(
            hardware="a100", tp=2, cost="a100/llama-3.1-8b/tp2", kv_tokens=5000, predictor_factor=1.5, role="decode"
        ),
    ],
    delays=DelaySpec(
        front_ms=2.0, front_us_per_token=0.5, dispatch_ms=0.3, token_ms=0.5, report_ms=1.0, peer_ms=0.2, pull_ms=4.0
    ),
    load_gb_per_s=25.0,
    move_gb_per_s=2.0,
    moves=MoveSpec(arriving=3, spare_pages=2, lease_s=4.0, retry_ms=7.0),
    balance=BalanceSpec(out_tokens=30, in_tokens=90, period_ms=20.0, scaling=True, instances_max=9, scale_s=5.0),
    warm=False,
    failures=[FailureSpec(instance=2, at_s=1.5, down_s=4.0)],
)


def written(folder: Path, text: str) -> Path:
    path = folder / "deployment.yaml"
    path.write_text(text)
    return path


def test_a_deployment_comes_back_from_its_file(tmp_path: Path) -> None:
    path = written(tmp_path, yaml.safe_dump(msgspec.to_builtins(WHOLE)))
    assert Deployment.read(path) == WHOLE


def test_defaults_are_those_of_the_structs(tmp_path: Path) -> None:
    read = Deployment.read(written(tmp_path, f"pools: [{{cost: '{NUMBERS}', kv_tokens: 160}}]"))
    assert read == Deployment(pools=[PoolSpec(cost=NUMBERS, kv_tokens=160)])


def test_what_is_laid_out() -> None:
    laid = lay_out(WHOLE)
    first, second, third = laid.sim.members
    assert first == second
    assert (first.instance.policy, first.instance.limits.max_num_seqs) == ("priority", 64)
    assert (first.start_ns, third.start_ns) == (3 * SECOND, 0)
    assert third.instance.pages == 5000 // 16
    assert first.predictor is None
    assert third.predictor == Scaled(laid.costs[2], 1.5)
    assert first.load_bytes == shapes.named("llama-3.1-8b").weight_bytes
    delays = laid.sim.delays
    assert (delays.front, delays.front_per_token) == (2 * MS, 500.0)
    assert (delays.dispatch, delays.token, delays.report) == (300_000, 500_000, MS)
    assert (laid.sim.failures[0].at_ns, laid.sim.failures[0].down_ns) == (1500 * MS, 4 * SECOND)
    assert (laid.sim.load_bytes_per_s, laid.sim.warm) == (25e9, False)
    assert [(pool.first, pool.instances, pool.gpus) for pool in laid.pools] == [(0, 2, 1), (2, 1, 2)]


def test_moves_and_balance_come_to_the_cores_in_their_units() -> None:
    laid = lay_out(WHOLE)
    assert (laid.sim.delays.peer, laid.sim.delays.pull, laid.sim.move_bytes_per_s) == (200_000, 4 * MS, 2e9)
    assert [member.instance.role for member in laid.sim.members] == ["", "", "decode"]
    kv_bytes = shapes.named("llama-3.1-8b").kv_bytes_per_token
    assert {member.kv_bytes_per_token for member in laid.sim.members} == {kv_bytes} == {131072}
    moves = laid.sim.members[0].instance.moves
    assert (moves.arriving, moves.spare_pages, moves.lease_ns, moves.retry_ns) == (3, 2, 4 * SECOND, 7 * MS)
    assert moves.stages == MoveLimits().stages, "what is not said stays as it is"
    balance = laid.sim.cluster.balance
    assert (balance.out_tokens, balance.in_tokens, balance.period_ns) == (30.0, 90.0, 20 * MS)
    assert (balance.scaling, balance.instances_max, balance.scale_ns) == (True, 9, 5 * SECOND)
    assert balance.urgent_tokens == Balance().urgent_tokens


def test_what_moves_cost_follows_from_delays_bandwidth_and_cost_model() -> None:
    """Two messages and a pull to begin with; 131,072 bytes a token at 2 GB/s; four times 20 us a prompt token."""
    pool = PoolSpec(cost="5e6,2e4,0,1e5,10", kv_tokens=1600)
    delays = DelaySpec(peer_ms=0.5, pull_ms=3.0)
    said = Deployment(model="llama-3.1-8b", pools=[pool], delays=delays, move_gb_per_s=2.0)

    def costs(deployment: Deployment) -> tuple[float, float, float]:
        moves = lay_out(deployment).sim.members[0].instance.moves
        return moves.copy_ns, moves.copy_position_ns, moves.compute_position_ns

    assert costs(said) == (4.0 * MS, 65_536.0, pytest.approx(80_000.0))
    given = MoveSpec(copy_ms=1.0, copy_us_per_token=2.0, compute_us_per_token=3.0)
    assert costs(msgspec.structs.replace(said, moves=given)) == (1.0 * MS, 2_000.0, 3_000.0)


@pytest.mark.parametrize(("name", "tp", "pp"), [("h200", 1, 1), ("a100", 2, 1), ("a100", 1, 2)])
def test_kv_is_what_memory_leaves(name: str, tp: int, pp: int) -> None:
    laid = lay_out(Deployment(model="llama-3.1-8b", pools=[PoolSpec(hardware=name, tp=tp, pp=pp, utilization=0.8)]))
    shape, (member,) = shapes.named("llama-3.1-8b"), laid.sim.members
    reserve = memory.activation_bytes(shape, member.instance.limits.max_num_batched_tokens, tp)
    room = memory.kv_tokens(hardware.named(name), shape, tp=tp, pp=pp, utilization=0.8, reserve=reserve)
    assert laid.pools[0].kv_tokens == member.instance.pages * 16 == room
    assert member.instance.stages == pp
    # Weights and KV together fill what may be used.
    kv_bytes = room * 2 * shape.layers * shape.kv_heads * shape.head_dim * shape.dtype_bytes
    usable = hardware.named(name).memory_bytes * 0.8 * tp * pp
    assert 0.9 * usable < kv_bytes + shape.weight_bytes <= usable


def test_a_request_larger_than_the_kv_fails_and_one_that_fits_does_not() -> None:
    laid = lay_out(Deployment(pools=[PoolSpec(cost=NUMBERS, kv_tokens=160)]))
    asked = [Request(arrival_s=0.0, prompt_tokens=tokens, output_tokens=1) for tokens in (160, 161)]
    assert [r.outcome for r in Simulation(laid.sim, laid.costs).run(asked)] == [COMPLETED, FAILED]


def test_each_pool_has_its_own_step_times() -> None:
    pools = [PoolSpec(cost=f"{step},0,0,0,0", kv_tokens=1600) for step in (1e6, 9e6)]
    laid = lay_out(Deployment(pools=pools))
    asked = [Request(arrival_s=0.0, prompt_tokens=5, output_tokens=1)] * 2
    assert [r.ttft_ns for r in Simulation(laid.sim, laid.costs).run(asked)] == [1 * MS, 9 * MS]


def test_a_failure_takes_its_instance_and_its_requests_go_on_elsewhere() -> None:
    pools = [PoolSpec(instances=2, cost="1e9,0,0,0,0", kv_tokens=1600)]
    laid = lay_out(Deployment(pools=pools, failures=[FailureSpec(instance=1, at_s=2.5)]))
    asked = [Request(arrival_s=at, prompt_tokens=5, output_tokens=4) for at in (0.0, 0.0, 3.0)]
    records = Simulation(laid.sim, laid.costs).run(asked)
    assert [r.outcome for r in records] == [COMPLETED] * 3
    # Two tokens by then. It enters the other instance's step at 3 s.
    assert list(records[1].times_ns) == [at * SECOND for at in (1, 2, 4, 5)]


def test_a_cold_start_reads_weights_over_the_shared_link() -> None:
    pool = PoolSpec(instances=2, hardware="h200", start_s=7.0)
    cold = lay_out(Deployment(model="llama-3.1-8b", pools=[pool], warm=False, load_gb_per_s=4.0))
    asked = [Request(arrival_s=0.0, prompt_tokens=5, output_tokens=1)]
    warm = lay_out(Deployment(model="llama-3.1-8b", pools=[pool]))
    late, early = (Simulation(laid.sim, laid.costs).run(asked)[0].times_ns[0] for laid in (cold, warm))
    weights = shapes.named("llama-3.1-8b").weight_bytes
    assert late - early == pytest.approx(2 * weights / 4e9 * SECOND + 7 * SECOND, abs=2)


def test_changes_go_over_every_pool_and_none_changes_nothing() -> None:
    changed = WHOLE.changed({"tp": 4, "kv_tokens": None}, policy="fcfs", model=None)
    assert [pool.tp for pool in changed.pools] == [4, 4]
    assert [pool.kv_tokens for pool in changed.pools] == [None, 5000]
    assert (changed.policy, changed.model) == ("fcfs", "llama-3.1-8b")


def test_gpus_are_not_counted_where_the_hardware_of_some_is_not_said() -> None:
    pools = [PoolSpec(hardware="h200", kv_tokens=1600), PoolSpec(cost=NUMBERS, kv_tokens=1600)]
    assert [pool.gpus for pool in lay_out(Deployment(model="llama-3.1-8b", pools=pools)).pools] == [1, 0]


def test_a_cost_that_is_handed_in_takes_the_place_of_what_pools_say() -> None:
    cost = Linear(1e6, 0.0, 0.0, 0.0, 0.0)
    assert lay_out(Deployment(pools=[PoolSpec(kv_tokens=1600)]), cost).costs == [cost]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "a mapping with `pools:`"),
        ("- 1", "a mapping with `pools:`"),
        ("model: llama-3.1-8b", "the key `pools` must be given"),
        ("pools: []", "pools: must be a list, with at least one"),
        ("pools: 3", "pools: must be a list, not a whole number"),
        ("pools: [3]", r"pools\[0\]: must be a mapping"),
        ("pools: [{}]\npolcy: fcfs", "no key `polcy`; the keys are model, policy"),
        ("pools: [{}, {tpx: 2}]", r"pools\[1\]: there is no key `tpx`; the keys are instances"),
        ("pools: [{tp: two}]", r"pools\[0\].tp: must be a whole number, not text"),
        ("pools: [{instances: 0}]", r"pools\[0\].instances: must be a whole number, at least 1"),
        ("pools: [{instances: 1.5}]", r"pools\[0\].instances: must be a whole number"),
        ("pools: [{pp: -1}]", r"pools\[0\].pp: .* at least 1"),
        ("pools: [{utilization: 1.5}]", r"pools\[0\].utilization: .* at most 1"),
        ("pools: [{page_tokens: 0}]", r"pools\[0\].page_tokens: .* at least 1"),
        ("pools: [{page_tokens: 48}]", r"pools\[0\].block_tokens: 64 must be a multiple of page_tokens"),
        ("pools: [{kv_tokens: 5}]", r"pools\[0\].kv_tokens: 5 is less than a page"),
        ("pools: [{predictor_factor: 0}]", r"pools\[0\].predictor_factor: .* above 0"),
        ("pools: [{start_s: .inf}]", r"pools\[0\].start_s: inf"),
        ("pools: [{correct: 3}]", r"pools\[0\].correct: must be true or false"),
        ("pools: [{hardware: h300}]", "no hardware 'h300': it is one of h200"),
        ("pools: [{}, {block_tokens: 128}]", "the same block_tokens"),
        ("pools: [{}]\ndelays: {front_ms: -2}", "delays.front_ms: .* at least 0"),
        ("pools: [{}]\ndelays: {front_ms: .nan}", "delays.front_ms: nan"),
        ("pools: [{}]\ndelays: {fron_ms: 2}", "delays: there is no key `fron_ms`; the keys are front_ms"),
        ("pools: [{}]\nload_gb_per_s: -1", "load_gb_per_s: .* at least 0"),
        ("pools: [{}]\nwarm: maybe", "warm: must be true or false, not text"),
        ("pools: [{}]\nfailures: [{instance: 1, at_s: 1}]", r"failures\[0\].instance: there is no instance 1"),
        ("pools: [{}]\nfailures: [{instance: 0}]", r"failures\[0\]: the key `at_s` must be given"),
        ("pools: [{}]\nfailures: [{instance: 0, at_s: -1}]", r"failures\[0\].at_s: .* at least 0"),
        ("pools: [{}]\npolicy: nope", "policy 'nope'"),
        ("pools: [{role: both}]", r"pools\[0\].role: 'both' must be prefill or decode"),
        ("pools: [{role: prefill}]", "pools: all have the role prefill: give one the role decode"),
        ("pools: [{role: decode}, {role: decode}]", "pools: all have the role decode"),
        ("pools: [{}]\nmove_gb_per_s: -1", "move_gb_per_s: .* at least 0"),
        ("pools: [{}]\nmove_gb_per_s: 1", "move_gb_per_s: without `model`"),
        ("pools: [{}]\ndelays: {pull_ms: -1}", "delays.pull_ms: .* at least 0"),
        ("pools: [{}]\nmoves: {lease_s: 0}", "moves.lease_s: .* above 0"),
        ("pools: [{}]\nmoves: {copies: 2}", "moves.copies: must be true or false"),
        ("pools: [{}]\nmoves: {stage: 2}", "moves: there is no key `stage`; the keys are copies"),
        ("pools: [{}]\nbalance: {scaling: 2}", "balance.scaling: must be true or false"),
        ("pools: [{}]\nbalance: {out_tokens: 100}", "balance.in_tokens: 96 must be at least out_tokens"),
        ("pools: [{}]\nbalance: {low_tokens: 2000}", "balance.high_tokens: 960 must be at least low_tokens"),
        ("pools: [{}]\nbalance: {instances_min: 20}", "balance.instances_max: 16 must be at least"),
        ("pools: [{}]\nbalance: {instances_max: 0}", "balance.instances_max: .* at least 1"),
        ("pools: [{}]\nbalance: {period: 5}", "balance: there is no key `period`; the keys are out_tokens"),
        ("pools: [{}]\nslo: ttft", "slo: latency target"),
        ("pools: [{}]\n1: 2", "must be text"),
        ("pools: [{}]\n\tfoo: [", "is not YAML: .* line 2"),
    ],
)
def test_what_is_wrong_in_a_file_is_one_line_that_names_file_and_key(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as error:
        Deployment.read(written(tmp_path, text))
    assert "deployment.yaml" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_no_text_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "deployment.yaml").write_bytes(b"\xff\xfe\x00\x9d")
    with pytest.raises(ValueError, match="not even text"):
        Deployment.read(tmp_path / "deployment.yaml")


@pytest.mark.parametrize(
    ("pool", "model", "said"),
    [
        (PoolSpec(), "", "step times cannot be worked out"),
        (PoolSpec(hardware="h200"), "", "without `model`"),
        (PoolSpec(cost=NUMBERS), "", "KV capacity cannot be worked out .* or `kv_tokens`"),
        (PoolSpec(cost="distserve/opt-13b/tp1/pp2", kv_tokens=1600), "", r"pools\[0\].pp: it is 1, but .* make it 2"),
        (PoolSpec(cost="a100/opt-13b/tp2", kv_tokens=1600), "", r"pools\[0\].tp: it is 1, but .* make it 2"),
        (PoolSpec(cost="nope", kv_tokens=1600), "", "nope is no cost model"),
        (PoolSpec(hardware="a10"), "llama-3.1-70b", "bytes are missing on a10"),
        (PoolSpec(hardware="h200", tp=3), "llama-3.1-8b", "3"),
        (PoolSpec(hardware="h200"), "llama-9", "no model 'llama-9'"),
        (PoolSpec(hardware="h200", instances=0), "llama-3.1-8b", r"pools\[0\].instances"),
    ],
)
def test_what_cannot_be_laid_out_says_what_to_change(pool: PoolSpec, model: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        lay_out(Deployment(model=model, pools=[pool]))
