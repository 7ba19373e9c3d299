"""The official client, unchanged."""

from collections.abc import Iterator

import openai
import pytest
from fake_home import Busy, FakeHome, say, text

HI = [{"role": "user", "content": "hi"}]


@pytest.fixture
def client(server: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0, timeout=20) as client:
        yield client


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["fake", "fake-alias"]
    assert client.models.retrieve("fake").object == "model"


def test_chat(client: openai.OpenAI, home: FakeHome) -> None:
    home.script = text("hello €")
    answer = client.chat.completions.create(
        model="fake", messages=HI, n=2, seed=7, stop=["zzz"], logprobs=True, top_logprobs=2, max_completion_tokens=50
    )
    assert [choice.message.content for choice in answer.choices] == ["hello €"] * 2
    assert answer.choices[0].finish_reason == "stop"
    entries = answer.choices[0].logprobs.content
    assert entries[0].token == "h"
    assert len(entries[0].top_logprobs) == 2
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 2 * 10


def test_chat_streamed(client: openai.OpenAI, home: FakeHome) -> None:
    home.script = text("hello €")
    options = {"include_usage": True}
    chunks = list(client.chat.completions.create(model="fake", messages=HI, stream=True, stream_options=options))
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert said == "hello €"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage.completion_tokens == 10


def test_streaming_helper(client: openai.OpenAI, home: FakeHome) -> None:
    home.script = text("hello")
    with client.chat.completions.stream(model="fake", messages=HI) as stream:
        assert stream.get_final_completion().choices[0].message.content == "hello"


def test_completions(client: openai.OpenAI, home: FakeHome) -> None:
    home.script = text(" there")
    answer = client.completions.create(model="fake", prompt=["a", "b"], logprobs=1, echo=False, temperature=0)
    assert [choice.text for choice in answer.choices] == [" there", " there"]
    assert answer.choices[0].logprobs.text_offset == [0, 1, 2, 3, 4, 5, 6]
    parts = client.completions.create(model="fake", prompt=[1, 2], stream=True)
    assert "".join(part.choices[0].text for part in parts) == " there"


def test_json_schema(client: openai.OpenAI, home: FakeHome) -> None:
    home.script = text('{"a": 1}')
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    wish = {"type": "json_schema", "json_schema": {"name": "thing", "schema": schema, "strict": True}}
    answer = client.chat.completions.create(model="fake", messages=HI, response_format=wish)
    assert answer.choices[0].message.content == '{"a": 1}'
    assert "integer" in home.asked[0].sampling.grammar


def test_tools(client: openai.OpenAI, home: FakeHome) -> None:
    home.script = text('[{"name": "f", "parameters": {"x": 1}}]')
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    ask = {"model": "fake", "messages": HI, "tools": [tool], "tool_choice": "required"}
    message = client.chat.completions.create(**ask).choices[0].message
    assert message.tool_calls[0].function.arguments == '{"x":1}'
    with client.chat.completions.stream(**ask) as stream:
        assert stream.get_final_completion().choices[0].message.tool_calls[0].function.name == "f"


def test_errors_become_the_clients_exceptions(client: openai.OpenAI, home: FakeHome) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="other", messages=HI)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model="fake", messages=HI, temperature=-1)
    assert bad.value.param == "temperature"
    home.refuse = Busy("full", 1)
    with pytest.raises(openai.RateLimitError):
        client.chat.completions.create(model="fake", messages=HI)


def test_an_error_in_the_middle_of_a_stream_is_raised(client: openai.OpenAI, home: FakeHome) -> None:
    from fake_home import Chunk, JobFailed

    home.script = lambda asked: [Chunk([65]), JobFailed("failed", "engine killed")]
    with pytest.raises(openai.APIError, match="engine killed"):
        list(client.chat.completions.create(model="fake", messages=HI, stream=True))


def test_a_client_that_closes_its_stream_ends_the_job(client: openai.OpenAI, home: FakeHome) -> None:
    home.script = lambda asked: say([65] * 500, pause_s=0.02)
    with client.chat.completions.create(model="fake", messages=HI, stream=True) as stream:
        next(iter(stream))
        assert home.open
    for _ in range(500):
        if not home.open:
            return
        client.models.list()
    pytest.fail("the job went on")
