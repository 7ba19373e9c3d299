"""POST /v1/chat/completions over a real socket: requests down, answers up."""

import json

import httpx
import msgspec
import pytest
from fake_home import INFO, Chunk, FakeHome, say, text
from llguidance import LLMatcher

from penstock.core.slo import Slo

HI = [{"role": "user", "content": "hi"}]


def post(url: str, messages: list | None = None, **more) -> httpx.Response:
    return httpx.post(f"{url}/v1/chat/completions", json={"messages": messages or HI, "model": "fake"} | more)


def frames(reply: httpx.Response) -> list[dict]:
    assert reply.headers["content-type"].startswith("text/event-stream")
    *data, done, rest = reply.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    return [json.loads(frame.removeprefix("data: ")) for frame in data]


def test_whole(server: str, home: FakeHome) -> None:
    home.script = text("héllo €")
    body = post(server).json()
    assert body["object"] == "chat.completion"
    assert body["model"] == "fake"
    assert body["id"].startswith("chatcmpl-")
    (choice,) = body["choices"]
    assert choice["message"] == {"role": "assistant", "content": "héllo €"}
    assert (choice["finish_reason"], choice["index"], choice["logprobs"]) == ("stop", 0, None)
    prompt = len(b"user: hi\nassistant:")
    assert body["usage"] == {"prompt_tokens": prompt, "completion_tokens": 11, "total_tokens": prompt + 11}


def test_streamed_says_the_same(server: str, home: FakeHome) -> None:
    home.script = text("héllo €")
    got = frames(post(server, stream=True))
    assert got[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(frame["choices"][0]["delta"].get("content", "") for frame in got) == "héllo €"
    assert [frame["choices"][0]["finish_reason"] for frame in got] == [None] * (len(got) - 1) + ["stop"]
    assert {(frame["id"], frame["object"]) for frame in got} == {(got[0]["id"], "chat.completion.chunk")}
    assert "usage" not in got[0]


def test_usage_comes_in_a_frame_of_its_own(server: str, home: FakeHome) -> None:
    home.script = text("abc")
    *got, last = frames(post(server, stream=True, stream_options={"include_usage": True}))
    assert all(frame["usage"] is None for frame in got)
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 4


def test_the_template_gets_roles_parts_and_earlier_calls(server: str, home: FakeHome) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "42", "tool_call_id": "c1"},
    ]
    assert post(server, messages).status_code == 200
    expected = "system: be brief\nuser: a\nb\nassistant: \ntool: 42\nassistant:"
    assert bytes(home.asked[0].tokens).decode() == expected


def test_every_sampling_field_reaches_the_engine(server: str, home: FakeHome) -> None:
    reply = post(
        server,
        temperature=0.5,
        top_p=0.9,
        top_k=7,
        min_p=0.1,
        repetition_penalty=1.1,
        presence_penalty=0.2,
        frequency_penalty=0.3,
        logit_bias={"5": -100, "7": 1.5},
        seed=42,
        logprobs=True,
        top_logprobs=3,
        stop_token_ids=[9],
        min_tokens=2,
        ignore_eos=True,
        max_completion_tokens=17,
        max_tokens=5,
        priority=-3,
        cache_salt="me",
    )
    assert reply.status_code == 200
    asked = home.asked[0]
    sampling = asked.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.5, 0.9, 7, 0.1)
    assert (sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty) == (1.1, 0.2, 0.3)
    assert sampling.logit_bias == {5: -100, 7: 1.5}
    assert (sampling.seed, sampling.choice, sampling.logprobs, sampling.max_tokens) == (42, 0, 3, 17)
    assert (sampling.stop_token_ids, sampling.min_tokens, sampling.ignore_eos) == ([9], 2, True)
    assert (asked.priority, asked.tenant, asked.slo, asked.deadline_s) == (-3, "me", Slo(), None)


def test_what_is_not_given_is_left_to_the_model(server: str, home: FakeHome) -> None:
    post(server)
    post(server, temperature=None, seed=None, stop=None)
    first, second = (asked.sampling for asked in home.asked)
    assert first.max_tokens == 1000 - len(home.asked[0].tokens)
    assert first.logprobs is None
    assert first.temperature == 1
    assert first.seed != second.seed


def test_n_answers_of_one_seed(server: str, home: FakeHome) -> None:
    home.script = lambda asked: say([65 + asked.sampling.choice] * (3 - asked.sampling.choice))
    body = post(server, n=3, seed=1).json()
    assert [choice["message"]["content"] for choice in body["choices"]] == ["AAA", "BB", "C"]
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    assert {asked.sampling.seed for asked in home.asked} == {1}
    assert body["usage"]["completion_tokens"] == 4 + 3 + 2
    assert body["usage"]["prompt_tokens"] == len(home.asked[0].tokens)
    streamed = frames(post(server, n=3, stream=True))
    for index, words in enumerate(("AAA", "BB", "C")):
        own = [frame["choices"][0] for frame in streamed if frame["choices"][0]["index"] == index]
        assert "".join(choice["delta"].get("content", "") for choice in own) == words


def test_logprobs(server: str, home: FakeHome) -> None:
    home.script = text("é")
    whole = post(server, logprobs=True, top_logprobs=2).json()["choices"][0]["logprobs"]["content"]
    assert [entry["bytes"] for entry in whole] == [[0xC3], [0xA9], [0]]
    assert whole[0]["logprob"] == -0.5
    assert [top["logprob"] for top in whole[0]["top_logprobs"]] == [-0.5, -1.5]
    streamed = frames(post(server, logprobs=True, top_logprobs=2, stream=True))
    parts = [frame["choices"][0]["logprobs"] for frame in streamed]
    assert [entry for part in parts if part for entry in part["content"]] == whole


