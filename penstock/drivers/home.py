"""The home of live jobs: what an HTTP front talks to. It owns every stream, and hands jobs to instances as the cluster
core decides. Knows nothing of HTTP, text or tensors.

A token reaches its stream exactly once: it counts only in the job's epoch, and in order of its index. When an instance
dies, its jobs go on elsewhere from the tokens that were delivered, under a raised epoch. Once a second the home calls
the roll at each instance: whatever message was lost, neither a job nor a page is lost for longer.
"""

import asyncio
import contextlib
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from typing import Literal, Protocol

import msgspec

from penstock.core.commands import Dispatch, Lost, Refuse
from penstock.core.events import Arrived, Ended, Load, Moved
from penstock.core.move import MoveEnded, Switch, Switched
from penstock.core.slo import Slo
from penstock.core.spec import JobSpec, Unit
from penstock.cost.models import Model
from penstock.drivers import messages as m
from penstock.drivers.control import Control
from penstock.drivers.fleet import Fleet, FleetConfig
from penstock.drivers.keys import block_keys
from penstock.drivers.launch.base import Launcher
from penstock.drivers.launch.local import LocalLauncher
from penstock.drivers.messages import Instance
from penstock.drivers.site import Site
from penstock.drivers.story import Stories
from penstock.drivers.stream import Busy, Chunk, JobFailed, Stream, Unavailable
from penstock.drivers.wire import Keys, Mailbox
from penstock.drivers.worker import WorkerConfig
from penstock.engine.base import EngineInfo, Output
from penstock.engine.params import Sampling

State = Literal["starting", "ready", "restarting", "draining", "stopped", "failed"]

ROLL_S = 1.0
#: A job that was taken before and finds no room now asks again after so long.
_AGAIN_S = 0.1
#: A job that so many instances in a row died of is not tried again.
_DEATHS = 3


class Fleetlike(Protocol):
    """What a home asks of a fleet, wherever that is."""

    @property
    def info(self) -> EngineInfo | None: ...
    @property
    def cost(self) -> Model | None: ...
    @property
    def state(self) -> m.FleetState: ...
    @property
    def reason(self) -> str: ...
    @property
    def settled(self) -> bool: ...
    @property
    def restarts(self) -> int: ...
    @property
    def instances(self) -> list[Instance]: ...

    def add(self, role: str = "") -> None: ...
    def remove(self, instance: int) -> None: ...
    def drain(self, instance: int) -> None: ...
    def assign(self, instance: int, role: str) -> None: ...
    def move(self, instance: int, to: int, jobs: int) -> None: ...
    def restart(self) -> None: ...


