"""The home of live jobs: what an HTTP front talks to. It owns every stream, starts and watches the worker, and carries
out what the cluster core decides. Knows nothing of HTTP, text or tensors.

A token reaches its stream exactly once: it counts only in the job's epoch, and in order of its index.
"""

import asyncio
import contextlib
import os
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections import deque
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Literal

import msgspec
import zmq
import zmq.asyncio

import penstock
from penstock.core.cluster import ClusterConfig
from penstock.core.commands import Dispatch, Lost, Refuse
from penstock.core.events import Arrived, ClusterEvent, Ended, Joined, Left, Load, Reported
from penstock.core.job import JobSpec, Unit
from penstock.core.slo import Slo
from penstock.cost.models import Model
from penstock.drivers import messages as m
from penstock.drivers.keys import block_keys
from penstock.drivers.log import ClusterEntry, Header, LogWriter
from penstock.drivers.worker import WorkerConfig
from penstock.engine.base import EngineInfo, Output
from penstock.engine.params import Logprobs, Sampling
from penstock.policies.bundles import make_cluster

State = Literal["starting", "ready", "restarting", "draining", "stopped", "failed"]


class HomeConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How patient the home is. Times in seconds."""

    #: A worker that does not answer for so long is hung, and is replaced.
    watchdog_s: float = 5.0
    #: A step that takes so long hangs. Generous: a full step of a large model takes minutes on a CPU.
    step_timeout_s: float = 600.0
    #: Loading a model may take so long.
    start_timeout_s: float = 600.0
    #: A worker that ends so often in a row before it is ready is given up.
    start_attempts: int = 3


class Busy(Exception):
    """The queue is full."""

    def __init__(self, reason: str, retry_s: float) -> None:
        super().__init__(reason)
        self.reason = reason
        self.retry_s = retry_s


class Unavailable(Busy):
    """Nothing can be taken now: the server starts, ends or has failed. (While the engine restarts, jobs wait.)"""


class JobFailed(Exception):
    """The job ended without an answer. `outcome` is failed, dropped, rejected, cancelled, or invalid: the engine cannot
    honour what was asked, and asking again would not help."""

    def __init__(self, outcome: str, reason: str) -> None:
        super().__init__(reason)
        self.outcome = outcome
        self.reason = reason


class Chunk(msgspec.Struct, array_like=True):
    """Tokens of a stream, in order. `finish` is set on the last: stop, stop:<token id> or length."""

    tokens: list[int]
    logprobs: list[Logprobs] | None = None
    finish: str | None = None


class Stream:
    """One job's tokens: an async iterator of chunks. Whoever leaves it early calls `close`."""

    def __init__(self, home: "Home", submit: m.Submit) -> None:
        self.id = submit.spec.id
        self.submit = submit
        #: Raised at dispatch; tokens of other epochs do not count.
        self.epoch = submit.epoch
        #: Output tokens so far.
        self.index = 0
        self.instance: int | None = None
        #: Why the cluster did not take it.
        self.refusal: Busy | None = None
        self._home = home
        self._chunks: deque[Chunk | JobFailed] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._over = False

    def __aiter__(self) -> "Stream":
        return self

    async def __anext__(self) -> Chunk:
        while not self._chunks:
            if self._over:
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        chunk = self._chunks.popleft()
        if isinstance(chunk, JobFailed):
            raise chunk
        return chunk

    def put(self, chunk: Chunk | JobFailed) -> None:
        """For the home: deliver, and wake the reader."""
        self._chunks.append(chunk)
        self._over = isinstance(chunk, JobFailed) or chunk.finish is not None
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def close(self) -> None:
        """Cancel the job if it is still going; its pages are free at the next step. May be called twice."""
        if not self._over:
            self._over = True
            self._home.cancel(self)


class Link:
    """A worker process and the socket to it."""

    def __init__(self, instance: int, process: asyncio.subprocess.Process, socket: zmq.asyncio.Socket) -> None:
        self.instance = instance
        self.process = process
        self.socket = socket
        self.ready = False
        self.refused = ""
        self.heard = time.monotonic()
        self.pings = 0

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGKILL)


