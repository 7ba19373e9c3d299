"""The Moves of one instance, both those that leave and those that arrive. See `move` for how they go.

Pure like the instance, whose part it is: it changes the instance's jobs and pages, and appends commands.
"""

from collections.abc import Iterable
from enum import IntEnum
from itertools import chain, islice
from typing import TYPE_CHECKING

import msgspec

from penstock.core.commands import InstanceCommand, Release
from penstock.core.config import MoveLimits
from penstock.core.events import Submitted
from penstock.core.job import NEVER, Job
from penstock.core.move import (
    Aborted,
    Adopt,
    Ask,
    Discard,
    Extend,
    Got,
    MoveEnded,
    Offload,
    PeerEvent,
    PeerLeft,
    Pull,
    Pulled,
    Receive,
    Reserve,
    Reserved,
    Switch,
    Switched,
    Taken,
    Tell,
)

if TYPE_CHECKING:
    from penstock.core.instance import Instance

#: The source's number stands above so many bits of a move's own number.
_NUMBER_BITS = 32


class Phase(IntEnum):
    """Where an outgoing move stands."""

    RESERVING = 0
    COPYING = 1
    #: The job stands still, but for slices in flight.
    STOPPING = 2
    #: The home has been asked to switch.
    SWITCHING = 3
    #: The job has gone; its pages are still being read.
    RELEASING = 4


class Outgoing:
    """A job that leaves."""

    __slots__ = (
        "due", "got", "had", "here", "job", "move", "off", "phase", "since", "spent", "stages", "stood", "taken", "to",
        "told", "why",
    )  # fmt: skip

    def __init__(self, move: int, job: Job, to: int, why: str, now: int) -> None:
        self.move = move
        self.job = job
        self.to = to
        self.why = why
        self.due = NEVER
        #: Why nobody will read the pages, though the home may have switched already.
        self.off = ""
        self.phase = Phase.RESERVING
        #: When that phase began, and the time in each so far, ns.
        self.since = now
        self.spent = [0] * len(Phase)
        #: Positions that the destination was told of, those that it has, and had at the start.
        self.told = self.got = self.had = 0
        #: Positions that the job goes on with there; None: not that we know.
        self.here: int | None = None
        #: When the job stood still, and when it went on there, ns; 0: it has not.
        self.stood = self.taken = 0
        self.stages = 0

    def enter(self, phase: Phase, now: int) -> None:
        """Go on to the phase."""
        self.spent[self.phase] += now - self.since
        self.phase, self.since = phase, now

    def went_on(self, event: Taken, now: int) -> None:
        """The job goes on there. Clocks of one host agree; else that was when we heard of it, at the latest."""
        self.here = event.here
        self.taken = event.at if self.stood <= event.at <= now else now

    def ended(self, reason: str, now: int) -> MoveEnded:
        """What became of it."""
        self.enter(self.phase, now)
        again = 0 if reason else self.job.known - 1 - (self.here or 0)
        copied = max(0, self.got - self.had)
        down_ns = 0 if reason else (self.taken or now) - self.stood
        return MoveEnded(self.job.id, self.to, self.why, reason, copied, again, tuple(self.spent), down_ns)


class Incoming:
    """A job that arrives. It holds pages, but is none of the instance's jobs yet."""

    __slots__ = (
        "alone", "due", "goal", "granted", "here", "job", "last", "move", "pulled", "pulling", "source", "unwanted",
    )  # fmt: skip

    def __init__(self, move: int, job: Job, source: int, due: int) -> None:
        self.move = move
        self.job = job
        self.source = source
        self.due = due
        #: Positions that are here for sure, those that were pulled, and those that the source has told of.
        self.here = self.pulled = self.goal = job.done
        #: The source will tell of no more.
        self.last = False
        self.pulling = False
        #: The home's word that the job is ours, while a pull is under way.
        self.granted: Submitted | None = None
        #: The source has left.
        self.alone = False
        #: It is off; a pull under way still writes to its pages.
        self.unwanted = False