@pytest.mark.parametrize("stream", [False, True])
def test_stop_strings_across_tokens(server: str, home: FakeHome, stream: bool) -> None:
    home.script = text("one, two, three")

    def said(**more) -> tuple[str, dict]:
        reply = post(server, stream=stream, **more)
        if not stream:
            choice = reply.json()["choices"][0]
            return choice["message"]["content"], choice
        choices = [frame["choices"][0] for frame in frames(reply)]
        return "".join(choice["delta"].get("content", "") for choice in choices), choices[-1]

    content, choice = said(stop=["wo, th", "zzz"])
    assert (content, choice["finish_reason"], choice["stop_reason"]) == ("one, t", "stop", "wo, th")
    assert said(stop="two", include_stop_str_in_output=True)[0] == "one, two"
    assert said(stop="two, x")[0] == "one, two, three"
    assert said(stop="o", min_tokens=1)[0] == "one, tw"


def test_a_stop_token_is_not_shown_unless_asked_for(server: str, home: FakeHome) -> None:
    home.script = lambda asked: say([65, 66], finish="stop:66")
    choice = post(server, stop_token_ids=[66], return_token_ids=True).json()["choices"][0]
    assert (choice["message"]["content"], choice["stop_reason"], choice["token_ids"]) == ("A", 66, [65, 66])
    shown = post(server, stop_token_ids=[66], include_stop_str_in_output=True).json()["choices"][0]
    assert shown["message"]["content"] == "AB"


def test_the_last_token_of_a_grammar_is_shown(server: str, home: FakeHome) -> None:
    """Engines end an answer with "stop" when its grammar is complete, without an EOS token."""
    home.script = lambda asked: [Chunk([ord("{")]), Chunk([ord("}")], None, "stop")]
    choice = post(server, response_format={"type": "json_object"}).json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("{}", "stop")


def test_length(server: str) -> None:
    choice = post(server, max_tokens=3).json()["choices"][0]
    assert (choice["finish_reason"], choice["message"]["content"]) == ("length", "use")


@pytest.mark.parametrize(
    ("wish", "matches", "fails"),
    [
        ({"response_format": {"type": "json_object"}}, b'{"a": 1}', b"[1]"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "integer"}}}},
            b"12",
            b'"a"',
        ),
        ({"guided_json": '{"type": "boolean"}'}, b"true", b"1"),
        ({"guided_regex": "[ab]+"}, b"abba", b"c"),
        ({"structured_outputs": {"choice": ["yes", 'n"o']}}, b'n"o', b"maybe"),
        ({"guided_grammar": 'start: "x" "y"'}, b"xy", b"yx"),
        ({"response_format": {"type": "text"}, "structured_outputs": {"regex": "z"}}, b"z", b"a"),
    ],
)
def test_structured_output_becomes_a_grammar(
    server: str, home: FakeHome, wish: dict, matches: bytes, fails: bytes
) -> None:
    assert post(server, **wish).status_code == 200
    grammar = home.asked[0].sampling.grammar
    assert consumed(grammar, matches)
    assert not consumed(grammar, fails)


def consumed(grammar: str, answer: bytes) -> bool:
    """Whether llguidance takes the answer as a complete one, over a vocabulary of bytes."""
    import llguidance

    class Bytes:
        eos_token_id, bos_token_id, unk_token_id = 256, None, None
        tokens = (*(bytes([byte]) for byte in range(256)), b"<eos>")
        special_token_ids = (256,)

        def __call__(self, text: bytes | str) -> list[int]:
            return list(text.encode() if isinstance(text, str) else text)

    matcher = LLMatcher(llguidance.LLTokenizer(llguidance.TokenizerWrapper(Bytes())), grammar)
    return matcher.try_consume_tokens(list(answer)) == len(answer) and matcher.is_accepting()


@pytest.mark.parametrize(
    ("wish", "param"),
    [
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "no"}}}}, "response_format"),
        ({"guided_regex": "(a"}, "guided_regex"),
        ({"guided_json": "[1"}, "guided_json"),
        ({"guided_grammar": "start: nowhere"}, "guided_grammar"),
        ({"structured_outputs": {"json": {}, "regex": "a"}}, "structured_outputs"),
        ({"guided_regex": "a", "guided_json": {}}, "guided_regex"),
        ({"guided_regex": "a" * 70_000}, "guided_regex"),
    ],
)
def test_bad_grammars_are_refused(server: str, home: FakeHome, wish: dict, param: str) -> None:
    reply = post(server, **wish)
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == param
    assert not home.asked


def test_the_slo_of_the_headers_reaches_the_home(server: str, home: FakeHome) -> None:
    headers = {"x-slo-ttft-ms": "200", "x-slo-tpot-ms": "3x", "x-slo-e2e-ms": "1500ms", "x-deadline-ms": "2500"}
    assert httpx.post(f"{server}/v1/chat/completions", json={"messages": HI}, headers=headers).status_code == 200
    assert str(home.asked[0].slo) == "ttft=200ms,tpot=3x,e2e=1500ms"
    assert home.asked[0].deadline_s == 2.5


def test_long_prompts_are_tokenized_too(server: str, home: FakeHome) -> None:
    home.info = msgspec.structs.replace(INFO, max_len=50_000)
    assert post(server, [{"role": "user", "content": "x" * 20_000}], max_tokens=1).status_code == 200
    assert len(home.asked[0].tokens) == 20_000 + len("user: \nassistant:")
