"""Sends requests to an OpenAI-compatible server when they are due, and notes when each token comes back.

One process, one event loop. It measures how late it is itself, since a late client passes its own delay
off as the server's: how long after its due time each request was sent, and how late a timer fires. It
judges nothing: what a reply is worth is for `penstock.metrics`.
"""

import asyncio
import contextlib
import gc
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator
from typing import Any

import aiohttp
import msgspec

from penstock.workload.stream import Answer, ServerError, message_of

#: An answer that takes longer has failed.
ANSWER_S_MAX = 6 * 3600
#: A cancelled request that waits for no token is given up after this long.
GIVE_UP_S = 0.02
#: Below the 5 s after which uvicorn closes idle connections: a request sent into a closing one is lost.
KEEP_ALIVE_S = 2.0
PROBE_S = 0.01


class Call(msgspec.Struct, frozen=True):
    """A request ready to be sent: `body` is the JSON, due `due_ns` after the start of the run.

    One that follows another is due `delay_ns` after that one is over, however it ended, instead of at `due_ns`.
    """

    index: int
    due_ns: int
    body: bytes
    headers: dict[str, str] = {}
    #: Hang up after this many deliveries; None: never.
    cancel_after: int | None = None
    #: Hang up so long after sending; None: never.
    cancel_ns: int | None = None
    #: The index of the call that this one follows, which must come before it; None: it follows none.
    after: int | None = None
    delay_ns: int = 0


class Reply(msgspec.Struct):
    """What became of a call. Times are ns after the start of the run."""

    index: int
    #: When it was to be sent: its arrival (or its delay after the call it follows), or when a slot became free if
    #: that was later.
    due_ns: int
    sent_ns: int = 0
    end_ns: int = 0
    #: When tokens came, and how many each time (see `stream`).
    times_ns: list[int] = []
    counts: list[int] = []
    #: None where the server did not tell.
    prompt_tokens: int | None = None
    #: HTTP status; 0 where there was no answer.
    status: int = 0
    #: completed, dropped (503, or the server says so), rejected (429), failed, cancelled (by this client)
    outcome: str = "failed"
    error: str = ""
    #: Text of each delivery, where asked for.
    pieces: list[str] = []


