import pytest

from penstock.core.slo import Slo
from penstock.plan.space import Cluster, Space, options, pairs, repeated

SLO = Slo.parse("ttft=500ms,tpot=50ms")


def space(model: str = "llama-3.1-8b", hardware: str = "h200:4", **changes: object) -> Space:
    return Space(model=model, cluster=Cluster.parse(hardware), slo=SLO, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("model", "hardware", "low", "high"),
    [
        ("opt-13b", "a100:4x1", 9, 9),
        ("opt-13b", "a100:8x1", 48, 48),
        ("opt-13b", "a100:8x4", 133, 569),
        ("opt-66b", "a100:8x4", 183, 613),
        ("opt-175b", "a100:8x4", 325, 1132),
    ],
)
def test_pairs_are_as_many_as_distserves_search_has(model: str, hardware: str, low: int, high: int) -> None:
    assert len(pairs(space(model, hardware, affinity="low"))) == low
    assert len(pairs(space(model, hardware, affinity="high"))) == high


def test_units_that_do_both_are_as_many_as_distserves_search_has_for_vllm() -> None:
    cost = "distserve/opt-13b/tp{tp}/pp{pp}"
    assert len(options(space("opt-13b", "a100:4", policies=["prefill-first"], cost=cost))) == 6


def test_low_affinity_keeps_segments_in_a_node() -> None:
    for pair in pairs(space("opt-13b", "a100:4x2", affinity="low")):
        assert sum(pair.gpus) // pair.cross <= 4
        assert pair.prefill_tp <= 4
        assert pair.prefill_pp % pair.cross == pair.decode_pp % pair.cross == 0


def test_every_option_fits_the_cluster_and_has_a_name_of_its_own() -> None:
    found = options(space(ratios=[(1, 1), (2, 2), (1, 3)], replicas=[1, 2]))
    names = [option.name for option in found]
    assert len(set(names)) == len(names)
    assert all(option.gpus <= 4 for option in found)
    assert "distserve,p=1xtp1pp1,d=3xtp1pp1" in names
    assert "fcfs,i=2xtp2pp1" in names


def test_what_cannot_be_has_a_reason() -> None:
    found = {option.name: option.reason for option in options(space("llama-3.1-70b", "h100:2", policies=["fcfs"]))}
    assert "bytes are missing" in found["fcfs,i=1xtp1pp1"]
    unknown = options(space("opt-13b", "a100:8", policies=["fcfs"], cost="distserve/opt-13b/tp{tp}/pp{pp}"))
    assert any("no cost model" in option.reason for option in unknown)
    assert any(not option.reason for option in unknown)


def test_kv_goes_over_the_links_that_its_unit_spans() -> None:
    ports = {
        (option.gpus, option.deployment.move_gb_per_s)
        for option in options(space(hardware="h200:2x2", policies=["distserve"], tps=[1], pps=[1], ratios=[(1, 1)]))
    }
    assert ports == {(2, 450.0)}
    far = options(space(hardware="h200:1x2", policies=["distserve"], tps=[1], pps=[1], ratios=[(1, 1)]))
    assert [option.deployment.move_gb_per_s for option in far] == [50.0]


def test_knobs_are_turned_on_their_side() -> None:
    knobs = {"decode.max_num_seqs": [8, 16], "page_tokens": [32]}
    found = options(space(policies=["distserve"], tps=[1], pps=[1], ratios=[(1, 1)], knobs=knobs))
    assert [[pool.max_num_seqs for pool in option.deployment.pools] for option in found] == [[None, 8], [None, 16]]
    assert all(pool.page_tokens == 32 for option in found for pool in option.deployment.pools)
    with pytest.raises(ValueError, match="keys are"):
        options(space(knobs={"max_num_sequences": [1]}))


def test_a_unit_repeats() -> None:
    unit = next(o for o in options(space(policies=["distserve"])) if o.name == "distserve,p=2xtp1pp1,d=1xtp1pp1")
    assert [pool.instances for pool in repeated(unit, 3).pools] == [6, 3]


@pytest.mark.parametrize("text", ["h200", "h200:0", "h200:8x", "b7:8", "h200:8x2x2"])
def test_hardware_that_is_none(text: str) -> None:
    with pytest.raises(ValueError, match="hardware"):
        Cluster.parse(text)


def test_a_machine_without_a_data_sheet_needs_step_times_and_kv() -> None:
    bare = options(space(hardware="cpu:2", policies=["fcfs", "distserve"], tps=[1], pps=[1]))
    assert all("cannot be worked out" in option.reason for option in bare)
    told = options(
        space(hardware="cpu:2", tps=[1], pps=[1], ratios=[(1, 1)], cost="5e6,2e4,0,1e5,0", pool={"kv_tokens": 4096})
    )
    assert [option.name for option in told] == ["fcfs,i=1xtp1pp1", "distserve,p=1xtp1pp1,d=1xtp1pp1"]
    assert not any(option.reason for option in told)
    assert [option.deployment.move_gb_per_s for option in told] == [0, 0]
