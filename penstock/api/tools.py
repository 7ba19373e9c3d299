"""Tool calls: which tools the model sees, what it is held to, and how its calls are read out of the text.

Models write calls in formats of their own; the known ones are in `PARSERS`. With tool_choice "required" or a named tool
a grammar dictates the format, so that any model will do.
"""

import json
import re
import secrets
import string
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import msgspec
from msgspec.json import encode

from penstock.api.errors import bad
from penstock.api.grammar import compiled
from penstock.api.protocol import ChatRequest, FinishReason, FunctionCall, JsonObject, NamedTool, Tool, ToolCall
from penstock.api.reader import Piece
from penstock.api.stops import overlap


class Said(msgspec.Struct):
    """What a stretch of an answer says: text, complete calls, and how it ends."""

    text: str = ""
    calls: list[ToolCall] = []
    finish: FinishReason | None = None

    def add(self, more: "Said") -> None:
        self.text += more.text
        self.calls = self.calls + more.calls
        self.finish = more.finish


class Parser(Protocol):
    """Text in pieces to text and calls. What may be part of a call is held back until the call is complete."""

    def push(self, text: str) -> Said: ...

    def end(self) -> Said: ...


class Plain:
    """No calls: text is text."""

    def push(self, text: str) -> Said:
        return Said(text)

    def end(self) -> Said:
        return Said()


class Tagged:
    """Hermes and Qwen: <tool_call>{"name": ..., "arguments": {...}}</tool_call>, any number, anywhere."""

    open, close = "<tool_call>", "</tool_call>"

    def __init__(self) -> None:
        self._held = ""
        self._called = False

    def push(self, text: str) -> Said:
        self._held += text
        said = Said()
        while (start := self._held.find(self.open)) >= 0:
            end = self._held.find(self.close, start)
            self._say(said, self._held[:start])
            if end < 0:
                self._held = self._held[start:]
                return said
            self._call(said, self._held[start + len(self.open) : end])
            self._held = self._held[end + len(self.close) :]
        cut = len(self._held) - overlap(self._held, self.open)
        self._say(said, self._held[:cut])
        self._held = self._held[cut:]
        return said

    def end(self) -> Said:
        held, self._held = self._held, ""
        said = Said()
        if held.startswith(self.open):
            self._call(said, held.removeprefix(self.open), tail="")
        else:
            self._say(said, held)
        return said

    def _say(self, said: Said, text: str) -> None:
        # Line breaks between calls are part of the format, not of the answer.
        if not self._called or text.strip():
            said.text += text

    def _call(self, said: Said, body: str, tail: str = close) -> None:
        calls = list(_calls(body))
        self._called = self._called or bool(calls)
        said.add(Said(calls=calls) if calls else Said(f"{self.open}{body}{tail}"))


class Closing:
    """A call, once begun, goes on to the end of the answer.

    `begins` tells from where on the text held so far is, or may become, a call (None: nowhere); `read` finds its calls
    at the end (none: it was text after all).
    """

    def __init__(self, begins: Callable[[str], int | None], read: Callable[[str], list[ToolCall]]) -> None:
        self._begins = begins
        self._read = read
        self._held = ""

    def push(self, text: str) -> Said:
        self._held += text
        at = self._begins(self._held)
        shown, self._held = (self._held, "") if at is None else (self._held[:at], self._held[at:])
        return Said(shown)

    def end(self) -> Said:
        calls = self._read(self._held)
        return Said(calls=calls) if calls else Said(self._held)


_PYTHON_TAG = "<|python_tag|>"
_TOOL_CALLS = "[TOOL_CALLS]"


class Llama3(Closing):
    """Llama 3.1 and later: the whole answer is {"name": ..., "parameters": {...}}; several are separated by `;`."""

    def __init__(self) -> None:
        super().__init__(self._begin, lambda text: list(_calls(text.replace(_PYTHON_TAG, ""))))
        self._answering = False

    def _begin(self, text: str) -> int | None:
        start = text.lstrip()
        call = not self._answering and (start[:1] in ("", "{") or _PYTHON_TAG.startswith(start[: len(_PYTHON_TAG)]))
        self._answering = not call
        return 0 if call else None


