"""Jobs that move between instances while everything goes wrong: messages are lost, late and doubled, copies fail,
instances die, clients leave, and the cluster asks for moves at random. Every stream must get exactly its tokens, and
every page must come back.

Beside each core runs a plain engine with physical pages whose cells hold what was written to them, so that one foreign
or missing position shows at the step that reads it.
"""

import random
from collections import deque
from collections.abc import Callable

import pytest

from penstock.core import laws
from penstock.core.commands import Bind, End, Evict, InstanceCommand, Release, Report, Restore, Run, Share, Stow
from penstock.core.config import InstanceConfig, Limits, MoveLimits
from penstock.core.events import Cancelled, Executed, InstanceEvent, Named, StepDone, Submitted
from penstock.core.instance import Instance
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
from penstock.core.spec import JobSpec, Unit
from penstock.policies.bundles import make_instance

PAGE, BLOCK = 4, 8


class Table:
    """The pages of one job, or of one that arrives."""

    def __init__(self, keys: list[int], pages: list[int]) -> None:
        self.keys = keys
        self.pages = pages
        self.computed = len(keys) * BLOCK


class PlainEngine:
    """Executes its queue in order; a step holds up what is behind it until the world lets it end."""

    def __init__(self, world: "World", number: int, pages: int) -> None:
        self.world, self.number, self.pages = world, number, pages
        self.free = list(range(pages))
        self.cells: dict[int, list[tuple[int, int] | None]] = {page: [None] * PAGE for page in range(pages)}
        self.blocks: dict[int, list[int]] = {}
        self.jobs: dict[int, Table | None] = {}
        self.known: dict[int, int] = {}
        #: Steps before this one speak of an earlier epoch of the job.
        self.first_step: dict[int, int] = {}
        self.arriving: dict[int, Table] = {}
        self.stowed: dict[int, list[tuple[int, int] | None]] = {}
        self.queue: deque[InstanceCommand | Callable[[], None]] = deque()

    def add(self, job: int) -> None:
        assert job not in self.jobs, "added twice"
        self.jobs[job] = None

    def put(self, item: InstanceCommand | Callable[[], None]) -> None:
        self.queue.append(item)
        self.settle()

    def settle(self) -> None:
        while self.queue and not isinstance(self.queue[0], Run):
            self.carry_out(self.queue.popleft())

    def carry_out(self, item: InstanceCommand | Callable[[], None]) -> None:
        match item:
            case Bind(job, keys):
                self.jobs[job] = self.table(keys)
            case Share(job, keys):
                for key in keys:
                    self.share(job, key)
            case Evict(keys):
                for key in keys:
                    self.free += self.blocks.pop(key)
            case Release(job, forget):
                table = self.jobs.get(job)
                if table is not None:
                    self.drop(table)
                if forget:
                    self.jobs.pop(job, None)
                    self.stowed.pop(job, None)
                else:
                    self.jobs[job] = None
            case Stow(job, upto):
                table = self.jobs[job]
                assert table is not None
                self.stowed[job] = [self.cells[table.pages[p // PAGE]][p % PAGE] for p in range(upto)]
                self.drop(table)
                self.jobs[job] = None
            case Restore(job, upto):
                table = self.jobs[job] = self.table(())
                kept = self.stowed.pop(job)
                assert len(kept) == upto, "restored more or less than was stowed"
                for p, page in ((p, self.room(table, upto)[p // PAGE]) for p in range(upto)):
                    self.cells[page][p % PAGE] = kept[p]
                table.computed = upto
            case Receive(move, keys):
                self.arriving[move] = self.table(keys)
            case Pull():
                self.world.begin_pull(self.number, item)
            case Adopt(job, move, upto):
                table = self.arriving.pop(move)
                assert self.jobs.get(job) is None, "adopted twice"
                table.computed = upto
                self.jobs[job] = table
            case Discard(move):
                self.drop(self.arriving.pop(move))
            case _:
                assert callable(item)
                item()

    def table(self, keys: tuple[int, ...]) -> Table:
        return Table(list(keys), [page for key in keys for page in self.blocks[key]])

    def drop(self, table: Table) -> None:
        self.free += table.pages[len(table.keys) * (BLOCK // PAGE) :]

    def share(self, job: int, key: int) -> None:
        table = self.jobs[job]
        assert table is not None
        at = len(table.keys) * (BLOCK // PAGE)
        own = table.pages[at : at + BLOCK // PAGE]
        assert len(own) == BLOCK // PAGE, "shared more than it has"
        table.keys.append(key)
        if key in self.blocks:
            table.pages[at : at + BLOCK // PAGE] = self.blocks[key]
            self.free += own
        else:
            self.blocks[key] = own

    def room(self, table: Table, upto: int) -> list[int]:
        while len(table.pages) * PAGE < upto:
            table.pages.append(self.free.pop())
        return table.pages

    def run(self) -> StepDone:
        """The step at the head of the queue."""
        command = self.queue.popleft()
        assert isinstance(command, Run)
        out: list[Executed] = []
        for piece in command.plan.slices:
            table = self.jobs.get(piece.job)
            if table is None or piece.start != table.computed or piece.start >= self.known[piece.job]:
                out.append(Executed(piece.job, 0, 0))
                continue
            end = min(piece.start + piece.count, self.known[piece.job])
            self.room(table, end)
            for position in range(piece.start):
                found = self.cells[table.pages[position // PAGE]][position % PAGE]
                assert found == self.world.content(piece.job, position), (
                    f"{self.number}: position {position} of job {piece.job} holds {found}"
                )
            for position in range(piece.start, end):
                self.cells[table.pages[position // PAGE]][position % PAGE] = self.world.content(piece.job, position)
            table.computed = end
            emits = end == self.known[piece.job]
            if emits:
                if command.plan.seq >= self.first_step[piece.job]:
                    self.world.emit(self.number, piece.job, self.known[piece.job])
                self.known[piece.job] += 1
            if end - piece.start != piece.count:
                out.append(Executed(piece.job, end - piece.start, int(emits)))
        self.settle()
        return StepDone(command.plan.seq, out)

    def copy(self, source: "PlainEngine", pages: list[int], move: int, start: int, end: int) -> None:
        mine = self.arriving[move].pages
        for position in range(start, end):
            cell = source.cells[pages[position // PAGE]][position % PAGE]
            self.cells[mine[position // PAGE]][position % PAGE] = cell


class Stream:
    """A job, as its home knows it."""

    def __init__(self, prompt: int, new: int, family: int, priority: int, instance: int) -> None:
        self.prompt, self.new, self.family, self.priority = prompt, new, family, priority
        self.instance = instance
        self.epoch = 0
        self.got = 0

    @property
    def over(self) -> bool:
        return self.got == self.new


class World:
    """Instances, one home, and the messages between them."""

    def __init__(self, seed: int, faults: bool) -> None:
        self.random = random.Random(seed)
        self.faults = faults
        self.now = 0
        self.streams: dict[int, Stream] = {}
        self.done: dict[int, Stream] = {}
        self.cancelled: set[int] = set()
        self.cores: dict[int, Instance] = {}
        self.engines: dict[int, PlainEngine] = {}
        #: (sender, receiver) -> messages; the home is -1.
        self.channels: dict[tuple[int, int], deque[object]] = {}
        self.pulls: list[tuple[int, Pull, list[int]]] = []
        self.source_pages: dict[int, list[int]] = {}
        self.pages = self.random.randrange(16, 48) * 2
        self.next_job = self.next_instance = 0
        self.moved = 0
        #: Instance -> what it told of its moves.
        self.ended: dict[int, list[MoveEnded]] = {}
        for _ in range(3):
            self.join()

    def join(self) -> None:
        number, self.next_instance = self.next_instance, self.next_instance + 1
        config = InstanceConfig(
            policy=self.random.choice(("fcfs", "priority", "prefill-first")),
            pages=self.pages, host_pages=self.random.choice((0, 20)), page_tokens=PAGE, block_tokens=BLOCK,
            depth=self.random.choice((1, 1, 2)), number=number,
            limits=Limits(max_num_seqs=self.random.randrange(2, 6), max_num_batched_tokens=self.random.choice((4, 40))),
            role=self.random.choice(("", "", "prefill", "decode")),
            moves=MoveLimits(
                arriving=2, lease_ns=1000, retry_ns=100, compute_position_ns=self.random.choice((0.0, 1.0)),
                copy_ns=self.random.choice((0.0, 3.0)), stages=self.random.choice((1, 3)),
            ),
        )  # fmt: skip
        self.cores[number] = make_instance(config)
        self.engines[number] = PlainEngine(self, number, self.pages)

    # -- content ------------------------------------------------------------------------------------------------

    def keys(self, job: int, blocks: int) -> tuple[int, ...]:
        """Names of a job's blocks: those of its prompt are its family's, the rest its own."""
        stream = self.stream(job)
        shared = stream.prompt // BLOCK
        return tuple(stream.family * 100 + i if i < shared else 1000 + job * 100 + i for i in range(blocks))

    def stream(self, job: int) -> Stream:
        return self.streams.get(job) or self.done[job]

    def content(self, job: int, position: int) -> tuple[int, int]:
        return self.keys(job, position // BLOCK + 1)[-1], position

    # -- messages -----------------------------------------------------------------------------------------------

    def send(self, sender: int, to: int, message: object) -> None:
        self.channels.setdefault((sender, to), deque()).append(message)

    def feed(self, number: int, event: InstanceEvent) -> None:
        core = self.cores.get(number)
        if core is None:
            return
        self.now += 1
        for command in core.handle(event, self.now):
            self.carry_out(number, command)
        laws.check(core)

    def carry_out(self, number: int, command: InstanceCommand) -> None:
        engine = self.engines[number]
        match command:
            case Report():
                pass
            case MoveEnded():
                self.ended.setdefault(number, []).append(command)
            case Ask(job):
                if self.random.random() < 0.8:
                    self.feed_later(number, Offload(self.random.choice(list(self.cores)), job))
            case End(job, epoch, _, _):
                self.send(number, -1, ("end", job, epoch))
            case Switch():
                self.send(number, -1, command)
            case Tell(to, Extend() as event):
                engine.put(lambda: self.tell_extend(number, to, event))
            case Tell(to, event):
                self.send(number, to, event)
            case _:
                engine.put(command)

    def tell_extend(self, number: int, to: int, event: Extend) -> None:
        table = self.engines[number].jobs.get(event.job)
        if table is None:
            return
        assert len(table.pages) * PAGE >= event.upto, "told of positions that are not there"
        self.send(number, to, (event, list(table.pages)))

    def feed_later(self, number: int, event: InstanceEvent) -> None:
        self.send(-2, number, event)

    def deliver(self, channel: tuple[int, int]) -> None:
        sender, to = channel
        message = self.channels[channel].popleft()
        unreliable = self.faults and ((sender >= 0 and to >= 0) or isinstance(message, Switch | Switched))
        luck = self.random.random()
        if unreliable and luck < 0.05:
            return
        for _ in range(2 if unreliable and luck > 0.95 else 1):
            self.receive(sender, to, message)

    def receive(self, sender: int, to: int, message: object) -> None:
        if to == -1:
            return self.at_home(sender, message)
        if to not in self.cores:
            return
        match message:
            case ("submit", Submitted() as event):
                self.on_submit(to, event)
            case (Extend() as event, list() as pages):
                self.source_pages[event.move] = pages
                self.feed(to, event)
            case _:
                self.feed(to, message)  # type: ignore[arg-type]

    def on_submit(self, to: int, event: Submitted) -> None:
        """As a worker does: an earlier epoch goes first, then the engine hears of the job, then the core."""
        core, engine, job = self.cores[to], self.engines[to], event.spec.id
        ghost = core.moves.ghost(job)
        here = core.epoch_of(job) if ghost is None else max(ghost.job.epoch, core.epoch_of(job) or 0)
        if here is not None and here >= event.epoch:
            return
        if here is not None:
            self.feed(to, Cancelled(job, here))
        engine.first_step[job] = core.next_step
        engine.put(lambda: engine.known.__setitem__(job, event.spec.known))
        engine.put(lambda: engine.add(job))
        self.feed(to, event)

    # -- the home -----------------------------------------------------------------------------------------------

    def arrive(self) -> None:
        job, self.next_job = self.next_job, self.next_job + 1
        prompt, new = self.random.randrange(1, 60), self.random.randrange(1, 30)
        to = self.random.choice(list(self.cores))
        self.streams[job] = Stream(prompt, new, self.random.randrange(3), self.random.choice((0, 0, -1)), to)
        self.submit(job, to)

    def submit(self, job: int, to: int, move: int = 0) -> None:
        stream = self.streams[job]
        stream.epoch += 1
        stream.instance = to
        known = stream.prompt + stream.got
        spec = JobSpec(
            id=job, units=(Unit("lm", stream.prompt + stream.new - 1),), known=known, arrival=job,
            keys=self.keys(job, stream.prompt // BLOCK), priority=stream.priority,
        )  # fmt: skip
        self.send(-1, to, ("submit", Submitted(spec, stream.epoch, move)))

    def at_home(self, sender: int, message: object) -> None:
        match message:
            case ("token", int() as job, int() as epoch, int() as known):
                stream = self.streams.get(job)
                if stream is None or stream.epoch != epoch:
                    return
                assert known == stream.prompt + stream.got, "a token was lost or doubled"
                stream.got += 1
                if stream.over:
                    self.done[job] = self.streams.pop(job)
            case ("end", int() as job, int() as epoch):
                stream = self.streams.get(job)
                if stream is not None and stream.epoch == epoch:
                    self.submit(job, self.random.choice(list(self.cores)))
            case Switch(job, epoch, to, move):
                stream = self.streams.get(job)
                if stream is None or stream.epoch != epoch:
                    return self.send(-1, sender, Cancelled(job, epoch))
                self.moved += bool(move)
                self.submit(job, to if to in self.cores else self.random.choice(list(self.cores)), move)
                self.send(-1, sender, Switched(job, epoch))

    def emit(self, number: int, job: int, known: int) -> None:
        """Told under the epoch that the core has; the core hears of the step only after."""
        here = self.cores[number].jobs.get(job)
        if here is not None:
            self.send(number, -1, ("token", job, here.epoch, known))

    def beat(self) -> None:
        """The home and the instances compare what they have, where no message is under way between them."""
        for job, stream in list(self.streams.items()):
            at = stream.instance
            quiet = not self.channels.get((-1, at)) and not self.channels.get((at, -1))
            if at not in self.cores or (quiet and self.cores[at].epoch_of(job) != stream.epoch):
                self.submit(job, self.random.choice(list(self.cores)))
        for number, core in self.cores.items():
            if not self.channels.get((-1, number)):
                for here in list(core.jobs.values()):
                    stream = self.streams.get(here.id)
                    if stream is None or (stream.instance, stream.epoch) != (number, here.epoch):
                        self.feed(number, Cancelled(here.id, here.epoch))

    # -- what happens -------------------------------------------------------------------------------------------

    def begin_pull(self, number: int, pull: Pull) -> None:
        engine = self.engines[number]
        engine.room(engine.arriving[pull.move], pull.end)
        self.pulls.append((number, pull, self.source_pages[pull.move]))

    def end_pull(self) -> None:
        number, pull, pages = self.pulls.pop(self.random.randrange(len(self.pulls)))
        if number not in self.engines:
            return
        source = self.engines.get(pull.source)
        if source is None or (self.faults and self.random.random() < 0.05):
            return self.feed(number, Pulled(pull.move, pull.start, "it broke"))
        self.engines[number].copy(source, pages, pull.move, pull.start, pull.end)
        self.feed(number, Pulled(pull.move, pull.end))

    def step(self) -> bool:
        ready = [n for n, engine in self.engines.items() if engine.queue]
        if not ready:
            return False
        number = self.random.choice(ready)
        done = self.engines[number].run()
        self.feed(number, done)
        return True

    def name(self) -> None:
        """Output blocks get names, as a worker gives them."""
        core = self.cores[self.random.choice(list(self.cores))]
        for job in list(core.jobs.values()):
            blocks = job.known // BLOCK
            if blocks > len(job.keys):
                self.feed(core.number, Named(job.id, self.keys(job.id, blocks)[len(job.keys) :]))

    def cancel(self) -> None:
        if self.streams:
            job = self.random.choice(list(self.streams))
            stream = self.done[job] = self.streams.pop(job)
            self.cancelled.add(job)
            self.send(-1, stream.instance, Cancelled(job, stream.epoch))

    def kill(self) -> None:
        number = self.random.choice(list(self.cores))
        del self.cores[number], self.engines[number]
        self.channels = {pair: queue for pair, queue in self.channels.items() if number not in pair}
        self.join()
        for other in list(self.cores):
            if self.random.random() < 0.7:
                self.feed(other, PeerLeft(number))

    def tick(self) -> None:
        dues = [core.due for core in self.cores.values() if core.due is not None]
        if dues:
            self.now = max(self.now, min(dues))
        for number, core in list(self.cores.items()):
            if core.due is not None and core.due <= self.now:
                self.feed(number, Tick())

    def offload(self) -> None:
        source, to = self.random.choice(list(self.cores)), self.random.choice(list(self.cores))
        jobs = list(self.cores[source].jobs)
        job = self.random.choice(jobs) if jobs and self.random.random() < 0.7 else None
        self.feed(source, Offload(to, job, self.random.randrange(1, 3)))

    def act(self) -> None:
        busy = [pair for pair, queue in self.channels.items() if queue]
        luck = self.random.random()
        if luck < 0.45 and busy:
            self.deliver(self.random.choice(busy))
        elif luck < 0.70:
            self.step()
        elif luck < 0.80 and self.pulls:
            self.end_pull()
        elif luck < 0.86:
            self.offload()
        elif luck < 0.90:
            self.name()
        elif luck < 0.93 and len(self.streams) < 12:
            self.arrive()
        elif luck < 0.94:
            self.feed(self.random.choice(list(self.cores)), Assigned(self.random.choice(("", "prefill", "decode"))))
        elif luck < 0.955:
            self.beat()
        elif luck < 0.96:
            self.cancel()
        elif luck < 0.97:
            self.tick()
        elif luck < 0.973 and self.faults:
            self.kill()

    def finish(self) -> None:
        """No more faults: whatever state things are in, everything must come to its end."""
        self.faults = False
        for number in list(self.cores):
            self.feed(number, Assigned(""))
        for _ in range(20_000):
            busy = [pair for pair, queue in self.channels.items() if queue]
            if any(core.due is not None and core.due <= self.now for core in self.cores.values()):
                self.beat()
                self.tick()
            elif busy:
                self.deliver(busy[0])
            elif self.pulls:
                self.end_pull()
            elif not self.step():
                self.beat()
                self.tick()
                if not self.streams and not any(core.moves.active or core.jobs for core in self.cores.values()):
                    return
        raise AssertionError(f"never ends: {list(self.streams)}, {[c.jobs for c in self.cores.values()]}")


@pytest.mark.parametrize("faults", [False, True])
@pytest.mark.parametrize("seed", range(60))
def test_no_token_and_no_page_is_lost_whatever_happens(seed: int, faults: bool) -> None:
    world = World(seed, faults)
    for _ in range(1500):
        world.act()
    world.finish()
    for job, stream in world.done.items():
        assert stream.over or job in world.cancelled
    assert world.moved > 0
    for number, core in world.cores.items():
        assert core.pages.available == core.pages.pages
        engine = world.engines[number]
        kept = sum(len(pages) for pages in engine.blocks.values())
        assert len(engine.free) + kept == engine.pages, "a page is lost"
        assert not engine.arriving
        # Every move is told of once, whatever became of it.
        ended = world.ended.get(number, [])
        assert len(ended) == core.moves.begun == core.load.moves
        for move in ended:
            assert len(move.phases) == 5
            assert min(*move.phases, move.copied, move.again, move.down_ns) >= 0
            assert not (move.reason and move.again)
