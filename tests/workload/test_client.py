"""The client against a real server on a real socket: times, outcomes, slots, hanging up."""

import asyncio
import json
import time
from collections.abc import Iterator

import pytest
from fake_openai import FakeServer, Script

from penstock.workload import client
from penstock.workload.client import Call, Client, Reply, outcome_of


def calls(count: int, *, tokens: int = 5, gap_s: float = 0.0, cancel_after: int | None = None) -> list[Call]:
    body = json.dumps({"prompt": "the of", "max_tokens": tokens, "stream": True}).encode()
    return [Call(i, int(i * gap_s * 1e9), body, cancel_after=cancel_after) for i in range(count)]


def url(server: FakeServer) -> str:
    return server.url + "/v1/completions"


async def one(script: Script, **asked: int) -> Reply:
    async with FakeServer(lambda i, b: script).running() as server:
        (reply,) = await Client(url(server), keep_text=True).run(calls(1, **asked))
    return reply


async def test_times_of_a_stream() -> None:
    reply = await one(Script(first_s=0.05, gap_s=0.02), tokens=5)
    assert (reply.outcome, reply.status, reply.prompt_tokens) == ("completed", 200, 3)
    assert reply.counts == [1] * 5
    assert "".join(reply.pieces) == " the" * 5
    assert reply.times_ns == sorted(reply.times_ns)
    assert reply.due_ns <= reply.sent_ns
    assert reply.times_ns[0] - reply.sent_ns >= 50e6
    assert reply.times_ns[-1] - reply.times_ns[0] >= 4 * 20e6
    assert reply.end_ns >= reply.times_ns[-1]


async def test_several_tokens_a_chunk_and_split_writes() -> None:
    reply = await one(Script(per_chunk=3, write_bytes=7), tokens=8)
    assert reply.outcome == "completed"
    # Three chunks with text, and the empty end, which may have been a token for all that is known.
    assert reply.counts == [2, 2, 2, 2]


async def test_no_usage() -> None:
    reply = await one(Script(usage=False), tokens=4)
    assert (reply.prompt_tokens, sum(reply.counts)) == (None, 4)


@pytest.mark.parametrize(
    ("script", "outcome", "error", "tokens"),
    [
        (Script(status=429, message="come back"), "rejected", "come back", 0),
        (Script(status=503, message="late anyway"), "dropped", "late anyway", 0),
        (Script(status=500, message="request dropped by the queue"), "dropped", "dropped by the queue", 0),
        (Script(status=500, message="oh"), "failed", "oh", 0),
        (Script(error_after=2), "failed", "engine said no", 2),
        (Script(error_after=0, error_code=503), "dropped", "engine said no", 0),
        (Script(error_after=1, error_code=429), "rejected", "engine said no", 1),
        (Script(end_after=2), "failed", "ended before the answer", 2),
        (Script(cut_after=3, gap_s=0.01), "failed", "ClientPayloadError", 3),
    ],
)
async def test_outcomes(script: Script, outcome: str, error: str, tokens: int) -> None:
    reply = await one(script)
    assert reply.outcome == outcome
    assert error in reply.error
    assert sum(reply.counts) == tokens
    assert reply.end_ns > reply.sent_ns


def test_what_an_error_means() -> None:
    assert [outcome_of(s, "") for s in (429, 503, 529, 500, 0)] == [
        "rejected",
        "dropped",
        "dropped",
        "failed",
        "failed",
    ]


async def test_nobody_there() -> None:
    (reply,) = await Client("http://127.0.0.1:9/v1/completions").run(calls(1))
    assert (reply.outcome, reply.status) == ("failed", 0)
    assert "ClientConnectorError" in reply.error


async def test_sent_when_due_and_not_after_the_duration() -> None:
    async with FakeServer(lambda i, b: Script(gap_s=0.05)).running() as server:
        sender = Client(url(server))
        replies = await sender.run(calls(10, gap_s=0.03), duration_s=0.16)
        assert server.open_max > 1
    assert sorted(r.index for r in replies) == list(range(6))
    for reply in replies:
        assert reply.due_ns == reply.index * 30_000_000
        # Timers count in whole ms.
        assert reply.sent_ns >= reply.due_ns - 2_000_000
    assert sender.loop_lag_ns


async def test_calls_are_taken_one_ahead() -> None:
    taken: list[float] = []

    async with FakeServer().running() as server:
        sender = Client(url(server))

        def lazily() -> Iterator[Call]:
            for call in calls(4, gap_s=0.1):
                taken.append((time.perf_counter_ns() - sender.start_ns) / 1e9)
                yield call

        await sender.run(lazily())
    assert all(at >= (i - 1) * 0.1 - 0.01 for i, at in enumerate(taken))
    assert taken[3] >= 0.19


async def test_what_goes_wrong_in_the_calls_is_raised() -> None:
    async with FakeServer().running() as server:

        def broken() -> Iterator[Call]:
            yield calls(1)[0]
            raise ZeroDivisionError

        sender = Client(url(server))
        with pytest.raises(ZeroDivisionError):
            await sender.run(broken())
    assert [r.outcome for r in sender.replies] == ["completed"]


async def test_closed_loop_keeps_to_its_slots() -> None:
    async with FakeServer(lambda i, b: Script(gap_s=0.005)).running() as server:
        replies = await Client(url(server), max_concurrency=3).run(calls(12))
        assert server.open_max == 3
    assert all(r.outcome == "completed" for r in replies)
    # The fourth was due when the first slot became free, and no sooner.
    by_index = sorted(replies, key=lambda r: r.index)
    ends = sorted(r.end_ns for r in replies)
    assert [r.due_ns for r in by_index] == [0, 0, 0, *ends[:9]]


@pytest.mark.parametrize("after", [0, 1, 3])
async def test_hanging_up(after: int) -> None:
    async with FakeServer(lambda i, b: Script(gap_s=0.2, first_s=0.0 if after else 5.0)).running() as server:
        replies = await Client(url(server)).run(calls(4, cancel_after=after))
        async with asyncio.timeout(20):
            await server.deserted(4)
    assert [r.outcome for r in replies] == ["cancelled"] * 4
    assert {sum(r.counts) for r in replies} == {after}


async def test_stop_ends_the_run_at_once() -> None:
    async with FakeServer().running() as server:
        sender = Client(url(server), max_concurrency=2)

        def script(index: int, body: object) -> Script:
            if index == 1:
                asyncio.get_running_loop().call_soon(sender.stop)
            return Script(gap_s=30)

        server.script = script
        replies = await sender.run(calls(5))
    assert [r.outcome for r in replies] == ["cancelled"] * 2


async def test_on_done_hears_of_each() -> None:
    heard: list[Reply] = []
    async with FakeServer().running() as server:
        replies = await Client(url(server), on_done=heard.append).run(calls(5))
    assert heard == replies


async def test_headers() -> None:
    async with FakeServer().running() as server:
        call = Call(0, 0, calls(1)[0].body, {"x-slo-ttft-ms": "5"})
        await Client(url(server), {"Authorization": "Bearer k"}).run([call])
    said = server.headers[0]
    assert (said["Authorization"], said["x-slo-ttft-ms"]) == ("Bearer k", "5")
    assert said["Content-Type"] == "application/json"


def test_runs_on_a_loop_of_its_own() -> None:
    async def nothing() -> int:
        return 3

    assert client.run(nothing()) == 3
