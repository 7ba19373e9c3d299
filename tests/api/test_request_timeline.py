"""The timeline of a request, over HTTP."""

import time

import httpx
from fake_home import FakeHome
from serving import running

from penstock.api import front as front_module
from penstock.api.config import FrontConfig

ASK = {"prompt": "hello", "max_tokens": 3}


def test_one_story_for_each_choice_against_what_was_promised(server: str, home: FakeHome) -> None:
    answer = httpx.post(f"{server}/v1/completions", json=ASK | {"n": 2}, headers={"x-slo-ttft-ms": "3x"}).json()
    story = home.told[0].story
    story.times.append(story.spec.arrival + 450_000_000)
    story.end("completed", time.monotonic_ns())
    found = httpx.get(f"{server}/v1/requests/{answer['id']}/timeline").json()
    assert found["id"] == answer["id"]
    assert [choice["job"] for choice in found["choices"]] == [1, 2]
    ttft = found["choices"][0]["ttft"]
    # The fake home says that this takes 100 ms where nothing else is to be done.
    assert (ttft["ms"], ttft["promised_ms"], ttft["late"]) == (450.0, 300.0, True)
    assert found["choices"][1]["ttft"] is None


def test_only_recent_ones_and_only_by_their_id(server: str, home: FakeHome, monkeypatch) -> None:
    monkeypatch.setattr(front_module, "_RECENT", 2)
    ids = [httpx.post(f"{server}/v1/completions", json=ASK).json()["id"] for _ in range(3)]
    found = [httpx.get(f"{server}/v1/requests/{request}/timeline").status_code for request in ids]
    assert found[1:] == [200, 200]
    reply = httpx.get(f"{server}/v1/requests/chatcmpl-none/timeline")
    assert (reply.status_code, reply.json()["error"]["code"]) == (404, "request_not_found")


def test_a_timeline_needs_the_key_that_requests_need(home: FakeHome) -> None:
    with running(home, FrontConfig(served_names=("fake",), api_key="sesame")) as (url, _):
        key = {"authorization": "Bearer sesame"}
        request = httpx.post(f"{url}/v1/completions", json=ASK, headers=key).json()["id"]
        path = f"{url}/v1/requests/{request}/timeline"
        assert httpx.get(path).status_code == 401
        assert httpx.get(path, headers=key).status_code == 200
