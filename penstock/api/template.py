"""Chat templates: messages and tools to the prompt that the model was trained on. Jinja, sandboxed; no tokens here."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from penstock.api.errors import bad
from penstock.api.protocol import Message, TextPart, Tool
from penstock.api.tokenizer import read_json

#: For a null engine, which has no template of its own.
PLAIN = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}assistant:"


class GenerationBlock(Extension):
    """`{% generation %}` marks what a trainer learns from; a server just prints what is inside."""

    tags = {"generation"}  # noqa: RUF012  (jinja's own shape)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class ChatTemplate:
    """One model's template. `source` "": the model has none, and `render` says so (400)."""

    def __init__(self, source: str, special: Mapping[str, str]) -> None:
        self.source = source
        self._special = dict(special)
        self._template = _environment().from_string(source)

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool] = (),
        add_generation_prompt: bool = True,
        extra: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt. Raises ApiError (400) where the template refuses the messages, or there is no template."""
        if not self.source:
            raise bad(
                "The model has no chat template: use /v1/completions, or have the server started with --chat-template.",
                "messages",
            )
        values = {**(extra or {}), **self._special, "add_generation_prompt": add_generation_prompt}
        plain = [plain_message(message) for message in messages]
        try:
            return self._template.render(values, messages=plain, tools=plain_tools(tools) or None)
        except Exception as error:
            # Templates are programs that run on the client's data: whatever they raise is about that data.
            raise bad(f"The model's chat template refused the messages: {error}.", "messages") from error


def find_template(folder: Path | None, override: str) -> str:
    """The template's text: the operator's (a file or the text itself), else the model folder's, else ""."""
    if override:
        return override if "{" in override else Path(override).read_text()
    if folder is None:
        return PLAIN
    if (path := folder / "chat_template.jinja").exists():
        return path.read_text()
    for name in ("chat_template.json", "tokenizer_config.json"):
        if found := read_json(folder / name).get("chat_template"):
            return found if isinstance(found, str) else _named(found)
    return ""


def plain_message(message: Message) -> dict[str, Any]:
    """As templates expect it: text parts joined, arguments of earlier calls as objects."""
    plain: dict[str, Any] = {"role": message.role, "content": _text(message.content)}
    for name in ("name", "tool_call_id", "reasoning_content"):
        if (value := getattr(message, name)) is not None:
            plain[name] = value
    if message.tool_calls:
        plain["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.function.name, "arguments": _arguments(call.function.arguments)},
            }
            for call in message.tool_calls
        ]
    return plain


def plain_tools(tools: Sequence[Tool]) -> list[dict[str, Any]]:
    return [
        {
            "type": "function",
            "function": {
                "name": tool.function.name,
                "description": tool.function.description or "",
                "parameters": tool.function.parameters or {"type": "object", "properties": {}},
            },
        }
        for tool in tools
    ]


def _text(content: str | list[TextPart] | None) -> str:
    if not isinstance(content, list):
        return content or ""
    for part in content:
        if part.type != "text" or part.text is None:
            raise bad(f"messages: a content part of type {part.type!r} is not supported; send text parts.", "messages")
    return "\n".join(part.text or "" for part in content)


def _arguments(text: str) -> Any:
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, dict) else text


def _named(templates: Sequence[Mapping[str, str]]) -> str:
    """Of several named templates: the one for tools knows plain chats as well."""
    by_name = {entry["name"]: entry["template"] for entry in templates}
    return by_name.get("tool_use") or by_name.get("default") or next(iter(by_name.values()))


def _environment() -> jinja2.Environment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, GenerationBlock]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda layout: datetime.now().strftime(layout)
    return environment


def _tojson(value: Any, ensure_ascii: bool = False, **layout: Any) -> str:
    """Plain JSON: jinja's own filter would escape < and > for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, **layout)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)
