"""One published cost model: the numbers in their form, what they are of, and where they were published."""

import msgspec

from penstock.cost.models import Model


class Published(msgspec.Struct, frozen=True):
    """What a published name stands for."""

    cost: Model
    #: What it is, in one line.
    about: str
    #: See `models.CostFile`.
    provenance: dict[str, str]
    #: A field of the cost -> the values that a name may give it: `/pp2` sets field pp to 2.
    parameters: dict[str, tuple[int, ...]] = {}


def ms(*values: float) -> tuple[float, ...]:
    """Published ms as ns."""
    return tuple(value * 1e6 for value in values)