class Mistral(Closing):
    """[TOOL_CALLS][{"name": ..., "arguments": {...}}], or, newer, [TOOL_CALLS]name{...} for each call."""

    _one = re.compile(r"\s*(?P<name>[\w.-]+)(?:\[CALL_ID\]\w+)?(?:\[ARGS\])?\s*(?P<arguments>\{.*\})\s*$", re.DOTALL)

    def __init__(self) -> None:
        super().__init__(self._begin, self._all)

    @staticmethod
    def _begin(text: str) -> int | None:
        at = text.find(_TOOL_CALLS)
        return at if at >= 0 else len(text) - overlap(text, _TOOL_CALLS)

    def _all(self, text: str) -> list[ToolCall]:
        return [call for part in text.split(_TOOL_CALLS)[1:] for call in self._part(part)]

    def _part(self, part: str) -> list[ToolCall]:
        if (match := self._one.match(part)) is None:
            return list(_calls(part))
        return [_call(match["name"], match["arguments"])]


class Dictated(Closing):
    """A grammar holds the whole answer to the form that `read` knows."""

    def __init__(self, read: Callable[[str], list[ToolCall]]) -> None:
        super().__init__(lambda text: 0, read)


class Format(msgspec.Struct, frozen=True):
    parser: Callable[[], Parser]
    #: Whether the format's marks are special tokens, which are otherwise not shown.
    special: bool = False


PARSERS = {
    "hermes": Format(Tagged),
    "llama3_json": Format(Llama3, special=True),
    "mistral": Format(Mistral, special=True),
}


def choose_parser(wanted: str, template: str) -> str:
    """A name from `PARSERS`, or "" for none; "auto" goes by the marks in the chat template. ValueError if unknown."""
    if wanted in PARSERS:
        return wanted
    if wanted == "none":
        return ""
    if wanted != "auto":
        raise ValueError(f"tool call parser {wanted!r}: choose auto, none, {', '.join(PARSERS)}")
    # Some templates put XML, not JSON, between Hermes' tags.
    if Tagged.open in template and "<function=" not in template:
        return "hermes"
    if _TOOL_CALLS in template:
        return "mistral"
    return "llama3_json" if _PYTHON_TAG in template else ""


class ToolReader:
    """One answer's pieces to what they say."""

    def __init__(self, parser: Parser, calls_max: int | None) -> None:
        self._parser = parser
        self._calls_left = calls_max
        self._called = False

    def read(self, piece: Piece) -> Said:
        said = self._parser.push(piece.text)
        if piece.finish is not None:
            said.add(self._parser.end())
        if self._calls_left is not None:
            said.calls = said.calls[: self._calls_left]
            self._calls_left -= len(said.calls)
        self._called = self._called or bool(said.calls)
        said.finish = _finish(piece.finish, self._called)
        return said


class ToolPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What a request's tools mean for its answers."""

    parser: Callable[[], Parser] = Plain
    #: Those that the chat template is told of.
    shown: Sequence[Tool] = ()
    #: What the answer is held to, "" for nothing.
    grammar: str = ""
    show_special: bool = False
    calls_max: int | None = None

    def reader(self) -> ToolReader:
        return ToolReader(self.parser(), self.calls_max)