class BaseHome(ABC):
    """See the module's docstring. One event loop; `submit` and `close` are synchronous. `bind` is for its mailbox;
    names of blocks are hashed under `secret`."""

    def __init__(self, number: int, bind: str, keys: Keys | None, secret: bytes) -> None:
        self._next_job = number << m.NUMBER_BITS
        self._secret = secret
        self._streams: dict[int, Stream] = {}
        #: What happened to the latest requests.
        self.stories = Stories()
        #: Jobs that went on elsewhere from what was delivered, by reason.
        self.replays: Counter[str] = Counter()
        #: Hears of moves of this home's jobs that are over.
        self.on_moved: Callable[[MoveEnded], None] = lambda ended: None
        #: Instances that are there.
        self._instances: set[int] = set()
        #: Set once: why nothing new is taken.
        self._closing: Literal["", "draining", "stopped"] = ""
        self._changed = asyncio.Event()
        self._mailbox: Mailbox[m.ToBranch] = Mailbox(m.home_name(number), bind, m.ToBranch, keys)
        self._deaf: Callable[[], None] = lambda: None
        self._caller: asyncio.Task[None] | None = None

    @property
    @abstractmethod
    def fleet(self) -> Fleetlike: ...

    @abstractmethod
    def _feed(self, event: Arrived | Ended | Moved) -> None:
        """Tell the cluster core."""

    # -- what the front calls ------------------------------------------------------------------------------------

    def submit(
        self,
        tokens: list[int],
        sampling: Sampling,
        *,
        slo: Slo = Slo(),
        priority: int = 0,
        deadline_s: float | None = None,
        tenant: str = "",
    ) -> Stream:
        """Take a job. Raises Busy when the queue is full, Unavailable when nothing is taken now."""
        if self.state not in ("ready", "restarting") or self.info is None:
            raise Unavailable(f"the server is {self.state} {self.state_reason}".strip(), 5.0)
        now = time.monotonic_ns()
        spec = JobSpec(
            id=self._next_job,
            units=(Unit("lm", len(tokens) + sampling.max_tokens - 1),),
            known=len(tokens),
            arrival=now,
            keys=tuple(block_keys(tokens, self.info.block_tokens, self._secret, tenant)),
            slo=slo,
            priority=priority,
            deadline=None if deadline_s is None else now + round(deadline_s * 1e9),
        )
        self._next_job += 1
        stream = Stream(spec, tokens, sampling, tenant, self._cancel)
        self._streams[stream.id] = stream
        self.stories.add(stream.story)
        self._feed(Arrived(spec))
        if stream.refusal is not None:
            raise stream.refusal
        return stream

    def predict(self, prompt: int, tokens: int) -> tuple[float, float]:
        """(TTFT, TPOT) in seconds of such a request on an idle instance, by the cost that a worker measured."""
        if self.fleet.cost is None:
            return 0.0, 0.0
        ttft, tpot = self.fleet.cost.request_ns(prompt, tokens)
        return ttft / 1e9, tpot / 1e9

    @property
    def info(self) -> EngineInfo | None:
        """What all engines can do; None while there has been none."""
        return self.fleet.info

    @property
    def state(self) -> State:
        return self._closing or self.fleet.state

    @property
    def state_reason(self) -> str:
        return self.fleet.reason if self.state in ("restarting", "failed") else ""

    @property
    def instances(self) -> list[Instance]:
        """Those that there are, or will be."""
        return self.fleet.instances

    @property
    def capacity(self) -> Load:
        """All instances' loads, added up."""
        loads = [msgspec.structs.astuple(instance.load) for instance in self.instances]
        return Load(*map(sum, zip(*loads, strict=True))) if loads else Load()

    # -- life ----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Begin to work, and return at once."""
        self._deaf = self._mailbox.listen(self._on_letter)
        self._caller = asyncio.create_task(self._call_rolls())

    async def wait_ready(self, timeout_s: float) -> None:
        """Until all instances are up. Raises Unavailable if none can serve, TimeoutError if it takes longer."""
        async with asyncio.timeout(timeout_s):
            while self.state == "starting" or not self.fleet.settled:
                await self.changed()
        if self.state != "ready":
            raise Unavailable(self.state_reason or self.state, 5.0)

    async def changed(self) -> None:
        """Returns when the state changes next, or a stream ends."""
        self._changed.clear()
        await self._changed.wait()

    async def drain(self, limit_s: float) -> None:
        """Take nothing new, and let what runs finish within the limit."""
        self._closing = "draining"
        self._changed.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                while self._streams:
                    await self.changed()

    async def stop(self) -> None:
        """End all open streams with an error, and then everything."""
        self._closing = "stopped"
        self._changed.set()
        for stream in list(self._streams.values()):
            self._finish(stream, JobFailed("failed", "the server is shutting down"))
        if self._caller is not None:
            self._caller.cancel()
            await asyncio.gather(self._caller, return_exceptions=True)
        self._deaf()
        self._mailbox.close()

    @abstractmethod
    def abandon(self) -> None:
        """For a process that is about to end at once: what would outlive it."""

    # -- what the control says -----------------------------------------------------------------------------------

    def carry_out(self, command: Dispatch | Refuse | Lost) -> None:
        match command:
            case Dispatch(spec, instance):
                # One that is somewhere already was placed by the home itself, when the scheduler said nothing.
                if (stream := self._streams.get(spec.id)) is not None and stream.instance is None:
                    self._dispatch(stream, instance)
            case Refuse(job, reason, retry_ns):
                if (stream := self._streams.get(job)) is not None and stream.instance is None:
                    self._refuse(stream, Busy(reason, retry_ns / 1e9))
            case Lost(job, instance):
                # Told of the end of an instance, it knows itself which jobs were there; but perhaps before it was told
                # to send this one there.
                stream = self._streams.get(job)
                if stream is not None and stream.instance == instance and instance not in self._instances:
                    self._replay(stream, "instance ended")

    def on_up(self, instance: int, address: str) -> None:
        self._instances.add(instance)
        name = m.instance_name(instance)
        self._mailbox.connect(name, address)
        self._mailbox.send(name, m.Attach(self._mailbox.address))
        # The scheduler may have spoken of it before the keeper did.
        for stream in [stream for stream in self._streams.values() if stream.instance == instance]:
            self._submit(stream, instance)

    def on_end(self, instance: int, how: str) -> None:
        """Its jobs go on elsewhere, but for those that seem to be the reason."""
        self._instances.discard(instance)
        self._mailbox.disconnect(m.instance_name(instance))
        for stream in [stream for stream in self._streams.values() if stream.instance == instance]:
            if how and stream.began and stream.died() >= _DEATHS:
                reason = f"{how} {_DEATHS} times in a row while this request ran: it is not tried again"
                self._finish(stream, JobFailed("failed", reason))
            else:
                self._replay(stream, "instance ended")

    def holds(self, instance: int) -> bool:
        return any(stream.instance == instance for stream in self._streams.values())

    def on_change(self) -> None:
        if self.fleet.state == "failed":
            for stream in list(self._streams.values()):
                self._finish(stream, JobFailed("failed", self.fleet.reason))
        self._changed.set()

    # -- jobs ----------------------------------------------------------------------------------------------------

    def _dispatch(self, stream: Stream, instance: int, move: int = 0, why: str = "") -> None:
        stream.story.tell("placed", time.monotonic_ns(), instance, why or ("again" if stream.epoch else "new"))
        stream.epoch += 1
        stream.instance, stream.began = instance, False
        self._submit(stream, instance, move)

    def _submit(self, stream: Stream, instance: int, move: int = 0) -> None:
        prompt = len(stream.prompt)
        submit = m.Submit(stream.spec, stream.epoch, stream.tokens, prompt, stream.sampling, stream.tenant, move)
        self._tell(instance, submit)

    def _refuse(self, stream: Stream, refusal: Busy) -> None:
        """A new job is turned away; one that was taken before is not."""
        if stream.epoch:
            asyncio.get_running_loop().call_later(_AGAIN_S, self._place, stream, stream.epoch)
            return
        del self._streams[stream.id]
        stream.refusal = refusal
        stream.story.end("rejected", time.monotonic_ns(), refusal.reason)
        stream.put(JobFailed("rejected", refusal.reason))

    def _replay(self, stream: Stream, why: str, after_s: float = 0.0) -> None:
        """Have the job go on from what was delivered, wherever the cluster says."""
        self.replays[why] += 1
        stream.story.tell("replayed", time.monotonic_ns(), stream.instance, why)
        if stream.instance is not None:
            self._tell(stream.instance, m.Cancel(stream.id, stream.epoch))
        stream.epoch += 1
        stream.instance, stream.began = None, False
        if len(stream.output) >= stream.sampling.max_tokens:
            return self._finish(stream, Chunk([], None, "length"))
        if after_s:
            asyncio.get_running_loop().call_later(after_s, self._place, stream, stream.epoch)
        else:
            self._place(stream, stream.epoch)

    def _place(self, stream: Stream, epoch: int) -> None:
        """Ask the cluster where a job that was somewhere before goes, unless that is no longer the question."""
        if stream.epoch == epoch and stream.id in self._streams:
            self._bring_up(stream)
            self._feed(Arrived(stream.spec, again=True))

    def _bring_up(self, stream: Stream) -> None:
        """Have the spec say what is known by now."""
        assert self.info is not None
        tokens, keys = stream.tokens, stream.spec.keys
        keys += tuple(block_keys(tokens, self.info.block_tokens, self._secret, stream.tenant, keys))
        stream.spec = msgspec.structs.replace(stream.spec, known=len(tokens), keys=keys)

    def _switch(self, source: str, switch: Switch) -> None:
        """A job goes on elsewhere; but not under a source that the home has given up already."""
        stream = self._current(switch.job, switch.epoch)
        if stream is None:
            self._mailbox.send(source, m.Cancel(switch.job, switch.epoch))
        elif switch.to not in self._instances:
            self._replay(stream, "destination ended")
        else:
            self._bring_up(stream)
            self._dispatch(stream, switch.to, switch.move, "moved")
            self._mailbox.send(source, Switched(switch.job, switch.epoch))
            self._feed(Moved(stream.id, switch.to))

    def _cancel(self, stream: Stream) -> None:
        """End a stream that its reader has left."""
        if stream.id in self._streams:
            if stream.instance is not None:
                self._tell(stream.instance, m.Cancel(stream.id, stream.epoch))
            stream.story.end("cancelled", time.monotonic_ns())
            self._forget(stream)

    def _finish(self, stream: Stream, last: Chunk | JobFailed) -> None:
        stream.put(last)
        if isinstance(last, JobFailed):
            stream.story.end(last.outcome, time.monotonic_ns(), last.reason)
        else:
            stream.story.end("completed", time.monotonic_ns(), last.finish or "")
        self._forget(stream)

    def _forget(self, stream: Stream) -> None:
        del self._streams[stream.id]
        self._feed(Ended(stream.id))
        self._changed.set()

    def _tell(self, instance: int, message: m.ToWorker) -> None:
        self._mailbox.send(m.instance_name(instance), message)

    # -- what instances say --------------------------------------------------------------------------------------

    def _on_letter(self, sender: str, message: m.ToBranch) -> None:
        match message:
            case m.Stepped(outputs, notes, sent):
                now = time.monotonic_ns()
                for epoch, output in outputs:
                    self._deliver(epoch, output, now)
                for note in notes:
                    if (story := self.stories.get(note.job)) is not None:
                        story.note(note, m.instance_of(sender), now - sent)
            case m.Began(job, epoch):
                if (stream := self._current(job, epoch)) is not None:
                    stream.began = True
            case MoveEnded(job):
                if (story := self.stories.get(job)) is not None:
                    story.moved(message, m.instance_of(sender), time.monotonic_ns())
                self.on_moved(message)
            case Switch():
                self._switch(sender, message)
            case m.Failed(job, epoch, outcome, reason):
                if (stream := self._current(job, epoch)) is not None:
                    self._on_failed(stream, JobFailed(outcome, reason))
            case m.Absent(jobs):
                for job, epoch in jobs:
                    if (stream := self._current(job, epoch)) is not None:
                        self._replay(stream, "missing there")

    def _current(self, job: int, epoch: int) -> Stream | None:
        stream = self._streams.get(job)
        return stream if stream is not None and stream.epoch == epoch else None

    def _deliver(self, epoch: int, output: Output, now: int) -> None:
        stream = self._streams.get(output.job)
        if stream is None or stream.epoch != epoch or output.index != len(stream.output):
            if stream is not None and stream.epoch == epoch and output.index > len(stream.output):
                self._replay(stream, "message lost")
            return
        stream.output += output.tokens
        stream.story.times.extend([now] * len(output.tokens))
        finish = output.finish
        if finish is not None and finish.startswith("error:"):
            self._finish(stream, JobFailed("failed", finish.removeprefix("error:")))
        elif finish is not None:
            self._finish(stream, Chunk(output.tokens, output.logprobs, finish))
        else:
            stream.put(Chunk(output.tokens, output.logprobs))

    def _on_failed(self, stream: Stream, failed: JobFailed) -> None:
        """An instance that is full, though the cluster thought otherwise, turns away new jobs only."""
        if failed.outcome == "rejected" and stream.epoch > 1:
            self._replay(stream, "turned away", _AGAIN_S)
        else:
            self._finish(stream, failed)

    async def _call_rolls(self) -> None:
        while True:
            await asyncio.sleep(ROLL_S)
            self._roll()

    def _roll(self) -> None:
        there = self._instances
        for stream in [s for s in self._streams.values() if s.instance is not None and s.instance not in there]:
            self._replay(stream, "instance ended")
        rolls: dict[int, list[tuple[int, int]]] = {instance: [] for instance in there}
        for stream in self._streams.values():
            if stream.instance in rolls:
                rolls[stream.instance].append((stream.id, stream.epoch))
        for instance, jobs in rolls.items():
            self._tell(instance, m.Roll(jobs))


class Home(BaseHome):
    """A home with the control, and so all that there is but instances, in one process."""

    def __init__(
        self, worker: WorkerConfig, config: FleetConfig | None = None, launcher: Launcher | None = None
    ) -> None:
        site = self._site = Site(launcher or LocalLauncher())
        super().__init__(0, site.bind(m.home_name(0)), site.keys, site.secret)
        worker = msgspec.structs.replace(worker, secret=site.secret, keys=site.keys)
        self._control = Control(worker, config or FleetConfig(), site.launcher, site.bind(m.CONTROL), self)

    @property
    def fleet(self) -> Fleet:
        return self._control.fleet

    def _feed(self, event: Arrived | Ended | Moved) -> None:
        self._control.feed(event)

    async def start(self) -> None:
        """Launch the instances, and return at once."""
        await super().start()
        await self.fleet.start()

    async def stop(self) -> None:
        """End everything: open streams with an error, then the instances. Nothing is left running."""
        await super().stop()
        await self._control.stop()
        self._site.close()

    def abandon(self) -> None:
        self.fleet.abandon()
        self._site.close()