class Home:
    """See the module's docstring. One event loop; `submit` and `close` are synchronous."""

    def __init__(self, worker: WorkerConfig, config: HomeConfig | None = None) -> None:
        self.info: EngineInfo | None = None
        self.state: State = "starting"
        self.state_reason = ""
        self.capacity = Load()
        #: Times that a worker was replaced.
        self.restarts = 0
        #: Called with what people want to read about the worker's start and end.
        self.say = lambda text: None
        self._worker = msgspec.structs.replace(worker, secret=secrets.token_bytes(16))
        self._config = config or HomeConfig()
        core = ClusterConfig(policy=worker.policy, max_num_queued=worker.limits.max_num_queued)
        self._core = make_cluster(core)
        self._log = LogWriter(Path(worker.record), Header(cluster=core)) if worker.record else None
        self._cost: Model | None = None
        #: How the worker before this one ended.
        self._ended = ""
        self._streams: dict[int, Stream] = {}
        self._next_job = 0
        self._instances = 0
        self._link: Link | None = None
        _sweep()
        self._folder = tempfile.TemporaryDirectory(prefix=f"penstock-{os.getpid()}-")
        self._context = zmq.asyncio.Context()
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(m.ToHome)

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
            keys=tuple(block_keys(tokens, self.info.block_tokens, self._worker.secret, tenant)),
            slo=slo,
            priority=priority,
            deadline=None if deadline_s is None else now + round(deadline_s * 1e9),
        )
        self._next_job += 1
        stream = Stream(self, m.Submit(spec, 0, tokens, len(tokens), sampling, tenant))
        self._streams[stream.id] = stream
        self._feed(Arrived(spec))
        if stream.refusal is not None:
            raise stream.refusal
        return stream

    def cancel(self, stream: Stream) -> None:
        """End a stream that its reader has left."""
        if stream.id in self._streams:
            if self._link is not None and stream.instance == self._link.instance:
                self._send(m.Cancel(stream.id, stream.epoch))
            self._forget(stream)

    def predict(self, prompt: int, tokens: int) -> tuple[float, float]:
        """(TTFT, TPOT) in seconds of such a request on an idle instance, by the cost that the worker measured."""
        if self._cost is None:
            return 0.0, 0.0
        ttft, tpot = self._cost.request_ns(prompt, tokens)
        return ttft / 1e9, tpot / 1e9

    @property
    def worker_pid(self) -> int | None:
        """Process id of the present worker."""
        return self._link.process.pid if self._link is not None else None

    # -- life ----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Launch the worker and return at once."""
        self._spawn(self._keep_worker())
        self._spawn(self._watch())

    async def wait_ready(self, timeout_s: float) -> None:
        """Raises Unavailable if the worker cannot serve, TimeoutError if it takes longer."""
        async with asyncio.timeout(timeout_s):
            while self.state == "starting":
                await self.changed()
        if self.state != "ready":
            raise Unavailable(self.state_reason or self.state, 5.0)

    async def changed(self) -> None:
        """Returns when the state changes next, or a stream ends."""
        self._changed.clear()
        await self._changed.wait()

    async def drain(self, limit_s: float) -> None:
        """Take nothing new, and let what runs finish within the limit."""
        self._set("draining", "")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                while self._streams:
                    await self.changed()

    async def stop(self) -> None:
        """End everything: open streams with an error, then the worker. Nothing is left running."""
        self._set("stopped", "")
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._link is not None:
            await self._end_worker(self._link)
        self._fail_all("the server is shutting down")
        self._context.destroy(linger=0)
        self._folder.cleanup()
        if self._log:
            self._log.close()

    def abandon(self) -> None:
        """For a process that is about to end at once: what would outlive it."""
        if self._link is not None:
            self._link.kill()
        self._folder.cleanup()

    def _set(self, state: State, reason: str) -> None:
        self.state, self.state_reason = state, reason
        self._changed.set()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- the worker ----------------------------------------------------------------------------------------------

    async def _keep_worker(self) -> None:
        """Start a worker, listen to it until it ends, and again; give up on one that refuses or never gets ready."""
        attempts = 0
        while self.state not in ("stopped", "failed"):
            link = self._link = await self._launch()
            listening = asyncio.create_task(self._listen(link))
            try:
                code = await link.process.wait()
                # What it said last may still be in the socket.
                await asyncio.wait((listening,), timeout=0.05)
            finally:
                listening.cancel()
            link.socket.close(linger=0)
            attempts = 0 if link.ready else attempts + 1
            self._on_worker_end(link, code)
            if link.refused:
                self._set("failed", link.refused)
            elif attempts >= self._config.start_attempts:
                self._set("failed", f"the worker ended {attempts} times before it was ready, the last with code {code}")

    async def _launch(self) -> Link:
        address = f"ipc://{self._folder.name}/{self._instances}"
        socket = self._context.socket(zmq.DEALER)
        socket.set_hwm(0)
        socket.bind(address)
        record = f"{self._worker.record}.instance{self._instances}" if self._worker.record else ""
        config = msgspec.structs.replace(self._worker, address=address, instance=self._instances, record=record)
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "penstock.drivers.worker",
            stdin=asyncio.subprocess.PIPE,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": _python_path()},
        )
        assert process.stdin is not None
        process.stdin.write(msgspec.json.encode(config) + b"\n")
        self._instances += 1
        return Link(config.instance, process, socket)

    async def _listen(self, link: Link) -> None:
        while True:
            self._on_message(link, self._decoder.decode(await link.socket.recv()))

    def _on_message(self, link: Link, message: m.ToHome) -> None:
        link.heard = time.monotonic()
        match message:
            case m.Stepped(outputs):
                for epoch, output in outputs:
                    self._deliver(epoch, output)
            case m.Loaded(load):
                self._on_load(link, load)
            case m.Failed(job, epoch, outcome, reason):
                stream = self._streams.get(job)
                if stream is not None and stream.epoch == epoch:
                    self._finish(stream, JobFailed(outcome, reason))
            case m.Pong(_, step_s):
                if step_s > self._config.step_timeout_s:
                    self.say(f"a step has been running for {step_s:.0f} s: replacing the worker")
                    link.kill()
            case m.Hello():
                self._on_hello(link, message)
            case m.Starting(text):
                self.say(text)
            case m.Refused(error):
                link.refused = error

    def _on_hello(self, link: Link, hello: m.Hello) -> None:
        if hello.version != penstock.__version__:
            link.refused = f"the worker is version {hello.version}, this is {penstock.__version__}"
            return link.kill()
        link.ready = True
        self.info = hello.info
        self._cost = hello.cost
        if self.state in ("starting", "restarting"):
            self._set("ready", "")
        self._feed(Joined(link.instance))

    def _on_load(self, link: Link, load: Load) -> None:
        self.capacity = load
        self._feed(Reported(link.instance, load))

    def _on_worker_end(self, link: Link, code: int) -> None:
        self.capacity = Load()
        self._ended = f"the engine ended ({_how(code)})"
        if self.state == "ready":
            self.restarts += 1
            self._set("restarting", self._ended)
            self.say(f"{self._ended}: starting another")
        self._feed(Left(link.instance))

    async def _end_worker(self, link: Link) -> None:
        """Ask, and after two seconds insist."""
        with contextlib.suppress(TimeoutError):
            if link.process.returncode is None and link.ready:
                link.socket.send(self._encoder.encode(m.Stop()))
                async with asyncio.timeout(2.0):
                    await link.process.wait()
        if link.process.returncode is None:
            link.kill()
            await link.process.wait()
        link.socket.close(linger=0)

    async def _watch(self) -> None:
        """Ping the worker; replace one that hangs."""
        began = woke = time.monotonic()
        pause_s = min(1.0, self._config.watchdog_s / 4)
        while True:
            await asyncio.sleep(pause_s)
            if self._log:
                self._log.flush()
            link, slept_s = self._link, time.monotonic() - woke
            woke += slept_s
            if link is not None and slept_s > 2 * pause_s:
                # It was this process that slept: what the worker said meanwhile is yet to be read.
                link.heard += slept_s
            if link is None or link.process.returncode is not None:
                began = time.monotonic()
            elif not link.ready:
                if time.monotonic() - max(began, link.heard) > self._config.start_timeout_s:
                    self.say("the worker does not get ready: replacing it")
                    link.kill()
            elif time.monotonic() - link.heard > self._config.watchdog_s:
                self.say(f"no word from the engine for {self._config.watchdog_s:g} s: replacing it")
                link.kill()
            else:
                link.pings += 1
                self._send(m.Ping(link.pings))

    # -- jobs ----------------------------------------------------------------------------------------------------

    def _feed(self, event: ClusterEvent) -> None:
        now = time.monotonic_ns()
        commands = self._core.handle(event, now)
        if self._log:
            self._log.write(ClusterEntry(now, event, commands))
        for command in commands:
            stream = self._streams.get(command.spec.id if isinstance(command, Dispatch) else command.job)
            if stream is None:
                continue
            match command:
                case Dispatch():
                    self._dispatch(stream, command)
                case Refuse(_, reason, retry_ns):
                    self._refuse(stream, Busy(reason, retry_ns / 1e9))
                case Lost():
                    self._finish(stream, JobFailed("failed", f"{self._ended}; send the request again"))

    def _dispatch(self, stream: Stream, command: Dispatch) -> None:
        stream.epoch += 1
        stream.instance = command.instance
        stream.submit = msgspec.structs.replace(stream.submit, epoch=stream.epoch)
        self._send(stream.submit)

    def _refuse(self, stream: Stream, refusal: Busy) -> None:
        del self._streams[stream.id]
        stream.refusal = refusal
        stream.put(JobFailed("rejected", refusal.reason))

    def _deliver(self, epoch: int, output: Output) -> None:
        stream = self._streams.get(output.job)
        if stream is None or stream.epoch != epoch or output.index != stream.index:
            return
        stream.index += len(output.tokens)
        finish = output.finish
        if finish is not None and finish.startswith("error:"):
            self._finish(stream, JobFailed("failed", finish.removeprefix("error:")))
        elif finish is not None:
            self._finish(stream, Chunk(output.tokens, output.logprobs, finish))
        else:
            stream.put(Chunk(output.tokens, output.logprobs))

    def _finish(self, stream: Stream, last: Chunk | JobFailed) -> None:
        stream.put(last)
        self._forget(stream)

    def _forget(self, stream: Stream) -> None:
        del self._streams[stream.id]
        self._feed(Ended(stream.id))
        self._changed.set()

    def _fail_all(self, reason: str) -> None:
        for stream in list(self._streams.values()):
            self._finish(stream, JobFailed("failed", reason))

    def _send(self, message: m.ToWorker) -> None:
        """Never waits and never drops: what a worker has not read is bounded by the queue limit, not by the socket."""
        if self._link is not None and self._link.process.returncode is None:
            self._link.socket.send(self._encoder.encode(message))


def _how(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _sweep() -> None:
    """Remove the socket folders of homes that were killed."""
    for folder in Path(tempfile.gettempdir()).glob("penstock-*-*"):
        pid = folder.name.split("-")[1]
        if pid.isdecimal() and not Path(f"/proc/{pid}").exists() and Path("/proc").exists():
            shutil.rmtree(folder, ignore_errors=True)


def _python_path() -> str:
    """So that the worker imports this very package, wherever it was imported from."""
    root = str(Path(penstock.__file__).parents[1])
    rest = os.environ.get("PYTHONPATH", "")
    return f"{root}{os.pathsep}{rest}" if rest else root