async def plan_tools(request: ChatRequest, parser: str, template: str) -> ToolPlan:
    """Raises ApiError (400) where the tools cannot be honoured."""
    choice = request.tool_choice or "auto"
    if not request.tools:
        if request.tool_choice not in (None, "none", "auto"):
            raise bad("tool_choice asks for a tool, and there are no tools: send tools.", "tool_choice")
        return ToolPlan()
    if choice == "none":
        return ToolPlan()
    if choice != "auto" and request.response_format is not None and request.response_format.type != "text":
        raise bad("response_format and a tool_choice that asks for a call exclude each other.", "response_format")
    calls_max = 1 if request.parallel_tool_calls is False else None
    if isinstance(choice, NamedTool):
        return await _named(request.tools, choice.function.name)
    if choice == "required":
        grammar = await compiled("json_schema", _array(request.tools, calls_max), "tools")
        return ToolPlan(parser=lambda: Dictated(_listed), shown=request.tools, grammar=grammar, calls_max=calls_max)
    return _auto(request.tools, parser, template, calls_max)


def _auto(tools: Sequence[Tool], parser: str, template: str, calls_max: int | None) -> ToolPlan:
    if not parser:
        message = (
            "How this model writes tool calls is not known: have the server started with --tool-call-parser "
            f"({', '.join(PARSERS)}), or send tool_choice 'required', 'none' or a named tool."
        )
        raise bad(message, "tools", "unsupported_parameter")
    if "tools" not in template:
        raise bad("The model's chat template takes no tools: leave them out.", "tools", "unsupported_parameter")
    chosen = PARSERS[parser]
    return ToolPlan(parser=chosen.parser, shown=tools, show_special=chosen.special, calls_max=calls_max)


async def _named(tools: Sequence[Tool], name: str) -> ToolPlan:
    tool = next((tool for tool in tools if tool.function.name == name), None)
    if tool is None:
        raise bad(f"tool_choice names {name!r}, which is not among the tools.", "tool_choice")
    grammar = await compiled("json_schema", tool.function.parameters or {"type": "object"}, "tools")
    return ToolPlan(parser=lambda: Dictated(lambda text: [_call(name, text)]), shown=tools, grammar=grammar)


def _array(tools: Sequence[Tool], calls_max: int | None) -> JsonObject:
    """The schema of a list of calls. Definitions move to the top, where references look for them."""
    definitions: JsonObject = {}
    for tool in tools:
        definitions.update((tool.function.parameters or {}).get("$defs", {}))
    schema: JsonObject = {"type": "array", "minItems": 1, "items": {"anyOf": [_entry(tool) for tool in tools]}}
    if calls_max is not None:
        schema["maxItems"] = calls_max
    return schema | ({"$defs": definitions} if definitions else {})


def _entry(tool: Tool) -> JsonObject:
    parameters = {key: value for key, value in (tool.function.parameters or {}).items() if key != "$defs"}
    return {
        "type": "object",
        "properties": {"name": {"const": tool.function.name}, "parameters": parameters or {"type": "object"}},
        "required": ["name", "parameters"],
        "additionalProperties": False,
    }


def _listed(text: str) -> list[ToolCall]:
    return list(_calls(text))


def _calls(text: str) -> Iterator[ToolCall]:
    """All calls in a run of JSON values (objects with a name, or lists of them), up to where it is none."""
    decoder, at = json.JSONDecoder(), 0
    while at < len(text):
        if text[at].isspace() or text[at] == ";":
            at += 1
            continue
        try:
            value, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            return
        for entry in value if isinstance(value, list) else [value]:
            if isinstance(entry, dict) and isinstance(entry.get("name"), str):
                yield _call(entry["name"], entry.get("arguments", entry.get("parameters", {})))


def _call(name: str, arguments: Any) -> ToolCall:
    text = arguments if isinstance(arguments, str) else encode(arguments).decode()
    return ToolCall(id=_call_id(), function=FunctionCall(name=name, arguments=text))


def _call_id() -> str:
    """Nine letters and digits: what Mistral's templates insist on, and others accept."""
    return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(9))


def _finish(reason: str | None, called: bool) -> FinishReason | None:
    if reason is None:
        return None
    if reason == "stop" and called:
        return "tool_calls"
    return "stop" if reason == "stop" else "length"
