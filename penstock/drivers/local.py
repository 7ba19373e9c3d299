"""The simplest driver: core and engine in one process and one thread, no clock, no sockets. For offline work."""

from collections.abc import Iterator, Sequence

import msgspec

from penstock.core import laws
from penstock.core.commands import Bind, End, Evict, InstanceCommand, Release, Restore, Run, Share, Stow
from penstock.core.config import InstanceConfig, Limits
from penstock.core.events import Cancelled, Executed, InstanceEvent, StepDone, Submitted
from penstock.core.move import Adopt, Discard, Receive
from penstock.core.spec import JobSpec, Unit
from penstock.core.step import StepPlan
from penstock.drivers.keys import block_keys
from penstock.engine.base import Engine, Output
from penstock.engine.params import Sampling
from penstock.policies.bundles import make_instance, row


class Local:
    """Runs jobs to their end. An error in the engine is the caller's to see."""

    def __init__(self, engine: Engine, policy: str = "fcfs", limits: Limits | None = None) -> None:
        self.engine = engine
        limits = msgspec.structs.replace(limits or row(policy).limits, max_num_queued=1 << 40)
        info = engine.info
        self.core = make_instance(
            InstanceConfig(
                policy=policy,
                pages=info.pages,
                page_tokens=info.page_tokens,
                block_tokens=info.block_tokens,
                host_pages=info.host_pages,
                limits=limits,
            )
        )
        self._next_job = 0
        self._todo: list[StepPlan] = []
        self._ended: list[Output] = []

    def submit(self, tokens: list[int], sampling: Sampling) -> int:
        """Take a job; its id. Raises ValueError if the engine cannot honour it."""
        job, self._next_job = self._next_job, self._next_job + 1
        self.engine.add(job, tokens, len(tokens), sampling)
        unit = Unit("lm", len(tokens) + sampling.max_tokens - 1)
        keys = tuple(block_keys(tokens, self.engine.info.block_tokens, b""))
        self._feed(Submitted(JobSpec(id=job, units=(unit,), known=len(tokens), arrival=job, keys=keys), 0))
        return job

    def cancel(self, job: int) -> None:
        """End a job whose outputs nobody wants any more. Its step in flight still runs."""
        self._feed(Cancelled(job, 0))

    def run(self) -> Iterator[Output]:
        """Step until all jobs have ended, yielding what each step gives them."""
        while self._todo or self._ended:
            yield from self._ended
            self._ended.clear()
            if self._todo:
                plan = self._todo.pop(0)
                outputs = self.engine.run(plan)
                yield from (output for output in outputs if output.tokens or output.finish)
                self._feed(StepDone(plan.seq, exceptions(outputs)))
        laws.check(self.core)

    def _feed(self, event: InstanceEvent) -> None:
        for command in self.core.handle(event, 0):
            self._carry_out(command)

    def _carry_out(self, command: InstanceCommand) -> None:
        match command:
            case Run(plan):
                self._todo.append(plan)
            case End(job, _, _, reason):
                self._ended.append(Output(job, 0, 0, [], None, f"error:{reason}"))
            case Bind() | Share() | Evict() | Release() | Stow() | Restore():
                carry_out(self.engine, command)


def carry_out(
    engine: Engine, command: Bind | Share | Evict | Release | Stow | Restore | Receive | Adopt | Discard
) -> None:
    """A command of the core about pages, as the engine's verb."""
    match command:
        case Receive(move, keys):
            engine.receive(move, keys)
        case Adopt(job, move, upto):
            engine.adopt(job, move, upto)
        case Discard(move):
            engine.discard(move)
        case Bind(job, keys):
            engine.bind(job, keys)
        case Share(job, keys):
            for key in keys:
                engine.share(job, key)
        case Evict(keys):
            for key in keys:
                engine.evict(key)
        case Release(job, forget):
            engine.release(job, forget)
        case Stow(job, upto):
            engine.stow(job, upto)
        case Restore(job, upto):
            engine.restore(job, upto)


def exceptions(outputs: Sequence[Output]) -> list[Executed]:
    """What the core must hear of a step's outputs: all that is not just one more token."""
    return [
        Executed(o.job, o.executed, len(o.tokens), o.finish)
        for o in outputs
        if not o.executed or o.finish is not None or len(o.tokens) != 1
    ]
