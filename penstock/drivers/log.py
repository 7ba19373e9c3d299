"""The log of a core: its configuration, then every event with its time and the commands that it gave.

Fed to a fresh core, the events must give the same commands; where they do not, `replay` names the first difference.
One file a core: length-prefixed MessagePack frames, the first of which is the header.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from penstock.core.commands import ClusterCommand, InstanceCommand, Run
from penstock.core.config import ClusterConfig, InstanceConfig
from penstock.core.events import ClusterEvent, InstanceEvent, StepDone, Submitted
from penstock.core.features import features
from penstock.core.step import Features
from penstock.cost.models import Model
from penstock.policies.bundles import make_cluster, make_instance

FORMAT = 2


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """Opens a log. Exactly one of the configurations is there: it says whose log this is."""

    format: int = FORMAT
    instance: InstanceConfig | None = None
    cluster: ClusterConfig | None = None
    #: What the instance's policy reckons with.
    predictor: Model | None = None


class InstanceEntry(msgspec.Struct, frozen=True, array_like=True):
    """An event of an instance, and what it led to."""

    now: int
    event: InstanceEvent
    commands: list[InstanceCommand]


class ClusterEntry(msgspec.Struct, frozen=True, array_like=True):
    """An event of the cluster, and what it led to."""

    now: int
    event: ClusterEvent
    commands: list[ClusterCommand]


class LogWriter:
    """Appends entries, buffered: a process that is killed loses what came after its last `flush`."""

    def __init__(self, path: Path, header: Header) -> None:
        self._file = path.open("wb")
        self._encoder = msgspec.msgpack.Encoder()
        self.write(header)
        self.flush()

    def write(self, entry: Header | InstanceEntry | ClusterEntry) -> None:
        frame = self._encoder.encode(entry)
        self._file.write(len(frame).to_bytes(4, "little") + frame)

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _frames(path: Path) -> Iterator[bytes]:
    """Whole frames; a last one cut off by a crash is left out."""
    with path.open("rb") as file:
        while len(size := file.read(4)) == 4:
            frame = file.read(int.from_bytes(size, "little"))
            if len(frame) < int.from_bytes(size, "little"):
                return
            yield frame


def read(path: Path) -> tuple[Header, Iterator[InstanceEntry | ClusterEntry]]:
    """The header and the entries. Raises ValueError if this is no log of ours."""
    frames = _frames(path)
    try:
        header = msgspec.msgpack.decode(next(frames, b""), type=Header)
    except msgspec.DecodeError as error:
        raise ValueError(f"{path} is not a log that `penstock serve --record` wrote: {error}") from error
    if header.format != FORMAT:
        raise ValueError(f"{path} has log format {header.format}, this version reads {FORMAT}: record it again")
    decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(
        InstanceEntry if header.instance is not None else ClusterEntry
    )
    return header, map(decoder.decode, frames)


class Difference(msgspec.Struct, frozen=True):
    """The first event whose commands came out otherwise."""

    entry: int
    event: InstanceEvent | ClusterEvent
    recorded: list[Any]
    replayed: list[Any]


class Replay(msgspec.Struct, frozen=True):
    """What became of feeding a log to a fresh core."""

    events: int
    commands: int
    difference: Difference | None


def replay(path: Path) -> Replay:
    """Feed a log to a fresh core of the same configuration; stops at the first difference."""
    header, entries = read(path)
    core: Any = (
        make_instance(header.instance, header.predictor)
        if header.instance
        else make_cluster(header.cluster or ClusterConfig())
    )
    events = commands = 0
    for entry in entries:
        replayed = core.handle(entry.event, entry.now)
        if replayed != entry.commands:
            return Replay(events, commands, Difference(events, entry.event, list(entry.commands), replayed))
        events += 1
        commands += len(replayed)
    return Replay(events, commands, None)


class Observed(msgspec.Struct, frozen=True):
    """What a log of an instance says about time, for a cost model."""

    config: InstanceConfig
    #: Features of each step, and ns until the report that it is done: from the command to run it, or from the report of
    #: the step before it if that came later, since until then it waited. Of stages that overlap, the engine's own time.
    steps: list[tuple[Features, int]]
    #: From a job's arrival at its home to the core, ns, each.
    delays: list[int]


def observe(path: Path) -> Observed:
    """Read step times and message delays. Raises ValueError if the log is not that of an instance."""
    header, entries = read(path)
    if header.instance is None:
        raise ValueError(f"{path} is the log of a cluster; step times are in the .instance files beside it")
    began: dict[int, tuple[Features, int]] = {}
    ended = 0
    found = Observed(header.instance, [], [])
    for entry in entries:
        event = entry.event
        if isinstance(entry, InstanceEntry) and isinstance(event, StepDone) and event.seq in began:
            what, issued = began.pop(event.seq)
            took_ns = entry.now - max(issued, ended) if header.instance.stages == 1 else event.took_ns
            found.steps.append((what, took_ns))
            ended = entry.now
        elif isinstance(event, Submitted):
            found.delays.append(max(0, entry.now - event.spec.arrival))
        for command in entry.commands:
            if isinstance(command, Run):
                began[command.plan.seq] = (features(command.plan.slices), entry.now)
    return found
