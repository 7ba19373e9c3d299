"""Each CPU kernel against torch operations, on odd sizes too. Numbers are large, so that a wrong one shows."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from penstock.engine.backend import Kv, Step
from penstock.engine.cpu import kernels
from penstock.engine.cpu.backend import Cpu
from penstock.engine.cpu.layers import Norm
from penstock.engine.cpu.linear import Packed, PackedLinear, alternate
from penstock.engine.plain import Plain

ROWS = [1, 2, 5, 6, 7, 13, 32, 100]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def close(got: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    """Equal within `tolerance` of the largest expected number."""
    assert got.shape == expected.shape
    assert (got - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(("outputs", "inputs"), [(16, 2), (48, 64), (33, 130), (1, 1024), (520, 96)])
def test_packed_linear_is_the_product_plus_bias(rows: int, outputs: int, inputs: int) -> None:
    x, bias = torch.randn(rows, inputs), torch.randn(outputs)
    weight = (4 * torch.randn(outputs, inputs)).bfloat16()
    close(Packed(weight, bias)(x), F.linear(x, weight.float(), bias))


@pytest.mark.parametrize("pairs", [False, True])
def test_a_row_gives_the_same_bits_whatever_rows_are_beside_it(pairs: bool) -> None:
    x, packed = torch.randn(200, 800), Packed(torch.randn(40, 800).bfloat16(), torch.randn(40))
    whole = packed(x, pairs=pairs)
    for rows in range(1, 40):
        assert torch.equal(packed(x[-rows:], pairs=pairs), whole[-rows:])


@pytest.mark.parametrize("rows", ROWS)
def test_products_of_pairs_round_activations_only(rows: int) -> None:
    x, weight = torch.randn(rows, 130), (4 * torch.randn(40, 130)).bfloat16()
    close(Packed(weight)(x, pairs=True), F.linear(x.bfloat16().float(), weight.float()))


@pytest.mark.parametrize("rows", ROWS)
def test_packed_linear_adds_onto_a_residual(rows: int) -> None:
    x, weight, residual = torch.randn(rows, 64), torch.randn(96, 64).bfloat16(), torch.randn(rows, 96)
    expected = residual + F.linear(x, weight.float())
    Packed(weight, mode=kernels.ADD)(x, residual)
    close(residual, expected)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("outputs", [8, 64, 44, 131])
def test_gate_and_up_in_one(rows: int, outputs: int) -> None:
    x, gate, up = torch.randn(rows, 64), torch.randn(outputs, 64).bfloat16(), torch.randn(outputs, 64).bfloat16()
    packed = Packed(alternate(gate, up), mode=kernels.SILU_MUL)
    got = packed(x)[:, :outputs]
    close(got, F.silu(F.linear(x, gate.float())) * F.linear(x, up.float()))


def test_silu_far_from_zero() -> None:
    gate = torch.tensor([-1e4, -200.0, -88.0, -20.0, -1.0, 0.0, 1.0, 20.0, 200.0, 1e4]).bfloat16()
    packed = Packed(alternate(gate[:, None].expand(-1, 2), torch.ones(10, 2).bfloat16()), mode=kernels.SILU_MUL)
    got = packed(torch.tensor([[1.0, 0.0]]))[0, :10]
    torch.testing.assert_close(got, F.silu(gate.float()), rtol=1e-5, atol=1e-6)


def test_a_module_in_the_place_of_linear_takes_any_shape_and_float() -> None:
    linear = nn.Linear(32, 50).bfloat16().requires_grad_(False)
    x = torch.randn(2, 3, 64).bfloat16()[..., ::2]
    close(PackedLinear(linear)(x), F.linear(x.float(), linear.weight.float(), linear.bias.float()))


@pytest.mark.parametrize("rows", [1, 7, 200])
@pytest.mark.parametrize("width", [16, 64, 1000, 1024])
def test_rms_norm(rows: int, width: int) -> None:
    norm = nn.RMSNorm(width, eps=1e-3)
    nn.init.normal_(norm.weight)
    norm.variance_epsilon = 1e-3  # type: ignore[assignment]
    x = 0.1 * torch.randn(rows, width)
    close(Norm(norm.requires_grad_(False))(x), norm(x))


def make_step(new: list[int], contexts: list[int], page_tokens: int) -> tuple[Step, int]:
    """A step of jobs with shuffled pages, and the number of pages."""
    counts = [-(-context // page_tokens) for context in contexts]
    pages = np.random.default_rng(1).permutation(sum(counts)).astype(np.int32) + 1
    tables = np.zeros((len(new), max(counts)), np.int32)
    for row, part in zip(tables, np.split(pages, np.cumsum(counts)[:-1]), strict=True):
        row[: len(part)] = part
    starts = np.concatenate([[0], np.cumsum(new)])
    positions = np.concatenate([np.arange(c - n, c) for n, c in zip(new, contexts, strict=True)])
    job = np.repeat(np.arange(len(new)), new)
    slots = tables[job, positions // page_tokens].astype(np.int64) * page_tokens + positions % page_tokens
    step = Step(
        ids=np.zeros(len(job), np.int64),
        positions=positions.astype(np.int64),
        slots=slots,
        query_start=starts.astype(np.int32),
        contexts=np.array(contexts, np.int32),
        tables=tables,
        decodes=sum(n == 1 for n in new),
        emit=starts[1:].astype(np.int64) - 1,
    )
    return step, len(pages) + 1


def make_kv(step: Step, pages: int, kv_heads: int, page_tokens: int, dims: tuple[int, int], dtype: torch.dtype) -> Kv:
    """Two layers, random where a job has its context, NaN elsewhere."""
    tensors = [torch.full((2, pages, kv_heads, page_tokens, dim), torch.nan) for dim in dims]
    for table, context, new in zip(step.tables, step.contexts, np.diff(step.query_start), strict=True):
        for position in range(context - new):
            for tensor in tensors:
                page = int(table[position // page_tokens])
                tensor[:, page, :, position % page_tokens] = 2 * torch.randn(2, kv_heads, tensor.shape[-1])
    return Kv(*(tensor.to(dtype) for tensor in tensors))


def as_float(kv: Kv) -> Kv:
    return Kv(kv.keys.float(), kv.values.float())


BATCHES = [
    ([1], [1]),
    ([1, 1, 1], [16, 17, 200]),
    ([5], [5]),
    ([1, 1, 30, 9, 70], [33, 5, 30, 60, 161]),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "page_tokens"),
    [(4, 4, 64, 16), (4, 2, 80, 16), (16, 4, 96, 8), (8, 1, 128, 32), (7, 1, 16, 5), (40, 1, 32, 16)],
)
def test_attention_over_shuffled_pages(
    dtype: torch.dtype, batch: tuple[list[int], list[int]], heads: int, kv_heads: int, dim: int, page_tokens: int
) -> None:
    step, pages = make_step(*batch, page_tokens)
    kv = make_kv(step, pages, kv_heads, page_tokens, (dim, dim), dtype)
    plain = as_float(kv)
    rows = sum(batch[0])
    q = 2 * torch.randn(rows, heads, dim)
    k, v = (2 * torch.randn(rows, kv_heads, dim).to(dtype).float() for _ in range(2))
    expected = Plain().attend(1, q, k, v, plain, step, 0.2)
    close(Cpu().attend(1, q, k, v, kv, step, 0.2), expected)
    for fast, slow in ((kv.keys, plain.keys), (kv.values, plain.values)):
        assert torch.equal(fast.float().nan_to_num(7e7), slow.nan_to_num(7e7))


def test_values_may_be_narrower_than_keys() -> None:
    step, pages = make_step([1, 20], [40, 50], 16)
    kv = make_kv(step, pages, 2, 16, (64, 48), torch.float32)
    q, k, v = torch.randn(21, 4, 64), torch.randn(21, 2, 64), torch.randn(21, 2, 48)
    expected = Plain().attend(0, q, k, v, as_float(kv), step, 0.125)
    close(Cpu().attend(0, q, k, v, kv, step, 0.125), expected)


def test_shapes_that_no_kernel_takes_go_the_plain_way() -> None:
    step, pages = make_step([1, 3], [9, 7], 16)
    kv = make_kv(step, pages, 2, 16, (12, 12), torch.float64)
    q, k, v = (torch.randn(4, heads, 12, dtype=torch.float64) for heads in (4, 2, 2))
    expected = Plain().attend(0, q, k, v, Kv(kv.keys.clone(), kv.values.clone()), step, 0.3)
    assert torch.equal(Cpu().attend(0, q, k, v, kv, step, 0.3), expected)


def test_the_cache_takes_the_nearest_bfloat16() -> None:
    step, pages = make_step([100], [100], 16)
    kv = make_kv(step, pages, 2, 16, (64, 64), torch.bfloat16)
    q, k, v = torch.randn(100, 2, 64), torch.randn(100, 2, 64), torch.randn(100, 2, 64)
    Cpu().attend(0, q, k, v, kv, step, 0.1)
    order = torch.from_numpy(step.slots)
    for cache, new in ((kv.keys, k), (kv.values, v)):
        assert torch.equal(cache[0].transpose(1, 2).flatten(0, 1)[order], new.bfloat16())


@pytest.mark.parametrize("norms", [False, True])
def test_rotation_and_head_norms_come_before_attention(norms: bool) -> None:
    step, pages = make_step([1, 1, 20], [40, 3, 25], 16)
    kv = make_kv(step, pages, 2, 16, (32, 32), torch.float32)
    q, k, v = torch.randn(22, 4, 32), torch.randn(22, 2, 32), torch.randn(22, 2, 32)
    angle = torch.randn(22, 1, 16).repeat(1, 1, 2)
    weights = [nn.RMSNorm(32, eps=1e-2).requires_grad_(False) for _ in range(2)]
    for weight in weights:
        nn.init.normal_(weight.weight)
        weight.variance_epsilon = 1e-2  # type: ignore[assignment]

    def rotate(x: Tensor) -> Tensor:
        return x * angle.cos() + torch.cat([-x[..., 16:], x[..., :16]], -1) * angle.sin()

    normed = [weight(x) if norms else x for weight, x in zip(weights, (q, k), strict=True)]
    expected = Plain().attend(0, rotate(normed[0]), rotate(normed[1]), v, as_float(kv), step, 0.2)
    rotation = (angle.cos().contiguous(), angle.sin().contiguous())
    head_norms = [Norm(weight) for weight in weights] if norms else []
    close(Cpu().rotate_and_attend(0, q.clone(), k.clone(), v, kv, step, 0.2, rotation, head_norms), expected)
