"""The instances: worker processes, from launch to end. Starts, watches and replaces them; adds, drains, removes some.

What becomes of that, its owner hears as events for the cluster core. Knows no job and no stream.
"""

import asyncio
import contextlib
import signal
import time
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

import msgspec

import penstock
from penstock.core.commands import Order, Retire, Start
from penstock.core.config import Balance
from penstock.core.events import Asked, Drain, Joined, Left, Load, NotStarted, Reported, Rerole
from penstock.core.move import Ask, Assigned, MoveEnded, Offload, PeerLeft
from penstock.cost.models import Model
from penstock.drivers import messages as m
from penstock.drivers.launch.base import LOST, Launched, Launcher, LaunchError
from penstock.drivers.messages import FleetEvent, FleetState, InstanceState
from penstock.drivers.messages import Instance as Instance
from penstock.drivers.wire import Mailbox
from penstock.drivers.worker import WorkerConfig
from penstock.engine.base import EngineInfo
from penstock.engine.host import cores
from penstock.engine.null import NullOptions

#: What an instance may be there for; "" is everything.
ROLES = ("", "prefill", "decode")

#: What a worker said last may still be on its way when its process has ended.
_LAST_WORDS_S = 0.05
#: A worker that is told to stop has so long.
_STOP_S = 2.0


class FleetConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Which instances there are at the start, and how patient one is with them. Times in seconds."""

    #: One instance for each: "" does everything; or prefill, or decode.
    roles: tuple[str, ...] = ("",)
    #: An instance that does not answer for so long is hung, and is replaced.
    watchdog_s: float = 5.0
    #: A step that takes so long hangs. Generous: a full step of a large model takes minutes on a CPU.
    step_timeout_s: float = 600.0
    #: Loading a model may take so long.
    start_timeout_s: float = 600.0
    #: A worker that ends so often in a row before it is ready is given up.
    start_attempts: int = 3
    #: What drains may finish within so long; the rest goes on elsewhere.
    drain_timeout_s: float = 600.0
    balance: Balance = Balance()
    #: GPUs, as in CUDA_VISIBLE_DEVICES; instances take them in turn. Empty: all see all.
    devices: tuple[str, ...] = ()


class Owner(Protocol):
    """Who has the fleet."""

    def feed(self, event: FleetEvent) -> None:
        """For the cluster core."""

    def on_up(self, instance: int, address: str) -> None:
        """It can be talked to; comes before its Joined."""

    def on_end(self, instance: int, how: str) -> None:
        """Its process has ended, and it has Left. `how` is empty where that was intended."""

    def holds(self, instance: int, since_s: float) -> bool:
        """Whether any job is there, as was found after `since_s` (time.monotonic()), when it began to take none."""

    def on_change(self) -> None:
        """The fleet's state may have changed."""

    def on_letter(self, sender: str, message: m.ToControl) -> None:
        """From one that is no instance, or no longer."""


class Member:
    """One worker process."""

    def __init__(self, instance: int, role: str, launched: Launched) -> None:
        self.instance = instance
        self.name = m.instance_name(instance)
        self.role = role
        #: The role that the worker knows of.
        self.told = role
        self.launched = launched
        self.state: InstanceState = "starting"
        self.load = Load()
        self.moves = m.MoveCounts()
        #: Why it cannot serve.
        self.refused = ""
        self.heard_s = time.monotonic()
        self.pings = 0
        #: How others reach it, once it is up.
        self.card: m.Neighbour | None = None

    def view(self) -> Instance:
        return Instance(
            instance=self.instance,
            role=self.role,
            state=self.state,
            host=self.launched.host,
            pid=self.launched.pid,
            load=self.load,
            moves=self.moves,
        )


class Seat:
    """A place that an instance is kept in: when its worker ends, another one takes it."""

    def __init__(self, number: int, role: str) -> None:
        #: The lowest that is free: devices go by it.
        self.number = number
        self.role = role
        self.member: Member | None = None
        #: Whether another worker is to follow.
        self.kept = True
        self.given_up = False

    @property
    def up(self) -> bool:
        return self.member is not None and self.member.state == "up"

    def is_settled(self) -> bool:
        """Whether nothing is to be expected of it."""
        return self.up or self.given_up


