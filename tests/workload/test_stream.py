"""The event stream, whole and in pieces of any size, against a slow reader of the whole text."""

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.workload.stream import Answer, Events, ServerError, message_of

TEXT = st.text(st.characters(codec="utf-8"), max_size=8)
END = st.sampled_from(["\n", "\r\n"])


def event(said: Any, end: str = "\n") -> bytes:
    return f"data: {said if isinstance(said, str) else json.dumps(said)}{end}{end}".encode()


def text_chunk(text: str | None, finish: str | None = None) -> dict[str, Any]:
    return {"id": "x", "choices": [{"index": 0, "text": text, "logprobs": None, "finish_reason": finish}]}


def chat_chunk(finish: str | None = None, **delta: Any) -> dict[str, Any]:
    return {"object": "chat.completion.chunk", "choices": [{"delta": delta, "finish_reason": finish}]}


def usage(tokens: int) -> dict[str, Any]:
    return {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": tokens, "total_tokens": 5 + tokens}}


def answer(*events: Any) -> Answer:
    """Each event arrives 10 ns after the one before."""
    read = Answer(keep_text=True)
    for i, said in enumerate(events):
        read.feed(event(said), 10 * (i + 1))
    return read


def cut_up(data: bytes, cuts: list[int]) -> list[bytes]:
    marks = sorted({0, len(data), *(c % (len(data) + 1) for c in cuts)})
    return [data[a:b] for a, b in pairwise(marks)]


@given(st.lists(TEXT), END, st.lists(st.integers(0, 10_000)), st.booleans())
def test_events_at_any_chunk_borders(texts: list[str], end: str, cuts: list[int], pings: bool) -> None:
    payloads = [json.dumps(t).encode() for t in texts]
    ping = f": ping{end}{end}id: 3{end}".encode() if pings else b""
    stream = b"".join(ping + event(p.decode(), end) for p in payloads)
    events = Events()
    assert [e for piece in cut_up(stream, cuts) for e in events.feed(piece)] == payloads


@given(st.lists(TEXT, min_size=1), END, st.lists(st.integers(0, 10_000)), st.booleans())
def test_answers_at_any_chunk_borders(texts: list[str], end: str, cuts: list[int], chat: bool) -> None:
    said: list[Any] = [chat_chunk(role="assistant", content="")] if chat else []
    said += [chat_chunk(content=t) if chat else text_chunk(t) for t in texts[:-1]]
    said += [chat_chunk("stop", content=texts[-1]) if chat else text_chunk(texts[-1], "stop")]
    stream = b"".join(event(s, end) for s in [*said, usage(len(texts)), "[DONE]"])
    whole = [i for i, s in enumerate(said) if "role" not in s["choices"][0].get("delta", {})]
    ends = [len(b"".join(event(s, end) for s in said[: i + 1])) for i in whole]
    read = Answer(keep_text=True)
    at = 0
    for piece in cut_up(stream, cuts):
        at += len(piece)
        read.feed(piece, at)
    times, counts = read.settle()
    assert read.done
    assert read.text == "".join(texts)
    assert counts == [1] * len(texts)
    # A delivery is noticed with the first piece that brings it whole.
    pieces_end = [sum(map(len, cut_up(stream, cuts)[: k + 1])) for k in range(len(cut_up(stream, cuts)))]
    assert times == [next(p for p in pieces_end if p >= e) for e in ends]


def test_role_chunk_is_no_token() -> None:
    read = answer(chat_chunk(role="assistant", content=""), chat_chunk(content="a"), chat_chunk("stop"), "[DONE]")
    assert read.settle() == ([20], [1])


def test_role_with_content_is_one() -> None:
    assert answer(chat_chunk(role="assistant", content="a"), chat_chunk("stop")).settle() == ([10], [1])


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "tool_calls"])
def test_thoughts_and_tool_calls_are_tokens(key: str) -> None:
    value = [{"index": 0, "function": {"arguments": "{"}}] if key == "tool_calls" else "hm"
    read = answer(chat_chunk(**{key: value}), chat_chunk("stop", content="a"), usage(2))
    assert read.settle() == ([10, 20], [1, 1])


def test_a_token_without_text_yet_counts() -> None:
    assert answer(text_chunk(""), text_chunk("é"), text_chunk("", "length"), usage(2)).settle() == ([10, 20], [1, 1])


def test_an_empty_end_counts_where_usage_says_so() -> None:
    with_eos = answer(text_chunk("a"), text_chunk("", "stop"), usage(2))
    assert with_eos.settle() == ([10, 20], [1, 1])
    without = answer(text_chunk("a"), text_chunk("", "stop"), usage(1))
    assert without.settle() == ([10], [1])
    untold = answer(text_chunk("a"), text_chunk("", "stop"), "[DONE]")
    assert untold.settle() == ([10], [1])


@given(st.integers(1, 30), st.integers(1, 60))
def test_tokens_are_spread_evenly_over_deliveries(deliveries: int, tokens: int) -> None:
    times, counts = answer(*[text_chunk("a")] * deliveries, usage(tokens)).settle()
    assert len(times) == len(counts) == deliveries
    assert sum(counts) == tokens
    assert counts[0] >= 1
    assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize(
    ("said", "code", "message"),
    [
        ({"error": {"message": "too late", "type": "dropped", "code": 503}}, 503, "too late"),
        ({"error": {"message": "no", "code": "429"}}, 429, "no"),
        ({"error": {"message": "no", "code": "engine_dead"}}, 0, "no"),
        ({"error": "plain"}, 0, "plain"),
        ({"object": "error", "message": "old shape", "code": 400}, 400, "old shape"),
    ],
)
def test_error_events(said: dict[str, Any], code: int, message: str) -> None:
    with pytest.raises(ServerError, match=message) as caught:
        answer(text_chunk("a"), said)
    assert caught.value.code == code
    assert message_of(json.dumps(said).encode()) == message


def test_nonsense_is_quoted() -> None:
    with pytest.raises(ValueError, match="<html>"):
        answer("<html>")
    assert message_of(b"<html>busy</html>\n") == "<html>busy</html>"


def test_an_open_end_is_not_done() -> None:
    assert not answer(text_chunk("a")).done
    assert answer(text_chunk("a"), "[DONE]").done
    assert answer(text_chunk("a", "stop")).done
    assert answer().settle() == ([], [])
