"""The next step of one instance while a policy composes it: suggestions in, pages and order kept by the mechanism.

A policy sees jobs in `running` and `waiting` and calls the verbs here; each says what it granted. It cannot break an
account: what there is no room for is refused.
"""

from bisect import insort
from collections.abc import Callable, Mapping
from itertools import islice

from penstock.core.commands import Bind, Evict, InstanceCommand, Release, Restore, Stow
from penstock.core.config import Limits
from penstock.core.job import Job
from penstock.core.pages import Host, Pages
from penstock.core.predict import Predictor
from penstock.core.step import Slice

#: How jobs are ordered while they wait, a total order.
Order = Callable[[Job], tuple[int, ...]]


class Waiting:
    """Jobs that hold no pages, in a policy's order."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self.jobs: list[Job] = []
        #: Positions of all of them that were known when they came.
        self.tokens = 0

    def push(self, job: Job) -> None:
        insort(self.jobs, job, key=self.order)
        job.queued = job.known
        self.tokens += job.queued

    def remove(self, job: Job) -> None:
        self.jobs.remove(job)
        self.tokens -= job.queued

    def __len__(self) -> int:
        return len(self.jobs)


class Batch:
    """Composition of one step. Short-lived: an instance makes one, a policy fills it, the instance takes the result."""

    def __init__(
        self,
        running: dict[int, Job],
        waiting: Waiting,
        settling: Mapping[int, None],
        pages: Pages,
        host: Host,
        limits: Limits,
        stages: int = 1,
        predictor: Predictor | None = None,
        arriving: int = 0,
    ) -> None:
        self._running = running
        #: Jobs that arrive from elsewhere and will need a seat.
        self._arriving = arriving
        #: More than one: steps in flight have no job in common, and each takes its part of those that run.
        self._stages = stages
        self._waiting = waiting
        self._settling = settling
        self.pages = pages
        self._host = host
        self.limits = limits
        #: How long steps should take; None: nobody knows.
        self.predictor = predictor
        #: Positions that the step may still take.
        self.budget = limits.max_num_batched_tokens
        #: What has been granted, in order, and to whom: two parallel lists.
        self.slices: list[Slice] = []
        self.jobs: list[Job] = []
        self._with_slice: set[int] | None = None
        #: Why work that could run is left out, if the policy does that on purpose.
        self.reason = ""
        #: The policy's word that as long as these slices, each moved on by its length, can be granted again and nothing
        #: happens but their execution, it will grant them again. See `Instance.stable_for`.
        self.steady = False
        self.commands: list[InstanceCommand] = []

    @property
    def running(self) -> list[Job]:
        """Jobs that hold pages, in order of admission. A copy: verbs change the original."""
        return list(self._running.values())

    @property
    def waiting(self) -> list[Job]:
        """Jobs that wait, in the policy's order. Not to be changed."""
        return self._waiting.jobs

    @property
    def seats(self) -> int:
        """How many more jobs may run."""
        return self.limits.max_num_seqs - len(self._running) - self._arriving

    def advance(self) -> list[Job]:
        """One position for each running job that wants just one, with a page where needed, while the budget lasts.

        This is what most jobs of most steps need, done in one pass. Returns the running jobs that still want something
        and got nothing: those that want more than one position, found no page, or found the budget used up.
        """
        assert not self.slices, "advance comes before add and admit: it would grant their jobs a second slice"
        rest: list[Job] = []
        take, grant, grow = self.jobs.append, self.slices.append, self.pages.grow
        running, most = iter(self._running.values()), self.budget
        if self._stages > 1:
            running = (job for job in self._running.values() if job.planned == job.done)
            most = min(most, -(-len(self._running) // self._stages))
        for job in islice(running, most):
            start = job.planned
            if start + 1 < job.known:
                rest.append(job)
            elif start < job.total:
                if start < job.room or grow(job, 1):
                    job.planned = start + 1
                    take(job)
                    grant(Slice(job.id, start, 1))
                else:
                    rest.append(job)
        self.budget -= len(self.slices)
        if self._stages > 1:  # What decodes beyond this stage's part is the next stage's.
            rest.extend(job for job in running if job.planned + 1 < job.known)
        else:
            rest.extend(job for job in running if job.planned < job.total)
        return rest

    def add(self, job: Job, most: int) -> int:
        """Plan up to `most` more positions of a running job that this step has none of yet, within the budget and the
        pages there are.

        Returns the number granted: 0 if it wants none, the budget is used up, or there is not one more page.
        """
        count = min(most, job.wants, self.budget)
        if count <= 0 or not self.holds(job) or job.id in self._granted():
            return 0
        need = self.pages.missing(job, job.planned + count)
        if need and not self.pages.grow(job, need):
            count = min(count, job.room + self.pages.available * self.pages.page_tokens - job.planned)
            if count <= 0 or not self.pages.grow(job, self.pages.missing(job, job.planned + count)):
                return 0
        self.jobs.append(job)
        self.slices.append(Slice(job.id, job.planned, count))
        self._granted().add(job.id)
        job.planned += count
        self.budget -= count
        return count

    def _granted(self) -> set[int]:
        """Jobs that have a slice of this step. Made when first asked for: most steps need only `advance`."""
        if self._with_slice is None:
            self._with_slice = {piece.job for piece in self.slices}
        return self._with_slice

    def holds(self, job: Job) -> bool:
        """Whether the job is (still) running."""
        return job.id in self._running

    def last(self) -> Job:
        """The running job admitted last."""
        return self._running[next(reversed(self._running))]

    def may_admit(self, job: Job) -> bool:
        """Whether a waiting job could run at all now, were there pages and a seat: it has no slices still in flight."""
        return job.id not in self._settling

    def admit(self, job: Job, most: int, *, whole: bool = False) -> int:
        """Let a waiting job run: reuse what is here of its prefix, then plan up to `most` positions.

        There must be pages for all that is granted. `whole`: all that it wants or nothing. Returns the number granted;
        on 0 the job still waits.
        """
        if self.seats <= 0 or not self.may_admit(job):
            return 0
        pages, stowed = self.pages, job.stowed
        blocks, held = (0, 0) if stowed else pages.match(job)
        here = stowed or blocks * pages.block_tokens
        count = min(most, self.budget, job.known - here)
        if count <= 0 or (whole and count < job.known - here):
            return 0
        # Blocks that the job is about to use cannot be evicted to make room for it.
        if pages.available - held < -(-(stowed + count) // pages.page_tokens):
            return 0
        self._waiting.remove(job)
        self._running[job.id] = job
        pages.bind(job, blocks)
        if stowed:
            self._host.drop(job)
            pages.grow(job, pages.missing(job, stowed))
            self._tell_evicted()
            job.done = job.planned = stowed
            self.commands.append(Restore(job.id, stowed))
        else:
            self.commands.append(Bind(job.id, tuple(job.keys[:blocks])))
        return self.add(job, count)

    def _tell_evicted(self) -> None:
        """Copies take their pages at once: what was evicted for them must be free by then."""
        if self.pages.evicted:
            self.commands.append(Evict(tuple(self.pages.evicted)))
            self.pages.evicted.clear()

    def preempt(self, job: Job) -> None:
        """Take a running job's pages; it waits again. What it had goes to host memory, or will be computed again where
        that has no room. A slice of this step is withdrawn."""
        if job in self.jobs:
            at = self.jobs.index(job)
            del self.jobs[at]
            self.budget += self.slices.pop(at).count
            self._with_slice = None
        del self._running[job.id]
        self.commands.append(Stow(job.id, job.done) if self._host.stow(job) else Release(job.id, False))
        self.pages.release(job)
        self._waiting.push(job)