class Moves:
    """See the module's docstring."""

    def __init__(self, instance: "Instance", limits: MoveLimits) -> None:
        self._instance = instance
        self._limits = limits
        self._next = 1
        #: By job.
        self.outgoing: dict[int, Outgoing] = {}
        #: By move: the job has gone, its pages have not.
        self.releasing: dict[int, Outgoing] = {}
        #: By move.
        self.incoming: dict[int, Incoming] = {}
        #: Jobs that stand still, by id. They hold their pages, if they had any.
        self.still: dict[int, Job] = {}
        #: Job -> when to ask (again) where it should go on; NEVER: it has asked.
        self.asks: dict[int, int] = {}
        #: The first of these times, or earlier.
        self._ask_at = NEVER
        #: Moves of jobs from here that are over, and why they came to nothing, until that is told.
        self.over: list[tuple[Outgoing, str]] = []
        #: Instances that have left. What was said to go there, and what comes from there, is late.
        self.left: set[int] = set()

    @property
    def active(self) -> bool:
        """Whether any move is under way."""
        return bool(self.outgoing or self.incoming or self.releasing or self.still)

    @property
    def begun(self) -> int:
        """Moves of jobs from here so far."""
        return self._next - 1

    @property
    def due(self) -> int | None:
        """When a wait ends, ns; None: nobody waits."""
        if not (self.outgoing or self.incoming or self.releasing or self.asks):
            return None
        due = self._ask_at if self.asks else NEVER
        for move in chain(self.outgoing.values(), self.releasing.values()):
            if move.due < due and move.phase != Phase.STOPPING:
                due = move.due
        for arriving in self.incoming.values():
            if arriving.due < due and not arriving.pulling:
                due = arriving.due
        return due if due != NEVER else None

    def holders(self) -> list[Job]:
        """Jobs that hold pages beside the running ones."""
        gone = [move.job for move in self.releasing.values()]
        return [*self.still.values(), *gone, *(move.job for move in self.incoming.values())]

    def ghost(self, job: int) -> Outgoing | None:
        """The move under which the job has gone, while its pages are here."""
        return next((move for move in self.releasing.values() if move.job.id == job), None)

    def granted(self, job: int) -> Incoming | None:
        """The move under which the job arrives, if it has been submitted here."""
        return next((m for m in self.incoming.values() if m.granted is not None and m.job.id == job), None)

    def refuse(self, move: Incoming, out: list[InstanceCommand]) -> None:
        """A job that was submitted here is not wanted any more; a pull may still write to its pages."""
        out.append(Release(move.job.id, True))
        move.granted = None
        self._tell(move.source, Aborted(move.move, "cancelled"), out)
        self._unwant(move, out)

    # -- the source --------------------------------------------------------------------------------------------

    def offload(self, event: Offload, now: int, out: list[InstanceCommand]) -> None:
        """Begin to move a job, or those that the policy picks."""
        if event.job is not None:
            job = self._instance.jobs.get(event.job)
            return self.begin(job, event, now, out) if job is not None else None
        fitting = (job for job in self._instance.candidates() if job.known <= event.tokens)
        for job in list(islice(fitting, event.jobs)):
            self.begin(job, event, now, out)

    def leaves(self, number: int) -> bool:
        """Whether a job still leaves by that move."""
        return number in self.releasing or any(move.move == number for move in self.outgoing.values())

    def may_leave(self, job: Job) -> bool:
        """Whether a move of the job could begin now."""
        return job.id not in self.outgoing and job.id not in self._instance.settling

    def begin(self, job: Job, event: Offload, now: int, out: list[InstanceCommand]) -> None:
        """Move the job: with its pages, or, where that is cheaper, without."""
        to = event.to
        if not self.may_leave(job):
            return
        if to == self._instance.number or to in self.left:
            # Nobody else takes it. It goes on here, and asks again by and by.
            if job.id in self.asks:
                self.want([job], now + self._limits.retry_ns)
            return self.go_on(job)
        move = Outgoing(self._instance.number << _NUMBER_BITS | self._next, job, to, event.why, now)
        move.due = now + self._limits.lease_ns
        self._next += 1
        self.outgoing[job.id] = move
        self.asks.pop(job.id, None)
        if not job.room or (job.wants == 1 and self._is_cheap(job.known)):
            move.move = 0
            return self._stop(move, now, out)
        # Blocks of a job that moves are not exchanged for equal ones: the destination reads the pages it was told of.
        job.share_at = NEVER
        spec = msgspec.structs.replace(job.spec, known=job.known, keys=tuple(job.keys))
        self._tell(to, Reserve(move.move, self._instance.number, spec, job.done), out)

    def on_reserved(self, event: Reserved, now: int, out: list[InstanceCommand]) -> None:
        move = self._outgoing(event.move, now)
        if move is not None and move.phase == Phase.RESERVING:
            move.enter(Phase.COPYING, now)
            move.got = move.told = move.had = event.have
            self._continue(move, now, out)

    def on_got(self, event: Got, now: int, out: list[InstanceCommand]) -> None:
        move = self._outgoing(event.move, now) or self.releasing.get(event.move)
        if move is None or event.upto <= move.got:
            return
        move.got = event.upto
        if move.phase == Phase.COPYING:
            self._continue(move, now, out)
        elif move.phase > Phase.STOPPING:
            self._tell(move.to, Extend(move.move, move.job.id, move.job.done, move.got, True), out)

    def advance(self, now: int, out: list[InstanceCommand]) -> None:
        """After a step: tell of what it executed, and switch what has come to a stand."""
        for move in list(self.outgoing.values()):
            if move.phase == Phase.STOPPING:
                self._stand(move, now, out)
            elif move.phase == Phase.COPYING:
                self._continue(move, now, out)

    def _continue(self, move: Outgoing, now: int, out: list[InstanceCommand]) -> None:
        """The next stage, if the last one is through: another copy, or the stop."""
        job = move.job
        if move.got < move.told:
            return
        # What is in flight when the job is stopped is left, too.
        at_frontier = job.wants == 1
        if at_frontier and (self._is_cheap(job.planned - move.got) or move.stages >= self._limits.stages):
            return self._stop(move, now, out)
        page = self._instance.pages.page_tokens
        if (upto := job.done - job.done % page) > move.told:
            move.told = upto
            move.stages += at_frontier
            self._tell(move.to, Extend(move.move, job.id, upto, move.got), out)
        elif at_frontier and job.planned == job.done:
            self._stop(move, now, out)

    def _stop(self, move: Outgoing, now: int, out: list[InstanceCommand]) -> None:
        move.enter(Phase.STOPPING, now)
        self.stand(move.job)
        self._stand(move, now, out)

    def _stand(self, move: Outgoing, now: int, out: list[InstanceCommand]) -> None:
        """Once nothing of it is in flight, the job can go."""
        job = move.job
        if job.planned > job.done:
            return
        move.enter(Phase.SWITCHING, now)
        move.stood = now
        move.due = now + self._limits.lease_ns
        if move.move:
            self._tell(move.to, Extend(move.move, job.id, job.done, move.got, True), out)
        out.append(Switch(job.id, job.epoch, move.to, move.move))

    def stand(self, job: Job) -> None:
        """The job gets no more slices until it goes, or goes on."""
        if job.id not in self.still:
            self.still[job.id] = job
            if self._instance.running.pop(job.id, None) is None:
                self._instance.waiting.remove(job)

    def go_on(self, job: Job) -> None:
        """A job that stands still, if it does, runs or waits here again."""
        if self.still.pop(job.id, None) is None:
            return
        if job.room:
            self._instance.running[job.id] = job
        else:
            self._instance.waiting.push(job)

    def on_switched(self, event: Switched, now: int, out: list[InstanceCommand]) -> None:
        job = self._instance.jobs.get(event.job)
        if job is None or job.epoch != event.epoch:
            return
        move = self.outgoing.pop(job.id, None)
        if move is None or move.phase != Phase.SWITCHING or not move.move:
            # It went without its pages, or we did not wait so long: nobody reads them.
            if move is not None and move.phase < Phase.SWITCHING:
                self._tell(move.to, Aborted(move.move, "moved"), out)
            if move is not None:
                self.over.append((move, "moved" if move.phase < Phase.SWITCHING else move.off))
            return self._instance.end(job, "moved", out)
        move.enter(Phase.RELEASING, now)
        move.due = now + self._limits.lease_ns
        self.releasing[move.move] = move
        self._instance.depart(job)

    def on_taken(self, event: Taken, now: int, out: list[InstanceCommand]) -> None:
        move = self.releasing.get(event.move)
        if move is not None:
            move.went_on(event, now)
            return self.release(move, "", out)
        for move in self.outgoing.values():
            if move.move == event.move:
                # The home's word is on its way; the pages need not wait for the destination any more.
                move.move = 0
                move.went_on(event, now)

    def release(self, move: Outgoing, reason: str, out: list[InstanceCommand]) -> None:
        """The job has gone, and now its pages. `reason`: why nobody reads them, if nobody has."""
        self.over.append((move, reason))
        del self.releasing[move.move]
        self._instance.give_up(move.job, out)

    def lost(self, job: Job, reason: str, out: list[InstanceCommand]) -> None:
        """The job has ended here, or lost its pages: its move is off."""
        self.asks.pop(job.id, None)
        move = self.outgoing.pop(job.id, None)
        if move is not None:
            self.over.append((move, reason))
            if move.move:
                self._tell(move.to, Aborted(move.move, reason), out)

    def _cancel(self, move: Outgoing, reason: str, now: int) -> None:
        """The move is off, and the job goes on here."""
        self.over.append((move, reason))
        del self.outgoing[move.job.id]
        self._instance.pages.name(move.job)
        if self._instance.role == "prefill":
            self.want([move.job], now + self._limits.retry_ns)
            if self._instance.is_through(move.job):
                return
        self.go_on(move.job)

    # -- asking where to go ------------------------------------------------------------------------------------

    def want(self, jobs: Iterable[Job], at: int) -> None:
        """These are to ask, from then on."""
        for job in jobs:
            self.asks[job.id] = at
            self._ask_at = min(self._ask_at, at)

    def ask(self, now: int, out: list[InstanceCommand]) -> None:
        """Ask for those whose time has come."""
        if now < self._ask_at:
            return
        for job_id, at in list(self.asks.items()):
            job = self._instance.jobs.get(job_id)
            if job is None:
                del self.asks[job_id]
            elif at <= now:
                self.asks[job_id] = NEVER
                out.append(Ask(job_id, job.epoch, job.known, job.total))
        self._ask_at = min(self.asks.values(), default=NEVER)

    # -- the destination ---------------------------------------------------------------------------------------

    def on_reserve(self, event: Reserve, now: int, out: list[InstanceCommand]) -> None:
        if event.move in self.incoming or event.source in self.left:
            return
        job = Job(event.spec, -1)
        reason = self._why_not(job)
        if reason:
            return self._tell(event.source, Aborted(event.move, reason), out)
        pages = self._instance.pages
        blocks, _ = pages.match(job)
        pages.bind(job, blocks)
        pages.grow(job, pages.missing(job, job.known))
        self._instance.tell_evicted(out)
        job.share_at = NEVER
        self.incoming[event.move] = Incoming(event.move, job, event.source, now + self._limits.lease_ns)
        out.append(Receive(event.move, tuple(job.keys[:blocks])))
        self._tell(event.source, Reserved(event.move, job.done), out)

    def _why_not(self, job: Job) -> str:
        """Why the job cannot come; empty: it can."""
        instance, pages = self._instance, self._instance.pages
        if job.id in instance.jobs or any(m.job.id == job.id for m in self.incoming.values()):
            return "it is here"
        if len(self.incoming) >= self._limits.arriving:
            return "too many arrive"
        if len(instance.running) + len(self.incoming) >= instance.config.limits.max_num_seqs:
            return "no seat"
        if pages.missing(job, job.total) > pages.pages:
            return "too large"
        blocks, held = pages.match(job)
        need = -(-(job.known - blocks * pages.block_tokens) // pages.page_tokens)
        return "no room" if pages.available - held - self._limits.spare_pages < need else ""

    def on_extend(self, event: Extend, now: int, out: list[InstanceCommand]) -> None:
        move = self.incoming.get(event.move)
        if move is None or move.unwanted or event.upto < move.goal:
            return
        move.here = max(move.here, min(event.got, move.pulled))
        move.goal, move.last, move.due = event.upto, event.last, now + self._limits.lease_ns
        self._pull(move, now, out)

    def _pull(self, move: Incoming, now: int, out: list[InstanceCommand]) -> None:
        """Bring what is missing; or go on, if the home has said so and little is."""
        pages, job = self._instance.pages, move.job
        if move.pulling:
            return
        if move.goal > move.pulled and not (move.last and self._is_cheap_here(move.goal - move.pulled)):
            if not pages.grow(job, pages.missing(job, move.goal)):
                return self._give_up(move, "no room", now, out)
            move.pulling = True
            self._instance.tell_evicted(out)
            out.append(Pull(move.move, job.id, move.source, move.pulled, move.goal))
        elif move.granted is not None and self._is_cheap_here(move.granted.spec.known - 1 - move.here):
            self._adopt(move, move.granted, now, out)

    def on_pulled(self, event: Pulled, now: int, out: list[InstanceCommand]) -> None:
        move = self.incoming.get(event.move)
        if move is None or not move.pulling:
            return
        move.pulling, move.due = False, now + self._limits.lease_ns
        if move.unwanted:
            return self._discard(move, out)
        if event.error:
            return self._give_up(move, "copy failed", now, out)
        if move.alone:
            return self._give_up(move, "source left", now, out)
        move.pulled = event.upto
        self._tell(move.source, Got(move.move, event.upto), out)
        self._pull(move, now, out)

    def on_granted(self, event: Submitted, now: int, out: list[InstanceCommand]) -> bool:
        """The home submits a job that arrives here. False: it does not, or no longer."""
        move = self.incoming.get(event.move)
        if move is None or move.unwanted or move.job.id != event.spec.id:
            return False
        move.granted = event
        self._pull(move, now, out)
        return True

    def _adopt(self, move: Incoming, granted: Submitted, now: int, out: list[InstanceCommand]) -> None:
        """The job is this instance's now."""
        del self.incoming[move.move]
        job = move.job
        here = min(move.here, granted.spec.known - 1)
        out.append(Adopt(job.id, move.move, here))
        self._instance.welcome(job, granted, here)
        self._tell(move.source, Taken(move.move, here, now), out)

    def _give_up(self, move: Incoming, reason: str, now: int, out: list[InstanceCommand]) -> None:
        """Nothing more will come. If the job is ours already, the rest is computed again; else the move is off."""
        if move.granted is not None:
            return self._adopt(move, move.granted, now, out)
        self._tell(move.source, Aborted(move.move, reason), out)
        self._unwant(move, out)

    def _unwant(self, move: Incoming, out: list[InstanceCommand]) -> None:
        move.unwanted = True
        if not move.pulling:
            self._discard(move, out)

    def _discard(self, move: Incoming, out: list[InstanceCommand]) -> None:
        del self.incoming[move.move]
        self._instance.pages.release(move.job)
        out.append(Discard(move.move))

    # -- both --------------------------------------------------------------------------------------------------

    def on_aborted(self, event: Aborted, now: int, out: list[InstanceCommand]) -> None:
        incoming = self.incoming.get(event.move)
        if incoming is not None:
            if not incoming.unwanted and incoming.granted is None:
                self._unwant(incoming, out)
            return
        if event.move in self.releasing:
            return self.release(self.releasing[event.move], event.reason, out)
        move = self._outgoing(event.move, now)
        if move is not None and move.phase in (Phase.RESERVING, Phase.COPYING):
            self._cancel(move, event.reason, now)
        elif move is not None:
            self._keep(move, event.reason)

    def on_tick(self, now: int, out: list[InstanceCommand]) -> None:
        """End the waits that have lasted too long."""
        for move in list(self.outgoing.values()):
            if move.due <= now and move.phase != Phase.STOPPING:
                if move.move:
                    self._tell(move.to, Aborted(move.move, "lease ended"), out)
                self._cancel(move, "lease ended", now)
        for move in list(self.releasing.values()):
            if move.due <= now:
                self.release(move, "lease ended", out)
        for incoming in list(self.incoming.values()):
            if incoming.due <= now and not incoming.pulling:
                self._give_up(incoming, "lease ended", now, out)

    def on_peer_left(self, event: PeerLeft, now: int, out: list[InstanceCommand]) -> None:
        """Nothing more comes from that instance, and nothing can go there."""
        self.left.add(event.instance)
        for move in list(self.outgoing.values()):
            if move.to == event.instance and move.phase < Phase.SWITCHING:
                self._cancel(move, "destination left", now)
            elif move.to == event.instance:
                self._keep(move, "destination left")
        for move in list(self.releasing.values()):
            if move.to == event.instance:
                self.release(move, "destination left", out)
        for incoming in list(self.incoming.values()):
            if incoming.source == event.instance and not incoming.unwanted:
                incoming.alone = True
                if not incoming.pulling:
                    self._give_up(incoming, "source left", now, out)

    def _keep(self, move: Outgoing, reason: str) -> None:
        """Nobody reads the job's pages; but the home may have switched, and its word is waited for."""
        move.move, move.off = 0, reason

    def _outgoing(self, number: int, now: int) -> Outgoing | None:
        """The move, whose other side has just been heard of."""
        for move in self.outgoing.values():
            if move.move == number and number:
                move.due = now + self._limits.lease_ns
                return move
        return None

    def _is_cheap(self, positions: int) -> bool:
        """Whether so many positions are rather computed again than copied."""
        limits = self._limits
        if not limits.copies:
            return True
        if not limits.compute_position_ns:
            return positions <= self._instance.pages.page_tokens
        return positions * limits.compute_position_ns <= limits.copy_ns + positions * limits.copy_position_ns

    def _is_cheap_here(self, positions: int) -> bool:
        """The same for a job that arrives and stands still. Where others run, a copy waits for the step under way and
        then the job for another one, while up to a page is computed along with that."""
        return self._is_cheap(positions) or bool(
            self._instance.running and positions <= self._instance.pages.page_tokens
        )

    def _tell(self, to: int, event: PeerEvent, out: list[InstanceCommand]) -> None:
        out.append(Tell(to, event))

    def account(self, now: int, out: list[InstanceCommand]) -> None:
        """Tell what became of moves that are over."""
        out.extend(move.ended(reason, now) for move, reason in self.over)
        self.over.clear()
