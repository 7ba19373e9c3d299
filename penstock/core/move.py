"""A Move: a job goes from one instance to another while it runs. What the two instances tell each other.

Hand-off after prefill, live migration, drain and change of role are all this; only who asked for it differs.

    source                                          destination
    ------                                          -----------
    asked to (Offload), picks a job
    Reserve ------------------------------------->  takes pages for what is known; binds what it has of the prefix
            <-------------------------------------  Reserved (or Aborted: no room)
    goes on stepping the job                        pulls positions from the source's pages (Pull ... Pulled)
    Extend  ------------------------------------->  pulls what the source has executed since ...
            <-------------------------------------  Got, after each
    little is left: the job gets no more slices;
    once none is in flight it stands still
    Extend(last) -------------------------------->  pulls the last positions, or leaves them to be computed again
    Switch -> home raises the epoch, Submits -----> goes on from what it has, under the new epoch
            <-------------------------------------  Taken
    frees the pages, which it kept until then

The home alone decides that the job has moved, and it names the job's tokens when it submits: they are the authority.
So nothing here need be reliable. Whatever is lost, late or doubled, a lease ends the wait: a source whose Switch is not
answered goes on under the old epoch, which the home no longer takes tokens of if it did switch; a destination that no
longer has what it reserved recomputes, as for any job; one that gets no job drops what it pulled.

Copying while the job runs is Llumnix's live migration (Sun et al., OSDI'24): keys and values are append-only, so each
stage has only to bring what came since the last. Recomputing the tail is what its second version does. For a prompt in
progress the same stages stream its pages chunk by chunk, and the switch is the end of the prompt: DistServe's hand-off.
"""

import msgspec

from penstock.core.job import NEVER
from penstock.core.spec import JobSpec


class Offload(msgspec.Struct, frozen=True, array_like=True, tag="offload"):
    """Cluster to source: move jobs to instance `to`. `job` None: the source picks up to `jobs` by its policy, none
    of them of more than `tokens` positions."""

    to: int
    job: int | None = None
    jobs: int = 1
    why: str = ""
    tokens: int = NEVER


class Reserve(msgspec.Struct, frozen=True, array_like=True, tag="reserve"):
    """Source to destination: may this job come? It has `done` positions so far, and `spec` says what is known by now.
    `move` is unique: its source's number is in the upper bits, and it is never 0."""

    move: int
    source: int
    spec: JobSpec
    done: int


class Reserved(msgspec.Struct, frozen=True, array_like=True, tag="reserved"):
    """Destination to source: it may; its first `have` positions are here already."""

    move: int
    have: int


class Extend(msgspec.Struct, frozen=True, array_like=True, tag="extend"):
    """Source to destination: positions of the job up to `upto` can be pulled. `last`: there will be no more. It also
    confirms that while the positions up to `got` were pulled the pages still held them."""

    move: int
    job: int
    upto: int
    got: int
    last: bool = False


class Got(msgspec.Struct, frozen=True, array_like=True, tag="got"):
    """Destination to source: positions up to `upto` are here, if the pages held them so long: the next Extend
    says so."""

    move: int
    upto: int


class Taken(msgspec.Struct, frozen=True, array_like=True, tag="taken"):
    """Destination to source: the job goes on here with its first `here` positions, since `at` on the clock here, and
    nothing more is pulled."""

    move: int
    here: int = 0
    at: int = 0


class Aborted(msgspec.Struct, frozen=True, array_like=True, tag="aborted"):
    """Either to the other: the move is off."""

    move: int
    reason: str


#: What two instances tell each other; each is an event of the one that it goes to.
PeerEvent = Reserve | Reserved | Extend | Got | Taken | Aborted


class Pulled(msgspec.Struct, frozen=True, array_like=True, tag="pulled"):
    """Transport to destination: positions up to `upto` have arrived; or `error` says why not."""

    move: int
    upto: int
    error: str = ""


class Switched(msgspec.Struct, frozen=True, array_like=True, tag="switched"):
    """Home to source: the job is the destination's now; `epoch` is the one that is over."""

    job: int
    epoch: int


class Assigned(msgspec.Struct, frozen=True, array_like=True, tag="assigned"):
    """Cluster to instance: its role from now on. `prefill`: its jobs go on elsewhere after their prompt; `decode`: the
    cluster sends it no new ones; empty: both."""

    role: str


class PeerLeft(msgspec.Struct, frozen=True, array_like=True, tag="peer_left"):
    """Driver to instance: another one is gone. Ends waits for it sooner than their lease."""

    instance: int


class Tick(msgspec.Struct, frozen=True, array_like=True, tag="tick"):
    """Time has passed: `Instance.due` is here."""


MoveEvent = Offload | PeerEvent | Pulled | Switched | Assigned | PeerLeft | Tick


class Tell(msgspec.Struct, frozen=True, array_like=True, tag="tell"):
    """Bring the event to another instance. Like all messages it may get lost with its receiver."""

    instance: int
    event: PeerEvent


class Receive(msgspec.Struct, frozen=True, array_like=True, tag="receive"):
    """Engine: a job is to arrive under this move; it starts with the shared blocks `keys`, and gets pages as it
    grows."""

    move: int
    keys: tuple[int, ...]


class Pull(msgspec.Struct, frozen=True, array_like=True, tag="pull"):
    """Bring positions [start, end) of the job from the pages of instance `source`, then report Pulled. At most one Pull
    of a move is under way."""

    move: int
    job: int
    source: int
    start: int
    end: int


class Adopt(msgspec.Struct, frozen=True, array_like=True, tag="adopt"):
    """Engine: the job, which is known by now, goes on with the first `upto` positions that arrived under the move."""

    job: int
    move: int
    upto: int


class Discard(msgspec.Struct, frozen=True, array_like=True, tag="discard"):
    """Engine: what arrived under the move is not wanted; its pages are free, once no Pull writes to them."""

    move: int


class Switch(msgspec.Struct, frozen=True, array_like=True, tag="switch"):
    """Home: raise the job's epoch and submit it to instance `to`, naming `move` (0: nothing was copied); unless the job
    is no longer in `epoch`. It must come after all the job's tokens so far."""

    job: int
    epoch: int
    to: int
    move: int


class Ask(msgspec.Struct, frozen=True, array_like=True, tag="ask"):
    """Cluster: where should this job go on? The role of its instance ends with its prompt."""

    job: int
    epoch: int
    #: Positions that it will have at the least, and at the most.
    known: int
    total: int


class MoveEnded(msgspec.Struct, frozen=True, array_like=True, tag="move_ended"):
    """Control: what became of a move, as its source saw it."""

    job: int
    to: int
    #: Of the Offload.
    why: str
    #: Why it came to nothing; empty: the job goes on there.
    reason: str
    #: Positions that were copied, and those that are computed again.
    copied: int
    again: int
    #: ns in each phase: reserve, copy, stop, switch, release (see `moves.Phase`).
    phases: tuple[int, ...]
    #: How long the job stood still, ns: until it went on at the destination; where clocks differ, until the source
    #: heard so. What was not copied is computed again after that.
    down_ns: int = 0


MoveCommand = Tell | Receive | Pull | Adopt | Discard | Switch | Ask | MoveEnded
