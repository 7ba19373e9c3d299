"""What rank 0 tells the other ranks of its instance, and what they answer. Over a socket pair, as MessagePack."""

import msgspec
import numpy as np

from penstock.engine.backend import Step
from penstock.engine.options import EngineOptions


class Join(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The first message: load your share. Answered by Done twice: before the ranks meet, and after."""

    rank: int
    size: int
    folder: str
    #: As start_engine has them, but for `threads`, which are one rank's.
    options: EngineOptions
    #: Descriptors of the sockets to the other ranks, in their order; and a file where ranks on GPUs meet (see `group`).
    peers: list[int]
    store: str
    #: Descriptor of the memory that takes this rank's KV, where it is the host's.
    memory: int


class Measure(msgspec.Struct, frozen=True, tag=True):
    """Look at the model; answered by Done with the KV pages that there is room for."""

    max_len: int


class Allocate(msgspec.Struct, frozen=True, tag=True):
    """Get ready to run, with so many KV pages. Answered by Done."""

    pages: int


class Capture(msgspec.Struct, frozen=True, tag=True):
    """Record decode steps for jobs of at most so many pages; answered by Done, with a note if that failed."""

    width: int


class Forget(msgspec.Struct, frozen=True, tag=True):
    """Drop what was recorded: another rank could not record it, and all must run alike. Answered by Done."""


class Forward(msgspec.Struct, frozen=True, tag=True):
    """A step, as `backend.Step` has it. Not answered: ranks meet in the model's sums."""

    ids: bytearray
    positions: bytearray
    slots: bytearray
    query_start: bytearray
    contexts: bytearray
    tables: bytearray
    decodes: int
    emit: bytearray


class Done(msgspec.Struct, frozen=True, tag=True):
    number: int = 0
    note: str = ""


class Refused(msgspec.Struct, frozen=True, tag=True):
    """The rank cannot do it, for a reason that says what to change, and ends."""

    reason: str


ToRank = Join | Measure | Allocate | Capture | Forget | Forward
FromRank = Done | Refused


def forward_of(step: Step) -> Forward:
    return Forward(
        ids=bytearray(step.ids),
        positions=bytearray(step.positions),
        slots=bytearray(step.slots),
        query_start=bytearray(step.query_start),
        contexts=bytearray(step.contexts),
        tables=bytearray(np.ascontiguousarray(step.tables)),
        decodes=step.decodes,
        emit=bytearray(step.emit),
    )


def step_of(message: Forward) -> Step:
    """The step, over the message's memory."""
    contexts = np.frombuffer(message.contexts, np.int32)
    return Step(
        ids=np.frombuffer(message.ids, np.int64),
        positions=np.frombuffer(message.positions, np.int64),
        slots=np.frombuffer(message.slots, np.int64),
        query_start=np.frombuffer(message.query_start, np.int32),
        contexts=contexts,
        tables=np.frombuffer(message.tables, np.int32).reshape(len(contexts), -1),
        decodes=message.decodes,
        emit=np.frombuffer(message.emit, np.int64),
    )
