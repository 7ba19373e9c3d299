"""The official client, unchanged, against a real server with a tiny real model, beside transformers' own answers."""

import asyncio
import json
import math
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import openai
import pytest
import torch
import transformers
from server_process import PATIENCE_S, ServerProcess, wait_until

from penstock.api.tokenizer import FolderTokenizer

MODEL = "tiny"
HI = [{"role": "user", "content": "hi, quick fox"}]
IDS = {"return_token_ids": True}


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE_S) as client:
        yield client


@pytest.fixture
async def several(server: ServerProcess) -> Any:
    """The asynchronous client, for requests at the same time."""
    async with openai.AsyncOpenAI(
        base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE_S
    ) as client:
        yield client


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(folder)


def generated(model: Any, prompt: list[int], most: int, end: bool = True) -> list[int]:
    """What transformers answers, greedily."""
    stop = {} if end else {"eos_token_id": -1}
    ids = torch.tensor([prompt])
    whole = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=most, **stop)
    return whole[0, len(prompt) :].tolist()


def random_prompts(lengths: list[int]) -> list[list[int]]:
    draw = random.Random(5)
    return [[draw.randrange(4, 320) for _ in range(length)] for length in lengths]


async def test_greedy_answers_are_those_of_transformers(several: openai.AsyncOpenAI, model: Any) -> None:
    """All at once, so that they are batched, some with a common beginning, so that blocks are shared."""
    prompts = random_prompts([1, 2, 15, 16, 17, 63, 64, 65, 130, 300])
    prompts += [[*prompts[-1][:200], 9], prompts[-1][:128]]

    async def answer(prompt: list[int]) -> list[int]:
        ask = {"model": MODEL, "prompt": prompt, "max_tokens": 24, "temperature": 0}
        return (await several.completions.create(**ask, extra_body=IDS)).choices[0].token_ids

    expected = [generated(model, prompt, 24) for prompt in prompts]
    for _ in range(2):
        assert await asyncio.gather(*map(answer, prompts)) == expected


def test_chat(client: openai.OpenAI, model: Any, tokenizer: Any) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=HI, max_completion_tokens=20, temperature=0, extra_body=IDS
    )
    prompt = tokenizer.apply_chat_template(HI, add_generation_prompt=True, return_dict=False)
    expected = generated(model, prompt, 20)
    choice = answer.choices[0]
    assert answer.prompt_token_ids == prompt
    assert choice.token_ids == expected
    assert choice.message.role == "assistant"
    assert choice.message.content == tokenizer.decode(expected, skip_special_tokens=True)
    assert choice.finish_reason == "length"
    assert answer.usage.prompt_tokens == len(prompt)
    assert answer.usage.completion_tokens == len(expected)
    assert answer.usage.total_tokens == len(prompt) + len(expected)


def test_a_stream_gives_the_same_text(client: openai.OpenAI) -> None:
    ask = {"model": MODEL, "messages": HI, "max_tokens": 40, "seed": 11}
    whole = client.chat.completions.create(**ask)
    chunks = list(client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == whole.choices[0].finish_reason
    assert len(chunks) > 10


def test_text_and_token_prompts_give_the_same(client: openai.OpenAI, server: ServerProcess) -> None:
    text = "the quick brown fox"
    ids = httpx.post(f"{server.url}/tokenize", json={"prompt": text}).json()["tokens"]
    ask = {"model": MODEL, "max_tokens": 12, "temperature": 0}
    answers = [client.completions.create(prompt=prompt, **ask) for prompt in (text, ids)]
    both = client.completions.create(prompt=[text, text], **ask)
    assert answers[0].choices[0].text == answers[1].choices[0].text
    assert [choice.text for choice in both.choices] == [answers[0].choices[0].text] * 2
    assert answers[0].usage == answers[1].usage
    assert both.usage.prompt_tokens == 2 * len(ids)


def test_logprobs_are_those_of_transformers(client: openai.OpenAI, model: Any) -> None:
    prompt = random_prompts([20])[0]
    ask = {"model": MODEL, "prompt": prompt, "max_tokens": 8, "seed": 3, "logprobs": 2}
    choice = client.completions.create(**ask, extra_body=IDS).choices[0]
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + choice.token_ids])).logits[0, len(prompt) - 1 : -1]
    expected = logits.log_softmax(1)
    for row, token, logprob, top in zip(
        expected, choice.token_ids, choice.logprobs.token_logprobs, choice.logprobs.top_logprobs, strict=True
    ):
        assert math.isclose(logprob, row[token], abs_tol=1e-3)
        assert math.isclose(max(top.values()), row.max(), abs_tol=1e-3)
    chat = client.chat.completions.create(
        model=MODEL, messages=HI, max_tokens=5, temperature=0, logprobs=True, top_logprobs=3
    )
    entries = chat.choices[0].logprobs.content
    assert [len(entry.top_logprobs) for entry in entries] == [3] * 5
    assert all(entry.logprob == entry.top_logprobs[0].logprob for entry in entries)


