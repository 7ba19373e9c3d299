"""POST /v1/completions over a real socket."""

import json

import httpx
import msgspec
import pytest
from fake_home import INFO, FakeHome, say, text


def post(url: str, prompt: object = "hi", **more) -> httpx.Response:
    return httpx.post(f"{url}/v1/completions", json={"prompt": prompt, "model": "fake-alias"} | more)


def streamed(reply: httpx.Response) -> list[dict]:
    *data, done, _ = reply.text.split("\n\n")
    assert done == "data: [DONE]"
    return [json.loads(frame.removeprefix("data: ")) for frame in data]


def test_whole(server: str, home: FakeHome) -> None:
    home.script = text(" there")
    body = post(server, max_tokens=50).json()
    assert body["object"] == "text_completion"
    assert body["model"] == "fake"
    choice = body["choices"][0]
    assert (choice["text"], choice["finish_reason"], choice["logprobs"]) == (" there", "stop", None)
    assert body["usage"] == {"prompt_tokens": 2, "completion_tokens": 7, "total_tokens": 9}
    assert home.asked[0].sampling.max_tokens == 50


@pytest.mark.parametrize(
    ("prompt", "tokens"),
    [
        ("hé", [list("hé".encode())]),
        (["a", "bc"], [[97], [98, 99]]),
        ([5, 6, 7], [[5, 6, 7]]),
        ([[5], [6, 7]], [[5], [6, 7]]),
    ],
)
def test_prompts_of_every_shape(server: str, home: FakeHome, prompt: object, tokens: list) -> None:
    body = post(server, prompt).json()
    assert [asked.tokens for asked in home.asked] == tokens
    assert [choice["index"] for choice in body["choices"]] == list(range(len(tokens)))
    assert body["usage"]["prompt_tokens"] == sum(map(len, tokens))


def test_choices_go_prompt_by_prompt(server: str, home: FakeHome) -> None:
    home.script = lambda asked: say([*asked.tokens, 48 + asked.sampling.choice])
    choices = post(server, ["a", "b"], n=2).json()["choices"]
    assert [choice["text"] for choice in choices] == ["a0", "a1", "b0", "b1"]
    echoed = post(server, ["a", "b"], n=2, echo=True).json()["choices"]
    assert [choice["text"] for choice in echoed] == ["aa0", "aa1", "bb0", "bb1"]


def test_streamed_says_the_same(server: str, home: FakeHome) -> None:
    home.script = text(" thére")
    frames = streamed(post(server, stream=True, echo=True, stream_options={"include_usage": True}))
    assert "".join(frame["choices"][0]["text"] for frame in frames[:-1]) == "hi thére"
    assert frames[-2]["choices"][0]["finish_reason"] == "stop"
    assert frames[-1]["usage"] == {"prompt_tokens": 2, "completion_tokens": 8, "total_tokens": 10}


def test_logprobs(server: str, home: FakeHome) -> None:
    home.script = text("aé")
    logprobs = post(server, logprobs=2).json()["choices"][0]["logprobs"]
    assert logprobs["tokens"] == ["a", "�", "�", "\0"]
    assert logprobs["token_logprobs"] == [-0.5] * 4
    assert logprobs["text_offset"] == [0, 1, 1, 2]
    assert logprobs["top_logprobs"][0] == {"a": -0.5, "b": -1.5}
    frames = streamed(post(server, logprobs=2, stream=True))
    for name, values in logprobs.items():
        assert [value for frame in frames for value in frame["choices"][0]["logprobs"][name]] == values


def test_token_ids(server: str, home: FakeHome) -> None:
    home.script = lambda asked: say([300, 301], "length")
    choice = post(server, [300], return_token_ids=True).json()["choices"][0]
    assert (choice["prompt_token_ids"], choice["token_ids"], choice["text"]) == ([300], [300, 301], "<300><301>")
    frames = streamed(post(server, [300], return_token_ids=True, stream=True))
    assert [frame["choices"][0]["token_ids"] for frame in frames] == [[300], [301]]


@pytest.mark.parametrize(
    ("change", "param", "says"),
    [
        ({"suffix": "x"}, "suffix", "not supported"),
        ({"best_of": 3}, "best_of", "must equal n"),
        ({"echo": True, "logprobs": 1}, "echo", "exclude"),
        ({"prompt": ""}, "prompt", "at least one token"),
        ({"prompt": []}, "prompt", "length >= 1"),
        ({"prompt": ["a", 1]}, "prompt", "mixture"),
        ({"prompt": [50_000]}, "prompt", "from 0 to 49999"),
        ({"prompt": [-1]}, "prompt[0]", ">= 0"),
        ({"prompt": "x" * 1001}, "prompt", "has 1001 tokens, and the model's context is 1000"),
        ({"prompt": "xx", "max_tokens": 999}, "max_tokens", "has 2 tokens and max_tokens is 999"),
        ({"prompt": ["a"] * 100, "n": 2}, "n", "more than the 128 answers"),
        ({"logprobs": 21}, "logprobs", "at most 20"),
        ({"min_tokens": 9, "max_tokens": 8}, "min_tokens", "lower it"),
        ({"stop_token_ids": [50_000]}, "stop_token_ids", "from 0 to 49999"),
        ({"logit_bias": {"50000": 1}}, "logit_bias", "from 0 to 49999"),
    ],
)
def test_bad_requests_say_what_to_change(server: str, home: FakeHome, change: dict, param: str, says: str) -> None:
    reply = httpx.post(f"{server}/v1/completions", json={"prompt": "hi"} | change)
    error = reply.json()["error"]
    assert (reply.status_code, error["param"], error["type"]) == (400, param, "invalid_request_error")
    assert says in error["message"]
    assert not home.asked


def test_a_small_cache_limits_too(server: str, home: FakeHome) -> None:
    home.info = msgspec.structs.replace(INFO, pages=4)
    assert post(server, "x" * 60).status_code == 200
    assert home.asked[0].sampling.max_tokens == 4
    reply = post(server, "x" * 64)
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "context_length_exceeded")
