"""The simulated driver: the same cores and policies over the null engine, on a heap instead of a clock.

Time is an integer of ns and jumps from event to event; the heap's key (time, sequence) orders everything, so that the
same input gives the same output to the byte. The true length of an answer is known here and to the null engine only.
Knows step times, KV capacity, queues and message delay; no network, no start-up, no failures.
"""

from collections.abc import Callable, Sequence
from functools import partial
from heapq import heappop, heappush

import msgspec

from penstock.core.cluster import ClusterConfig
from penstock.core.commands import Bind, Dispatch, End, InstanceCommand, Refuse, Release, Report, Run
from penstock.core.events import (
    Arrived,
    ClusterEvent,
    Ended,
    InstanceEvent,
    Joined,
    Reported,
    StepDone,
    Submitted,
)
from penstock.core.instance import InstanceConfig
from penstock.core.job import JobSpec, Unit
from penstock.core.slo import SECOND, Slo
from penstock.core.step import StepCost, StepPlan, features
from penstock.drivers.local import carry_out, exceptions
from penstock.engine.base import Output
from penstock.engine.null import NullEngine, NullOptions, null_info
from penstock.metrics.record import COMPLETED, FAILED, REJECTED, Record
from penstock.policies.bundles import make_cluster, make_instance
from penstock.workload.trace import Request


class SimConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What is simulated."""

    instance: InstanceConfig
    instances: int = 1
    #: From a request's arrival to the instance's core, and from a step's end to the client.
    delay_ns: int = 0


class _Member:
    """A simulated instance: its core, and its engine, which runs one step after the other."""

    def __init__(self, config: InstanceConfig, cost: StepCost) -> None:
        self.core = make_instance(config)
        options = NullOptions(
            pages=config.pages, page_tokens=config.page_tokens, block_tokens=config.block_tokens, max_len=1 << 40
        )
        self.engine = NullEngine(null_info(options), cost, sleep=None)
        self.free_at = 0


class Simulation:
    """One run. `run` may be called once."""

    def __init__(self, config: SimConfig, cost: StepCost) -> None:
        self._config = config
        self._cost = cost
        self._cluster = make_cluster(
            ClusterConfig(policy=config.instance.policy, max_num_queued=config.instance.limits.max_num_queued)
        )
        self.members = [_Member(config.instance, cost) for _ in range(config.instances)]
        self._records: list[Record] = []
        self._lengths: list[int] = []
        self._heap: list[tuple[int, int, Callable[[], None]]] = []
        self._sequence = 0
        self.now = 0

    def run(self, requests: Sequence[Request]) -> list[Record]:
        """Serve the requests; one record each, in the same order."""
        for instance in range(len(self.members)):
            self._cluster.handle(Joined(instance), 0)
        for number, request in enumerate(requests):
            self._begin(number, request)
        while self._heap:
            self.now, _, act = heappop(self._heap)
            act()
        return self._records

    def _at(self, time: int, act: Callable[[], None]) -> None:
        self._sequence += 1
        heappush(self._heap, (time, self._sequence, act))

    def _begin(self, number: int, request: Request) -> None:
        arrival = round(request.arrival_s * SECOND)
        prompt, tokens = request.prompt_tokens, max(1, request.output_tokens)
        self._records.append(
            Record(
                id=number,
                scheduled_ns=arrival,
                sent_ns=arrival,
                end_ns=arrival,
                prompt_tokens=prompt,
                outcome=FAILED,
                slo=request.slo,
            )
        )
        self._lengths.append(tokens)
        spec = JobSpec(
            id=number,
            units=(Unit("lm", prompt + tokens - 1),),
            known=prompt,
            arrival=arrival,
            keys=_keys(request, self._config.instance.block_tokens),
            priority=request.priority or 0,
            slo=request.slo or Slo(),
        )
        self._at(arrival, partial(self._feed_cluster, Arrived(spec)))

    def _feed_cluster(self, event: ClusterEvent) -> None:
        for command in self._cluster.handle(event, self.now):
            match command:
                case Dispatch(spec, instance):
                    self._at(self.now + self._config.delay_ns, partial(self._submit, instance, spec))
                case Refuse(job, reason, _):
                    self._end(job, REJECTED, reason)

    def _submit(self, instance: int, spec: JobSpec) -> None:
        self.members[instance].engine.expect(spec.id, spec.known, spec.known, self._lengths[spec.id])
        self._feed(instance, Submitted(spec, 1))

    def _feed(self, instance: int, event: InstanceEvent) -> None:
        member = self.members[instance]
        for command in member.core.handle(event, self.now):
            self._carry_out(instance, member, command)

    def _carry_out(self, instance: int, member: _Member, command: InstanceCommand) -> None:
        match command:
            case Run(plan):
                self._run(instance, member, plan)
            case Report(load):
                self._cluster.handle(Reported(instance, load), self.now)
            case End(job, _, outcome, reason):
                self._end(job, outcome, reason)
                self._cluster.handle(Ended(job), self.now)
            case Bind() | Release():
                carry_out(member.engine, command)

    def _run(self, instance: int, member: _Member, plan: StepPlan) -> None:
        outputs = member.engine.run(plan)
        member.free_at = max(member.free_at, self.now) + self._cost.step_ns(features(plan))
        self._at(member.free_at, partial(self._done, instance, plan.seq, outputs))

    def _done(self, instance: int, seq: int, outputs: list[Output]) -> None:
        seen = self.now + self._config.delay_ns
        for output in outputs:
            if output.tokens:
                self._records[output.job].times_ns.append(seen)
            if output.finish is not None:
                self._finish(output.job, seen)
        self._feed(instance, StepDone(seq, exceptions(outputs)))

    def _finish(self, job: int, seen: int) -> None:
        record = self._records[job]
        record.outcome, record.end_ns = COMPLETED, seen
        self._cluster.handle(Ended(job), self.now)

    def _end(self, job: int, outcome: str, reason: str) -> None:
        record = self._records[job]
        record.outcome = FAILED if outcome == "invalid" else outcome
        record.error, record.end_ns = reason, self.now


def _keys(request: Request, block_tokens: int) -> tuple[int, ...]:
    """Names of the prompt's blocks at the instance's granularity: a trace's block, cut into parts."""
    parts, rest = divmod(request.block_tokens, block_tokens)
    if not request.hash_ids or rest:
        return ()
    blocks = request.prompt_tokens // block_tokens
    named = (block * parts + part for block in request.hash_ids for part in range(parts))
    return tuple(key for key, _ in zip(named, range(blocks), strict=False))
