"""The instance under random arrivals, cancellations, failures and out-of-order reports: every law after every event.

Beside it runs a plain model of an engine, which executes steps strictly in order and keeps physical pages in lists, so
the core's counted pages are checked against listed ones.
"""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from penstock.core import laws
from penstock.core.commands import Bind, End, Evict, InstanceCommand, Release, Report, Restore, Run, Share, Stow
from penstock.core.config import InstanceConfig, Limits
from penstock.core.events import Cancelled, Executed, InstanceEvent, Named, StepDone, StepFailed, Submitted
from penstock.core.spec import JobSpec, Unit
from penstock.core.step import StepPlan
from penstock.policies.bundles import ROWS, make_instance

PAGE, BLOCK = 4, 8


class PlainEngine:
    """Physical pages by list. Raises where a real engine would corrupt a job's KV."""

    def __init__(self, pages: int, host: int = 0) -> None:
        self.free = list(range(pages))
        self.host = host
        #: Job -> positions in host memory.
        self.stowed: dict[int, int] = {}
        self.own: dict[int, list[int]] = {}
        self.bound: dict[int, list[int]] = {}
        self.blocks: dict[int, list[int]] = {}
        self.computed: dict[int, int] = {}
        self.queue: list[Bind | Restore | Run] = []

    def carry_out(self, command: InstanceCommand) -> None:
        match command:
            case Bind(job, keys):
                assert job not in self.own, "bound twice"
                self.own[job], self.bound[job] = [], list(keys)
                assert all(key in self.blocks for key in keys), "bound to a block that is not there"
                self.queue.append(command)
            case Share(job, keys):
                for key in keys:
                    self._share(job, key)
            case Evict(keys):
                for key in keys:
                    assert not any(key in bound for bound in self.bound.values()), "evicted while in use"
                    self.free += self.blocks.pop(key)
            case Release(job, forget):
                self._release(job)
                if forget:
                    self._drop(job)
            case Stow(job, upto):
                assert job not in self.stowed, "stowed twice"
                assert len(self.bound[job]) * BLOCK + len(self.own[job]) * PAGE >= upto, "stowed what it does not have"
                self.stowed[job] = upto
                self.host -= -(-upto // PAGE)
                assert self.host >= 0, "more stowed than there is room for"
                self._release(job)
            case Restore(job, upto):
                assert self.stowed[job] == upto, "restored more or less than was stowed"
                self._drop(job)
                self.own[job], self.bound[job] = [], []
                self._grow(job, upto)
                self.queue.append(command)
            case Run(plan):
                for piece in plan.slices:
                    self._grow(piece.job, piece.start + piece.count)
                self.queue.append(command)

    def _release(self, job: int) -> None:
        self.free += self.own.pop(job, [])
        self.bound.pop(job, None)

    def _drop(self, job: int) -> None:
        self.host += -(-self.stowed.pop(job, 0) // PAGE)

    def _share(self, job: int, key: int) -> None:
        pages, self.own[job] = self.own[job][: BLOCK // PAGE], self.own[job][BLOCK // PAGE :]
        assert len(pages) == BLOCK // PAGE, "shared more than it has"
        if key in self.blocks:
            self.free += pages
        else:
            self.blocks[key] = pages
        self.bound[job].append(key)

    def next_plan(self) -> StepPlan:
        """The oldest step; what was queued before it takes effect."""
        while not isinstance(command := self.queue.pop(0), Run):
            upto = command.upto if isinstance(command, Restore) else len(command.keys) * BLOCK
            self.computed[command.job] = upto
        return command.plan

    @property
    def busy(self) -> bool:
        return any(isinstance(command, Run) for command in self.queue)

    def _grow(self, job: int, upto: int) -> None:
        while len(self.bound[job]) * BLOCK + len(self.own[job]) * PAGE < upto:
            self.own[job].append(self.free.pop())


class Machine(RuleBasedStateMachine):
    """Rules are what the world may do to an instance."""

    @initialize(
        policy=st.sampled_from(sorted(ROWS)),
        pages=st.integers(4, 24).map(lambda n: n * 2),
        depth=st.integers(1, 3),
        stages=st.sampled_from((1, 1, 2, 3)),
        seats=st.integers(1, 6),
        budget=st.integers(1, 40),
        host=st.sampled_from((0, 0, 5, 40)),
    )
    def begin(self, policy: str, pages: int, depth: int, stages: int, seats: int, budget: int, host: int) -> None:
        limits = Limits(max_num_seqs=seats, max_num_batched_tokens=budget, max_num_queued=8)
        config = InstanceConfig(
            policy=policy,
            pages=pages,
            page_tokens=PAGE,
            block_tokens=BLOCK,
            host_pages=host,
            limits=limits,
            depth=depth if stages == 1 else 1,
            stages=stages,
        )
        self.config, self.now, self.next_job = config, 0, 0
        self.instance, self.engine = make_instance(config), PlainEngine(pages, host)
        self.log: list[tuple[InstanceEvent, list[InstanceCommand]]] = []
        self.held: list[StepDone] = []
        self.outcomes: dict[int, str] = {}

    def feed(self, event: InstanceEvent) -> None:
        self.now += 1
        commands = self.instance.handle(event, self.now)
        self.log.append((event, commands))
        for command in commands:
            self.engine.carry_out(command)
            if isinstance(command, End):
                self.outcomes[command.job] = command.outcome

    @rule(
        prompt=st.integers(1, 60),
        new=st.integers(1, 30),
        family=st.integers(0, 2),
        priority=st.integers(0, 2),
        patience=st.none() | st.integers(0, 20),
    )
    def submit(self, prompt: int, new: int, family: int, priority: int, patience: int | None) -> None:
        keys = tuple(family * 100 + i for i in range(prompt // BLOCK))
        deadline = None if patience is None else self.now + patience
        spec = JobSpec(
            id=self.next_job,
            units=(Unit("lm", prompt + new - 1),),
            known=prompt,
            arrival=self.now,
            keys=keys,
            priority=priority,
            deadline=deadline,
        )
        self.next_job += 1
        self.feed(Submitted(spec, 0))

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        if self.next_job:
            self.feed(Cancelled(data.draw(st.integers(0, self.next_job)), data.draw(st.integers(0, 1))))

    @rule(data=st.data())
    def name_output(self, data: st.DataObject) -> None:
        """The edge names a block of the output, once all of it is known."""
        ready = [j for j in self.instance.jobs.values() if j.known >= (len(j.keys) + 1) * BLOCK]
        if ready:
            job = data.draw(st.sampled_from(ready))
            self.feed(Named(job.id, (10_000 + job.id * 100 + len(job.keys),)))

    @precondition(lambda self: self.engine.busy)
    @rule(data=st.data())
    def execute(self, data: st.DataObject) -> None:
        """The engine runs its oldest step; the report may be held back and come later than the next one's."""
        report = self.run_oldest(data)
        if data.draw(st.integers(0, 3)) == 0:
            self.held.append(report)
        else:
            self.feed(report)

    def run_oldest(self, data: st.DataObject | None) -> StepDone:
        plan = self.engine.next_plan()
        exceptions = []
        for piece in plan.slices:
            job = self.instance.jobs.get(piece.job)
            at = self.engine.computed.get(piece.job)
            if job is None or at != piece.start:
                exceptions.append(Executed(piece.job, 0, 0))
                continue
            luck = data.draw(st.integers(0, 9)) if data else 9
            if luck == 0:
                self.engine.computed[piece.job] = -1
                exceptions.append(Executed(piece.job, piece.count, 1, "stop"))
            elif luck == 1 and piece.count > 1:
                self.engine.computed[piece.job] = piece.start + piece.count - 1
                exceptions.append(Executed(piece.job, piece.count - 1, 0))
            else:
                self.engine.computed[piece.job] = piece.start + piece.count
        return StepDone(plan.seq, exceptions)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def deliver(self, data: st.DataObject) -> None:
        report = data.draw(st.sampled_from(self.held))
        self.held.remove(report)
        self.feed(report)
        self.feed(report)

    @precondition(lambda self: self.engine.busy)
    @rule()
    def fail(self) -> None:
        plan = self.engine.next_plan()
        for piece in plan.slices:
            if self.engine.computed.get(piece.job) == piece.start:
                self.engine.computed[piece.job] = -1
        self.feed(StepFailed(plan.seq, "the engine broke"))

    @rule()
    def report_nonsense(self) -> None:
        self.feed(StepDone(self.instance.next_step + 7))

    @invariant()
    def laws_hold(self) -> None:
        if not hasattr(self, "instance"):
            return
        laws.check(self.instance)
        own = sum(map(len, self.engine.own.values()))
        blocks = sum(map(len, self.engine.blocks.values()))
        assert len(self.engine.free) + own + blocks == self.config.pages
        assert len(self.engine.free) == self.instance.pages.free

    def teardown(self) -> None:
        """Whatever happened, the rest can be finished, all pages come back, and a replay gives the same commands."""
        if not hasattr(self, "instance"):
            return
        for report in self.held:
            self.feed(report)
        for _ in range(5000):
            if not self.engine.busy:
                break
            self.feed(self.run_oldest(None))
        stuck = list(self.instance.jobs.values())
        assert not stuck, f"{stuck}, queue {self.engine.queue}, reason {self.instance.reason!r}"
        laws.check(self.instance)
        twin = make_instance(self.config)
        for now, (event, commands) in enumerate(self.log, start=1):
            assert twin.handle(event, now) == commands
        reports = [c.load for _, commands in self.log for c in commands if isinstance(c, Report)]
        counts = (self.instance.load.seen, self.instance.load.ended)
        assert counts == ((reports[-1].seen, reports[-1].ended) if reports else (0, 0)), (
            "the last report is out of date"
        )


Machine.TestCase.settings = settings(max_examples=200, stateful_step_count=60, deadline=None, derandomize=True)
TestInstance = Machine.TestCase
