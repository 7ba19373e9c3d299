"""The control: the cluster core, and the fleet that it knows of. Says where jobs go; owns none, and sees no token."""

import asyncio
import time
from pathlib import Path
from typing import Protocol

from penstock.core.cluster import ClusterConfig
from penstock.core.commands import ClusterCommand, Dispatch, Lost, Order, Refuse, Retire, Start
from penstock.core.events import ClusterEvent, Ended, Moved
from penstock.core.move import Tick
from penstock.core.slo import SECOND
from penstock.drivers.fleet import Fleet, FleetConfig
from penstock.drivers.launch.base import Launcher
from penstock.drivers.log import ClusterEntry, Header, LogWriter
from penstock.drivers.worker import WorkerConfig
from penstock.policies.bundles import make_cluster


class Client(Protocol):
    """A home, as the control sees it."""

    def carry_out(self, command: Dispatch | Refuse | Lost) -> None:
        """Of a job of its own."""

    def on_up(self, instance: int, address: str) -> None:
        """The instance can be talked to, at this address."""

    def on_end(self, instance: int, how: str) -> None:
        """The instance is gone. `how` is empty where that was intended."""

    def holds(self, instance: int) -> bool:
        """Whether any of its jobs is there."""

    def on_change(self) -> None:
        """The state of the fleet may have changed."""


class Control:
    """See the module's docstring. `bind` is for the mailbox at which instances report."""

    def __init__(
        self, worker: WorkerConfig, config: FleetConfig, launcher: Launcher, bind: str, client: Client
    ) -> None:
        core = ClusterConfig(policy=worker.policy, max_num_queued=worker.limits.max_num_queued, balance=config.balance)
        self._core = make_cluster(core)
        self._log = LogWriter(Path(worker.record), Header(cluster=core)) if worker.record else None
        self._flushed_ns = 0
        #: When the core wants to hear that time has passed, ns, and what will tell it.
        self._due: int | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._client = client
        self.fleet = Fleet(worker, config, launcher, bind, self)

    def on_up(self, instance: int, address: str) -> None:
        self._client.on_up(instance, address)

    def on_end(self, instance: int, how: str) -> None:
        self._client.on_end(instance, how)

    def holds(self, instance: int) -> bool:
        return self._client.holds(instance)

    def on_change(self) -> None:
        self._client.on_change()

    def feed(self, event: ClusterEvent) -> None:
        """Tell the core, and have done what it says."""
        now = time.monotonic_ns()
        commands = self._core.handle(event, now)
        if self._log:
            self._log.write(ClusterEntry(now, event, commands))
            if now - self._flushed_ns > SECOND:
                self._log.flush()
                self._flushed_ns = now
        if self._core.due != self._due:
            self._set_timer(now)
        for command in commands:
            self._carry_out(command)
        if isinstance(event, Ended | Moved):
            self.fleet.look()

    def _carry_out(self, command: ClusterCommand) -> None:
        match command:
            case Order(instance, event):
                self.fleet.order(instance, event)
            case Start(role):
                self.fleet.add(role)
            case Retire(instance):
                self.fleet.retire(instance)
            case Dispatch() | Refuse() | Lost():
                self._client.carry_out(command)

    def _set_timer(self, now: int) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._due, self._timer = self._core.due, None
        if self._due is not None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(max(0, self._due - now) / SECOND, self._tick)

    def _tick(self) -> None:
        self._due = None
        self.feed(Tick())

    async def stop(self) -> None:
        await self.fleet.stop()
        if self._timer is not None:
            self._timer.cancel()
        if self._log:
            self._log.close()
