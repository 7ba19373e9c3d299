"""The worker process: an instance core beside its engine. `python -m penstock.drivers.worker`, configuration on stdin.

Two threads that matter. The main one owns the engine, from loading to the last step, and takes its commands from a
queue. (OpenMP keeps a pool of threads for each thread that uses it, and with two pools on the same cores their threads
stop spinning between kernels: a lone decode step of a 0.29 B model then took 58 ms instead of 37.) The other owns the
core and the socket, so that messages are answered and the next step is planned while a step runs. The worker ends when
its stdin closes: whoever started it is then gone, however it went.
"""

import ctypes
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import msgspec
import zmq

import penstock
from penstock.core import laws
from penstock.core.batch import Limits
from penstock.core.commands import Bind, EngineCommand, Evict, InstanceCommand, Release, Report, Run, Share
from penstock.core.commands import End as EndCommand
from penstock.core.events import Cancelled, InstanceEvent, Named, StepDone, StepFailed, Submitted
from penstock.core.instance import Instance, InstanceConfig
from penstock.core.step import StepPlan
from penstock.cost.linear import Linear, fit
from penstock.cost.models import Model
from penstock.drivers import messages as m
from penstock.drivers.keys import block_keys
from penstock.drivers.local import carry_out, exceptions
from penstock.drivers.log import Header, InstanceEntry, LogWriter
from penstock.engine.base import Engine, Output
from penstock.engine.null import NullEngine, NullOptions, null_info
from penstock.engine.options import EngineOptions
from penstock.policies.bundles import make_instance


class WorkerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """All that a worker needs to know; crosses to the process as JSON."""

    engine: EngineOptions | NullOptions
    address: str = ""
    instance: int = 0
    policy: str = "fcfs"
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


Todo = m.Submit | EngineCommand | Audit


class EngineLoop:
    """The engine's thread: carries out its commands in order, posts what came of them and wakes the core's thread."""

    def __init__(self, engine: Engine, wake: int) -> None:
        self.todo: queue.SimpleQueue[Todo] = queue.SimpleQueue()
        self.done: deque[Stepped | Broken] = deque()
        #: time.monotonic() at which the step that runs began; 0 if none does.
        self.since = 0.0
        self._engine = engine
        self._wake = wake
        self._broken: set[int] = set()

    def run(self) -> None:
        """An error outside a step means that engine and core disagree: end the process, so that a fresh one starts."""
        try:
            while True:
                result = self._carry_out(self.todo.get())
                if result is not None:
                    self.done.append(result)
                    os.write(self._wake, b"x")
        except BaseException:
            traceback.print_exc()
            os._exit(70)

    def _carry_out(self, command: Todo) -> Stepped | Broken | None:
        match command:
            case Run(plan):
                return self._step(plan)
            case m.Submit():
                return self._add(command)
            case Evict():
                carry_out(self._engine, command)
            case Bind(job) | Share(job) | Release(job) if job not in self._broken:
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
    """What the worker keeps of a job beside the core: its tokens, to name the blocks of its output."""

    __slots__ = ("epoch", "first_step", "keys", "salt", "tokens")

    def __init__(self, submit: m.Submit, first_step: int) -> None:
        self.epoch = submit.epoch
        #: Steps before this one may still speak of an earlier epoch.
        self.first_step = first_step
        self.tokens = submit.tokens
        self.keys = list(submit.spec.keys)
        self.salt = submit.salt


