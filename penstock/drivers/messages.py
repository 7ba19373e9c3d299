"""What homes, instances and the control say to each other: msgspec structs, one tagged union for each reader.

A worker process is an instance. A home owns streams; the control starts instances and knows them all.
"""

from typing import Literal

import msgspec

from penstock.core.commands import Dispatch, Lost, Order, Refuse, Retire, Start
from penstock.core.events import (
    Arrived,
    Asked,
    Drain,
    Ended,
    Joined,
    Left,
    Load,
    Moved,
    NotStarted,
    Reported,
    Rerole,
)
from penstock.core.move import Ask, Assigned, MoveEnded, Offload, PeerEvent, PeerLeft, Switch, Switched
from penstock.core.spec import JobSpec
from penstock.cost.models import Model
from penstock.drivers.story import Note
from penstock.engine.base import EngineInfo, Output
from penstock.engine.params import Sampling

#: The names, as senders, of who starts instances, and of the cluster core where it is a process of its own.
CONTROL = "c"
SCHEDULER = "s"
#: A home's number stands above so many bits of a job's own number.
NUMBER_BITS = 40

#: What happens to a fleet, for the cluster core.
FleetEvent = Joined | Left | Reported | Asked | Drain | Rerole | NotStarted
FleetState = Literal["starting", "ready", "restarting", "failed"]
InstanceState = Literal["starting", "up", "draining", "ended"]


def instance_name(instance: int) -> str:
    """An instance's name as a sender; of files too, so it is short."""
    return f"i{instance}"


def instance_of(name: str) -> int:
    return int(name[1:])


def home_name(home: int) -> str:
    return f"h{home}"


def home_of(job: int) -> str:
    return home_name(job >> NUMBER_BITS)


class MoveCounts(msgspec.Struct):
    """Moves of jobs from one instance that are over: of those that went, and, by reason, of those that did not; and
    positions copied and computed again."""

    taken: int = 0
    copied: int = 0
    again: int = 0
    aborted: dict[str, int] = {}

    def add(self, ended: MoveEnded) -> None:
        self.copied += ended.copied
        self.again += ended.again
        if ended.reason:
            self.aborted[ended.reason] = self.aborted.get(ended.reason, 0) + 1
        else:
            self.taken += 1


class Instance(msgspec.Struct, frozen=True, kw_only=True):
    """An instance, for people."""

    instance: int
    role: str
    state: InstanceState
    host: str
    pid: int
    load: Load
    moves: MoveCounts = msgspec.field(default_factory=MoveCounts)


class Attach(msgspec.Struct, frozen=True, array_like=True, tag="attach"):
    """The first word of one who wants to hear from another: where it is reached."""

    address: str


class Detach(msgspec.Struct, frozen=True, array_like=True, tag="detach"):
    """A home has ended."""

    home: str


class Submit(msgspec.Struct, frozen=True, array_like=True, tag="submit"):
    """A job for the instance. `tokens` are the prompt (the first `prompt` of them) and what was delivered before."""

    spec: JobSpec
    epoch: int
    tokens: list[int]
    prompt: int
    sampling: Sampling
    #: What else the names of the job's blocks depend on (tenant, adapter).
    salt: str = ""
    #: See `core.events.Submitted`.
    move: int = 0


class Cancel(msgspec.Struct, frozen=True, array_like=True, tag="cancel"):
    """The home no longer wants the job in this epoch or an earlier one."""

    job: int
    epoch: int


class Roll(msgspec.Struct, frozen=True, array_like=True, tag="roll"):
    """All jobs (job, epoch) that the home believes are here. The instance drops what else it has of that home, and
    answers Absent."""

    jobs: list[tuple[int, int]]


class Ping(msgspec.Struct, frozen=True, array_like=True, tag="ping"):
    """Asks for a Pong, to tell a busy instance from a hung one."""

    number: int


class Stop(msgspec.Struct, frozen=True, array_like=True, tag="stop"):
    """End the process now."""


class Neighbour(msgspec.Struct, frozen=True, array_like=True, tag="neighbour"):
    """Another instance is up: where it is reached, and where its pages are."""

    instance: int
    address: str
    pages_at: list[bytes]


