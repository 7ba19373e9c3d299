"""A job's tokens on their way to whoever asked for them, and what can become of it instead. Knows no processes."""

import asyncio
from collections import deque
from collections.abc import Callable

import msgspec

from penstock.core.spec import JobSpec
from penstock.drivers.story import Story
from penstock.engine.params import Logprobs, Sampling


class Busy(Exception):
    """The queue is full."""

    def __init__(self, reason: str, retry_s: float) -> None:
        super().__init__(reason)
        self.reason = reason
        self.retry_s = retry_s


class Unavailable(Busy):
    """Nothing can be taken now: the server starts, ends or has failed. (While instances restart, jobs wait.)"""


class JobFailed(Exception):
    """The job ended without an answer. `outcome` is failed, dropped, rejected, cancelled, or invalid: the engine cannot
    honour what was asked, and asking again would not help."""

    def __init__(self, outcome: str, reason: str) -> None:
        super().__init__(reason)
        self.outcome = outcome
        self.reason = reason


class Chunk(msgspec.Struct, array_like=True):
    """Tokens of a stream, in order. `finish` is set on the last: stop, stop:<token id> or length."""

    tokens: list[int]
    logprobs: list[Logprobs] | None = None
    finish: str | None = None


class Stream:
    """One job's tokens: an async iterator of chunks. Whoever leaves it early calls `close`.

    What the home knows of the job is here too: it is all that is needed to go on with it elsewhere.
    """

    def __init__(
        self,
        spec: JobSpec,
        prompt: list[int],
        sampling: Sampling,
        tenant: str,
        on_close: Callable[["Stream"], None],
    ) -> None:
        self.id = spec.id
        self.spec = spec
        self.prompt = prompt
        self.sampling = sampling
        self.tenant = tenant
        self.story = Story(spec)
        #: Tokens that were delivered.
        self.output: list[int] = []
        #: Raised whenever the job goes elsewhere; tokens of other epochs do not count.
        self.epoch = 0
        #: Where it is; None: nowhere yet.
        self.instance: int | None = None
        #: Whether it has had pages in this epoch.
        self.began = False
        #: Instances that died in a row while it ran and got no token further than `died_at`.
        self.deaths = 0
        self.died_at = -1
        #: Why the cluster did not take it.
        self.refusal: Busy | None = None
        self._on_close = on_close
        self._chunks: deque[Chunk | JobFailed] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._over = False

    @property
    def tokens(self) -> list[int]:
        """The prompt and what was delivered: all that the job is known by."""
        return [*self.prompt, *self.output]

    def __aiter__(self) -> "Stream":
        return self

    async def __anext__(self) -> Chunk:
        while not self._chunks:
            if self._over:
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        chunk = self._chunks.popleft()
        if isinstance(chunk, JobFailed):
            raise chunk
        return chunk

    def put(self, chunk: Chunk | JobFailed) -> None:
        """For the home: deliver, and wake the reader."""
        self._chunks.append(chunk)
        self._over = isinstance(chunk, JobFailed) or chunk.finish is not None
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def died(self) -> int:
        """The job's instance has died while it ran: how often that has happened in a row without a token between."""
        self.deaths = self.deaths + 1 if self.died_at == len(self.output) else 1
        self.died_at = len(self.output)
        return self.deaths

    def close(self) -> None:
        """Cancel the job if it is still going; its pages are free at the next step. May be called twice."""
        if not self._over:
            self._over = True
            self._on_close(self)
