"""What goes wrong, in OpenAI's shape, each with the status and the headers that clients act on."""

import json
import logging

import httpx
import pytest
from fake_home import Busy, Chunk, FakeHome, JobFailed, Unavailable, say
from serving import running

from penstock.api.config import FrontConfig

CHAT = "/v1/chat/completions"
HI = {"messages": [{"role": "user", "content": "hi"}]}


def error_of(reply: httpx.Response) -> dict:
    assert reply.headers["content-type"] == "application/json"
    body = reply.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    return body["error"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"", None),
        (b"{", None),
        (b"[]", None),
        (b"\xff", None),
        (b'{"guided_json": ' + b'{"a":' * 100_000, None),
        (b"{}", None),
        (b'{"messages": []}', "messages"),
        (b'{"messages": [{"role": "king", "content": "x"}]}', "messages[0].role"),
        (b'{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}', "messages"),
        (json.dumps(HI | {"temperature": "hot"}).encode(), "temperature"),
        (json.dumps(HI | {"temperature": -1}).encode(), "temperature"),
        (json.dumps(HI | {"n": 0}).encode(), "n"),
        (json.dumps(HI | {"n": 129}).encode(), "n"),
        (json.dumps(HI | {"stop": ["a"] * 17}).encode(), "stop"),
        (json.dumps(HI | {"stop": ""}).encode(), "stop"),
        (json.dumps(HI | {"logit_bias": {"x": 1}}).encode(), None),
        (json.dumps(HI | {"top_logprobs": 3}).encode(), "top_logprobs"),
        (json.dumps(HI | {"logprobs": True, "top_logprobs": 21}).encode(), "top_logprobs"),
        (json.dumps(HI | {"stream_options": {"include_usage": True}}).encode(), "stream_options"),
        (json.dumps(HI | {"functions": [{}]}).encode(), "functions"),
        (json.dumps(HI | {"modalities": ["audio"]}).encode(), "modalities"),
        (json.dumps(HI | {"max_completion_tokens": 1000}).encode(), "max_completion_tokens"),
    ],
)
def test_bad_bodies(server: str, home: FakeHome, body: bytes, param: str | None) -> None:
    reply = httpx.post(server + CHAT, content=body)
    assert reply.status_code == 400
    error = error_of(reply)
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert not home.asked


def test_extras_nulls_and_what_is_switched_off_pass(server: str) -> None:
    extras = {"made_up": 1, "functions": None, "suffix": "", "modalities": ["text"], "store": True, "user": "me"}
    assert httpx.post(server + CHAT, json=HI | extras).status_code == 200


@pytest.mark.parametrize("value", ["soon", "0", "-5", "1e3"])
@pytest.mark.parametrize("header", ["x-slo-ttft-ms", "x-slo-tpot-ms", "x-slo-e2e-ms", "x-deadline-ms"])
def test_bad_headers(server: str, header: str, value: str) -> None:
    reply = httpx.post(server + CHAT, json=HI, headers={header: value})
    assert reply.status_code == 400
    assert error_of(reply)["param"] == header


def test_wrong_model_path_and_method(server: str) -> None:
    wrong = httpx.post(server + CHAT, json=HI | {"model": "gpt"})
    assert (wrong.status_code, error_of(wrong)["code"]) == (404, "model_not_found")
    nowhere = httpx.get(server + "/v1/nothing")
    assert (nowhere.status_code, error_of(nowhere)["code"]) == (404, "not_found")
    method = httpx.get(server + CHAT)
    assert (method.status_code, method.headers["allow"]) == (405, "POST")
    error_of(method)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("refusal", "status", "kind"),
    [(Busy("the queue is full", 1.2), 429, "rate_limit_error"), (Unavailable("no engine", 5), 503, "server_error")],
)
def test_refusals_come_at_once_with_retry_after(
    server: str, home: FakeHome, refusal: Busy, status: int, kind: str, stream: bool
) -> None:
    home.refuse = refusal
    reply = httpx.post(server + CHAT, json=HI | {"n": 2, "stream": stream})
    assert reply.status_code == status
    assert reply.headers["retry-after"] == ("2" if status == 429 else "5")
    error = error_of(reply)
    assert (error["type"], error["message"]) == (kind, refusal.reason)


def test_a_refusal_of_one_choice_ends_the_others(server: str, home: FakeHome) -> None:
    def script(asked):
        home.refuse = Busy("full", 1) if asked.sampling.choice == 1 else None
        return say([65])

    home.script = script
    assert httpx.post(server + CHAT, json=HI | {"n": 3}).status_code == 429
    assert len(home.asked) == 2
    assert not home.open


