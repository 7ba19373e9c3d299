"""KV capacity, against what others published for theirs."""

import pytest

from penstock.cost import hardware, memory, shapes

A100 = hardware.named("a100")

#: Tokens by (model, tp, pp), from LLMServe/DistServe (Apache-2.0), simdistserve/estimators/profile_data/
#: max_num_tokens.csv: an A100 of 80 GB of which 95 % may be used, less 1 %, in pages of 16 tokens.
DISTSERVE = {
    ("opt-13b", 1, 1): 66144, ("opt-13b", 1, 2): 163008, ("opt-13b", 1, 8): 744224, ("opt-13b", 2, 1): 163008,
    ("opt-13b", 2, 4): 744224, ("opt-13b", 4, 1): 356736, ("opt-13b", 8, 8): 6168896, ("opt-66b", 1, 2): 11600,
    ("opt-66b", 2, 1): 11600, ("opt-66b", 2, 2): 78512, ("opt-66b", 4, 1): 78496, ("opt-66b", 4, 4): 479936,
    ("opt-66b", 8, 8): 2085696, ("opt-175b", 1, 6): 26208, ("opt-175b", 3, 3): 76192, ("opt-175b", 4, 3): 126160,
    ("opt-175b", 8, 1): 59520, ("opt-175b", 8, 8): 992400,
}  # fmt: skip


@pytest.mark.parametrize(("model", "tp", "pp"), DISTSERVE)
def test_capacity_is_what_distserve_published(model: str, tp: int, pp: int) -> None:
    """Theirs has the whole embedding on every GPU; splitting it leaves up to 5.3 % more where KV is tight."""
    tokens = memory.kv_tokens(
        A100, shapes.named(model), tp=tp, pp=pp, utilization=0.95, reserve=A100.memory_bytes // 100
    )
    published = DISTSERVE[model, tp, pp]
    assert tokens == pytest.approx(published, rel=0.0005 if tp * pp == 1 else 0.054)
    assert tokens % 16 == 0


@pytest.mark.parametrize(("step_tokens", "pages"), [(4400, 862), (8700, 831), (7500, 832), (12000, 792)])
def test_capacity_is_what_llumnix_published(step_tokens: int, pages: int) -> None:
    """LLaMA-7B on an A10 at utilization 0.9 (Llumnix, OSDI'24, its artifact): activations of the largest step go off.
    0.2 GiB for the CUDA context is ours, chosen to fit the four."""
    model = shapes.named("llama-7b")
    reserve = memory.activation_bytes(model, step_tokens) + 2**30 // 5
    tokens = memory.kv_tokens(hardware.named("a10"), model, reserve=reserve)
    assert tokens // 16 == pytest.approx(pages, rel=0.02)


def test_stages_hold_all_layers_and_weights_once() -> None:
    model = shapes.named("llama-3.1-70b")
    for tp, pp in ((1, 1), (2, 3), (8, 7)):
        parts = memory.stages(model, tp, pp)
        assert sum(layers for layers, _ in parts) == model.layers
        assert tp * sum(weights for _, weights in parts) == pytest.approx(model.weight_bytes, abs=tp * pp)


def test_more_of_anything_is_more_room() -> None:
    model, gpu = shapes.named("llama-3.1-8b"), hardware.named("h100")
    plain = memory.kv_tokens(gpu, model)
    assert plain < memory.kv_tokens(gpu, model, utilization=0.95)
    assert plain > memory.kv_tokens(gpu, model, reserve=2**30)
    assert plain < memory.kv_tokens(hardware.named("h200"), model)
    assert 2 * plain < memory.kv_tokens(gpu, model, tp=2)
    # Past 8 GPUs the KV heads repeat: weights shrink on, KV does not.
    assert memory.kv_tokens(gpu, model, tp=16) == pytest.approx(memory.kv_tokens(gpu, model, tp=8), rel=0.03)


def test_what_does_not_fit_says_how_much_is_missing() -> None:
    with pytest.raises(ValueError, match=r"\d+ bytes are missing on a100 with tp 1"):
        memory.kv_tokens(A100, shapes.named("llama-3.1-70b"))
    with pytest.raises(ValueError, match="utilization 90"):
        memory.kv_tokens(A100, shapes.named("llama-7b"), utilization=90)