async def test_a_seed_gives_the_same_answer_under_load(several: openai.AsyncOpenAI) -> None:
    """Sampling must not depend on what else is in the batch."""

    async def answer(seed: int) -> str:
        ask = {"model": MODEL, "messages": HI, "max_tokens": 16, "seed": seed}
        return (await several.chat.completions.create(**ask)).choices[0].message.content or ""

    alone = [await answer(seed) for seed in range(4)]
    assert len(set(alone)) == 4
    load = [asyncio.create_task(answer(100 + seed)) for seed in range(12)]
    together = await asyncio.gather(*(answer(seed % 4) for seed in range(12)))
    assert together == alone * 3
    assert len(set(await asyncio.gather(*load))) == 12


def test_without_a_seed_answers_differ(client: openai.OpenAI) -> None:
    ask = {"model": MODEL, "messages": HI, "max_tokens": 16}
    assert len({client.chat.completions.create(**ask).choices[0].message.content for _ in range(3)}) == 3


def test_n_answers_differ_and_are_reproducible(client: openai.OpenAI) -> None:
    ask = {"model": MODEL, "messages": HI, "max_tokens": 12, "seed": 7}
    first, second = (client.chat.completions.create(n=3, **ask) for _ in range(2))
    texts = [choice.message.content for choice in first.choices]
    assert len(set(texts)) == 3
    assert texts == [choice.message.content for choice in second.choices]
    assert texts[0] == client.chat.completions.create(**ask).choices[0].message.content
    assert first.usage.completion_tokens == sum(12 for _ in texts)
    chunks = client.chat.completions.create(n=3, stream=True, **ask)
    streamed = ["", "", ""]
    for chunk in chunks:
        streamed[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert streamed == texts


def test_stop(client: openai.OpenAI, server: ServerProcess) -> None:
    ask = {"model": MODEL, "prompt": "the fox", "max_tokens": 30, "temperature": 0}
    whole = client.completions.create(**ask, extra_body=IDS).choices[0]
    stop = whole.text[6:9]
    cut = client.completions.create(**ask, stop=[stop]).choices[0]
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert (cut.finish_reason, cut.stop_reason) == ("stop", stop)
    parts = [part.choices[0] for part in client.completions.create(**ask, stop=stop, stream=True)]
    assert "".join(part.text for part in parts) == cut.text
    token = whole.token_ids[5]
    by_id = client.completions.create(**ask, extra_body=IDS | {"stop_token_ids": [token]}).choices[0]
    assert by_id.token_ids == whole.token_ids[: whole.token_ids.index(token) + 1]
    assert by_id.stop_reason == token
    wait_until(server.idle, "a stopped answer gives its pages back")


def test_the_end_token_ends_an_answer(client: openai.OpenAI, tokenizer: Any) -> None:
    end = tokenizer.eos_token_id
    ask = {"model": MODEL, "prompt": "the fox", "max_tokens": 10, "temperature": 0, "logit_bias": {str(end): 100}}
    answer = client.completions.create(**ask)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("", "stop")
    assert answer.usage.completion_tokens == 1
    longer = client.completions.create(**ask, extra_body={"min_tokens": 4})
    assert longer.usage.completion_tokens == 5
    ignored = client.completions.create(**ask, extra_body={"ignore_eos": True})
    assert (ignored.usage.completion_tokens, ignored.choices[0].finish_reason) == (10, "length")


class Person(msgspec.Struct, forbid_unknown_fields=True):
    """What the schema below allows, checked by another library than the one that enforces it."""

    name: str
    age: int
    tags: list[str]
    kind: str


SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 3}, "maxItems": 2},
        "kind": {"enum": ["cat", "dog"]},
    },
    "required": ["name", "age", "tags", "kind"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("temperature", [0, 1])
def test_json_schema(client: openai.OpenAI, temperature: float) -> None:
    wish = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA, "strict": True}}
    ask = {"model": MODEL, "messages": HI, "temperature": temperature, "seed": 1, "response_format": wish}
    answer = client.chat.completions.create(**ask)
    assert answer.choices[0].finish_reason == "stop"
    person = msgspec.json.decode(answer.choices[0].message.content, type=Person)
    assert 0 <= person.age <= 150
    assert len(person.tags) <= 2
    assert person.kind in ("cat", "dog")
    chunks = client.chat.completions.create(**ask, stream=True)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert json.loads(text) == msgspec.to_builtins(person)


