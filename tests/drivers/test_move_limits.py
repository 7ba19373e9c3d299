"""Whether an instance would rather copy positions or compute them again, by what its steps take."""

import pytest

from penstock.core.slo import MS
from penstock.cost.linear import Linear
from penstock.drivers.worker import move_limits
from penstock.engine.null import NullOptions, null_info


@pytest.mark.parametrize(("position_ms", "copied"), [(0.01, False), (20.0, True), (0.0, True)])
def test_a_last_page_is_copied_where_it_takes_long_to_compute(position_ms: float, copied: bool) -> None:
    limits = move_limits(Linear(30 * MS, position_ms * MS, 0, 0, 0), null_info(NullOptions(page_tokens=16)))
    computing, copying = 16 * limits.compute_position_ns, limits.copy_ns + 16 * limits.copy_position_ns
    assert (computing > copying) is copied
