"""A home in a process of its own: one of several, with the fleet and the scheduler elsewhere.

While the scheduler is not there, the home goes on by its last view of the instances, and places jobs itself. What the
scheduler says late of a job that has a place by then does not count, so none is placed twice.
"""

import asyncio
import time

import msgspec

from penstock.core.commands import Dispatch, Lost, Refuse
from penstock.core.events import Arrived, Asked, Ended, Moved
from penstock.core.spec import JobSpec
from penstock.cost.models import Model
from penstock.drivers import messages as m
from penstock.drivers.home import BaseHome
from penstock.drivers.wire import Keys, Mailbox
from penstock.engine.base import EngineInfo

#: While no instance is up, a home without a scheduler looks again after so long.
_LOOK_S = 0.1
#: The keeper's word to a new scheduler may come later than ours: what it must hear comes at so many rolls.
_ROLLS = 3


class BranchConfig(msgspec.Struct, frozen=True, kw_only=True):
    """All that such a home must know."""

    number: int
    bind: str
    #: Where the keeper is reached.
    keeper: str
    secret: bytes
    keys: Keys | None = None


class RemoteFleet:
    """The fleet by the keeper's word, which is at most a second old."""

    def __init__(self, mailbox: "Mailbox[m.ToBranch]") -> None:
        self.status = m.Status("starting", "", 0, False, None, None, [], "")
        self._mailbox = mailbox

    @property
    def info(self) -> EngineInfo | None:
        return self.status.info

    @property
    def cost(self) -> Model | None:
        return self.status.cost

    @property
    def state(self) -> m.FleetState:
        return self.status.state

    @property
    def reason(self) -> str:
        return self.status.reason

    @property
    def settled(self) -> bool:
        return self.status.settled

    @property
    def restarts(self) -> int:
        return self.status.restarts

    @property
    def instances(self) -> list[m.Instance]:
        return self.status.instances

    def add(self, role: str = "") -> None:
        self._mailbox.send(m.CONTROL, m.Operate("add", role=role))

    def remove(self, instance: int) -> None:
        """Raises KeyError if there is none; so do the others."""
        self._mailbox.send(m.CONTROL, m.Operate("remove", self._known(instance)))

    def drain(self, instance: int) -> None:
        self._mailbox.send(m.CONTROL, m.Operate("drain", self._known(instance)))

    def assign(self, instance: int, role: str) -> None:
        self._mailbox.send(m.CONTROL, m.Operate("assign", self._known(instance), role))

    def move(self, instance: int, to: int, jobs: int) -> None:
        self._mailbox.send(m.CONTROL, m.Operate("move", self._known(instance), to=self._known(to), jobs=jobs))

    def restart(self) -> None:
        self._mailbox.send(m.CONTROL, m.Operate("restart"))

    def _known(self, instance: int) -> int:
        if all(found.instance != instance for found in self.instances):
            raise KeyError(instance)
        return instance


class Branch(BaseHome):
    """See the module's docstring."""

    def __init__(self, config: BranchConfig) -> None:
        super().__init__(config.number, config.bind, config.keys, config.secret)
        self._mailbox.connect(m.CONTROL, config.keeper)
        self._fleet = RemoteFleet(self._mailbox)
        #: Rolls at which a new scheduler is still to hear what its predecessor knew.
        self._new_scheduler_rolls = 0

    @property
    def fleet(self) -> RemoteFleet:
        return self._fleet

    async def start(self) -> None:
        await super().start()
        self._mailbox.send(m.CONTROL, m.Attach(self._mailbox.address))

    def abandon(self) -> None:
        """Nothing outlives it."""

    def _feed(self, event: Arrived | Ended | Moved) -> None:
        if self._fleet.status.scheduler:
            self._mailbox.send(m.SCHEDULER, event)
        elif isinstance(event, Arrived):
            self._place_alone(event.spec)

    def _on_letter(self, sender: str, message: m.ToBranch) -> None:
        match message:
            case m.Status():
                self._on_status(message)
            case m.Up(instance, address):
                self.on_up(instance, address)
            case m.Gone(instance, how):
                self.on_end(instance, how)
            case Dispatch() | Refuse() | Lost():
                self.carry_out(message)
            case _:
                super()._on_letter(sender, message)

    def _on_status(self, status: m.Status) -> None:
        scheduler, self._fleet.status = self._fleet.status.scheduler, status
        if status.scheduler != scheduler:
            if status.scheduler:
                self._mailbox.connect(m.SCHEDULER, status.scheduler)
                self._mailbox.send(m.SCHEDULER, m.Attach(self._mailbox.address))
                self._new_scheduler_rolls = _ROLLS
            else:
                self._mailbox.disconnect(m.SCHEDULER)
            # What the former one was asked, it will not answer.
            for stream in [stream for stream in self._streams.values() if stream.instance is None]:
                self._feed(Arrived(stream.spec))
        self.on_change()

    def _ask_again(self) -> None:
        """A new scheduler has not heard which jobs want to go on elsewhere after their prompt."""
        roles = {found.instance: found.role for found in self._fleet.instances}
        for stream in self._streams.values():
            if stream.began and stream.instance is not None and roles.get(stream.instance) == "prefill":
                known, total = len(stream.tokens), stream.spec.total
                self._mailbox.send(m.SCHEDULER, Asked(stream.instance, stream.id, stream.epoch, known, total))

    def _place_alone(self, spec: JobSpec) -> None:
        """On the instance that has the fewest jobs, as far as is known here."""
        stream = self._streams.get(spec.id)
        if stream is None or stream.instance is not None or self._fleet.status.scheduler:
            return
        there = [found for found in self._fleet.instances if found.instance in self._instances]
        takes_new = [found for found in there if found.state == "up" and found.role != "decode"]
        if not there:
            asyncio.get_running_loop().call_later(_LOOK_S, self._place_alone, spec)
        else:
            own = self._own()
            least = min(takes_new or there, key=lambda i: i.load.running + i.load.waiting + own.get(i.instance, 0))
            self._dispatch(stream, least.instance)

    def _own(self) -> dict[int, int]:
        """Its own jobs on each instance."""
        counts: dict[int, int] = {}
        for stream in self._streams.values():
            if stream.instance is not None:
                counts[stream.instance] = counts.get(stream.instance, 0) + 1
        return counts

    def _roll(self) -> None:
        super()._roll()
        if self._new_scheduler_rolls:
            self._new_scheduler_rolls -= 1
            self._ask_again()
        self._mailbox.send(m.CONTROL, m.Held(list(self._own()), time.monotonic()))
