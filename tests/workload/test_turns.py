"""Turns that wait for answers, and clients that lose patience: the order, and the client against a real server."""

import json
from itertools import pairwise

import pytest
from fake_openai import FakeServer, Script

from penstock.workload.client import Call, Client, Reply
from penstock.workload.request import Request
from penstock.workload.turns import in_order

BODY = json.dumps({"prompt": "the of", "max_tokens": 3, "stream": True}).encode()
MS = 1_000_000


def turn(session: str, think_s: float | None = None) -> Request:
    return Request(arrival_s=0.0, prompt_tokens=1, output_tokens=1, session=session, think_s=think_s)


def test_a_turn_that_waits_comes_right_after_the_one_it_waits_for() -> None:
    requests = [turn("a", 1.0), turn("b"), turn(""), turn("a", 1.0), turn("b"), turn("", 1.0), turn("a", 2.0)]
    assert list(in_order(requests)) == [(0, None), (3, 0), (6, 3), (1, None), (2, None), (4, None), (5, None)]


def test_without_turns_the_order_stays() -> None:
    assert list(in_order([turn(""), turn("a"), turn("a")])) == [(0, None), (1, None), (2, None)]


async def sent(calls: list[Call], script: Script, **asked: float) -> list[Reply]:
    async with FakeServer(lambda i, b: script).running() as server:
        sender = Client(server.url + "/v1/completions", max_concurrency=int(asked.pop("max_concurrency", 0)) or None)
        replies = await sender.run(calls, **asked)
    return sorted(replies, key=lambda reply: reply.index)


def chain(count: int, delay_ns: int) -> list[Call]:
    return [Call(i, 0, BODY, after=i - 1 if i else None, delay_ns=delay_ns) for i in range(count)]


@pytest.mark.parametrize("status", [200, 503])
async def test_a_call_is_due_a_delay_after_the_one_before_is_over(status: int) -> None:
    replies = await sent(chain(3, 30 * MS), Script(status=status, first_s=0.02))
    for before, after in pairwise(replies):
        assert after.due_ns == before.end_ns + 30 * MS <= after.sent_ns


async def test_waiting_calls_hold_nobody_up() -> None:
    calls = [*chain(2, 0), Call(2, 20 * MS, BODY)]
    replies = await sent(calls, Script(first_s=0.2))
    assert replies[2].sent_ns < 150 * MS < replies[1].sent_ns


async def test_one_slot_serves_turns_and_others() -> None:
    replies = await sent([*chain(3, 0), Call(3, 0, BODY)], Script(), max_concurrency=1)
    assert [r.outcome for r in replies] == ["completed"] * 4
    spans = sorted((r.sent_ns, r.end_ns) for r in replies)
    assert all(a[1] <= b[0] for a, b in pairwise(spans))


async def test_after_the_end_of_the_run_no_turn_is_sent() -> None:
    replies = await sent(chain(9, 60 * MS), Script(), duration_s=0.1)
    assert [r.index for r in replies] == [0, 1]


async def test_a_call_that_comes_before_the_one_it_follows_is_an_error() -> None:
    with pytest.raises(ValueError, match="call 0 follows call 1, which must come before it"):
        await sent([Call(0, 0, BODY, after=1), Call(1, 0, BODY)], Script())


async def test_patience_ends() -> None:
    calls = [Call(0, 0, BODY, cancel_ns=50 * MS), Call(1, 0, BODY, cancel_ns=5_000 * MS)]
    gone, patient = await sent(calls, Script(gap_s=0.04))
    assert (gone.outcome, gone.error, patient.outcome) == ("cancelled", "", "completed")
    assert gone.end_ns - gone.sent_ns >= 50 * MS
    assert 1 <= len(gone.times_ns) < len(patient.times_ns)