def test_a_forced_tool_call(client: openai.OpenAI) -> None:
    tool = {"type": "function", "function": {"name": "add", "parameters": SCHEMA}}
    choice = {"type": "function", "function": {"name": "add"}}
    answer = client.chat.completions.create(model=MODEL, messages=HI, tools=[tool], tool_choice=choice, seed=2)
    [call] = answer.choices[0].message.tool_calls
    assert call.function.name == "add"
    msgspec.json.decode(call.function.arguments, type=Person)


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("chat", {"messages": []}, "messages"),
    ("chat", {"messages": HI, "temperature": -1}, "temperature"),
    ("chat", {"messages": HI, "top_p": 2}, "top_p"),
    ("chat", {"messages": HI, "max_tokens": 0}, "max_tokens"),
    ("chat", {"messages": HI, "max_tokens": 100_000}, "max_tokens"),
    ("chat", {"messages": HI, "n": 0}, "n"),
    ("chat", {"messages": HI, "logit_bias": {"100000": 1}}, "logit_bias"),
    ("chat", {"messages": [{"role": "nobody", "content": "x"}]}, "messages"),
    ("chat", {"messages": HI, "response_format": {"type": "json_schema"}}, "response_format"),
    ("chat", {"messages": HI, "top_logprobs": 3}, "top_logprobs"),
    ("text", {"prompt": []}, "prompt"),
    ("text", {"prompt": [320]}, "prompt"),
    ("text", {"prompt": "x" * 20_000}, "prompt"),
    ("text", {"prompt": "x", "suffix": "y"}, "suffix"),
    ("text", {"prompt": "x", "stop": [""]}, "stop"),
]


@pytest.mark.parametrize(("kind", "ask", "param"), BAD)
def test_bad_requests_are_refused_by_name(client: openai.OpenAI, kind: str, ask: dict[str, Any], param: str) -> None:
    create = client.chat.completions.create if kind == "chat" else client.completions.create
    known = {"messages": ask.pop("messages", None), "prompt": ask.pop("prompt", None)}
    given = {name: value for name, value in known.items() if value is not None}
    with pytest.raises(openai.BadRequestError) as refused:
        create(model=MODEL, **given, extra_body=ask)
    assert (refused.value.param or "").startswith(param)
    assert refused.value.type == "invalid_request_error"
    assert refused.value.body["message"]


def test_a_long_text_is_tokenized_beside_other_work(folder: Path) -> None:
    """The thread that does it must let others run: a front has all its streams to serve meanwhile."""
    tokenizer = FolderTokenizer(folder)
    thread = threading.Thread(target=tokenizer.encode, args=("x" * 1_000_000, False))
    thread.start()
    turns = 0
    while thread.is_alive():
        turns += 1
        time.sleep(0.001)
    assert turns > 10


def test_an_unknown_model_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-17", messages=HI)
    assert missing.value.code == "model_not_found"
    assert [model.id for model in client.models.list()] == [MODEL]


def test_all_of_this_left_nothing_behind(client: openai.OpenAI, server: ServerProcess) -> None:
    wait_until(server.idle, "every page is free or evictable")
    values = server.metrics()
    assert values["penstock_num_requests_running"] == 0
