"""The engine under the real scheduling core: too few pages, shared prefixes, cancellations, steps in flight.

Every job ends with the tokens that it has alone, and engine and core agree on the pages after every step.
"""

import random
from collections import deque

import pytest
import tiny

from penstock.core.commands import Bind, End, Evict, InstanceCommand, Release, Restore, Run, Share, Stow
from penstock.core.config import InstanceConfig, Limits
from penstock.core.events import Cancelled, InstanceEvent, StepDone, Submitted
from penstock.core.spec import JobSpec, Unit
from penstock.core.step import StepPlan
from penstock.drivers.local import carry_out, exceptions
from penstock.engine.runner import TransformersEngine
from penstock.policies.bundles import make_instance

PAGES, PAGE_TOKENS, BLOCK_TOKENS = 24, 4, 8


@pytest.fixture(scope="module", params=[0, 10], ids=["recompute", "swap"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TransformersEngine:
    """With no pages in host memory, or too few for all that is preempted."""
    folder = tiny.build("Qwen3", tmp_path_factory.mktemp("qwen3"))
    made = tiny.engine(folder, pages=PAGES, page_tokens=PAGE_TOKENS, block_tokens=BLOCK_TOKENS, max_len=80)
    if not request.param:
        return made
    swap_bytes = request.param * PAGE_TOKENS * made.info.kv_bytes_per_token
    return tiny.engine(
        folder, pages=PAGES, page_tokens=PAGE_TOKENS, block_tokens=BLOCK_TOKENS, max_len=80, swap_bytes=swap_bytes
    )


def requests(draw: random.Random) -> dict[int, tuple[list[int], int]]:
    """job -> (prompt, output length); prompts start with one of two texts, cut somewhere."""
    texts = tiny.prompts([40, 40], seed=7)
    made = {}
    for job in range(16):
        prompt = draw.choice(texts)[: draw.randint(1, 40)] + tiny.prompts([draw.randint(0, 9)], seed=job)[0]
        made[job] = prompt, draw.randint(1, 20)
    return made


def names(prompt: list[int]) -> tuple[int, ...]:
    return tuple(hash(tuple(prompt[:end])) for end in range(BLOCK_TOKENS, len(prompt) + 1, BLOCK_TOKENS))


class Live:
    """Core and engine, one queue between them: what a worker is, without the process."""

    def __init__(self, engine: TransformersEngine, policy: str, depth: int) -> None:
        self.engine = engine
        config = InstanceConfig(
            policy=policy, pages=PAGES, page_tokens=PAGE_TOKENS, block_tokens=BLOCK_TOKENS, depth=depth,
            host_pages=engine.info.host_pages,
            limits=Limits(max_num_batched_tokens=60 if policy == "prefill-first" else 20, max_num_seqs=8),
        )  # fmt: skip
        self.core = make_instance(config)
        self.queue: deque[StepPlan | Bind | Share | Evict | Release | Stow | Restore] = deque()
        self.outputs: dict[int, list[int]] = {}
        self.ended: set[int] = set()
        self.preemptions = self.swaps = 0
        self.now = 0

    def feed(self, event: InstanceEvent) -> None:
        self.now += 1
        for command in self.core.handle(event, self.now):
            self._queue(command)

    def _queue(self, command: InstanceCommand) -> None:
        match command:
            case Run(plan):
                self.queue.append(plan)
            case Bind() | Share() | Evict() | Release() | Stow() | Restore():
                self.queue.append(command)
            case End(job, _, outcome, _):
                assert outcome == "failed", outcome
                self.ended.add(job)

    def work(self) -> bool:
        """Carry commands out up to the next step, and report it; whether there was one."""
        while self.queue:
            match self.queue.popleft():
                case StepPlan() as plan:
                    self._step(plan)
                    return True
                case command:
                    self.preemptions += isinstance(command, Release) and not command.forget
                    self.swaps += isinstance(command, Stow)
                    carry_out(self.engine, command)
        assert self.engine.used() == PAGES - self.core.pages.free
        return False

    def _step(self, plan: StepPlan) -> None:
        outputs = self.engine.run(plan)
        for out in outputs:
            assert not out.tokens or out.index == len(self.outputs[out.job])
            self.outputs[out.job] += out.tokens
            if out.finish:
                self.ended.add(out.job)
        self.feed(StepDone(plan.seq, exceptions(outputs)))


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("policy", ["fcfs", "prefill-first", "splitfuse", "priority"])
def test_tokens_and_pages(engine: TransformersEngine, policy: str, depth: int) -> None:
    draw = random.Random(f"{policy}{depth}")
    made = requests(draw)
    expected = {}
    for job, (prompt, length) in made.items():
        alone = tiny.Driver(engine)
        alone.add(job, prompt, tiny.greedy(length))
        expected[job] = alone.finish_all()[job]
    live = Live(engine, policy, depth)
    cancelled = set(draw.sample(sorted(made), 4))
    for job, (prompt, length) in made.items():
        engine.add(job, prompt, len(prompt), tiny.greedy(length))
        live.outputs[job] = []
        units = (Unit("lm", len(prompt) + length - 1),)
        keys, urgency = names(prompt), draw.randint(0, 2)
        live.feed(
            Submitted(JobSpec(id=job, units=units, known=len(prompt), arrival=job, keys=keys, priority=urgency), 1)
        )
        for _ in range(draw.randint(0, 2)):
            live.work()
        if job in cancelled:
            live.feed(Cancelled(job, 1))
    while live.work():
        pass
    # splitfuse admits only what has room to its end.
    assert live.preemptions or live.swaps or policy == "splitfuse", "pages were plenty"
    assert bool(live.swaps) == bool(engine.info.host_pages) or policy == "splitfuse"
    for job in made.keys() - cancelled:
        assert job in live.ended
        assert live.outputs[job] == expected[job], job
    for job in cancelled:
        assert live.outputs[job] == expected[job][: len(live.outputs[job])]
    assert not engine._jobs
    assert engine._stowage is None or not engine._stowage.used()
    assert engine.used() == sum(len(block.pages) for block in engine._pool.blocks.values())
    for key in list(engine._pool.blocks):
        engine.evict(key)
