"""What a home tells of a job, once, when it submits it."""

import msgspec

from penstock.core.slo import Slo


class Unit(msgspec.Struct, frozen=True, array_like=True):
    """`amount` positions of work for one module (`lm`, `encode`, `denoise`, ...)."""

    module: str
    amount: int


class JobSpec(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """All that a home tells about a job. The true output length is not here: nobody knows it yet."""

    id: int
    units: tuple[Unit, ...]
    #: Positions whose input exists at the start: the prompt, and what an earlier epoch delivered.
    known: int
    #: ns on the home's clock.
    arrival: int
    #: Names of the known blocks, from position 0; equal names promise equal content (see `Pages`).
    keys: tuple[int, ...] = ()
    slo: Slo = Slo()
    #: Lower is more urgent, as in vLLM.
    priority: int = 0
    adapter: str = ""
    #: ns on the home's clock by which the last position must be done, else the job is dropped while it waits.
    deadline: int | None = None

    @property
    def total(self) -> int:
        """The most positions that the job may execute."""
        amount = 0
        for unit in self.units:  # A generator would be a fiftieth of a simulated request.
            amount += unit.amount
        return amount
