"""Tool calls read out of text that comes in pieces, in each known format, and what requests for tools mean."""

import json

import httpx
import pytest
from fake_home import FakeHome, text
from hypothesis import given
from hypothesis import strategies as st
from llguidance import LLMatcher
from serving import running

from penstock.api.config import FrontConfig
from penstock.api.reader import Piece
from penstock.api.tools import PARSERS, Said, ToolReader, choose_parser

CALL = '{"name": "add", "arguments": {"a": 1, "b": [2, "</tool>"]}}'
LLAMA = CALL.replace("arguments", "parameters")
ARGUMENTS = {"a": 1, "b": [2, "</tool>"]}

ANSWERS = {
    ("hermes", f"<tool_call>\n{CALL}\n</tool_call>"): ("", 1),
    ("hermes", f"I add. <tool_call>{CALL}</tool_call>\n<tool_call>{CALL}</tool_call>\n"): ("I add. ", 2),
    ("hermes", f"<tool_call>{CALL}"): ("", 1),
    ("hermes", "a < b <tool> c <tool_call"): ("a < b <tool> c <tool_call", 0),
    ("hermes", "<tool_call>not json</tool_call> and on"): ("<tool_call>not json</tool_call> and on", 0),
    ("hermes", "<tool_call>open"): ("<tool_call>open", 0),
    ("llama3_json", LLAMA): ("", 1),
    ("llama3_json", f"<|python_tag|>{LLAMA}; {LLAMA}"): ("", 2),
    ("llama3_json", f"  {LLAMA}"): ("", 1),
    ("llama3_json", '{"answer": 42}'): ('{"answer": 42}', 0),
    ("llama3_json", f"I say {LLAMA}"): (f"I say {LLAMA}", 0),
    ("llama3_json", "   "): ("   ", 0),
    ("llama3_json", "<|eh|>"): ("<|eh|>", 0),
    ("mistral", f"[TOOL_CALLS][{CALL}, {CALL}]"): ("", 2),
    ("mistral", f"Well [TOOL_CALLS] [{CALL}]"): ("Well ", 1),
    ("mistral", '[TOOL_CALLS]add{"a": 1, "b": [2, "</tool>"]}'): ("", 1),
    (
        "mistral",
        '[TOOL_CALLS]add[ARGS]{"a": 1, "b": [2, "</tool>"]}[TOOL_CALLS]add[ARGS]{"a": 1, "b": [2, "</tool>"]}',
    ): ("", 2),
    ("mistral", "[TOOL] calls [TOOL_CALLS"): ("[TOOL] calls [TOOL_CALLS", 0),
}


def read(parser: str, answer: str, sizes: list[int], calls_max: int | None = None) -> Said:
    reader, said, at = ToolReader(PARSERS[parser].parser(), calls_max), Said(), 0
    for size in sizes:
        said.add(reader.read(Piece(answer[at : at + size], [], [], [])))
        at += size
    said.add(reader.read(Piece(answer[at:], [], [], [], finish="stop")))
    return said


@pytest.mark.parametrize(("parser", "answer"), ANSWERS)
@given(sizes=st.lists(st.integers(0, 9), max_size=40))
def test_calls_are_found_however_the_text_is_cut(parser: str, answer: str, sizes: list[int]) -> None:
    said = read(parser, answer, sizes)
    shown, calls = ANSWERS[parser, answer]
    assert said.text == shown
    assert [json.loads(call.function.arguments) for call in said.calls] == [ARGUMENTS] * calls
    assert {call.function.name for call in said.calls} <= {"add"}
    assert len({call.id for call in said.calls}) == calls
    assert said.finish == ("tool_calls" if calls else "stop")


def test_one_call_where_parallel_calls_are_not_wanted() -> None:
    answer = f"<tool_call>{CALL}</tool_call>" * 3
    assert len(read("hermes", answer, [], calls_max=1).calls) == 1
    assert len(read("hermes", answer, [], calls_max=None).calls) == 3


def test_text_before_a_call_is_shown_at_once() -> None:
    reader = ToolReader(PARSERS["hermes"].parser(), None)
    assert reader.read(Piece("let me see <tool", [], [], [])).text == "let me see "


def test_the_format_is_known_by_the_template() -> None:
    assert choose_parser("auto", "... <tool_call> ...") == "hermes"
    assert choose_parser("auto", "... <tool_call><function=x> ...") == ""
    assert choose_parser("auto", "[AVAILABLE_TOOLS] [TOOL_CALLS]") == "mistral"
    assert choose_parser("auto", "<|python_tag|>") == "llama3_json"
    assert choose_parser("auto", "plain") == ""
    assert choose_parser("none", "<tool_call>") == ""
    assert choose_parser("mistral", "plain") == "mistral"
    with pytest.raises(ValueError, match="choose auto, none, hermes"):
        choose_parser("grok", "")


