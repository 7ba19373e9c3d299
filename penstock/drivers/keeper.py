"""The keeper of a deployment with several homes: has the fleet, and starts and watches the scheduler and the homes.

It serves no request and decides nothing. A home that ends takes its own streams with it, and another takes its place;
a scheduler that ends is replaced while homes go on without it.
"""

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import msgspec

from penstock.core.commands import Order, Retire, Start
from penstock.core.events import Drain, Joined
from penstock.drivers import messages as m
from penstock.drivers.branch import BranchConfig
from penstock.drivers.control import cluster_config
from penstock.drivers.fleet import Fleet, FleetConfig
from penstock.drivers.home import ROLL_S
from penstock.drivers.launch.base import Launcher
from penstock.drivers.launch.local import environment
from penstock.drivers.scheduler import SchedulerConfig
from penstock.drivers.site import Site
from penstock.drivers.worker import WorkerConfig

#: A process that ends at once is not started again at once.
_PAUSE_S = 0.2
_BEAT_S = 1.0


class Fronts(msgspec.Struct, frozen=True):
    """The processes that have the homes: how many, and how to start one."""

    count: int
    module: str
    #: Its configuration, one line of JSON.
    config: Callable[[BranchConfig], bytes]
    #: File descriptors that it inherits.
    fds: Sequence[int] = ()


