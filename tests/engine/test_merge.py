"""Merging partial attention: the law, and parts that saw nothing."""

import pytest
import torch

from penstock.engine.merge import merge


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_parts_make_the_whole(dtype: torch.dtype, tolerance: float) -> None:
    rng = torch.Generator().manual_seed(0)
    # Scores so large that exp of them is infinite in float32.
    score = 100 * torch.randn(5, 3, 12, generator=rng, dtype=torch.float64) + 300
    v = torch.randn(12, 3, 7, generator=rng, dtype=torch.float64)
    cuts = [slice(0, 1), slice(1, 5), slice(5, 12)]
    outs = torch.stack([torch.einsum("qhk,khd->qhd", score[..., cut].softmax(-1), v[cut]) for cut in cuts])
    lses = torch.stack([score[..., cut].logsumexp(-1) for cut in cuts])
    out, lse = merge(outs.to(dtype), lses)
    assert out.dtype == dtype
    torch.testing.assert_close(
        out.double(), torch.einsum("qhk,khd->qhd", score.softmax(-1), v), atol=tolerance, rtol=tolerance
    )
    torch.testing.assert_close(lse, score.logsumexp(-1))


def test_a_part_without_keys_counts_for_nothing_whatever_it_holds() -> None:
    outs = torch.tensor([[[[2.0]]], [[[torch.nan]]]])
    out, lse = merge(outs, torch.tensor([[[0.5]], [[-torch.inf]]]))
    assert out.item() == 2
    assert lse.item() == 0.5
    out, lse = merge(outs, torch.full((2, 1, 1), -torch.inf))
    assert out.item() == 0
    assert lse.item() == -torch.inf


def test_parts_must_belong_together() -> None:
    with pytest.raises(ValueError, match="not parts of one attention"):
        merge(torch.zeros(2, 3, 4, 5), torch.zeros(2, 4, 3))
