"""What the core wants done. Returned as values; a driver carries them out, in order.

Those for the engine (EngineCommand) form one queue: each takes effect after those before it, so pages that a step in
flight still reads are not reused before it is through.
"""

import msgspec

from penstock.core.events import Load
from penstock.core.move import Adopt, Assigned, Discard, MoveCommand, Offload, Receive
from penstock.core.spec import JobSpec
from penstock.core.step import StepPlan


class Bind(msgspec.Struct, frozen=True, array_like=True, tag="bind"):
    """The job starts (again), with the shared blocks `keys` as its first positions; it gets others as it grows."""

    job: int
    keys: tuple[int, ...]


class Share(msgspec.Struct, frozen=True, array_like=True, tag="share"):
    """The first blocks that the job does not share yet become the pool's blocks `keys`; where there is one already, the
    job uses that and its own copy is free."""

    job: int
    keys: tuple[int, ...]


class Evict(msgspec.Struct, frozen=True, array_like=True, tag="evict"):
    """Shared blocks `keys`, which nobody uses, are free."""

    keys: tuple[int, ...]


class Release(msgspec.Struct, frozen=True, array_like=True, tag="release"):
    """The job's own pages are free and it uses no shared block any more. `forget`: it will not come back."""

    job: int
    forget: bool


class Stow(msgspec.Struct, frozen=True, array_like=True, tag="stow"):
    """Copy the job's first `upto` positions to host memory; then its pages are free, as after Release."""

    job: int
    upto: int


class Restore(msgspec.Struct, frozen=True, array_like=True, tag="restore"):
    """The job starts again with the `upto` positions that host memory has of it, which then has room for others."""

    job: int
    upto: int


class Run(msgspec.Struct, frozen=True, array_like=True, tag="run"):
    """Execute a step, then report StepDone or StepFailed."""

    plan: StepPlan


class End(msgspec.Struct, frozen=True, array_like=True, tag="end"):
    """Tell the home that the job ended without an answer. `outcome`: dropped, failed, rejected (it may come again), or
    invalid (it never fits)."""

    job: int
    epoch: int
    outcome: str
    reason: str


class Report(msgspec.Struct, frozen=True, array_like=True, tag="report"):
    """Tell the cluster how things are: after each event that changed them enough."""

    load: Load


EngineCommand = Bind | Share | Evict | Release | Stow | Restore | Receive | Adopt | Discard | Run
InstanceCommand = EngineCommand | End | Report | MoveCommand


class Dispatch(msgspec.Struct, frozen=True, array_like=True, tag="dispatch"):
    """The home hands the job to an instance, under an epoch that it raises."""

    spec: JobSpec
    instance: int


class Refuse(msgspec.Struct, frozen=True, array_like=True, tag="refuse"):
    """The job is not taken; its client may try again after `retry_ns`."""

    job: int
    reason: str
    retry_ns: int


class Lost(msgspec.Struct, frozen=True, array_like=True, tag="lost"):
    """The job was on an instance that is gone."""

    job: int
    instance: int


class Order(msgspec.Struct, frozen=True, array_like=True, tag="order"):
    """Bring the event to an instance."""

    instance: int
    event: Offload | Assigned


class Start(msgspec.Struct, frozen=True, array_like=True, tag="start"):
    """Start another instance."""

    role: str = ""


class Retire(msgspec.Struct, frozen=True, array_like=True, tag="retire"):
    """End an instance, which has drained."""

    instance: int


ClusterCommand = Dispatch | Refuse | Lost | Order | Start | Retire
