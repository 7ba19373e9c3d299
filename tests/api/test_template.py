"""Chat templates: where they come from, and what they may use."""

import json
from datetime import datetime
from pathlib import Path

import pytest

from penstock.api.errors import ApiError
from penstock.api.protocol import Function, FunctionCall, Message, Tool, ToolCall
from penstock.api.template import PLAIN, ChatTemplate, find_template

HI = [Message(role="user", content="hi <b>")]


def render(source: str, messages: list[Message] = HI, special: dict[str, str] | None = None, **more) -> str:
    return ChatTemplate(source, special or {}).render(messages, **more)


def test_a_template_in_the_usual_style() -> None:
    source = """{{ bos_token }}
{%- for message in messages %}
    {%- if loop.last and message.role == 'x' %}{% break %}{% endif %}
    <|{{ message['role'] }}|>{{ message['content'] | trim }}{{ eos_token }}
{% endfor %}
{%- if add_generation_prompt %}<|assistant|>{% endif %}"""
    messages = [Message(role="system", content=" be brief "), Message(role="user", content="hi")]
    special = {"bos_token": "<s>", "eos_token": "</s>"}
    expected = "<s>    <|system|>be brief</s>\n    <|user|>hi</s>\n<|assistant|>"
    assert render(source, messages, special).replace("<s><", "<s>    <") == expected
    assert "assistant" not in render(source, messages, special, add_generation_prompt=False)


def test_what_templates_rely_on() -> None:
    assert render("{{ messages | tojson }}") == '[{"role": "user", "content": "hi <b>"}]'
    assert render("{{ {'a': 1} | tojson(indent=2) }}") == '{\n  "a": 1\n}'
    assert render("{{ strftime_now('%Y') }}") == str(datetime.now().year)
    assert render("{% generation %}x{{ messages[0].content }}{% endgeneration %}") == "xhi <b>"
    assert render("{{ deep }}", extra={"deep": "thought"}) == "thought"


def test_tools_and_earlier_calls_are_objects() -> None:
    tool = Tool(type="function", function=Function(name="f", parameters={"type": "object"}))
    assert json.loads(render("{{ tools[0] | tojson }}", tools=[tool]))["function"]["parameters"] == {"type": "object"}
    assert render("{{ tools is none }}") == "True"
    calls = [ToolCall(id="1", function=FunctionCall(name="f", arguments='{"a": 1}'))]
    source = "{{ messages[0].tool_calls[0].function.arguments.a + 1 }}"
    assert render(source, [Message(role="assistant", tool_calls=calls)]) == "2"


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("{{ raise_exception('no system role') }}", "no system role"),
        ("{{ messages[5].content }}", "refused the messages"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "refused the messages"),
        ("", "no chat template"),
    ],
)
def test_refusals_are_400(source: str, says: str) -> None:
    with pytest.raises(ApiError, match=says) as caught:
        render(source)
    assert caught.value.status == 400


def test_requests_cannot_replace_what_the_server_sets() -> None:
    source = "{{ messages[0].content }}{{ bos_token }}"
    assert render(source, special={"bos_token": "<s>"}, extra={"messages": [], "bos_token": "evil"}) == "hi <b><s>"


def test_where_templates_come_from(tmp_path: Path) -> None:
    assert find_template(None, "") == PLAIN
    assert find_template(tmp_path, "") == ""
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({"chat_template": "from config"}))
    assert find_template(tmp_path, "") == "from config"
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "with tools"}]
    config.write_text(json.dumps({"chat_template": named}))
    assert find_template(tmp_path, "") == "with tools"
    (tmp_path / "chat_template.jinja").write_text("from file")
    assert find_template(tmp_path, "") == "from file"
    assert find_template(tmp_path, "{{ 1 }}") == "{{ 1 }}"
    assert find_template(tmp_path, str(tmp_path / "chat_template.jinja")) == "from file"
    with pytest.raises(FileNotFoundError):
        find_template(tmp_path, "/nowhere.jinja")
