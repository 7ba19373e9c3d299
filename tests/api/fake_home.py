"""A home without an engine, in the driver's shape: what it says is a script."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence

from penstock.core.events import Load
from penstock.core.slo import Slo
from penstock.core.spec import JobSpec, Unit
from penstock.drivers.messages import Instance, InstanceState
from penstock.drivers.story import Stories, Story
from penstock.drivers.stream import Busy, Chunk, JobFailed, Unavailable
from penstock.engine.base import EngineInfo
from penstock.engine.params import Logprobs, Sampling

INFO = EngineInfo(
    model="fake",
    vocab=50_000,
    max_len=1000,
    pages=200_000,
    page_tokens=16,
    block_tokens=16,
    kv_bytes_per_token=64,
    dtype="float32",
    device="cpu",
    threads=1,
    eos_token_ids=[0],
)

Script = Callable[["Asked"], Sequence[Chunk | Exception | float]]


class Asked:
    """What a job was submitted with."""

    def __init__(self, tokens: list[int], sampling: Sampling, slo: Slo, priority: int, deadline_s, tenant: str) -> None:
        self.tokens = tokens
        self.sampling = sampling
        self.slo = slo
        self.priority = priority
        self.deadline_s = deadline_s
        self.tenant = tenant


class FakeStream:
    def __init__(self, home: "FakeHome", id: int, steps: Sequence[Chunk | Exception | float]) -> None:
        self.id = id
        self.closed = False
        asked = home.asked[-1]
        self.story = Story(
            JobSpec(id=id, units=(Unit("lm", 1),), known=len(asked.tokens), arrival=time.monotonic_ns(), slo=asked.slo)
        )
        self._home = home
        self._steps = iter(steps)

    def __aiter__(self) -> "FakeStream":
        return self

    async def __anext__(self) -> Chunk:
        """Numbers in a script are pauses in seconds."""
        for step in self._steps:
            if isinstance(step, Exception):
                raise step
            if isinstance(step, Chunk):
                await asyncio.sleep(0)
                return step
            await asyncio.sleep(step)
        raise StopAsyncIteration

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self._home.open.discard(self.id)


def instance(number: int, load: Load, role: str = "", state: InstanceState = "up") -> Instance:
    return Instance(instance=number, role=role, state=state, host="here", pid=1000 + number, load=load)


class FakeFleet:
    """Notes what it is asked for."""

    def __init__(self, home: "FakeHome") -> None:
        self._home = home
        self.asked: list[tuple] = []
        self.restarts = 0

    def _ask(self, what: str, number: int, *more: str | int) -> None:
        if number not in [found.instance for found in self._home.instances]:
            raise KeyError(number)
        self.asked.append((what, number, *more))

    def add(self, role: str) -> None:
        self.asked.append(("add", role))

    def remove(self, number: int) -> None:
        self._ask("remove", number)

    def drain(self, number: int) -> None:
        self._ask("drain", number)

    def assign(self, number: int, role: str) -> None:
        self._ask("assign", number, role)

    def move(self, number: int, to: int, jobs: int) -> None:
        self._ask("move", number, to, jobs)

    def restart(self) -> None:
        self.asked.append(("restart",))


class FakeHome:
    """`script` says what a job's stream yields; `refuse` is raised at the next submissions."""

    def __init__(self, script: Script | None = None) -> None:
        self.reset()
        self.script = script or echo

    def reset(self) -> None:
        self.info: EngineInfo | None = INFO
        self.state = "ready"
        self.state_reason = ""
        self.capacity = Load(waiting=1, running=2, pages=100, pages_free=75)
        self.instances = [instance(0, self.capacity)]
        self.fleet = FakeFleet(self)
        self.script: Script = echo
        self.stories = Stories()
        self.replays: Counter[str] = Counter()
        self.refuse: Busy | Unavailable | None = None
        self.asked: list[Asked] = []
        self.told: list[FakeStream] = []
        self.open: set[int] = set()

    def submit(self, tokens, sampling, *, slo=Slo(), priority=0, deadline_s=None, tenant="") -> FakeStream:
        if self.refuse is not None:
            raise self.refuse
        asked = Asked(tokens, sampling, slo, priority, deadline_s, tenant)
        self.asked.append(asked)
        id = len(self.asked)
        self.open.add(id)
        self.told.append(FakeStream(self, id, self.script(asked)))
        return self.told[-1]

    def predict(self, prompt: int, tokens: int) -> tuple[float, float]:
        return 0.1, 0.01


def say(tokens: Sequence[int], finish: str = "stop", logprobs: int | None = None, pause_s: float | None = None) -> list:
    """Chunks of one token each. A finish of "stop" adds the EOS token 0, as engines do."""
    ids = [*tokens, 0] if finish == "stop" else [*tokens]
    steps: list[Chunk | float] = []
    for index, token in enumerate(ids):
        if pause_s is not None:
            steps.append(pause_s)
        entries = None if logprobs is None else [_logprobs(token, logprobs)]
        steps.append(Chunk([token], entries, finish if index == len(ids) - 1 else None))
    return steps


def text(words: str, **how) -> Script:
    """Says `words`, one byte a token."""
    return lambda asked: say(list(words.encode()), logprobs=asked.sampling.logprobs, **how)


def echo(asked: Asked) -> list:
    """Says the prompt's first tokens again, up to max_tokens."""
    tokens = asked.tokens[: min(20, asked.sampling.max_tokens)]
    return say(tokens, "length" if len(tokens) == asked.sampling.max_tokens else "stop", asked.sampling.logprobs)


def _logprobs(token: int, top: int) -> Logprobs:
    return Logprobs(-0.5, [(token + index, -0.5 - index) for index in range(top)])


__all__ = ["INFO", "Asked", "Busy", "Chunk", "FakeHome", "JobFailed", "Unavailable", "echo", "say", "text"]
