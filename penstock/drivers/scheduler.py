"""The cluster core with its clock and its log, as a part of a process or as one of its own.

As a process (`python -m penstock.drivers.scheduler`, configuration on stdin) it serves several homes. It owns nothing
that cannot be found again: should it die, another one hears which instances there are, and homes place jobs by
themselves until then.
"""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from penstock.core.commands import ClusterCommand, Dispatch, Lost, Refuse
from penstock.core.config import ClusterConfig
from penstock.core.events import Arrived, Asked, ClusterEvent, Ended, Moved
from penstock.core.move import Tick
from penstock.core.slo import SECOND
from penstock.drivers import messages as m
from penstock.drivers.lifeline import hold_on
from penstock.drivers.log import ClusterEntry, Header, LogWriter
from penstock.drivers.wire import Keys, Mailbox
from penstock.policies.bundles import make_cluster


class Scheduler:
    """Feeds the core, and has `carry_out` do what it says. In an event loop."""

    def __init__(self, config: ClusterConfig, record: str, carry_out: Callable[[ClusterCommand], None]) -> None:
        self.core = make_cluster(config)
        self._carry_out = carry_out
        self._log = LogWriter(Path(record), Header(cluster=config)) if record else None
        self._flushed_ns = 0
        #: When the core wants to hear that time has passed, ns, and what will tell it.
        self._due: int | None = None
        self._timer: asyncio.TimerHandle | None = None

    def feed(self, event: ClusterEvent) -> None:
        now = time.monotonic_ns()
        commands = self.core.handle(event, now)
        if self._log:
            self._log.write(ClusterEntry(now, event, commands))
            if now - self._flushed_ns > SECOND:
                self._log.flush()
                self._flushed_ns = now
        if self.core.due != self._due:
            self._set_timer(now)
        for command in commands:
            self._carry_out(command)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._log:
            self._log.close()

    def _set_timer(self, now: int) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._due, self._timer = self.core.due, None
        if self._due is not None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(max(0, self._due - now) / SECOND, self._tick)

    def _tick(self) -> None:
        self._due = None
        self.feed(Tick())


class SchedulerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """All that the process is told."""

    cluster: ClusterConfig
    #: Where to listen, and where the keeper is reached.
    bind: str
    keeper: str
    keys: Keys | None = None
    record: str = ""


class SchedulerProcess:
    """Between the homes, the keeper and the core."""

    def __init__(self, config: SchedulerConfig) -> None:
        self._scheduler = Scheduler(config.cluster, config.record, self._carry_out)
        self._mailbox: Mailbox[m.ToScheduler] = Mailbox(m.SCHEDULER, config.bind, m.ToScheduler, config.keys)
        self._mailbox.connect(m.CONTROL, config.keeper)
        #: Homes that have ended; no later one has such a name.
        self._gone: set[str] = set()

    async def run(self) -> None:
        self._mailbox.listen(self._on_letter)
        self._mailbox.send(m.CONTROL, m.Attach(self._mailbox.address))
        await asyncio.Event().wait()

    def _on_letter(self, sender: str, message: m.ToScheduler) -> None:
        match message:
            case m.Attach() | Arrived() | Moved() if sender in self._gone:
                # What it sent before comes after the keeper's word on its end.
                pass
            case Asked(_, job) if m.home_of(job) in self._gone:
                pass
            case m.Attach(address):
                self._mailbox.connect(sender, address)
            case m.Detach(home):
                self._forget(home)
            case m.Ping(number):
                self._mailbox.send(sender, m.Pong(number, 0.0))
            case _:
                self._scheduler.feed(message)

    def _forget(self, home: str) -> None:
        """A home has ended, and so have its jobs."""
        self._gone.add(home)
        self._mailbox.disconnect(home)
        for job in [job for job in self._scheduler.core.jobs if m.home_of(job) == home]:
            self._scheduler.feed(Ended(job))

    def _carry_out(self, command: ClusterCommand) -> None:
        match command:
            case Dispatch(spec):
                self._mailbox.send(m.home_of(spec.id), command)
            case Refuse(job) | Lost(job):
                self._mailbox.send(m.home_of(job), command)
            case _:
                self._mailbox.send(m.CONTROL, command)


def main() -> None:
    """Entry point of the process."""
    config = hold_on(SchedulerConfig)
    asyncio.run(SchedulerProcess(config).run())


if __name__ == "__main__":
    main()