class Fleet:
    """See the module's docstring. Its mailbox is where workers report."""

    def __init__(self, worker: WorkerConfig, config: FleetConfig, launcher: Launcher, bind: str, owner: Owner) -> None:
        self.info: EngineInfo | None = None
        self.cost: Model | None = None
        #: Times that a worker was replaced.
        self.restarts = 0
        #: How the last worker ended that was not meant to.
        self.reason = ""
        self.say: Callable[[str], None] = lambda text: None
        self.mailbox: Mailbox[m.ToControl] = Mailbox(m.CONTROL, bind, m.ToControl, worker.keys)
        self._worker = _shared(worker, len(config.roles)) if launcher.name == "local" else worker
        self._config = config
        self._launcher = launcher
        self._owner = owner
        self._seats: list[Seat] = []
        #: By name.
        self._members: dict[str, Member] = {}
        self._next = 0
        self._failed = False
        self._restarting = asyncio.Lock()
        self._news = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._deaf: Callable[[], None] = lambda: None

    # -- reading -------------------------------------------------------------------------------------------------

    @property
    def instances(self) -> list[Instance]:
        """By number."""
        return [member.view() for member in self._members.values()]

    @property
    def cards(self) -> list[m.Neighbour]:
        """How those that can be talked to are reached."""
        return [member.card for member in self._members.values() if member.card is not None]

    @property
    def state(self) -> FleetState:
        """Ready where one instance is."""
        if self._failed:
            return "failed"
        if any(member.state == "up" for member in self._members.values()):
            return "ready"
        return "starting" if self.info is None else "restarting"

    @property
    def settled(self) -> bool:
        """Whether no instance is starting."""
        return all(seat.is_settled() for seat in self._seats)

    def look(self) -> None:
        """For the owner: a job has ended, or gone elsewhere."""
        self._news.set()

    # -- life ----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Launch the workers and return at once."""
        self._deaf = self.mailbox.listen(self._on_letter)
        for role in self._config.roles:
            self.add(role)
        self._spawn(self._watch())

    async def stop(self) -> None:
        """End all workers. Nothing is left running."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*map(self._end, list(self._members.values())))
        await self._launcher.close()
        self._deaf()
        self.mailbox.close()

    def abandon(self) -> None:
        """For a process that is about to end at once: what would outlive it."""
        for member in self._members.values():
            member.launched.kill()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- what an operator may ask for ------------------------------------------------------------------------------

    def add(self, role: str = "") -> None:
        """Start another instance."""
        taken = {seat.number for seat in self._seats}
        seat = Seat(min(set(range(len(taken) + 1)) - taken), role)
        self._seats.append(seat)
        self._spawn(self._keep(seat))

    def remove(self, instance: int) -> None:
        """End an instance at once, and for good; its jobs go on elsewhere. Raises KeyError if there is none."""
        member = self._find(instance)
        self._release(member)
        member.state = "draining"
        member.launched.kill()

    def drain(self, instance: int) -> None:
        """Give an instance no more jobs, and end it for good once it has none. Raises KeyError if there is none."""
        member = self._find(instance)
        self._release(member)
        self._leave(member)
        self._spawn(self._empty(member))

    def carry_out(self, command: Order | Start | Retire) -> None:
        """What the cluster core wants of instances."""
        match command:
            case Order(instance, event):
                self.order(instance, event)
            case Start(role):
                self.add(role)
            case Retire(instance):
                self._retire(instance)

    def _retire(self, instance: int) -> None:
        """End an instance, which is empty, for good; unless an operator is about it already."""
        member = self._members.get(m.instance_name(instance))
        if member is not None and member.state == "up":
            self._release(member)
            member.state = "draining"
            self._spawn(self._end(member))

    def order(self, instance: int, event: Offload | Assigned) -> None:
        """Bring it to an instance, if it is there."""
        member = self._members.get(m.instance_name(instance))
        if member is not None:
            if isinstance(event, Assigned):
                self._set_role(member, event.role)
                member.told = event.role
            self.mailbox.send(member.name, event)

    def assign(self, instance: int, role: str) -> None:
        """Change an instance's role. Raises KeyError if there is none."""
        self._set_role(self._find(instance), role)
        self._owner.feed(Rerole(instance, role))

    def tell_roles(self) -> None:
        """To those that were given one while nobody could tell them: before they were up, or without a scheduler."""
        for member in self._members.values():
            if member.told != member.role and member.card is not None:
                self.order(member.instance, Assigned(member.role))

    def move(self, instance: int, to: int, jobs: int) -> None:
        """Have up to so many jobs of an instance go on at another. Raises KeyError if either is not there."""
        self._find(to)
        self.order(self._find(instance).instance, Offload(to, None, jobs, "operator"))

    def restart(self) -> None:
        """Drain all instances and start them again, one after the other."""
        self._spawn(self._restart())

    async def _restart(self) -> None:
        async with self._restarting:
            for seat in list(self._seats):
                if seat.member is not None and seat.up:
                    self._leave(seat.member)
                    await self._empty(seat.member)
                    await self._until(seat.is_settled)

    async def _empty(self, member: Member) -> None:
        """Wait until it has no job, or not for ever; then end it."""
        since_s = time.monotonic()

        def is_empty() -> bool:
            left = not member.load.leaving and not self._owner.holds(member.instance, since_s)
            return left or member.state == "starting"

        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._config.drain_timeout_s):
                await self._until(lambda: member.state == "ended" or is_empty())
        await self._end(member)

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._news.clear()
            await self._news.wait()

    def _find(self, instance: int) -> Member:
        return self._members[m.instance_name(instance)]

    def _release(self, member: Member) -> None:
        for seat in self._seats:
            if seat.member is member:
                seat.kept = False

    def _set_role(self, member: Member, role: str) -> None:
        member.role = role
        for seat in self._seats:
            if seat.member is member:
                seat.role = role

    def _leave(self, member: Member) -> None:
        """It takes nothing new, and others take its jobs; where there is no other, new jobs wait for one."""
        if member.state == "up":
            member.state = "draining"
            self.say(f"instance {member.instance} drains")
            self._owner.feed(Drain(member.instance) if self.state == "ready" else Left(member.instance))
            self._on_change()

    # -- workers -------------------------------------------------------------------------------------------------

    async def _keep(self, seat: Seat) -> None:
        """Start a worker, wait until it ends, and again; give up on one that refuses or never gets ready."""
        attempts = 0
        while seat.kept:
            try:
                member = seat.member = await self._launch(seat)
            except LaunchError as error:
                return self._give_up(seat, str(error))
            code = await member.launched.wait()
            await asyncio.sleep(_LAST_WORDS_S)
            attempts = attempts + 1 if member.state == "starting" else 0
            self._on_end(member, code, seat.kept)
            if member.refused:
                return self._give_up(seat, member.refused)
            if attempts >= self._config.start_attempts:
                times = f"the worker ended {attempts} times before it was ready, the last {_how(code)}"
                return self._give_up(seat, times)
        self._close(seat)

    def _close(self, seat: Seat) -> None:
        seat.given_up = True
        self._seats.remove(seat)

    def _give_up(self, seat: Seat, reason: str) -> None:
        self._close(seat)
        self.reason = reason
        self._failed = not self._seats
        self.say(reason)
        self._owner.feed(NotStarted())
        self._on_change()

    async def _launch(self, seat: Seat) -> Member:
        instance, self._next = self._next, self._next + 1
        record = f"{self._worker.record}.instance{instance}" if self._worker.record else ""
        config = msgspec.structs.replace(
            self._worker, control=self.mailbox.address, instance=instance, role=seat.role, record=record
        )
        launched = await self._launcher.launch(
            msgspec.json.encode(config), devices=self._devices(seat), cpus=_threads(config)
        )
        member = Member(instance, seat.role, launched)
        self._members[member.name] = member
        return member

    def _devices(self, seat: Seat) -> tuple[str, ...]:
        """Those of a seat: as many as it has ranks, in turn."""
        ranks, devices = _ranks(self._worker), self._config.devices
        return tuple(devices[(seat.number * ranks + rank) % len(devices)] for rank in range(ranks)) if devices else ()

    def _on_end(self, member: Member, code: int, again: bool) -> None:
        how = "" if member.state == "draining" else f"the engine ended ({_how(code)})"
        if member.state == "up" and again:
            self.restarts += 1
            self.say(f"{how}: starting another")
        self.reason = how or self.reason
        member.state = "ended"
        del self._members[member.name]
        self.mailbox.disconnect(member.name)
        for other in self._members.values():
            self.mailbox.send(other.name, PeerLeft(member.instance))
        self._owner.feed(Left(member.instance))
        self._owner.on_end(member.instance, how)
        self._on_change()

    def _on_change(self) -> None:
        self._news.set()
        self._owner.on_change()

    async def _end(self, member: Member) -> None:
        """Ask, and after two seconds insist."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_STOP_S if member.state != "starting" else 0):
                self.mailbox.send(member.name, m.Stop())
                await member.launched.wait()
        member.launched.kill()
        await member.launched.wait()

    # -- messages ------------------------------------------------------------------------------------------------

    def _on_letter(self, sender: str, message: m.ToControl) -> None:
        member = self._members.get(sender)
        if member is None:
            return self._owner.on_letter(sender, message)
        member.heard_s = time.monotonic()
        match message:
            case m.Loaded(load):
                member.load = load
                self._news.set()
                self._owner.feed(Reported(member.instance, load))
            case m.Pong(_, step_s):
                if step_s > self._config.step_timeout_s:
                    self._replace(member, f"a step has been running for {step_s:.0f} s")
            case MoveEnded():
                member.moves.add(message)
            case m.Hello():
                self._on_hello(member, message)
            case m.Starting(text):
                self.say(text if len(self._seats) == 1 else f"instance {member.instance}: {text}")
            case m.Refused(error):
                member.refused = error
            case Ask(job, epoch, known, total):
                self._owner.feed(Asked(member.instance, job, epoch, known, total))

    def _on_hello(self, member: Member, hello: m.Hello) -> None:
        if hello.version != penstock.__version__:
            member.refused = f"the worker is version {hello.version}, this is {penstock.__version__}"
            return member.launched.kill()
        self.mailbox.connect(member.name, hello.address)
        self._introduce(member, m.Neighbour(member.instance, hello.address, hello.pages_at))
        member.state = "up"
        self.tell_roles()
        shortest = min(hello.info.max_len, self.info.max_len if self.info is not None else hello.info.max_len)
        self.info = msgspec.structs.replace(hello.info, max_len=shortest)
        self.cost = hello.cost
        self._owner.on_up(member.instance, hello.address)
        pages = hello.info.pages
        member.load = Load(pages=pages, pages_free=pages, page_tokens=hello.info.page_tokens)
        self._owner.feed(Joined(member.instance, member.role, member.load))
        self._on_change()

    def _introduce(self, member: Member, card: m.Neighbour) -> None:
        """To all others, and those to it."""
        for other in self._members.values():
            if other.card is not None:
                self.mailbox.send(other.name, card)
                self.mailbox.send(member.name, other.card)
        member.card = card

    # -- the watch -----------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Ping the workers; replace those that hang."""
        woke = time.monotonic()
        pause_s = min(1.0, self._config.watchdog_s / 4)
        while True:
            await asyncio.sleep(pause_s)
            slept_s = time.monotonic() - woke
            woke += slept_s
            for member in self._members.values():
                if slept_s > 2 * pause_s:
                    # It was this process that slept: what the worker said meanwhile is yet to be read.
                    member.heard_s += slept_s
                self._check(member, woke - member.heard_s)

    def _check(self, member: Member, silent_s: float) -> None:
        if member.state == "starting":
            if silent_s > self._config.start_timeout_s:
                self._replace(member, "the worker does not get ready")
        elif silent_s > self._config.watchdog_s:
            self._replace(member, f"no word from the engine for {self._config.watchdog_s:g} s")
        else:
            member.pings += 1
            self.mailbox.send(member.name, m.Ping(member.pings))

    def _replace(self, member: Member, why: str) -> None:
        self.say(f"{why}: replacing it")
        member.launched.kill()


def _shared(worker: WorkerConfig, instances: int) -> WorkerConfig:
    """For so many workers on one host: each has its part of the cores and of the memory, where nobody says how much."""
    engine = worker.engine
    if instances == 1 or isinstance(engine, NullOptions):
        return worker
    engine = msgspec.structs.replace(
        engine, threads=engine.threads or max(1, cores() // instances), host_share=engine.host_share / instances
    )
    return msgspec.structs.replace(worker, engine=engine)


def _ranks(worker: WorkerConfig) -> int:
    return 1 if isinstance(worker.engine, NullOptions) else worker.engine.tensor_parallel_size


def _threads(worker: WorkerConfig) -> float:
    return 1.0 if isinstance(worker.engine, NullOptions) else float(worker.engine.threads or 1)


def _how(code: int) -> str:
    if code == LOST:
        return "its host is gone"
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
