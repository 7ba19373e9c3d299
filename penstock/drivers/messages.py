"""What homes and workers say to each other: msgspec structs over ZeroMQ, one tagged union each way, nothing pickled."""

import msgspec

from penstock.core.events import Load
from penstock.core.job import JobSpec
from penstock.cost.models import Model
from penstock.engine.base import EngineInfo, Output
from penstock.engine.params import Sampling


class Submit(msgspec.Struct, frozen=True, array_like=True, tag="submit"):
    """A job for the worker. `tokens` are the prompt (the first `prompt` of them) and what was delivered before."""

    spec: JobSpec
    epoch: int
    tokens: list[int]
    prompt: int
    sampling: Sampling
    #: What else the names of the job's blocks depend on (tenant, adapter).
    salt: str = ""


class Cancel(msgspec.Struct, frozen=True, array_like=True, tag="cancel"):
    """The home no longer wants the job in this epoch or an earlier one."""

    job: int
    epoch: int


class Ping(msgspec.Struct, frozen=True, array_like=True, tag="ping"):
    """Asks the worker for a Pong, to tell a busy one from a hung one."""

    number: int


class Stop(msgspec.Struct, frozen=True, array_like=True, tag="stop"):
    """End the process now."""


ToWorker = Submit | Cancel | Ping | Stop


class Hello(msgspec.Struct, frozen=True, array_like=True, tag="hello"):
    """The worker is ready."""

    version: str
    instance: int
    pid: int
    info: EngineInfo
    #: What steps cost: measured when the worker started, or given to it.
    cost: Model


class Starting(msgspec.Struct, frozen=True, array_like=True, tag="starting"):
    """Progress of the start, for people."""

    text: str


class Refused(msgspec.Struct, frozen=True, array_like=True, tag="refused"):
    """The worker cannot serve this model or configuration, and restarting it would not help."""

    error: str


class Stepped(msgspec.Struct, frozen=True, array_like=True, tag="stepped"):
    """Tokens of one step, of jobs of this home: (epoch, output)."""

    outputs: list[tuple[int, Output]]


class Failed(msgspec.Struct, frozen=True, array_like=True, tag="failed"):
    """The job ended without an answer; outcome is dropped, rejected, invalid or failed."""

    job: int
    epoch: int
    outcome: str
    reason: str


class Loaded(msgspec.Struct, frozen=True, array_like=True, tag="loaded"):
    """The instance's load, where it has changed."""

    load: Load


class Pong(msgspec.Struct, frozen=True, array_like=True, tag="pong"):
    """`step_s` is how long the step that runs now has been running, 0 if none does."""

    number: int
    step_s: float


ToHome = Hello | Starting | Refused | Stepped | Failed | Loaded | Pong
