"""One instance: which jobs it has, what runs in its next steps, and whose pages are whose.

A pure state machine: `handle(event, now)` returns commands. It reads no clock, draws no random number and does no I/O;
it does not know what a token is, nor whether it is simulated.

    Submitted -> waiting -> (policy admits) -> running -> (policy preempts) -> waiting ...
                                            -> (StepDone says so, or total is reached) -> ended
    Cancelled, StepFailed, a deadline passed while waiting                             -> ended
    Offload -> (see `moves`) -> moved: ended here, and going on elsewhere

Steps are composed whenever fewer than `depth` are in flight. Reports may come in any order and more than once; they
take effect in the order of the steps.
"""

from collections.abc import Callable

from penstock.core.batch import Batch, Order, Waiting
from penstock.core.commands import End, Evict, InstanceCommand, Release, Report, Run, Share, Stow
from penstock.core.config import InstanceConfig
from penstock.core.events import Cancelled, Executed, InstanceEvent, Load, Named, StepDone, StepFailed, Submitted
from penstock.core.features import NO_FEATURES, features
from penstock.core.job import NEVER, Job
from penstock.core.move import (
    Aborted,
    Assigned,
    Extend,
    Got,
    MoveEvent,
    Offload,
    PeerLeft,
    Pulled,
    Reserve,
    Reserved,
    Switched,
    Taken,
    Tick,
)
from penstock.core.moves import Moves
from penstock.core.pages import Host, Pages
from penstock.core.predict import Predictor
from penstock.core.step import Slice, StepPlan

#: How a job can end.
ENDS = ("finished", "cancelled", "failed", "dropped", "rejected", "moved")

#: Fills the batch; the second argument is now, in ns.
Compose = Callable[[Batch, int], None]
#: Which jobs to move when the cluster asks for some, best first: of those that run, and those that wait.
Pick = Callable[[list[Job], list[Job]], list[Job]]


def shortest(running: list[Job], waiting: list[Job]) -> list[Job]:
    """Jobs to move: the less urgent first, then the shorter."""
    return sorted(running, key=lambda job: (-job.spec.priority, job.done, job.id))


class Step:
    """A step in flight: two parallel lists, the jobs and their slices."""

    __slots__ = ("budget", "features", "issued", "jobs", "report", "slices", "stale", "steady")

    def __init__(self, batch: Batch, now: int) -> None:
        self.jobs = batch.jobs
        self.slices = batch.slices
        #: Positions that it could have had more.
        self.budget = batch.budget
        self.steady = batch.steady
        self.issued = now
        #: As composed, where there is a predictor to learn how long that takes.
        self.features = features(batch.slices) if batch.predictor is not None else NO_FEATURES
        #: Slices of jobs preempted since: their tokens count, their pages are gone.
        self.stale: dict[Job, Slice] = {}
        self.report: StepDone | StepFailed | None = None

    def take(self, job: Job) -> Slice | None:
        """Take a job's slice out, if it has one."""
        if job not in self.jobs:
            return None
        at = self.jobs.index(job)
        del self.jobs[at]
        return self.slices.pop(at)