class Worker:
    """The core's thread."""

    def __init__(self, config: WorkerConfig, engine: Engine, cost: Model, socket: zmq.Socket[bytes]) -> None:
        info = engine.info
        core = InstanceConfig(
            policy=config.policy,
            pages=info.pages,
            page_tokens=info.page_tokens,
            block_tokens=info.block_tokens,
            depth=config.depth,
            limits=config.limits,
            correct=config.correct,
        )
        self._config = config
        self._engine = engine
        self._socket = socket
        self._core: Instance = make_instance(core, cost)
        self._log = LogWriter(Path(config.record), Header(instance=core, predictor=cost)) if config.record else None
        self._tracked: dict[int, Tracked] = {}
        self._woken, wake = os.pipe()
        os.set_blocking(self._woken, False)
        self.engine_loop = EngineLoop(engine, wake)
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(m.ToWorker)
        self._stop = False

    def run(self) -> None:
        """Serve until told to stop, then end the process; an error here ends it too, so that a fresh one starts."""
        try:
            self._serve()
        except BaseException:
            traceback.print_exc()
            os._exit(70)
        _leave(self._socket, 0)

    def _serve(self) -> None:
        flush_at = 0.0
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._woken, zmq.POLLIN)
        while not self._stop:
            ready = dict(poller.poll(1000))
            if self._woken in ready:
                os.read(self._woken, 4096)
            while self.engine_loop.done:
                self._on_done(self.engine_loop.done.popleft())
            self._receive()
            if self._log and time.monotonic() > flush_at:
                self._log.flush()
                flush_at = time.monotonic() + 1
        if self._log:
            self._log.close()

    def _receive(self) -> None:
        for _ in range(64):
            try:
                message = self._decoder.decode(self._socket.recv(zmq.NOBLOCK))
            except zmq.Again:
                return
            self._on_message(message)

    def _on_message(self, message: m.ToWorker) -> None:
        match message:
            case m.Submit():
                self._on_submit(message)
            case m.Cancel(job, epoch):
                self._feed(Cancelled(job, epoch))
            case m.Ping(number):
                since = self.engine_loop.since
                self._send(m.Pong(number, time.monotonic() - since if since else 0.0))
            case m.Stop():
                self._stop = True

    def _on_submit(self, submit: m.Submit) -> None:
        """The engine hears of a job before the core does, and of the end of an earlier epoch before either."""
        job = submit.spec.id
        here = self._core.jobs.get(job)
        if here is not None and here.epoch >= submit.epoch:
            return
        if here is not None:
            self._feed(Cancelled(job, here.epoch))
        self.engine_loop.todo.put(submit)
        self._tracked[job] = Tracked(submit, self._core.next_step)
        self._feed(Submitted(submit.spec, submit.epoch))
        if job not in self._core.jobs:
            self._tracked.pop(job, None)
            self.engine_loop.todo.put(Release(job, True))

    def _on_done(self, done: Stepped | Broken) -> None:
        if isinstance(done, Broken):
            self._send(m.Failed(done.job, done.epoch, "invalid", done.reason))
            self._feed(Cancelled(done.job, done.epoch))
            return
        if done.error:
            self._feed(StepFailed(done.seq, done.error))
            return
        current = [(t, o) for o in done.outputs if (t := self._tracked.get(o.job)) and t.first_step <= done.seq]
        # First the next step, then the tokens: the engine should not wait for messages.
        self._feed(StepDone(done.seq, exceptions(done.outputs), done.took_ns))
        told = [(tracked.epoch, output) for tracked, output in current if output.tokens or output.finish]
        if told:
            self._send(m.Stepped(told))
        for tracked, output in current:
            self._name(tracked, output)

    def _name(self, tracked: Tracked, output: Output) -> None:
        """Name the blocks of a job's output that have become whole, so that a later turn can reuse them."""
        block = self._engine.info.block_tokens
        tracked.tokens.extend(output.tokens)
        if len(tracked.tokens) >= (len(tracked.keys) + 1) * block and output.job in self._core.jobs:
            keys = block_keys(tracked.tokens, block, self._config.secret, tracked.salt, tracked.keys)
            tracked.keys += keys
            self._feed(Named(output.job, tuple(keys)))

    def _feed(self, event: InstanceEvent) -> None:
        now = time.monotonic_ns()
        commands = self._core.handle(event, now)
        if self._log:
            self._log.write(InstanceEntry(now, event, commands))
        for command in commands:
            self._carry_out(command)
        if not self._core.jobs:
            self._check_idle()

    def _carry_out(self, command: InstanceCommand) -> None:
        match command:
            case Report(load):
                self._send(m.Loaded(load))
            case EndCommand(job, epoch, outcome, reason):
                self._send(m.Failed(job, epoch, outcome, reason))
            case Bind() | Share() | Evict() | Release() | Run():
                self.engine_loop.todo.put(command)
                if isinstance(command, Release) and command.forget:
                    self._tracked.pop(command.job, None)

    def _check_idle(self) -> None:
        """With no job here, nothing may be left of any."""
        laws.check(self._core)
        pages = self._core.pages
        self.engine_loop.todo.put(Audit(pages.pages - pages.free))

    def _send(self, message: m.ToHome) -> None:
        self._socket.send(self._encoder.encode(message))


def make_engine(options: EngineOptions | NullOptions, say: Callable[[str], None]) -> tuple[Engine, Linear]:
    """The engine that the options describe, and what its steps cost."""
    if isinstance(options, NullOptions):
        cost = Linear(*options.cost)
        return NullEngine(null_info(options), cost), cost
    from penstock.engine.start import start_engine

    engine = start_engine(options, say)
    say("measuring step times")
    return engine, fit([(features, round(seconds * 1e9)) for features, seconds in engine.warm()])


def main() -> None:
    """Entry point of the process."""
    _die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.setswitchinterval(0.001)
    config = msgspec.json.decode(sys.stdin.buffer.readline(), type=WorkerConfig)
    threading.Thread(target=_end_with_stdin, name="lifeline", daemon=True).start()
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
    socket.connect(config.address)
    encode = msgspec.msgpack.encode
    try:
        engine, measured = make_engine(config.engine, lambda text: socket.send(encode(m.Starting(text))))
        cost = config.cost or measured
        worker = Worker(config, engine, cost, socket)
    except (ValueError, OSError) as error:
        socket.send(encode(m.Refused(str(error))))
        _leave(socket, 3)
    socket.send(encode(m.Hello(penstock.__version__, config.instance, os.getpid(), engine.info, cost)))
    threading.Thread(target=worker.run, name="core", daemon=True).start()
    worker.engine_loop.run()


def _leave(socket: zmq.Socket[bytes], code: int) -> NoReturn:
    """End the process, whatever other threads are doing, once what was sent is out (a second at most)."""
    socket.close(linger=1000)
    zmq.Context.instance().term()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _end_with_stdin() -> None:
    """Whoever started this process holds the other end of stdin; when that closes, they are gone."""
    while os.read(0, 64):
        pass
    os._exit(0)


def _die_with_parent() -> None:
    """On Linux the kernel can do it, which also ends a worker that is stopped or hangs."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


if __name__ == "__main__":
    main()
