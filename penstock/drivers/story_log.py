"""The stories of a recorded run, told from its logs: what the home told while it ran, but for messages on their way."""

from array import array
from collections.abc import Iterable
from pathlib import Path

from penstock.core.commands import Release, Run, Stow
from penstock.core.events import Arrived, StepDone, Submitted
from penstock.core.move import MoveEnded, Switch
from penstock.core.slo import Bounds
from penstock.core.spec import JobSpec
from penstock.core.step import StepPlan
from penstock.cost.models import Model
from penstock.drivers.log import ClusterEntry, InstanceEntry, read
from penstock.drivers.recorded import ClusterReader, InstanceReader, jobs_of
from penstock.drivers.story import Mark, Note, Stories, Story


class _InstanceTeller:
    """Follows the log of one instance: what it did for each job."""

    def __init__(self, number: int) -> None:
        self._number = number
        #: (job, mark), and placements as (job, epoch, time, instance).
        self.marks: list[tuple[int, Mark]] = []
        self.placed: list[tuple[int, int, int, int]] = []
        #: (job, epoch) that ended because the job was to go on elsewhere.
        self.switched: set[tuple[int, int]] = set()
        #: Jobs that catch up, and positions known when they began to; positions that each job knows.
        self._prompts: dict[int, int] = {}
        self._known: dict[int, int] = {}
        self._steps: dict[int, StepPlan] = {}

    def feed(self, entry: InstanceEntry) -> None:
        now = entry.now
        match entry.event:
            case Submitted(spec, epoch):
                self.placed.append((spec.id, epoch, now, self._number))
                self._known[spec.id] = self._prompts[spec.id] = spec.known
            case StepDone(seq, _, took_ns) if seq in self._steps:
                self._on_step(self._steps.pop(seq), now - took_ns, now)
        for command in entry.commands:
            match command:
                case Run(plan):
                    self._steps[plan.seq] = plan
                case Release(job, False) | Stow(job):
                    self._prompts[job] = self._known.get(job, 0)
                    self._note(Note(job, now, now, 0))
                case Switch(job, epoch):
                    self.switched.add((job, epoch))
                case MoveEnded(job, _, why):
                    mark = Mark("move", now - sum(command.phases), now, self._number, why, move=command)
                    self.marks.append((job, mark))

    def _on_step(self, plan: StepPlan, start: int, end: int) -> None:
        for piece in plan.slices:
            through = piece.start + piece.count
            self._known[piece.job] = max(self._known.get(piece.job, 0), through + 1)
            if piece.job in self._prompts:
                self._note(Note(piece.job, start, end, piece.count))
                if through >= self._prompts[piece.job]:
                    del self._prompts[piece.job]

    def _note(self, note: Note) -> None:
        what = "chunk" if note.count else "preempted"
        self.marks.append((note.job, Mark(what, note.start, note.end, self._number, tokens=note.count)))


class Logged:
    """The stories of a run. Raises ValueError where its logs are not logs."""

    def __init__(self, paths: Iterable[Path]) -> None:
        cluster, instances = ClusterReader(), list[InstanceReader]()
        tellers = list[_InstanceTeller]()
        #: Job -> when it came; more than once where it was replayed.
        came: dict[int, list[int]] = {}
        self._cost: Model | None = None
        for path in paths:
            header, entries = read(path)
            if header.instance is not None:
                self._cost = header.predictor
                instances.append(InstanceReader())
                tellers.append(_InstanceTeller(header.instance.number))
            for entry in entries:
                if isinstance(entry, ClusterEntry):
                    cluster.feed(entry)
                    if isinstance(entry.event, Arrived):
                        came.setdefault(entry.event.spec.id, []).append(entry.now)
                else:
                    instances[-1].feed(entry)
                    tellers[-1].feed(entry)
        last_ns = max([cluster.last_ns, *(reader.last_ns for reader in instances)])
        jobs = jobs_of(instances, cluster)
        self.stories = Stories(len(jobs) + 1)
        for job in jobs:
            story = Story(job.spec)
            story.times = array("q", job.tokens())
            for at in came.get(job.spec.id, [])[1:]:
                story.tell("replayed", at)
            at, outcome, error = job.end(last_ns)
            story.end(outcome, at, error)
            self.stories.add(story)
        self._add_marks(tellers)

    def _add_marks(self, tellers: list[_InstanceTeller]) -> None:
        switched = set[tuple[int, int]]().union(*(teller.switched for teller in tellers))
        for teller in tellers:
            for job, epoch, at, instance in teller.placed:
                why = "moved" if (job, epoch - 1) in switched else "again" if epoch > 1 else "new"
                if (story := self.stories.get(job)) is not None:
                    story.tell("placed", at, instance, why)
            for job, mark in teller.marks:
                if (story := self.stories.get(job)) is not None:
                    story.marks.append(mark)
        # The home's marks are in order of time; `Story.at` relies on it.
        for story in self.stories:
            story.marks.sort(key=lambda mark: mark.at)

    def bounds(self, spec: JobSpec, tokens: int) -> Bounds:
        """What was promised; multiples of idle time only where the log says what steps cost."""
        if not spec.slo.relative:
            return spec.slo.resolve()
        if self._cost is None:
            return Bounds()
        ttft, each = self._cost.request_ns(spec.known, max(1, tokens))
        return spec.slo.resolve(round(ttft), round(each), round(ttft + each * max(0, tokens - 1)))