TEMPLATE = (
    "{% for tool in tools or [] %}<tool>{{ tool | tojson }}</tool>{% endfor %}{{ messages[-1].content }}<tool_call>"
)
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
TOOLS = [{"type": "function", "function": {"name": "add", "description": "adds", "parameters": SCHEMA}}]
ASK = {"messages": [{"role": "user", "content": "1+1?"}], "tools": TOOLS}


@pytest.fixture
def url(home: FakeHome):
    with running(home, FrontConfig(served_names=("fake",), chat_template=TEMPLATE)) as (url, _):
        yield url


def post(url: str, **more) -> httpx.Response:
    return httpx.post(f"{url}/v1/chat/completions", json=ASK | more)


def test_auto(url: str, home: FakeHome) -> None:
    home.script = text(f"Hm. <tool_call>{CALL}</tool_call>")
    choice = post(url).json()["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] == "Hm. "
    (call,) = choice["message"]["tool_calls"]
    assert (call["type"], call["function"]["name"]) == ("function", "add")
    assert json.loads(call["function"]["arguments"]) == ARGUMENTS
    prompt = bytes(home.asked[0].tokens).decode()
    assert json.loads(prompt.split("<tool>")[1].split("</tool>")[0]) == TOOLS[0]


def test_streamed_calls_come_whole_and_numbered(url: str, home: FakeHome) -> None:
    home.script = text(f"Hm. <tool_call>{CALL}</tool_call><tool_call>{CALL}</tool_call>")
    frames = [json.loads(line[6:]) for line in post(url, stream=True).text.split("\n\n")[:-2]]
    deltas = [frame["choices"][0]["delta"] for frame in frames]
    assert "".join(delta.get("content", "") for delta in deltas) == "Hm. "
    calls = [call for delta in deltas for call in delta.get("tool_calls", [])]
    assert [call["index"] for call in calls] == [0, 1]
    assert all(json.loads(call["function"]["arguments"]) == ARGUMENTS for call in calls)
    assert frames[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_none_hides_the_tools(url: str, home: FakeHome) -> None:
    home.script = text("2")
    assert post(url, tool_choice="none").json()["choices"][0]["message"] == {"role": "assistant", "content": "2"}
    assert bytes(home.asked[0].tokens) == b"1+1?<tool_call>"


def test_required_holds_the_answer_to_a_list_of_calls(url: str, home: FakeHome) -> None:
    home.script = text('[{"name": "add", "parameters": {"a": 1}}]')
    choice = post(url, tool_choice="required", parallel_tool_calls=False).json()["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["tool_calls"][0]["function"] == {"name": "add", "arguments": '{"a":1}'}
    grammar = home.asked[0].sampling.grammar
    assert not LLMatcher.validate_grammar(grammar)
    schema = json.loads(grammar)["grammars"][0]["json_schema"]
    assert schema["items"]["anyOf"][0]["properties"] == {"name": {"const": "add"}, "parameters": SCHEMA}
    assert schema["maxItems"] == 1


def test_a_named_tool_holds_the_answer_to_its_arguments(url: str, home: FakeHome) -> None:
    home.script = text('{"a": 1}')
    choice = post(url, tool_choice={"type": "function", "function": {"name": "add"}}).json()["choices"][0]
    assert choice["message"]["tool_calls"][0]["function"] == {"name": "add", "arguments": '{"a": 1}'}
    assert choice["message"]["content"] is None
    assert json.loads(home.asked[0].sampling.grammar)["grammars"][0]["json_schema"].items() >= SCHEMA.items()


def test_shared_definitions_stay_in_reach(url: str, home: FakeHome) -> None:
    home.script = text("[]")
    parameters = {"type": "object", "properties": {"a": {"$ref": "#/$defs/A"}}, "$defs": {"A": {"type": "integer"}}}
    tools = [{"type": "function", "function": {"name": "add", "parameters": parameters}}]
    assert post(url, tools=tools, tool_choice="required").status_code == 200
    schema = json.loads(home.asked[0].sampling.grammar)["grammars"][0]["json_schema"]
    assert schema["$defs"] == {"A": {"type": "integer"}}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"tools": [], "tool_choice": "required"}, "there are no tools"),
        ({"tool_choice": {"type": "function", "function": {"name": "mul"}}}, "'mul', which is not among the tools"),
        ({"tool_choice": "required", "response_format": {"type": "json_object"}}, "exclude each other"),
        (
            {
                "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "x"}}}],
                "tool_choice": "required",
            },
            "grammar",
        ),
    ],
)
def test_what_cannot_be_honoured_is_refused(url: str, change: dict, says: str) -> None:
    reply = post(url, **change)
    assert reply.status_code == 400
    assert says in reply.json()["error"]["message"]


def test_unknown_formats_are_refused_with_the_flag_to_use(server: str) -> None:
    reply = httpx.post(f"{server}/v1/chat/completions", json=ASK)
    assert reply.status_code == 400
    assert "--tool-call-parser" in reply.json()["error"]["message"]
