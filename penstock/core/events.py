"""What can happen: to an instance, and to the cluster. Everything that the core knows came in one of these."""

import msgspec

from penstock.core.move import MoveEvent, Tick
from penstock.core.spec import JobSpec


class Submitted(msgspec.Struct, frozen=True, array_like=True, tag="submitted"):
    """A home hands a job to this instance, under an epoch. `move` names what of it may have arrived (see `move`)."""

    spec: JobSpec
    epoch: int
    move: int = 0


class Cancelled(msgspec.Struct, frozen=True, array_like=True, tag="cancelled"):
    """The home no longer wants the job in this epoch or an earlier one."""

    job: int
    epoch: int


class Named(msgspec.Struct, frozen=True, array_like=True, tag="named"):
    """More blocks of the job have become known (its output grew): their names, after those it had."""

    job: int
    keys: tuple[int, ...]


class Executed(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What became of one slice, where it is not simply: all executed, and the job goes on.

    `executed` may be less than planned (the job had already stopped; the slice was revoked). `emitted` counts the
    positions that became known. `finish` is the reason why the job ends here.
    """

    job: int
    executed: int
    emitted: int
    finish: str | None = None


class StepDone(msgspec.Struct, frozen=True, array_like=True, tag="step_done"):
    """The engine executed step `seq` as planned, but for `except_for`."""

    seq: int
    except_for: list[Executed] = []
    #: How long the engine took; 0 where nobody measured.
    took_ns: int = 0


class StepFailed(msgspec.Struct, frozen=True, array_like=True, tag="step_failed"):
    """The engine could not execute step `seq`; its jobs cannot go on."""

    seq: int
    error: str


InstanceEvent = Submitted | Cancelled | Named | StepDone | StepFailed | MoveEvent


class Arrived(msgspec.Struct, frozen=True, array_like=True, tag="arrived"):
    """A request has come in at a home; or `again`, where its instance is gone: then it is not refused."""

    spec: JobSpec
    again: bool = False


class Ended(msgspec.Struct, frozen=True, array_like=True, tag="ended"):
    """A home is through with a job, whatever the reason."""

    job: int


class Load(msgspec.Struct, frozen=True, array_like=True):
    """What an instance says of itself. As old as the message that brings it."""

    #: Submissions seen since the instance started: tells the cluster's ledger which dispatches are still under way.
    seen: int = 0
    waiting: int = 0
    running: int = 0
    #: Jobs ended since the instance started.
    ended: int = 0
    pages: int = 0
    #: Free, or holding only what can be evicted.
    pages_free: int = 0
    preemptions: int = 0
    #: Known positions of all that wait, and of the first of them.
    waiting_tokens: int = 0
    head_tokens: int = 0
    #: Running jobs of a priority above the ordinary.
    urgent: int = 0
    #: Jobs that arrive from other instances, and that leave for them.
    arriving: int = 0
    leaving: int = 0
    page_tokens: int = 1
    #: Moves of jobs from there, begun since the instance started.
    moves: int = 0
    #: Jobs that may arrive from other instances at the same time; where an instance does not say, any number.
    arriving_most: int = 1 << 20


class Reported(msgspec.Struct, frozen=True, array_like=True, tag="reported"):
    """An instance says how it is."""

    instance: int
    load: Load


class Asked(msgspec.Struct, frozen=True, array_like=True, tag="asked"):
    """A job's part on an instance ends: where is it to go on? It has `known` positions, and at most `total`."""

    instance: int
    job: int
    epoch: int
    known: int
    total: int


class Moved(msgspec.Struct, frozen=True, array_like=True, tag="moved"):
    """A home has handed the job on to an instance."""

    job: int
    instance: int


class Joined(msgspec.Struct, frozen=True, array_like=True, tag="joined"):
    """An instance is ready for work. For `role` see `move.Assigned`."""

    instance: int
    role: str = ""
    load: Load = Load()


class Left(msgspec.Struct, frozen=True, array_like=True, tag="left"):
    """An instance is gone, with all that it held."""

    instance: int


class Rerole(msgspec.Struct, frozen=True, array_like=True, tag="rerole"):
    """An operator gives an instance another role."""

    instance: int
    role: str


class Drain(msgspec.Struct, frozen=True, array_like=True, tag="drain"):
    """An operator wants an instance empty, and then ended."""

    instance: int


class NotStarted(msgspec.Struct, frozen=True, array_like=True, tag="not_started"):
    """An instance that was to start will not."""


ClusterEvent = Arrived | Ended | Reported | Asked | Moved | Joined | Left | Rerole | Drain | NotStarted | Tick
