"""The worker process: an instance core beside its engine. `python -m penstock.drivers.worker`, configuration on stdin.

Two threads that matter. The main one owns the engine, from loading to the last step, and takes its commands from a
queue. (OpenMP keeps a pool of threads for each thread that uses it, and with two pools on the same cores their threads
stop spinning between kernels: a lone decode step of a 0.29 B model then took 58 ms instead of 37.) The other owns the
core and the mailbox, so that messages are answered and the next step is planned while a step runs. The worker ends when
its stdin closes: whoever started it is then gone, however it went.

It serves any number of homes, which introduce themselves. A home that is silent for longer than its lease has its jobs
dropped; should it come back, it hears at its next roll call that they are not here.
"""

import math
import os
import queue
import socket
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import msgspec
import zmq

import penstock
from penstock.core import laws
from penstock.core.commands import (
    Bind,
    EngineCommand,
    Evict,
    InstanceCommand,
    Release,
    Report,
    Restore,
    Run,
    Share,
    Stow,
)
from penstock.core.commands import End as EndCommand
from penstock.core.config import InstanceConfig, Limits, MoveLimits
from penstock.core.events import Cancelled, InstanceEvent, Named, StepDone, StepFailed, Submitted
from penstock.core.instance import Instance
from penstock.core.job import NEVER
from penstock.core.move import (
    Adopt,
    Ask,
    Assigned,
    Discard,
    Extend,
    MoveEnded,
    Offload,
    PeerLeft,
    Pull,
    Pulled,
    Receive,
    Switch,
    Switched,
    Tell,
    Tick,
)
from penstock.core.slo import MS, SECOND
from penstock.core.step import Features, StepPlan
from penstock.cost.linear import Linear, fit
from penstock.cost.models import Model
from penstock.drivers import messages as m
from penstock.drivers.keys import block_keys
from penstock.drivers.lifeline import hold_on
from penstock.drivers.local import carry_out, exceptions
from penstock.drivers.log import Header, InstanceEntry, LogWriter
from penstock.drivers.story import Note
from penstock.drivers.wire import Keys, Mailbox
from penstock.engine.base import Engine, EngineInfo, Output
from penstock.engine.null import NullEngine, NullOptions, null_info
from penstock.engine.options import EngineOptions
from penstock.engine.transport.base import Transport
from penstock.policies.bundles import make_instance

#: How often the worker looks after what has no event of its own.
_LOOK_S = 1.0
#: Messages that wait for news of their instance, at most.
_EARLY = 1024
#: A copy that a job waits for: some messages and a pull, and then what its bytes take.
_COPY_NS = 5 * MS
_BYTE_NS = 1.0


class WorkerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """All that a worker needs to know; crosses to the process as JSON."""

    engine: EngineOptions | NullOptions
    #: Where the control is reached.
    control: str = ""
    #: Of the deployment; None where all is on one host.
    keys: Keys | None = None
    instance: int = 0
    #: See `core.config.InstanceConfig`.
    role: str = ""
    policy: str = "fcfs"
    compose: str = ""
    limits: Limits = Limits()
    depth: int = 1
    #: Names of prefix blocks are hashed under this secret.
    secret: bytes = b""
    #: Where to record the core's log; "" for nowhere.
    record: str = ""
    #: What steps cost; None: measured, roughly, at the start.
    cost: Model | None = None
    #: Whether what steps take corrects what the policy expects of them.
    correct: bool = True
    #: What carries KV pages: see `engine.transport.choose`; "" for nothing, then jobs that move are computed again.
    transport: str = ""
    #: None: by what steps take here.
    moves: MoveLimits | None = None
    #: A home that is silent for so long is taken for gone.
    lease_s: float = 10.0


class Stepped(msgspec.Struct):
    """The engine is through with a step."""

    seq: int
    outputs: list[Output]
    took_ns: int
    error: str = ""


class Broken(msgspec.Struct):
    """The engine cannot take a job."""

    job: int
    epoch: int
    reason: str


class Audit(msgspec.Struct):
    """Once all before it is carried out, so many physical pages must be in use."""

    used: int


class Fetch(msgspec.Struct):
    """Make room for what is pulled, and pull it from these pages of the source."""

    pull: Pull
    source_pages: list[int]


Todo = m.Submit | EngineCommand | Fetch | Tell | Audit
Done = Stepped | Broken | Pulled | Tell