class Client:
    """Sends calls to one URL. `on_done` is called with each reply as it ends."""

    def __init__(
        self,
        url: str,
        headers: dict[str, str] | None = None,
        *,
        max_concurrency: int | None = None,
        keep_text: bool = False,
        on_done: Callable[[Reply], object] = lambda reply: None,
    ) -> None:
        self._url = url
        self._headers = {"Content-Type": "application/json"} | (headers or {})
        self._max_concurrency = max_concurrency
        self._keep_text = keep_text
        self._on_done = on_done
        self._open: set[asyncio.Task[None]] = set()
        self._sender: asyncio.Task[None] | None = None
        #: Index of a call -> when it was over, in ns; cancelled if it is never sent.
        self._over: dict[int, asyncio.Future[int]] = {}
        #: A slot is the time since when it has been free, in ns; None: there is no limit.
        self._slots: asyncio.Queue[int] | None = None
        self.start_ns = 0
        self.replies: list[Reply] = []
        #: How late each tick of a 10 ms timer was, in ns.
        self.loop_lag_ns: list[int] = []

    async def run(self, calls: Iterable[Call], *, duration_s: float | None = None) -> list[Reply]:
        """Send the calls, in the order given, until all are answered; none is sent later than `duration_s`.

        Calls are taken from the iterable one ahead of time; what it raises is raised here, once the others are
        through. Replies come in the order in which they ended.
        """
        limit_ns = None if duration_s is None else int(duration_s * 1e9)
        async with self._connect() as self._session:
            with _no_gc_pauses():
                self.start_ns = time.perf_counter_ns()
                probe = asyncio.create_task(self._probe())
                self._sender = asyncio.create_task(self._send_all(calls, limit_ns))
                await asyncio.wait([self._sender])
                while self._open:
                    await asyncio.wait(self._open)
                probe.cancel()
        if not self._sender.cancelled():
            self._sender.result()
        return self.replies

    def stop(self) -> None:
        """Send no more, and hang up on what is open: those count as cancelled."""
        for task in (self._sender, *self._open):
            if task is not None:
                task.cancel()

    def _connect(self) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S)
        timeout = aiohttp.ClientTimeout(total=ANSWER_S_MAX)
        return aiohttp.ClientSession(connector=connector, timeout=timeout, headers=self._headers)

    def _now(self) -> int:
        return time.perf_counter_ns() - self.start_ns

    async def _send_all(self, calls: Iterable[Call], limit_ns: int | None) -> None:
        if self._max_concurrency is not None:
            self._slots = asyncio.Queue()
            for _ in range(self._max_concurrency):
                self._slots.put_nowait(0)
        for call in calls:
            self._over[call.index] = asyncio.get_running_loop().create_future()
            if call.after is not None:
                if call.after not in self._over:
                    raise ValueError(f"call {call.index} follows call {call.after}, which must come before it")
                self._start(self._follow(call, self._over[call.after], limit_ns))
                continue
            due_ns = await self._due(call.due_ns, limit_ns)
            if due_ns is None:
                self._over[call.index].cancel()
                return
            self._start(self._one(call, due_ns))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._open.add(task)
        task.add_done_callback(self._open.discard)

    async def _follow(self, call: Call, over: asyncio.Future[int], limit_ns: int | None) -> None:
        await asyncio.wait([over])
        due_ns = None if over.cancelled() else await self._due(over.result() + call.delay_ns, limit_ns)
        if due_ns is None:
            self._over[call.index].cancel()
        else:
            await self._one(call, due_ns)

    async def _due(self, due_ns: int, limit_ns: int | None) -> int | None:
        """Wait until then and for a slot. Returns when both were there; None: later than the run lasts."""
        if limit_ns is not None and due_ns >= limit_ns:
            return None
        if (wait_ns := due_ns - self._now()) > 0:
            await asyncio.sleep(wait_ns / 1e9)
        if self._slots is None:
            return due_ns
        free_ns = await self._slots.get()
        if limit_ns is not None and free_ns >= limit_ns:
            self._slots.put_nowait(free_ns)
            return None
        return max(due_ns, free_ns)

    async def _one(self, call: Call, due_ns: int) -> None:
        reply = Reply(index=call.index, due_ns=due_ns, sent_ns=self._now())
        answer = Answer(self._keep_text)
        patience = asyncio.timeout(_patience_s(call))
        try:
            async with patience:
                await self._exchange(call, reply, answer)
        except ServerError as error:
            reply.outcome, reply.error = outcome_of(error.code, str(error)), str(error)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            reply.error = f"{type(error).__name__}: {error}"
            if patience.expired():
                reply.outcome, reply.error = "cancelled", ""
        except asyncio.CancelledError:
            reply.outcome = "cancelled"
        finally:
            self._close(reply, answer)

    async def _exchange(self, call: Call, reply: Reply, answer: Answer) -> None:
        async with self._session.post(self._url, data=call.body, headers=call.headers) as response:
            reply.status = response.status
            if response.status != 200:
                raise ServerError(response.status, message_of(await response.read()))
            async for data in response.content.iter_any():
                answer.feed(data, self._now())
                if call.cancel_after is not None and len(answer.times) >= call.cancel_after:
                    response.close()
                    reply.outcome = "cancelled"
                    return
        if not answer.done:
            raise ValueError("the stream ended before the answer did")
        reply.outcome = "completed"

    def _close(self, reply: Reply, answer: Answer) -> None:
        reply.end_ns = self._now()
        reply.times_ns, reply.counts = answer.settle()
        reply.pieces = answer.pieces
        if answer.usage is not None:
            reply.prompt_tokens = answer.usage.prompt_tokens
        self.replies.append(reply)
        self._over[reply.index].set_result(reply.end_ns)
        if self._slots is not None:
            self._slots.put_nowait(reply.end_ns)
        self._on_done(reply)

    async def _probe(self) -> None:
        while True:
            before_ns = self._now()
            await asyncio.sleep(PROBE_S)
            self.loop_lag_ns.append(self._now() - before_ns - int(PROBE_S * 1e9))


def _patience_s(call: Call) -> float | None:
    if call.cancel_after == 0:
        return GIVE_UP_S
    return None if call.cancel_ns is None else call.cancel_ns / 1e9


def outcome_of(status: int, message: str) -> str:
    """What an error means: 429 is rejected; 503, 529 or a message that says so, dropped; the rest, failed."""
    if status == 429:
        return "rejected"
    return "dropped" if status in (503, 529) or "dropped" in message.lower() else "failed"


def run(main: Any) -> Any:
    """Run a coroutine on uvloop where it is installed: half the time a chunk of asyncio's own loop."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(main)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


@contextlib.contextmanager
def _no_gc_pauses() -> Iterator[None]:
    """A full collection over the objects of a thousand streams stops the loop for tens of ms, so none happens.

    What that leaves uncollected is little: 10,000 requests, a third of them cancelled, added 5 MB with their replies.
    """
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()
