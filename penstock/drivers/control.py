"""The control in a home's own process: the cluster core, and the fleet that it knows of. Says where jobs go; owns none,
and sees no token."""

from typing import Protocol

from penstock.core.commands import ClusterCommand, Dispatch, Lost, Order, Refuse, Retire, Start
from penstock.core.config import ClusterConfig
from penstock.core.events import ClusterEvent, Ended, Moved
from penstock.drivers import messages as m
from penstock.drivers.fleet import Fleet, FleetConfig
from penstock.drivers.launch.base import Launcher
from penstock.drivers.scheduler import Scheduler
from penstock.drivers.worker import WorkerConfig


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
        self._client = client
        self._scheduler = Scheduler(cluster_config(worker, config), worker.record, self._carry_out)
        self.fleet = Fleet(worker, config, launcher, bind, self)

    def feed(self, event: ClusterEvent) -> None:
        """Tell the core, and have done what it says."""
        self._scheduler.feed(event)
        if isinstance(event, Ended | Moved):
            self.fleet.look()

    def _carry_out(self, command: ClusterCommand) -> None:
        match command:
            case Order() | Start() | Retire():
                self.fleet.carry_out(command)
            case Dispatch() | Refuse() | Lost():
                self._client.carry_out(command)

    def on_up(self, instance: int, address: str) -> None:
        self._client.on_up(instance, address)

    def on_end(self, instance: int, how: str) -> None:
        self._client.on_end(instance, how)

    def holds(self, instance: int, since_s: float) -> bool:
        return self._client.holds(instance)

    def on_change(self) -> None:
        self._client.on_change()

    def on_letter(self, sender: str, message: m.ToControl) -> None:
        """Of an instance that has ended."""

    async def stop(self) -> None:
        await self.fleet.stop()
        self._scheduler.close()


def cluster_config(worker: WorkerConfig, config: FleetConfig) -> ClusterConfig:
    """What the cluster core is told."""
    return ClusterConfig(policy=worker.policy, max_num_queued=worker.limits.max_num_queued, balance=config.balance)
