"""An engine's KV tensors as a transport sees them."""

import numpy as np
import pytest
import torch

from penstock.engine.backend import Kv
from penstock.engine.transport.store import HostStore, split
from penstock.engine.transport.tensors import CudaStore, integers, layout_of, store_of


def kv(dtype: torch.dtype, heads: int = 2, seed: int = 0, device: str = "cpu") -> Kv:
    draw = torch.Generator().manual_seed(seed)
    tensors = (torch.randn(3, 10, heads, 4, dim, generator=draw).to(device, dtype) for dim in (8, 6))
    return Kv(*tensors)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_the_very_bits_of_host_tensors(dtype: torch.dtype) -> None:
    source, to = kv(dtype), kv(dtype, seed=1)
    there, here = store_of([source]), store_of([to])
    assert (there.layout.itemsize, there.layout.dtype) == (dtype.itemsize, str(dtype).removeprefix("torch."))
    chunk = there.gather([3, 1], 0, 2)
    keys, _ = split(there.layout, chunk, 2, 2)
    assert torch.equal(torch.from_numpy(keys.copy()), integers(source.keys[:, [3, 1]]))
    before = to.values.clone()
    here.scatter([5, 7], 0, 2, chunk)
    assert torch.equal(to.keys[:, [5, 7]], source.keys[:, [3, 1]])
    assert torch.equal(to.values[:, [5, 7]], source.values[:, [3, 1]])
    untouched = [0, 1, 2, 3, 4, 6, 8, 9]
    assert torch.equal(to.values[:, untouched], before[:, untouched])


def test_heads_split_over_tensors() -> None:
    parts = [kv(torch.float32, seed=1), kv(torch.float32, heads=1, seed=2)]
    whole = Kv(torch.cat([p.keys for p in parts], 2), torch.cat([p.values for p in parts], 2))
    split_store, one = store_of(parts), store_of([whole])
    assert split_store.layout == one.layout
    np.testing.assert_array_equal(split_store.gather([4, 2, 9], 1, 3), one.gather([4, 2, 9], 1, 3))


def test_a_rank_holds_some_heads() -> None:
    store = store_of([kv(torch.float32)], kv_heads=6, start=4)
    assert (store.layout.start, store.layout.end, store.layout.kv_heads) == (4, 6, 6)
    assert len(store.gather([1], 5, 6)) == store.layout.page_bytes(1) == 3 * 4 * (8 + 6) * 4


def test_no_tensors_no_bytes() -> None:
    store = store_of([])
    assert isinstance(store, HostStore)
    assert len(store.gather([], 0, 0)) == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_device_tensors_as_host_tensors() -> None:
    source, to = kv(torch.bfloat16), kv(torch.bfloat16, seed=1)
    far_source, far_to = kv(torch.bfloat16, device="cuda"), kv(torch.bfloat16, seed=1, device="cuda")
    host, device = store_of([source]), store_of([far_source])
    assert isinstance(device, CudaStore)
    assert device.layout == layout_of([source], None, 0)
    chunk = device.gather([3, 1], 1, 2)
    np.testing.assert_array_equal(chunk, host.gather([3, 1], 1, 2))
    store_of([to]).scatter([5, 7], 1, 2, chunk)
    store_of([far_to]).scatter([5, 7], 1, 2, chunk)
    assert torch.equal(to.keys, far_to.keys.cpu())
    assert torch.equal(to.values, far_to.values.cpu())