class EngineLoop:
    """The engine's thread: carries out its commands in order, posts what came of them and wakes the core's thread."""

    def __init__(self, engine: Engine, transport: Transport | None, wake: int) -> None:
        self.todo: queue.SimpleQueue[Todo] = queue.SimpleQueue()
        self.done: deque[Done] = deque()
        #: time.monotonic() at which the step that runs began; 0 if none does.
        self.since = 0.0
        self._engine = engine
        self._transport = transport
        self._wake = wake
        self._broken: set[int] = set()

    def run(self) -> None:
        """An error outside a step means that engine and core disagree: end the process, so that a fresh one starts."""
        try:
            while True:
                result = self._carry_out(self.todo.get())
                if result is not None:
                    self._post(result)
        except BaseException:
            traceback.print_exc()
            os._exit(70)

    def _post(self, result: Done) -> None:
        """Any thread."""
        self.done.append(result)
        os.write(self._wake, b"x")

    def _carry_out(self, command: Todo) -> Done | None:
        match command:
            case Run(plan):
                return self._step(plan)
            case m.Submit():
                return self._add(command)
            case Evict() | Receive() | Discard():
                carry_out(self._engine, command)
            case Adopt(job, move):
                carry_out(self._engine, Discard(move) if job in self._broken else command)
            case Fetch(pull, source_pages):
                self._fetch(pull, source_pages)
            case Tell():
                # By now the engine has heard of all that the core knew.
                return command
            case Bind(job) | Share(job) | Release(job) | Stow(job) | Restore(job) if job not in self._broken:
                carry_out(self._engine, command)
            case Release(job, True):
                self._broken.discard(job)
            case Audit(used):
                found = self._engine.used()
                assert found is None or found == used, f"{found} KV pages in use, the core counts {used}"
        return None

    def _add(self, submit: m.Submit) -> Broken | None:
        try:
            self._engine.add(submit.spec.id, submit.tokens, submit.prompt, submit.sampling)
        except ValueError as error:
            self._broken.add(submit.spec.id)
            return Broken(submit.spec.id, submit.epoch, str(error))
        return None

    def _fetch(self, pull: Pull, source_pages: list[int]) -> None:
        """Both lists of pages are of all positions from 0 on."""
        own_pages = self._engine.room(pull.move, pull.end)

        def done(error: str) -> None:
            self._post(Pulled(pull.move, pull.end, error))

        if self._transport is None:
            return done("there is no transport" if own_pages else "")
        page_tokens = self._engine.info.page_tokens
        pages = slice(pull.start // page_tokens, -(-pull.end // page_tokens))
        try:
            self._transport.pull(pull.source, source_pages[pages], own_pages[pages], done)
        except ValueError as error:
            done(str(error))

    def _step(self, plan: StepPlan) -> Stepped:
        self.since = time.monotonic()
        began = time.perf_counter_ns()
        try:
            outputs = self._engine.run(plan)
            return Stepped(plan.seq, outputs, time.perf_counter_ns() - began)
        except Exception as error:
            traceback.print_exc()
            return Stepped(plan.seq, [], time.perf_counter_ns() - began, f"{type(error).__name__}: {error}")
        finally:
            self.since = 0.0


class Tracked:
    """What the worker keeps of a job beside the core: its home, and its tokens, to name the blocks of its output."""

    __slots__ = ("epoch", "first_step", "home", "keys", "salt", "tokens")

    def __init__(self, home: str, submit: m.Submit, first_step: int) -> None:
        self.home = home
        self.epoch = submit.epoch
        #: Steps before this one may still speak of an earlier epoch.
        self.first_step = first_step
        self.tokens = submit.tokens
        self.keys = list(submit.spec.keys)
        self.salt = submit.salt


class Worker:
    """The core's thread."""

    def __init__(
        self,
        config: WorkerConfig,
        engine: Engine,
        transport: Transport | None,
        cost: Model,
        mailbox: Mailbox[m.ToWorker],
    ) -> None:
        info = engine.info
        core = InstanceConfig(
            policy=config.policy,
            compose=config.compose,
            pages=info.pages,
            page_tokens=info.page_tokens,
            block_tokens=info.block_tokens,
            host_pages=info.host_pages,
            depth=config.depth,
            limits=config.limits,
            correct=config.correct,
            number=config.instance,
            role=config.role,
            # What cannot be carried is computed again.
            moves=msgspec.structs.replace(
                config.moves or move_limits(cost, info), copies=transport is not None or not engine.kv
            ),
        )
        self._config = config
        self._engine = engine
        self._transport = transport
        self._mailbox = mailbox
        self._core: Instance = make_instance(core, cost)
        self._log = LogWriter(Path(config.record), Header(instance=core, predictor=cost)) if config.record else None
        #: Jobs that the engine knows.
        self._tracked: dict[int, Tracked] = {}
        #: Home -> when it was last heard of, s.
        self._homes: dict[str, float] = {}
        self._woken, wake = os.pipe()
        os.set_blocking(self._woken, False)
        #: Move that arrives -> physical pages at its source.
        self._source_pages: dict[int, list[int]] = {}
        #: (instance, message) for those that are not known yet: a home may speak of one before the control does, since
        #: what two senders send is not in order.
        self._early: deque[tuple[int, m.Peer]] = deque(maxlen=_EARLY)
        #: Jobs that go elsewhere, once all their tokens are told.
        self._switches: list[Switch] = []
        #: Jobs that have not caught up since they began here -> the positions that were known then.
        self._prompts: dict[int, int] = {}
        #: Step in flight -> what it executes of those: (job, positions).
        self._chunks: dict[int, list[tuple[int, int]]] = {}
        #: Home -> what the next message to it tells of its jobs.
        self._notes: dict[str, list[Note]] = {}
        self.engine_loop = EngineLoop(engine, transport, wake)
        self._looked_s = time.monotonic()
        self._stop = False

    def run(self) -> None:
        """Serve until told to stop, then end the process; an error here ends it too, so that a fresh one starts."""
        try:
            self._serve()
        except BaseException:
            traceback.print_exc()
            os._exit(70)
        _leave(self._mailbox, 0)

    def _serve(self) -> None:
        poller = zmq.Poller()
        poller.register(self._mailbox.inbox, zmq.POLLIN)
        poller.register(self._woken, zmq.POLLIN)
        while not self._stop:
            ready = dict(poller.poll(self._wait_ms()))
            if self._woken in ready:
                os.read(self._woken, 4096)
            while self.engine_loop.done:
                self._on_done(self.engine_loop.done.popleft())
            all_read = self._mailbox.inbox not in ready or self._receive()
            if (due := self._core.due) is not None and due <= time.monotonic_ns():
                self._feed(Tick())
            if time.monotonic() - self._looked_s >= _LOOK_S:
                self._look(all_read)
        if self._log:
            self._log.close()

    def _wait_ms(self) -> int:
        due = self._core.due
        left_s = _LOOK_S if due is None else min(_LOOK_S, max(0, due - time.monotonic_ns()) / SECOND)
        return math.ceil(left_s * 1000)

    def _receive(self) -> bool:
        """Some of what has come; whether that was all."""
        for _ in range(64):
            letter = self._mailbox.receive()
            if letter is None:
                return True
            self._on_letter(letter.sender, letter.message)
        return False

    def _look(self, all_read: bool) -> None:
        """Once a second: who has not been heard of for too long?"""
        now_s = time.monotonic()
        late_s, self._looked_s = now_s - self._looked_s, now_s
        if self._log:
            self._log.flush()
        if late_s > 2 * _LOOK_S:
            # It was this process that slept: what homes said meanwhile is yet to be read.
            self._homes = {home: heard_s + late_s for home, heard_s in self._homes.items()}
        for home, heard_s in self._homes.items():
            if all_read and now_s - heard_s > self._config.lease_s:
                self._drop(home, {})
        for home in list(self._notes):
            self._mailbox.send(home, self._stepped(home, []))

    # -- homes ---------------------------------------------------------------------------------------------------

    def _on_letter(self, sender: str, message: m.ToWorker) -> None:
        if sender in self._homes:
            self._homes[sender] = time.monotonic()
        match message:
            case m.Submit() if sender not in self._homes:
                # It has ended: what it sent before comes after the control's word on that.
                pass
            case m.Submit():
                self._on_submit(sender, message)
            case m.Cancel(job, epoch):
                self._feed(Cancelled(job, epoch))
            case m.Peer(event, pages):
                if isinstance(event, Extend) and event.move in self._core.moves.incoming:
                    self._source_pages[event.move] = pages
                self._feed(event)
            case Switched() | Offload() | Assigned():
                self._feed(message)
            case m.Roll(jobs):
                self._on_roll(sender, jobs)
            case m.Ping(number):
                since = self.engine_loop.since
                self._mailbox.send(sender, m.Pong(number, time.monotonic() - since if since else 0.0))
            case m.Attach(address):
                self._homes[sender] = time.monotonic()
                self._mailbox.connect(sender, address)
            case m.Neighbour():
                self._on_neighbour(message)
            case PeerLeft(instance):
                self._mailbox.disconnect(m.instance_name(instance))
                self._send_early(instance)
                if self._transport is not None:
                    self._transport.forget(instance)
                self._feed(message)
            case m.Detach(home):
                self._drop(home, {})
                self._homes.pop(home, None)
                self._mailbox.disconnect(home)
            case m.Stop():
                self._stop = True

    def _on_submit(self, home: str, submit: m.Submit) -> None:
        """The engine hears of a job before the core does, and of the end of an earlier epoch before either."""
        job = submit.spec.id
        here = self._tracked.get(job)
        if here is not None:
            if here.epoch >= submit.epoch:
                return
            self._feed(Cancelled(job, here.epoch))
        self.engine_loop.todo.put(submit)
        self._tracked[job] = Tracked(home, submit, self._core.next_step)
        self._feed(Submitted(submit.spec, submit.epoch, submit.move))

    def _on_neighbour(self, card: m.Neighbour) -> None:
        self._mailbox.connect(m.instance_name(card.instance), card.address)
        try:
            if self._transport is not None:
                self._transport.connect(card.instance, card.pages_at)
        except ValueError as error:
            text = f"no KV pages come from instance {card.instance}, jobs from there are computed again: {error}"
            self._mailbox.send(m.CONTROL, m.Starting(text))
        self._send_early(card.instance)

    def _on_roll(self, home: str, jobs: list[tuple[int, int]]) -> None:
        listed = dict(jobs)
        self._drop(home, listed)
        tracked = self._tracked
        absent = [(job, epoch) for job, epoch in jobs if job not in tracked or tracked[job].epoch < epoch]
        if absent:
            self._mailbox.send(home, m.Absent(absent))

    def _drop(self, home: str, listed: dict[int, int]) -> None:
        """Drop the home's jobs that it does not list, or lists with a later epoch. Those that have moved on are left
        alone: their pages are still being read."""
        for job, tracked in list(self._tracked.items()):
            if tracked.home == home and tracked.epoch < listed.get(job, NEVER) and self._core.epoch_of(job) is not None:
                self._feed(Cancelled(job, tracked.epoch))

    # -- the engine ----------------------------------------------------------------------------------------------

    def _on_done(self, done: Done) -> None:
        match done:
            case Pulled():
                self._feed(done)
            case Tell():
                self._tell(done)
            case Broken(job, epoch, reason):
                self._fail(job, epoch, "invalid", reason)
                self._feed(Cancelled(job, epoch))
            case Stepped(seq, _, _, error) if error:
                self._chunks.pop(seq, None)
                self._feed(StepFailed(seq, error))
            case Stepped():
                self._on_stepped(done)

    def _on_stepped(self, done: Stepped) -> None:
        current = [(t, o) for o in done.outputs if (t := self._tracked.get(o.job)) and t.first_step <= done.seq]
        if (chunks := self._chunks.pop(done.seq, None)) is not None:
            now = time.monotonic_ns()
            for job, count in chunks:
                self._note(Note(job, now - done.took_ns, now, count))
        # First the next step, then the tokens: the engine should not wait for messages.
        self._decide(StepDone(done.seq, exceptions(done.outputs), done.took_ns))
        told: dict[str, list[tuple[int, Output]]] = {}
        for tracked, output in current:
            if output.tokens or output.finish:
                told.setdefault(tracked.home, []).append((tracked.epoch, output))
        for home, outputs in told.items():
            self._mailbox.send(home, self._stepped(home, outputs))
        self._switch()
        for tracked, output in current:
            self._name(tracked, output)

    def _stepped(self, home: str, outputs: list[tuple[int, Output]]) -> m.Stepped:
        notes = self._notes.pop(home, None)
        return m.Stepped(outputs) if notes is None else m.Stepped(outputs, notes, time.monotonic_ns())

    def _note(self, note: Note) -> None:
        """For the job's story."""
        if (tracked := self._tracked.get(note.job)) is not None:
            self._notes.setdefault(tracked.home, []).append(note)

    def _follow(self, plan: StepPlan) -> None:
        """What the step does for jobs that catch up."""
        prompts = self._prompts
        pieces = [piece for piece in plan.slices if piece.job in prompts]
        if pieces:
            self._chunks[plan.seq] = [(piece.job, piece.count) for piece in pieces]
        for piece in pieces:
            if piece.start + piece.count >= prompts[piece.job]:
                del prompts[piece.job]

    def _name(self, tracked: Tracked, output: Output) -> None:
        """Name the blocks of a job's output that have become whole, so that a later turn can reuse them."""
        block = self._engine.info.block_tokens
        tracked.tokens.extend(output.tokens)
        if len(tracked.tokens) >= (len(tracked.keys) + 1) * block and output.job in self._core.jobs:
            keys = block_keys(tracked.tokens, block, self._config.secret, tracked.salt, tracked.keys)
            tracked.keys += keys
            self._feed(Named(output.job, tuple(keys)))

    # -- the core ------------------------------------------------------------------------------------------------

    def _feed(self, event: InstanceEvent) -> None:
        self._decide(event)
        self._switch()

    def _decide(self, event: InstanceEvent) -> None:
        """Tell the core, and have done what it says, but for switches."""
        now = time.monotonic_ns()
        commands = self._core.handle(event, now)
        if self._log:
            self._log.write(InstanceEntry(now, event, commands))
        for command in commands:
            self._carry_out(command)
        if not self._core.jobs and not self._core.moves.active:
            self._check_idle()

    def _carry_out(self, command: InstanceCommand) -> None:
        match command:
            case Report(load):
                self._mailbox.send(m.CONTROL, m.Loaded(load))
            case EndCommand(job, epoch, outcome, reason):
                self._fail(job, epoch, outcome, reason)
                if job not in self._core.jobs:
                    self._release(Release(job, True))
            case Release():
                self._release(command)
            case Bind(job) | Adopt(job) | Restore(job):
                self.engine_loop.todo.put(command)
                self._begin(job)
                if isinstance(command, Adopt):
                    self._source_pages.pop(command.move, None)
            case Run(plan):
                self.engine_loop.todo.put(command)
                if self._prompts:
                    self._follow(plan)
            case Share() | Evict() | Receive():
                self.engine_loop.todo.put(command)
            case Stow(job):
                self.engine_loop.todo.put(command)
                self._preempted(job)
            case Discard(move):
                self.engine_loop.todo.put(command)
                self._source_pages.pop(move, None)
            case Pull(move):
                self.engine_loop.todo.put(Fetch(command, self._source_pages[move]))
            case Tell():
                self._tell(command)
            case Switch():
                self._switches.append(command)
            case Ask():
                self._mailbox.send(m.CONTROL, command)
            case MoveEnded(job):
                self._mailbox.send(m.CONTROL, command)
                self._mailbox.send(m.home_of(job), command)

    def _release(self, command: Release) -> None:
        self.engine_loop.todo.put(command)
        if command.forget:
            self._tracked.pop(command.job, None)
            self._prompts.pop(command.job, None)
        else:
            self._preempted(command.job)

    def _preempted(self, job: int) -> None:
        now = time.monotonic_ns()
        self._note(Note(job, now, now, 0))

    def _tell(self, command: Tell) -> None:
        """To another instance. Where the engine has not caught up with the core, it passes this on when it has."""
        event, pages = command.event, list[int]()
        if isinstance(event, Extend) and self._engine.kv:
            try:
                pages = self._engine.pages_of(event.job, event.upto)
            except KeyError:
                pages = []
            if len(pages) * self._engine.info.page_tokens < event.upto:
                # One whose move is off by now may never have those pages.
                return self.engine_loop.todo.put(command) if self._core.moves.leaves(event.move) else None
        to, message = command.instance, m.Peer(event, pages)
        if not self._mailbox.send(m.instance_name(to), message) and to not in self._core.moves.left:
            self._early.append((to, message))

    def _send_early(self, instance: int) -> None:
        """What waited for news of the instance goes there; if it has left, nowhere."""
        early = [self._early.popleft() for _ in range(len(self._early))]
        for other, message in early:
            if other == instance:
                self._mailbox.send(m.instance_name(instance), message)
            else:
                self._early.append((other, message))

    def _switch(self) -> None:
        for switch in self._switches:
            if (tracked := self._tracked.get(switch.job)) is not None:
                self._mailbox.send(tracked.home, switch)
        self._switches.clear()

    def _begin(self, job: int) -> None:
        if (tracked := self._tracked.get(job)) is not None:
            self._mailbox.send(tracked.home, m.Began(job, tracked.epoch))
        if (here := self._core.jobs.get(job)) is not None:
            self._prompts[job] = here.known

    def _fail(self, job: int, epoch: int, outcome: str, reason: str) -> None:
        tracked = self._tracked.get(job)
        if tracked is not None and tracked.epoch == epoch:
            self._mailbox.send(tracked.home, m.Failed(job, epoch, outcome, reason))

    def _check_idle(self) -> None:
        """With no job here, nothing may be left of any."""
        laws.check(self._core)
        pages = self._core.pages
        self.engine_loop.todo.put(Audit(pages.pages - pages.free))


def move_limits(cost: Model, info: EngineInfo) -> MoveLimits:
    """Copying or computing again, whichever takes a job that stands still less time on this instance. On a CPU a page
    can take as long to compute as a whole step of decoding: so it is taken to be where the cost does not tell."""
    one, page = (cost.step_ns(Features(n, n * (n + 1) // 2, 0, 0, 1)) for n in (1, 1 + info.page_tokens))
    return MoveLimits(
        copy_ns=_COPY_NS,
        copy_position_ns=info.kv_bytes_per_token * _BYTE_NS,
        compute_position_ns=(page - one if page > one else one) / info.page_tokens,
    )


def make_engine(options: EngineOptions | NullOptions, say: Callable[[str], None]) -> tuple[Engine, Linear]:
    """The engine that the options describe, and what its steps cost."""
    if isinstance(options, NullOptions):
        cost = Linear(*options.cost)
        return NullEngine(null_info(options), cost), cost
    from penstock.engine.start import start_engine

    engine = start_engine(options, say)
    say("measuring step times")
    return engine, fit([(features, round(seconds * 1e9)) for features, seconds in engine.warm()])


def make_transport(config: WorkerConfig, engine: Engine, beside: str, say: Callable[[str], None]) -> Transport | None:
    """What brings KV pages from other instances, listening beside that address; None if nothing is to."""
    if not config.transport or not engine.kv:
        return None
    # These load what the engine has loaded already.
    from penstock.engine.transport.choose import start_transport
    from penstock.engine.transport.tensors import store_of

    at = f"{beside}.kv" if beside.startswith("ipc:") else f"{beside.rpartition(':')[0]}:*"
    curve = None if config.keys is None else (config.keys.public.encode(), config.keys.secret.encode())
    return start_transport(config.transport, store_of(engine.kv), at, curve, say=say)


def main() -> None:
    """Entry point of the process."""
    sys.setswitchinterval(0.001)
    config = hold_on(WorkerConfig)
    mailbox = _mailbox(config)

    def say(text: str) -> None:
        mailbox.send(m.CONTROL, m.Starting(text))

    try:
        engine, measured = make_engine(config.engine, say)
        cost = config.cost or measured
        transport = make_transport(config, engine, mailbox.address, say)
        worker = Worker(config, engine, transport, cost, mailbox)
    except (ValueError, OSError) as error:
        mailbox.send(m.CONTROL, m.Refused(str(error)))
        _leave(mailbox, 3)
    hello = m.Hello(
        penstock.__version__,
        config.instance,
        mailbox.address,
        engine.info,
        cost,
        [transport.address()] if transport else [],
    )
    mailbox.send(m.CONTROL, hello)
    threading.Thread(target=worker.run, name="core", daemon=True).start()
    worker.engine_loop.run()


def _mailbox(config: WorkerConfig) -> Mailbox[m.ToWorker]:
    """Beside the control's on one host, else at any port of the interface that leads to the control."""
    name = m.instance_name(config.instance)
    beside = config.control.rpartition("/")[0]
    bind = f"{beside}/{name}" if beside.startswith("ipc:") else f"tcp://{_own_host(config.control)}:*"
    mailbox: Mailbox[Any] = Mailbox(name, bind, m.ToWorker, config.keys)
    mailbox.connect(m.CONTROL, config.control)
    return mailbox


def _own_host(control: str) -> str:
    """This host's address as the control's host sees it."""
    host, _, port = control.removeprefix("tcp://").rpartition(":")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        # Of a datagram socket this sends nothing.
        probe.connect((host, int(port)))
        return str(probe.getsockname()[0])


def _leave(mailbox: Mailbox[m.ToWorker], code: int) -> NoReturn:
    """End the process, whatever other threads are doing, once what was sent is out (a second at most)."""
    mailbox.close(linger_s=1.0)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