class Peer(msgspec.Struct, frozen=True, array_like=True, tag="peer"):
    """Another instance's word about a move. With Extend come the physical pages of the positions that it names."""

    event: PeerEvent
    pages: list[int] = []


ToWorker = (
    Attach | Detach | Submit | Cancel | Roll | Ping | Stop | Neighbour | PeerLeft | Peer | Switched | Offload | Assigned
)


class Hello(msgspec.Struct, frozen=True, array_like=True, tag="hello"):
    """The instance is ready, and where it is reached."""

    version: str
    instance: int
    address: str
    info: EngineInfo
    #: What steps cost: measured when the worker started, or given to it.
    cost: Model
    #: Of its transports.
    pages_at: list[bytes] = []


class Starting(msgspec.Struct, frozen=True, array_like=True, tag="starting"):
    """Progress of the start, for people."""

    text: str


class Refused(msgspec.Struct, frozen=True, array_like=True, tag="refused"):
    """The worker cannot serve this model or configuration, and restarting it would not help."""

    error: str


class Loaded(msgspec.Struct, frozen=True, array_like=True, tag="loaded"):
    """The instance's load, where it has changed."""

    load: Load


class Pong(msgspec.Struct, frozen=True, array_like=True, tag="pong"):
    """`step_s` is how long the step that runs now has been running, 0 if none does."""

    number: int
    step_s: float


class Held(msgspec.Struct, frozen=True, array_like=True, tag="held"):
    """A home's jobs are on these instances, at that time: `time.monotonic()` of the host, which is the keeper's too."""

    instances: list[int]
    at_s: float


class Operate(msgspec.Struct, frozen=True, array_like=True, tag="operate"):
    """An operator asks a home for this."""

    what: Literal["add", "remove", "drain", "assign", "move", "restart"]
    instance: int = 0
    role: str = ""
    #: Of a move: where to, and of how many jobs at most.
    to: int = 0
    jobs: int = 1


ToControl = (
    Hello | Starting | Refused | Loaded | Pong | Ask | MoveEnded | Attach | Held | Operate | Order | Start | Retire
)

ToScheduler = FleetEvent | Arrived | Ended | Moved | Attach | Detach | Ping


class Began(msgspec.Struct, frozen=True, array_like=True, tag="began"):
    """The job has pages and will be in the next steps."""

    job: int
    epoch: int


class Stepped(msgspec.Struct, frozen=True, array_like=True, tag="stepped"):
    """Tokens of one step, of jobs of this home: (epoch, output); and what is to be told of jobs."""

    outputs: list[tuple[int, Output]]
    notes: list[Note] = []
    #: When this was sent, ns on the clock of the notes; 0 without any.
    sent: int = 0


class Failed(msgspec.Struct, frozen=True, array_like=True, tag="failed"):
    """The job ended without an answer; outcome is dropped, rejected, invalid or failed."""

    job: int
    epoch: int
    outcome: str
    reason: str


class Absent(msgspec.Struct, frozen=True, array_like=True, tag="absent"):
    """Jobs (job, epoch) of a Roll that are not here."""

    jobs: list[tuple[int, int]]


ToHome = Began | Stepped | Failed | Absent | Switch | MoveEnded


class Up(msgspec.Struct, frozen=True, array_like=True, tag="up"):
    """The instance can be talked to."""

    instance: int
    address: str


class Gone(msgspec.Struct, frozen=True, array_like=True, tag="gone"):
    """The instance has ended. `how` is empty where that was intended."""

    instance: int
    how: str


class Status(msgspec.Struct, frozen=True, array_like=True, tag="status"):
    """How the fleet is; and where the cluster core is reached, empty while it is not there."""

    state: FleetState
    reason: str
    restarts: int
    settled: bool
    info: EngineInfo | None
    cost: Model | None
    instances: list[Instance]
    scheduler: str


#: To a home in a process of its own.
ToBranch = ToHome | Dispatch | Refuse | Lost | Up | Gone | Status
