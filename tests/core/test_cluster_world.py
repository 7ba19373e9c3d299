"""The cluster core under whatever may come: reports that are late, instances that leave, drain and change roles, asks,
moves, ends. After every event its accounts must be what a plain recount gives, and each job must be where the commands
said.
"""

import random
from collections import deque

import pytest

from penstock.core.cluster import Cluster, Member, Sums
from penstock.core.commands import ClusterCommand, Dispatch, Lost, Order, Refuse, Retire, Start
from penstock.core.config import Balance, ClusterConfig
from penstock.core.events import (
    Arrived,
    Asked,
    ClusterEvent,
    Drain,
    Ended,
    Joined,
    Left,
    Load,
    Moved,
    NotStarted,
    Reported,
    Rerole,
)
from penstock.core.move import Assigned, Offload, Tick
from penstock.core.slo import MS
from penstock.core.spec import JobSpec, Unit
from penstock.policies.bundles import make_cluster

PAGES, PAGE = 200, 4


class FakeInstance:
    """Has jobs, and says so when the world lets it."""

    def __init__(self, role: str) -> None:
        self.role = role
        #: Job -> positions.
        self.jobs: dict[int, int] = {}
        self.seen = 0
        self.retired = False
        self.inbox: deque[tuple[int, int]] = deque()
        self.reports: deque[Load] = deque()

    def load(self, draw: random.Random) -> Load:
        running = draw.randint(0, len(self.jobs))
        waiting = list(self.jobs.values())[running:]
        used = sum(-(-tokens // PAGE) for tokens in list(self.jobs.values())[:running])
        return Load(
            seen=self.seen, waiting=len(waiting), running=running, ended=self.seen - len(self.jobs), pages=PAGES,
            pages_free=max(0, PAGES - used), waiting_tokens=sum(waiting), head_tokens=waiting[0] if waiting else 0,
            urgent=draw.choice((0, 0, 1)) if running else 0, page_tokens=PAGE,
        )  # fmt: skip


class World:
    """Instances and homes around one cluster core."""

    def __init__(self, policy: str, seed: int, looks: float = 0.3) -> None:
        """`looks`: the share of events after which the accounts are read, which brings them up to date."""
        self.draw = random.Random(f"{policy}{seed}")
        self.looks, self.look = looks, random.Random(seed)
        balance = Balance(
            out_tokens=20.0, in_tokens=40.0, scaling=self.draw.random() < 0.5, instances_min=1, instances_max=6,
            low_tokens=30.0, high_tokens=200.0, scale_ns=200 * MS,
        )  # fmt: skip
        self.cluster = make_cluster(ClusterConfig(policy=policy, max_num_queued=8, balance=balance))
        self.now = 0
        self.instances: dict[int, FakeInstance] = {}
        self.next_instance = self.next_job = self.starting = 0
        #: Open jobs -> where they are, as the commands said; None: held.
        self.places: dict[int, int | None] = {}
        self.known: dict[int, int] = {}
        self.refused: set[int] = set()
        self.epochs: dict[int, int] = {}

    def feed(self, event: ClusterEvent) -> None:
        commands = self.cluster.handle(event, self.now)
        for command in commands:
            self.obey(command)
        if self.look.random() < self.looks:
            check(self.cluster)
        assert self.cluster.ledger == self.places

    def obey(self, command: ClusterCommand) -> None:
        match command:
            case Dispatch(spec, instance):
                assert self.places.get(spec.id) is None, "dispatched twice"
                assert instance in self.instances
                self.places[spec.id] = instance
                self.instances[instance].inbox.append((spec.id, spec.known))
            case Refuse(job, _, retry_ns):
                assert retry_ns > 0
                assert self.places.pop(job) is None
                self.refused.add(job)
            case Lost(job, instance):
                assert self.places.pop(job) == instance
            case Order(instance, Offload(to, job)):
                assert to in self.instances
                assert instance in self.instances
                if job is not None:
                    assert job in self.places
            case Order(instance, Assigned(role)):
                self.instances[instance].role = role
            case Retire(instance):
                self.instances[instance].retired = True
            case Start():
                self.starting += 1

    # -- what may happen ---------------------------------------------------------------------------------------

    def arrive(self) -> None:
        job, self.next_job = self.next_job, self.next_job + 1
        self.known[job] = self.draw.randrange(1, 300)
        self.places[job] = None
        self.feed(Arrived(self.spec(job)))

    def spec(self, job: int) -> JobSpec:
        keys = (self.draw.randrange(5), self.draw.randrange(50))
        return JobSpec(
            id=job, units=(Unit("lm", self.known[job] + 50),), known=self.known[job], arrival=self.now, keys=keys,
            priority=self.draw.choice((0, 0, 0, -1)),
        )  # fmt: skip

    def deliver(self) -> None:
        number = self.some()
        if number is not None and (instance := self.instances[number]).inbox:
            job, known = instance.inbox.popleft()
            instance.seen += 1
            if self.places.get(job) == number:
                instance.jobs[job] = known

    def say(self) -> None:
        number = self.some()
        if number is not None:
            self.instances[number].reports.append(self.instances[number].load(self.draw))

    def report(self) -> None:
        number = self.some()
        if number is not None and self.instances[number].reports:
            self.feed(Reported(number, self.instances[number].reports.popleft()))

    def end(self) -> None:
        if self.places:
            job = self.draw.choice(list(self.places))
            where = self.places.pop(job)
            if where is not None:
                self.instances[where].jobs.pop(job, None)
            self.feed(Ended(job))

    def ask(self) -> None:
        number = self.some()
        if number is not None and self.instances[number].jobs:
            job, known = self.draw.choice(list(self.instances[number].jobs.items()))
            self.feed(Asked(number, job, 1, known, known + 50))

    def move(self) -> None:
        number, to = self.some(), self.some()
        if number is not None and to is not None and number != to and self.instances[number].jobs:
            job = self.draw.choice(list(self.instances[number].jobs))
            known = self.instances[number].jobs.pop(job)
            self.places[job] = to
            self.instances[to].inbox.append((job, known))
            self.feed(Moved(job, to))

    def join(self) -> None:
        if len(self.instances) < 8:
            number, self.next_instance = self.next_instance, self.next_instance + 1
            self.instances[number] = instance = FakeInstance(self.draw.choice(("", "", "prefill", "decode")))
            instance.seen = self.draw.choice((0, 7))
            self.starting = max(0, self.starting - 1)
            self.feed(Joined(number, instance.role, instance.load(self.draw)))

    def leave(self) -> None:
        number = self.some()
        if number is not None:
            del self.instances[number]
            lost = [job for job, place in self.places.items() if place == number]
            self.feed(Left(number))
            for job in lost:
                self.places[job] = None
                self.feed(Arrived(self.spec(job), again=True))
            assert not set(lost) & self.refused, "what was taken once is not turned away"

    def drain(self) -> None:
        if (number := self.some()) is not None:
            self.feed(Drain(number))

    def rerole(self) -> None:
        if (number := self.some()) is not None:
            self.feed(Rerole(number, self.draw.choice(("", "prefill", "decode"))))

    def not_started(self) -> None:
        self.feed(NotStarted())

    def pass_time(self) -> None:
        self.now += self.draw.randrange(1, 100) * MS
        due = self.cluster.due
        if due is not None and due <= self.now:
            self.feed(Tick())
            due = self.cluster.due
            assert due is None or due > self.now, "a look in the past would be repeated without end"

    def some(self) -> int | None:
        return self.draw.choice(list(self.instances)) if self.instances else None

    def play(self, events: int) -> None:
        often = [self.arrive, self.deliver, self.deliver, self.say, self.say, self.report, self.report, self.pass_time]
        usual = [self.end, self.ask, self.move, *often]
        rare = [self.join, self.leave, self.drain, self.rerole, self.not_started]
        for _ in range(events):
            self.draw.choice(rare if self.draw.random() < 0.06 else usual)()

    def finish(self) -> None:
        """All jobs end, and all that was said arrives."""
        while self.places:
            self.end()
        for number, instance in self.instances.items():
            while instance.inbox:
                instance.inbox.popleft()
                instance.seen += 1
            instance.reports.append(instance.load(self.draw))
            while instance.reports:
                self.feed(Reported(number, instance.reports.popleft()))


def check(cluster: Cluster) -> None:
    """Accounts equal plain recounts."""
    for member in cluster.members.values():
        again = Member(member.id, member.role, member.load, member.joined)
        again.coming, again.promised = member.coming, member.promised
        assert member.expected == again.expected
        assert member.draining == (member in cluster.draining)
    for ranking in cluster._rankings:
        takes = [member for member in cluster.members.values() if ranking._takes(member)]
        assert list(ranking) == sorted((ranking._rank(member.expected), member.id) for member in takes)
    for role, sums in cluster.sums.items():
        plain = Sums()
        for member in cluster.members.values():
            if member.role == role and not member.draining:
                plain.add(member.expected)
        names = ("members", "jobs", "free_tokens", "waiting_tokens", "capacity_tokens")
        assert [getattr(sums, name) for name in names] == [getattr(plain, name) for name in names]
    promised = {job: member.id for member in cluster.members.values() for job in member.promised}
    assert {job: member.id for job, member in cluster._promises.items()} == promised
    assert set(promised) <= set(cluster.ledger)
    coming = {job for member in cluster.members.values() for job in member.coming}
    assert coming <= set(cluster.ledger)
    assert set(cluster._held) == {job for job, place in cluster.ledger.items() if place is None}


POLICIES = ("fcfs", "distserve", "llumnix", "adaptive-pd", "round-robin", "infaas++", "prefix-aware", "flood")


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("seed", range(8))
def test_each_job_is_somewhere_once_and_accounts_are_right(policy: str, seed: int) -> None:
    world = World(policy, seed)
    world.join()
    world.play(700)
    world.finish()
    assert not world.cluster.ledger
    assert not any(member.coming or member.promised for member in world.cluster.members.values())
    for number in list(world.instances):
        world.feed(Drain(number))
    assert all(instance.retired for instance in world.instances.values()), "empty and draining: to be ended"


@pytest.mark.parametrize("policy", POLICIES)
def test_the_same_events_give_the_same_commands_whether_accounts_are_read_or_not(policy: str) -> None:
    worlds = [World(policy, 5, looks) for looks in (0.0, 0.1, 1.0)]
    for world in worlds:
        world.join()
        world.play(400)
    assert worlds[0].places == worlds[1].places == worlds[2].places
    assert worlds[0].refused == worlds[1].refused == worlds[2].refused