class Keeper:
    """See the module's docstring."""

    def __init__(self, worker: WorkerConfig, config: FleetConfig, launcher: Launcher, fronts: Fronts) -> None:
        self._site = Site(launcher)
        self._fronts = fronts
        self._worker = msgspec.structs.replace(worker, secret=self._site.secret, keys=self._site.keys)
        self._config = config
        self.fleet = Fleet(self._worker, config, launcher, self._site.bind(m.CONTROL), self)
        #: Where the scheduler is reached; empty while it is not there.
        self._scheduler_at = ""
        self._scheduler_heard_s = 0.0
        self._scheduler: asyncio.subprocess.Process | None = None
        self._schedulers = 0
        #: Home -> its process; and when it last said on which instances it has jobs, with those.
        self._homes: dict[str, asyncio.subprocess.Process] = {}
        self._held: dict[str, tuple[float, set[int]]] = {}
        #: Homes that can be talked to.
        self._attached: set[str] = set()
        self._next_home = 0
        self._failed = ""
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    # -- life ----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start everything, and return at once."""
        await self.fleet.start()
        self._spawn(self._keep_scheduler())
        for _ in range(self._fronts.count):
            self._spawn(self._keep_home())
        self._spawn(self._beat())

    async def wait(self, condition: Callable[[], bool]) -> None:
        """Until the condition, about what this object and its fleet say, is true."""
        while not condition():
            self._changed.clear()
            await self._changed.wait()

    @property
    def failed(self) -> str:
        """Why nothing can be served; empty: it can, or will be."""
        return self._failed or (self.fleet.reason if self.fleet.state == "failed" else "")

    @property
    def ready(self) -> bool:
        """Whether all there is has started."""
        return self.fleet.settled and bool(self._scheduler_at) and len(self._attached) == self._fronts.count

    async def stop(self, limit_s: float) -> None:
        """Have the homes finish what runs within the limit, then end everything. Nothing is left running."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(_end(home, limit_s) for home in self._homes.values()))
        if self._scheduler is not None:
            await _end(self._scheduler, 0.0)
        await self.fleet.stop()
        self._site.close()

    def abandon(self) -> None:
        """For a process that is about to end at once: what would outlive it."""
        self.fleet.abandon()
        self._site.close()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- processes -----------------------------------------------------------------------------------------------

    async def _keep_scheduler(self) -> None:
        while True:
            record = self._worker.record and self._worker.record + (f".{self._schedulers}" if self._schedulers else "")
            self._schedulers += 1
            config = SchedulerConfig(
                cluster=cluster_config(self._worker, self._config),
                bind=self._site.bind(m.SCHEDULER),
                keeper=self.fleet.mailbox.address,
                keys=self._site.keys,
                record=record,
            )
            self._scheduler = await _start("penstock.drivers.scheduler", msgspec.json.encode(config))
            await self._scheduler.wait()
            self.fleet.say("the scheduler ended: starting another; homes go on without it")
            self._scheduler_at = ""
            self.fleet.mailbox.disconnect(m.SCHEDULER)
            self.on_change()
            await asyncio.sleep(_PAUSE_S)

    async def _keep_home(self) -> None:
        attempts = 0
        while True:
            number, self._next_home = self._next_home, self._next_home + 1
            name = m.home_name(number)
            config = BranchConfig(
                number=number,
                bind=self._site.bind(name),
                keeper=self.fleet.mailbox.address,
                secret=self._site.secret,
                keys=self._site.keys,
            )
            process = await _start(self._fronts.module, self._fronts.config(config), self._fronts.fds)
            self._homes[name] = process
            code = await process.wait()
            attempts = 0 if name in self._attached else attempts + 1
            self._forget(name)
            if attempts >= self._config.start_attempts:
                self._failed = f"an HTTP process ended {attempts} times before it was ready, the last with code {code}"
                return self.on_change()
            self.fleet.say(f"home {number} ended, and its streams with it: starting another")
            await asyncio.sleep(_PAUSE_S)

    def _forget(self, home: str) -> None:
        del self._homes[home]
        self._held.pop(home, None)
        self._attached.discard(home)
        mailbox = self.fleet.mailbox
        mailbox.disconnect(home)
        for peer in (m.SCHEDULER, *(m.instance_name(found.instance) for found in self.fleet.instances)):
            mailbox.send(peer, m.Detach(home))
        self.fleet.look()

    async def _beat(self) -> None:
        """Tell homes how things are, and see whether the scheduler is well."""
        while True:
            woke_s = time.monotonic()
            await asyncio.sleep(_BEAT_S)
            if time.monotonic() - woke_s > 2 * _BEAT_S:
                # It was this process that slept.
                self._scheduler_heard_s = time.monotonic()
            self._tell_status()
            self.fleet.look()
            if self._scheduler_at and self._scheduler is not None:
                self.fleet.mailbox.send(m.SCHEDULER, m.Ping(0))
                if time.monotonic() - self._scheduler_heard_s > self._config.watchdog_s + _BEAT_S:
                    self._scheduler.kill()

    # -- what the fleet says -------------------------------------------------------------------------------------

    def feed(self, event: m.FleetEvent) -> None:
        self.fleet.mailbox.send(m.SCHEDULER, event)

    def on_up(self, instance: int, address: str) -> None:
        self._tell_homes(m.Up(instance, address))

    def on_end(self, instance: int, how: str) -> None:
        self._tell_homes(m.Gone(instance, how))

    def holds(self, instance: int, since_s: float) -> bool:
        """What the scheduler sent there just before has reached the home, and is in its word, a roll later."""
        # Of a home that is silent for so long instances have dropped the jobs.
        oldest_s = time.monotonic() - self._worker.lease_s
        said = [(at_s, held) for at_s, held in self._held.values() if at_s > oldest_s]
        return any(at_s < since_s + ROLL_S or instance in held for at_s, held in said)

    def on_change(self) -> None:
        self._changed.set()
        self._tell_status()

    # -- messages ------------------------------------------------------------------------------------------------

    def on_letter(self, sender: str, message: m.ToControl) -> None:
        """From homes and the scheduler."""
        match message:
            case m.Attach(address) if sender == m.SCHEDULER:
                self._on_scheduler(address)
            case m.Attach(address) if sender in self._homes:
                self._on_home(sender, address)
            case m.Pong() if sender == m.SCHEDULER:
                self._scheduler_heard_s = time.monotonic()
            case Order() | Start() | Retire() if sender == m.SCHEDULER:
                self.fleet.carry_out(message)
            case m.Held(instances, at_s) if sender in self._homes:
                self._held[sender] = (at_s, set(instances))
                self.fleet.look()
            case m.Operate() if sender in self._homes:
                self._operate(message)

    def _on_scheduler(self, address: str) -> None:
        self._scheduler_heard_s = time.monotonic()
        self._scheduler_at = address
        self.fleet.mailbox.connect(m.SCHEDULER, address)
        for found in self.fleet.instances:
            if found.state in ("up", "draining"):
                self.feed(Joined(found.instance, found.role, found.load))
            if found.state == "draining":
                self.feed(Drain(found.instance))
        self.fleet.tell_roles()
        self.on_change()

    def _on_home(self, home: str, address: str) -> None:
        self.fleet.mailbox.connect(home, address)
        self._attached.add(home)
        self._held[home] = (time.monotonic(), set())
        for card in self.fleet.cards:
            self.fleet.mailbox.send(home, m.Up(card.instance, card.address))
        self.on_change()

    def _operate(self, asked: m.Operate) -> None:
        instance, role = asked.instance, asked.role
        with contextlib.suppress(KeyError):
            match asked.what:
                case "add":
                    self.fleet.add(role)
                case "remove":
                    self.fleet.remove(instance)
                case "drain":
                    self.fleet.drain(instance)
                case "assign":
                    self.fleet.assign(instance, role)
                case "move":
                    self.fleet.move(instance, asked.to, asked.jobs)
                case "restart":
                    self.fleet.restart()

    def _tell_status(self) -> None:
        fleet = self.fleet
        self._tell_homes(
            m.Status(
                fleet.state,
                fleet.reason,
                fleet.restarts,
                fleet.settled,
                fleet.info,
                fleet.cost,
                fleet.instances,
                self._scheduler_at,
            )
        )

    def _tell_homes(self, message: m.Up | m.Gone | m.Status) -> None:
        for home in self._attached:
            self.fleet.mailbox.send(home, message)


async def _start(module: str, config: bytes, fds: Sequence[int] = ()) -> asyncio.subprocess.Process:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        module,
        stdin=asyncio.subprocess.PIPE,
        start_new_session=True,
        env=environment(),
        pass_fds=tuple(fds),
    )
    assert process.stdin is not None
    process.stdin.write(config + b"\n")
    return process


async def _end(process: asyncio.subprocess.Process, limit_s: float) -> None:
    """Ask, and after the limit insist."""
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM if limit_s else signal.SIGKILL)
    try:
        async with asyncio.timeout(limit_s or None):
            await process.wait()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