class Instance:
    """See the module's docstring. Public attributes are for policies, laws and reports to read."""

    def __init__(
        self,
        config: InstanceConfig,
        compose: Compose,
        order: Order,
        predictor: Predictor | None = None,
        pick: Pick = shortest,
    ) -> None:
        self.config = config
        self.number = config.number
        self.role = config.role
        self.compose = compose
        self.pick = pick
        self.predictor = predictor
        self.pages = Pages(config.pages, config.page_tokens, config.block_tokens)
        self.host = Host(config.host_pages, config.page_tokens)
        #: Jobs that wait for pages or a seat.
        self.waiting = Waiting(order)
        #: Jobs that hold pages, by id, in order of admission.
        self.running: dict[int, Job] = {}
        #: All jobs, by id.
        self.jobs: dict[int, Job] = {}
        #: Steps in flight, by number, oldest first.
        self.steps: dict[int, Step] = {}
        self.next_step = 0
        self.moves = Moves(self, config.moves)
        #: Jobs whose slices are still in flight though they were preempted: they cannot run before those are through.
        self.settling: dict[int, None] = {}
        #: Why runnable work is left idle, in the policy's words.
        self.reason = ""
        #: How jobs came and went; `seen` is the sum of all others and of the jobs here.
        self.counts = dict.fromkeys(("seen", *ENDS), 0)
        self.preemptions = 0
        #: Jobs that have a deadline, and those more urgent than the ordinary.
        self._deadlines = self._urgent = 0
        self._depth = max(config.depth, config.stages)
        #: When the last step was reported, if anybody learns from that.
        self._ended_at = 0
        self._reported_jobs = (0, 0, 0, 0, 0, 0)
        self._reported_free = config.pages
        #: A report is due when so many pages have come or gone since the last.
        self._grain = max(1, config.pages // 64)

    # -- events ------------------------------------------------------------------------------------------------

    def handle(self, event: InstanceEvent, now: int) -> list[InstanceCommand]:
        """The one way in. Returns what is to be done, in order."""
        out: list[InstanceCommand] = []
        match event:
            case StepDone() | StepFailed():
                self._on_report(event, now, out)
            case Submitted():
                self._on_submitted(event, now, out)
            case Cancelled():
                self._on_cancelled(event, out)
            case Named():
                self._on_named(event, out)
            case _:
                self._on_move(event, now, out)
        while len(self.steps) < self._depth and self._compose(now, out):
            pass
        if self.moves.asks:
            self.moves.ask(now, out)
        if self.moves.over:
            self.moves.account(now, out)
        self._report(out)
        return out

    def _on_move(self, event: MoveEvent, now: int, out: list[InstanceCommand]) -> None:
        moves = self.moves
        match event:
            case Offload():
                moves.offload(event, now, out)
            case Reserve():
                moves.on_reserve(event, now, out)
            case Reserved():
                moves.on_reserved(event, now, out)
            case Extend():
                moves.on_extend(event, now, out)
            case Got():
                moves.on_got(event, now, out)
            case Pulled():
                moves.on_pulled(event, now, out)
            case Switched():
                moves.on_switched(event, now, out)
            case Taken():
                moves.on_taken(event, now, out)
            case Aborted():
                moves.on_aborted(event, now, out)
            case PeerLeft():
                moves.on_peer_left(event, now, out)
            case Assigned():
                self._on_assigned(event, now)
            case Tick():
                moves.on_tick(now, out)

    def _on_submitted(self, event: Submitted, now: int, out: list[InstanceCommand]) -> None:
        self.counts["seen"] += 1
        spec, known = event.spec, self.jobs.get(event.spec.id)
        if known is not None:
            if event.epoch <= known.epoch:
                return self._turn_away(event, "rejected", "a newer epoch of this job is here", out)
            self._end(known, "cancelled", out)
        if event.move and self.moves.on_granted(event, now, out):
            return
        job = Job(spec, event.epoch)
        if self.pages.missing(job, job.total) > self.pages.pages:
            room = self.pages.pages * self.pages.page_tokens
            reason = (
                f"needs room for {job.total} tokens, the KV cache has {room}: shorten the prompt or lower max_tokens"
            )
            return self._turn_away(event, "invalid", reason, out)
        # What was taken once, elsewhere, is not turned away.
        if len(self.waiting) >= self.config.limits.max_num_queued and event.epoch <= 1:
            return self._turn_away(event, "rejected", "queue full", out)
        self._enter(job)
        self.waiting.push(job)

    def _enter(self, job: Job) -> None:
        self.jobs[job.id] = job
        self._deadlines += job.spec.deadline is not None
        self._urgent += job.spec.priority < 0

    def _leave(self, job: Job) -> None:
        del self.jobs[job.id]
        self._deadlines -= job.spec.deadline is not None
        self._urgent -= job.spec.priority < 0

    def _on_assigned(self, event: Assigned, now: int) -> None:
        """A new role. Jobs that were to go on elsewhere go on here, or those that run here elsewhere."""
        self.role = event.role
        moves = self.moves
        if self.role == "prefill":
            moves.want([job for job in self.running.values() if self._is_to_leave(job)], now)
            return
        moves.asks.clear()
        for job in list(moves.still.values()):
            if job.id not in moves.outgoing:
                moves.go_on(job)

    def _is_to_leave(self, job: Job) -> bool:
        """Whether a job of an instance for prompts goes on after its own, and nobody has asked yet where."""
        moves = self.moves
        return job.id not in moves.asks and job.id not in moves.outgoing and job.total > job.spec.known

    def _turn_away(self, event: Submitted, outcome: str, reason: str, out: list[InstanceCommand]) -> None:
        self.counts["rejected"] += 1
        out.append(End(event.spec.id, event.epoch, outcome, reason))

    def _on_cancelled(self, event: Cancelled, out: list[InstanceCommand]) -> None:
        job, moves = self.jobs.get(event.job), self.moves
        if job is not None:
            if job.epoch <= event.epoch:
                self._end(job, "cancelled", out)
            return
        if (arriving := moves.granted(event.job)) is not None and (self.epoch_of(event.job) or 0) <= event.epoch:
            self.counts["cancelled"] += 1
            moves.refuse(arriving, out)
        if (ghost := moves.ghost(event.job)) is not None and ghost.job.epoch <= event.epoch:
            moves.release(ghost, "cancelled", out)

    def _on_named(self, event: Named, out: list[InstanceCommand]) -> None:
        job = self.jobs.get(event.job)
        if job is not None:
            self.pages.name(job, event.keys)
            if job.id in self.moves.outgoing:
                job.share_at = NEVER
            elif job.id in self.running:
                self._share(job, out)

    # -- reports -----------------------------------------------------------------------------------------------

    def _on_report(self, event: StepDone | StepFailed, now: int, out: list[InstanceCommand]) -> None:
        step = self.steps.get(event.seq)
        if step is None or step.report is not None:
            return
        step.report = event
        while self.steps and (report := (head := next(iter(self.steps.values()))).report) is not None:
            del self.steps[report.seq]
            if isinstance(report, StepDone):
                if self.predictor is not None:
                    self._learn(self.predictor, head, report, now)
                self._settle(head, report, out)
            else:
                self._fail(head, report, out)
        if self.role == "prefill" or self.moves.outgoing:
            self._move_on(now, out)

    def _move_on(self, now: int, out: list[InstanceCommand]) -> None:
        """After a step: jobs whose part here is done stand still, and those that leave get on with it."""
        if self.role == "prefill":
            for job in [job for job in self.running.values() if self.is_through(job) and job.id in self.moves.asks]:
                self.moves.stand(job)
            for move in self.moves.outgoing.values():
                if self.is_through(move.job):
                    self.moves.stand(move.job)
        self.moves.advance(now, out)

    def is_through(self, job: Job) -> bool:
        """Whether the job has emitted its first token here: what an instance for prompts is there for."""
        return job.known == job.spec.known + 1

    def _learn(self, predictor: Predictor, step: Step, report: StepDone, now: int) -> None:
        """What counts is what clients wait for: from one step's end to the next one's, messages included. In a pipeline
        that is not how long a step takes, so there the engine's word is taken."""
        took_ns = now - max(step.issued, self._ended_at) if self.config.stages == 1 else report.took_ns
        self._ended_at = now
        if took_ns > 0:
            predictor.learn(step.features, took_ns)

    def _settle(self, step: Step, report: StepDone, out: list[InstanceCommand]) -> None:
        """Account for an executed step: first what did not go as planned, then the ordinary rest in one pass."""
        for result in report.except_for:
            self._settle_exception(step, result, out)
        for at, piece in enumerate(step.slices):
            job = step.jobs[at]
            done = job.done = job.done + piece.count
            if done >= job.share_at:
                self._share(job, out)
            if done >= job.known:
                job.known = done + 1
                if done >= job.total:
                    self._end(job, "finished", out)
        for job, piece in step.stale.items():
            if piece.start + piece.count >= job.known:
                job.known = piece.start + piece.count + 1
            self._unsettle(job)
            if job.known > job.total:
                self._end(job, "finished", out)

    def _settle_exception(self, step: Step, result: Executed, out: list[InstanceCommand]) -> None:
        job = self.jobs.get(result.job)
        if job is None:
            return
        piece = step.take(job)
        stale = step.stale.pop(job, None)
        if piece is not None:
            job.done = piece.start + result.executed
            job.known = max(job.known, job.done + 1) if result.emitted else job.known
            if result.executed != piece.count:
                job.planned = job.done
                self._withdraw(job)
        elif stale is not None:
            job.known += result.emitted
            self._unsettle(job)
        else:
            return
        failed = result.finish is not None and result.finish.startswith("error")
        if piece is not None and not failed:
            self._share(job, out)
        if result.finish is not None or job.known > job.total:
            self._end(job, "failed" if failed else "finished", out)

    def _fail(self, step: Step, report: StepFailed, out: list[InstanceCommand]) -> None:
        for job in [*step.jobs, *step.stale]:
            if job.id in self.jobs:
                out.append(End(job.id, job.epoch, "failed", report.error))
                self._end(job, "failed", out)

    def _share(self, job: Job, out: list[InstanceCommand]) -> None:
        if job.done >= job.share_at:
            out.append(Share(job.id, self.pages.share(job)))

    def _withdraw(self, job: Job) -> None:
        """Later slices of the job in flight do not count: they start where it does not stand."""
        for step in self.steps.values():
            step.take(job)
            step.stale.pop(job, None)

    def _unsettle(self, job: Job) -> None:
        if not any(job in step.stale for step in self.steps.values()):
            self.settling.pop(job.id, None)

    def _end(self, job: Job, outcome: str, out: list[InstanceCommand]) -> None:
        self._withdraw(job)
        self._leave(job)
        self.settling.pop(job.id, None)
        self.moves.lost(job, outcome, out)
        if self.running.pop(job.id, None) is None and self.moves.still.pop(job.id, None) is None:
            self.waiting.remove(job)
        self.counts[outcome] += 1
        self.give_up(job, out)

    # -- what moves do to jobs ---------------------------------------------------------------------------------

    def candidates(self) -> list[Job]:
        """Jobs that a move could begin with now, those that the policy would rather lose first."""
        moves = self.moves
        return [job for job in self.pick(list(self.running.values()), self.waiting.jobs) if moves.may_leave(job)]

    def end(self, job: Job, outcome: str, out: list[InstanceCommand]) -> None:
        """The job is over here."""
        self._end(job, outcome, out)

    def depart(self, job: Job) -> None:
        """The job, which stands still, is another instance's now; its pages are still being read."""
        self._leave(job)
        del self.moves.still[job.id]
        self.counts["moved"] += 1

    def give_up(self, job: Job, out: list[InstanceCommand]) -> None:
        """Free what the job holds: it will not come back."""
        self.pages.release(job)
        self.host.drop(job)
        out.append(Release(job.id, True))

    def welcome(self, job: Job, granted: Submitted, here: int) -> None:
        """A job that has arrived goes on, with its first `here` positions."""
        spec = granted.spec
        job.spec, job.epoch, job.total = spec, granted.epoch, spec.total
        job.known, job.done, job.planned = spec.known, here, here
        job.keys = [*job.keys[: job.shared], *spec.keys[job.shared :]]
        self.pages.name(job)
        self._enter(job)
        self.running[job.id] = job

    # -- steps -------------------------------------------------------------------------------------------------

    def _compose(self, now: int, out: list[InstanceCommand]) -> bool:
        """Let the policy fill the next step; False if there is nothing to run."""
        if not self.jobs:
            return False
        if self._deadlines:
            self._drop_overdue(now, out)
        config = self.config
        batch = Batch(
            self.running,
            self.waiting,
            self.settling,
            self.pages,
            self.host,
            config.limits,
            config.stages,
            self.predictor,
            len(self.moves.incoming),
        )
        self.compose(batch, now)
        self.reason = batch.reason
        if batch.commands:
            self._carry_over(batch, out)
        self.tell_evicted(out)
        if not batch.slices:
            return False
        if self.role == "prefill":
            self.moves.want([job for job in batch.jobs if self._is_to_leave(job)], now)
        self.steps[self.next_step] = Step(batch, now)
        out.append(Run(StepPlan(self.next_step, list(batch.slices))))
        self.next_step += 1
        return True

    def _carry_over(self, batch: Batch, out: list[InstanceCommand]) -> None:
        """Take what the policy changed beside the slices."""
        for command in batch.commands:
            if isinstance(command, Release | Stow):
                self.preemptions += 1
                batch.steady = False
                self._make_stale(self.jobs[command.job])
                self.moves.lost(self.jobs[command.job], "preempted", out)
        out.extend(batch.commands)

    def tell_evicted(self, out: list[InstanceCommand]) -> None:
        """Before anything takes pages that were freed by evicting."""
        if self.pages.evicted:
            out.append(Evict(tuple(self.pages.evicted)))
            self.pages.evicted.clear()

    def _make_stale(self, job: Job) -> None:
        for step in self.steps.values():
            piece = step.take(job)
            if piece is not None:
                step.stale[job] = piece
                self.settling[job.id] = None

    def _drop_overdue(self, now: int, out: list[InstanceCommand]) -> None:
        overdue = [job for job in self.waiting.jobs if job.spec.deadline is not None and job.spec.deadline < now]
        for job in overdue:
            out.append(End(job.id, job.epoch, "dropped", "dropped: its deadline passed while it waited"))
            self._end(job, "dropped", out)

    # -- many steps at once ------------------------------------------------------------------------------------

    @property
    def stable_for(self) -> int:
        """How many steps, the one in flight included, will be composed alike if each is reported done as planned and
        nothing else happens. At least 1.

        That is so while the policy says that it is steady and nobody predicts, decoding jobs go on decoding, at most
        one prompt takes all that is left of the budget, there are pages, no deadline of a waiting job may pass and no
        report is due.
        """
        unsure = self.predictor is not None or self._depth != 1 or (self._deadlines and self.waiting)
        if unsure or self.moves.active or self.role == "prefill" or not self.steps:
            return 1
        (step,) = self.steps.values()
        if not step.steady:
            return 1
        most, chunk = NEVER, None
        for at, piece in enumerate(step.slices):
            job = step.jobs[at]
            if chunk is not None:
                return 1
            if job.planned < job.known:
                chunk = job
                most = min(most, (job.known - job.planned) // piece.count)
            elif piece.count > 1 or job.share_at != NEVER:
                return 1
            else:
                most = min(most, job.total - job.planned)
        if chunk is not None and (step.budget or not self.pages.sharing_is_new(chunk)):
            return 1
        available = self.pages.available
        spare = min(available, available - self._reported_free + self._grain - 1)
        while most > 0 and self._pages_for(step, most) > spare:
            most //= 2
        return 1 + most

    def _pages_for(self, step: Step, times: int) -> int:
        """Pages that so many more steps like this one take."""
        page, pages = self.pages.page_tokens, 0
        for at, piece in enumerate(step.slices):
            job = step.jobs[at]
            more = job.planned + times * piece.count - job.room
            if more > 0:
                pages -= -more // page
        return pages

    def leap(self, count: int) -> list[InstanceCommand]:
        """The same as `count` times StepDone for the one step in flight, as planned, without the commands to run the
        steps between: then that many steps are through, and the last one composed is in flight. `count` must be less
        than `stable_for`. A simulator's way through a quiet stretch."""
        out: list[InstanceCommand] = []
        seq, step = self.steps.popitem()
        for at, piece in enumerate(step.slices):
            job, moved = step.jobs[at], count * piece.count
            job.done += moved
            job.planned += moved
            if job.planned > job.room:
                self.pages.grow(job, self.pages.missing(job, job.planned))
            if job.done >= job.known:
                job.known = job.done + 1
            if job.done >= job.share_at:
                self._share(job, out)
            step.slices[at] = Slice(job.id, piece.start + moved, piece.count)
        self.steps[seq + count] = step
        self.next_step += count
        self.tell_evicted(out)
        return out

    # -- reading -----------------------------------------------------------------------------------------------

    def epoch_of(self, job: int) -> int | None:
        """The job's epoch, if it is this instance's: here, or about to go on here."""
        if (here := self.jobs.get(job)) is not None:
            return here.epoch
        arriving = self.moves.granted(job)
        return arriving.granted.epoch if arriving is not None and arriving.granted is not None else None

    def _report(self, out: list[InstanceCommand]) -> None:
        """Jobs that came, started or went are reported at once, pages by and by."""
        free = self.pages.available
        counts, moves = self.counts, self.moves
        under_way = len(moves.incoming) << 16 | len(moves.outgoing) + len(moves.releasing)
        jobs = (
            counts["seen"], len(self.waiting.jobs), len(self.running), len(self.jobs), self.preemptions, under_way,
        )  # fmt: skip
        if jobs != self._reported_jobs or abs(free - self._reported_free) >= self._grain:
            self._reported_jobs, self._reported_free = jobs, free
            out.append(Report(self.load))

    @property
    def due(self) -> int | None:
        """When the driver is to feed a Tick, ns; None: not at all."""
        return self.moves.due

    @property
    def load(self) -> Load:
        """What this instance reports to the cluster."""
        counts, pages, waiting, moves = self.counts, self.pages, self.waiting, self.moves
        return Load(
            counts["seen"],
            len(waiting),
            len(self.running) + len(moves.still),
            counts["seen"] - len(self.jobs),
            pages.pages,
            pages.available,
            self.preemptions,
            waiting.tokens,
            waiting.jobs[0].queued if waiting.jobs else 0,
            sum(job.spec.priority < 0 for job in self.running.values()) if self._urgent else 0,
            len(moves.incoming),
            len(moves.outgoing) + len(moves.releasing),
            pages.page_tokens,
            moves.begun,
            max(0, min(self.config.moves.arriving, self.config.limits.max_num_seqs - len(self.running))),
        )