def test_before_the_engine_is_there(server: str, home: FakeHome) -> None:
    home.info, home.state = None, "starting"
    reply = httpx.post(server + CHAT, json=HI)
    assert reply.status_code == 503
    assert "starting" in error_of(reply)["message"]
    assert reply.headers["retry-after"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("outcome", "status"), [("failed", 500), ("dropped", 408), ("rejected", 429), ("cancelled", 503)]
)
def test_jobs_that_end_before_their_first_token(
    server: str, home: FakeHome, outcome: str, status: int, stream: bool
) -> None:
    home.script = lambda asked: [JobFailed(outcome, "it went wrong")]
    reply = httpx.post(server + CHAT, json=HI | {"stream": stream})
    assert reply.status_code == status
    assert error_of(reply)["message"] == "it went wrong"
    assert ("retry-after" in reply.headers) == (status in (429, 503))


def test_jobs_that_end_in_the_middle(server: str, home: FakeHome) -> None:
    home.script = lambda asked: [Chunk([65]), JobFailed("failed", "engine killed")]
    assert httpx.post(server + CHAT, json=HI).status_code == 500
    streamed = httpx.post(server + CHAT, json=HI | {"stream": True})
    assert streamed.status_code == 200
    *_, error, done, _ = streamed.text.split("\n\n")
    assert json.loads(error.removeprefix("data: "))["error"]["message"] == "engine killed"
    assert done == "data: [DONE]"


def test_one_failed_choice_ends_the_request(server: str, home: FakeHome) -> None:
    home.script = lambda asked: [Chunk([65]), 30.0] if asked.sampling.choice else [JobFailed("failed", "one of two")]
    reply = httpx.post(server + CHAT, json=HI | {"n": 2})
    assert (reply.status_code, error_of(reply)["message"]) == (500, "one of two")
    assert not home.open


def test_a_stream_that_just_ends_is_an_error(server: str, home: FakeHome) -> None:
    home.script = lambda asked: [Chunk([65])]
    assert httpx.post(server + CHAT, json=HI).status_code == 500


def test_a_bug_harms_one_request_and_is_logged(server: str, home: FakeHome, caplog: pytest.LogCaptureFixture) -> None:
    home.script = lambda asked: [ZeroDivisionError("secret")] if asked.tokens == [66] else say([65])
    with caplog.at_level(logging.ERROR, "penstock.api"):
        reply = httpx.post(server + "/v1/completions", json={"prompt": "B"})
    assert (reply.status_code, error_of(reply)["code"]) == (500, "internal_error")
    assert "secret" not in reply.text
    assert "ZeroDivisionError" in caplog.text
    assert httpx.post(server + "/v1/completions", json={"prompt": "A"}).status_code == 200


def test_api_key(home: FakeHome) -> None:
    with running(home, FrontConfig(served_names=("fake",), api_key="s3cret")) as (url, _):
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic s3cret"}):
            for path in ("/v1/models", "/v1/nothing"):
                reply = httpx.get(url + path, headers=headers)
                assert reply.status_code == 401
                assert error_of(reply)["code"] == "invalid_api_key"
            assert httpx.post(url + "/tokenize", json={"prompt": "a"}, headers=headers).status_code == 401
        assert httpx.get(url + "/v1/models", headers={"authorization": "Bearer s3cret"}).status_code == 200
        assert httpx.get(url + "/health").status_code == 200
        assert httpx.get(url + "/metrics").status_code == 200


def test_large_bodies(home: FakeHome) -> None:
    with running(home, FrontConfig(served_names=("fake",), body_bytes_max=1000)) as (url, _):
        whole = httpx.post(url + CHAT, content=b"x" * 1001)
        chunked = httpx.post(url + CHAT, content=iter([b"x" * 600] * 2))
        for reply in (whole, chunked):
            assert reply.status_code == 413
            assert "1000 bytes" in error_of(reply)["message"]
        assert httpx.post(url + CHAT, json=HI).status_code == 200


def test_template_errors_are_the_clients(home: FakeHome) -> None:
    template = "{{ raise_exception('roles must alternate') }}"
    with running(home, FrontConfig(served_names=("fake",), chat_template=template)) as (url, _):
        reply = httpx.post(url + CHAT, json=HI)
    assert reply.status_code == 400
    assert "roles must alternate" in error_of(reply)["message"]
