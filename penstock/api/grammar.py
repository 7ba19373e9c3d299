"""Structured output: what the client may write, to a llguidance grammar, checked. The engine enforces it."""

import asyncio
from functools import lru_cache
from typing import Any

import msgspec
from llguidance import LLMatcher, grammar_from

from penstock.api.errors import bad
from penstock.api.protocol import JsonObject, ResponseFormat, SampledRequest

#: Longer grammars take seconds to check, and the last ones are kept.
CHARS_MAX = 1 << 16

#: Whitespace in a JSON text is at most a deep indentation at a time: else a model can go on with it for ever.
_SPACE = {"whitespace_pattern": r"[ \t\r\n]{0,40}"}

_SOURCES = ("response_format", "structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar")


async def grammar_of(request: SampledRequest) -> str:
    """The grammar that the request asks for, "" for none. Raises ApiError (400) where it is not a valid one."""
    given = [name for name in _SOURCES if (value := getattr(request, name)) is not None and not _free(value)]
    if len(given) > 1:
        raise bad(f"{' and '.join(given)} exclude each other: send one of them.", given[1])
    if not given:
        return ""
    kind, source = _wish(request, given[0])
    return await compiled(kind, source, given[0])


async def compiled(kind: str, source: Any, param: str) -> str:
    """The grammar of a wish: `kind` is json_schema, regex, choice or grammar. Large schemas take a while to check."""
    text = source if isinstance(source, str) else msgspec.json.encode(source).decode()
    if len(text) > CHARS_MAX:
        raise bad(f"{param} has {len(text)} characters, and at most {CHARS_MAX} are taken: simplify it.", param)
    grammar, error = await asyncio.to_thread(_check, kind, text)
    if error:
        raise bad(f"{param} is not a grammar that can be enforced: {error}", param, "invalid_grammar")
    return grammar


@lru_cache(maxsize=256)
def _check(kind: str, text: str) -> tuple[str, str]:
    """(grammar, what is wrong with it)."""
    try:
        grammar = _grammar(kind, text)
        return grammar, LLMatcher.validate_grammar(grammar)
    except (ValueError, RecursionError) as error:
        return "", str(error)


def _grammar(kind: str, text: str) -> str:
    if kind == "json_schema":
        return str(LLMatcher.grammar_from_json_schema(msgspec.json.decode(text, type=dict[str, Any]), defaults=_SPACE))
    if kind == "choice":
        quoted = " | ".join(msgspec.json.encode(choice).decode() for choice in msgspec.json.decode(text))
        return str(LLMatcher.grammar_from_lark(f"start: {quoted}"))
    return str(grammar_from(kind, text))


def _free(value: Any) -> bool:
    return isinstance(value, ResponseFormat) and value.type == "text"


def _wish(request: SampledRequest, name: str) -> tuple[str, Any]:
    """(kind, source) of the one field that is given."""
    value = getattr(request, name)
    if name == "response_format":
        return "json_schema", _schema(value)
    if name != "structured_outputs":
        return {"guided_json": "json_schema"}.get(name, name.removeprefix("guided_")), value
    given = [field for field in ("json", "regex", "choice", "grammar") if getattr(value, field) is not None]
    if len(given) != 1:
        raise bad("structured_outputs must have exactly one of json, regex, choice and grammar.", name)
    return {"json": "json_schema"}.get(given[0], given[0]), getattr(value, given[0])


def _schema(wish: ResponseFormat) -> JsonObject:
    if wish.type == "json_object":
        return {"type": "object"}
    if wish.json_schema is None or wish.json_schema.schema is None:
        raise bad("response_format of type json_schema needs json_schema.schema.", "response_format")
    return wish.json_schema.schema
