"""The server's own description, OpenAPI 3.1, made from the very types that decode and encode its bodies."""

from typing import Any

import msgspec

from penstock import __version__
from penstock.api import protocol
from penstock.api.config import FrontConfig
from penstock.api.errors import ErrorBody
from penstock.api.story import RequestTimeline

Doc = dict[str, Any]

_BODIES = (
    ErrorBody,
    protocol.ChatRequest,
    protocol.ChatResponse,
    protocol.CompletionRequest,
    protocol.CompletionResponse,
    protocol.TokenizeRequest,
    protocol.TokenizeResponse,
    protocol.DetokenizeRequest,
    protocol.DetokenizeResponse,
    protocol.ModelList,
    protocol.ModelCard,
    protocol.Health,
    protocol.Version,
    protocol.ServerLoad,
    RequestTimeline,
)

_ERRORS = {
    "400": "The request is not valid; the message says what to change.",
    "401": "The API key is missing or wrong.",
    "404": "There is no such model or path.",
    "405": "This path does not take that method.",
    "408": "The body took too long to arrive, or the deadline that the request came with passed while it waited.",
    "413": "The body is too large.",
    "429": "The queue is full: come again after Retry-After.",
    "500": "The engine failed on this request.",
    "503": "No engine is ready: come again after Retry-After.",
    "504": "The request made no progress for too long.",
}
_POST_ERRORS = tuple(_ERRORS)
_GET_ERRORS = ("401", "404", "405")


def document(config: FrontConfig) -> Doc:
    _, components = msgspec.json.schema_components(_BODIES, ref_template="#/components/schemas/{name}")
    for schema in components.values():
        if "model" in schema.get("properties", {}) and schema["title"].endswith("Request"):
            schema["properties"]["model"] = {"enum": [*config.served_names, None], "default": None}
    keyed: list[Doc] = [{"key": []}] if config.api_key else []
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Penstock",
            "version": __version__,
            "description": "OpenAI-compatible serving of a generative model to a service-level objective.",
        },
        "paths": _paths(keyed),
        "components": {"schemas": components, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
    }


def _paths(keyed: list[Doc]) -> Doc:
    name: Doc = {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}
    request: Doc = {"name": "request", "in": "path", "required": True, "schema": {"type": "string"}}
    return {
        "/v1/chat/completions": {"post": _generate("chat", "ChatRequest", "ChatResponse", keyed)},
        "/v1/completions": {"post": _generate("complete", "CompletionRequest", "CompletionResponse", keyed)},
        "/v1/models": {"get": _get("models", "ModelList", security=keyed)},
        "/v1/models/{model}": {"get": _get("model", "ModelCard", security=keyed, parameters=[name])},
        "/v1/requests/{request}/timeline": {
            "get": _get("timeline", "RequestTimeline", security=keyed, parameters=[request])
        },
        "/tokenize": {"post": _post("tokenize", "TokenizeRequest", "TokenizeResponse", keyed)},
        "/detokenize": {"post": _post("detokenize", "DetokenizeRequest", "DetokenizeResponse", keyed)},
        "/health": {"get": _get("health", "Health", errors=("405", "503"))},
        "/ping": {"get": _get("ping", "Health", errors=("405", "503"))},
        "/version": {"get": _get("version", "Version")},
        "/load": {"get": _get("load", "ServerLoad")},
        "/metrics": {"get": _operation("metrics", {"text/plain": {"schema": {"type": "string"}}}, ("405",))},
        "/openapi.json": {"get": _operation("openapi", {"application/json": {"schema": {"type": "object"}}}, ("405",))},
    }


def _generate(name: str, request: str, response: str, keyed: list[Doc]) -> Doc:
    operation = _post(name, request, response, keyed)
    operation["parameters"] = [
        _header("x-slo-ttft-ms", "Promise: arrival to first token, in ms, or a multiple of idle time (3x)", _TARGET),
        _header("x-slo-tpot-ms", "Promise: time per output token after the first, in ms, or a multiple (3x)", _TARGET),
        _header("x-slo-e2e-ms", "Promise: arrival to last token, in ms, or a multiple (3x)", _TARGET),
        _header("x-deadline-ms", "Drop the request if it cannot be done within so long", _WHOLE),
    ]
    operation["responses"]["200"]["content"]["text/event-stream"] = {}
    return operation


_TARGET = {"type": "string", "pattern": r"^[1-9][0-9]{0,8}(us|ms|s|x)?$"}
_WHOLE = {"type": "string", "pattern": "^[1-9][0-9]{0,8}$"}


def _post(name: str, request: str, response: str, keyed: list[Doc]) -> Doc:
    operation = _operation(name, {"application/json": {"schema": _ref(response)}}, _POST_ERRORS)
    operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": _ref(request)}}}
    return operation | ({"security": keyed} if keyed else {})


def _get(
    name: str, response: str, errors: tuple[str, ...] = _GET_ERRORS, security: list[Doc] | None = None, **more: Any
) -> Doc:
    operation = _operation(name, {"application/json": {"schema": _ref(response)}}, errors)
    return operation | more | ({"security": security} if security else {})


def _operation(name: str, content: Doc, errors: tuple[str, ...]) -> Doc:
    responses: Doc = {"200": {"description": "Done.", "content": content}}
    return {"operationId": name, "responses": responses | {status: _error(status) for status in errors}}


def _error(status: str) -> Doc:
    error: Doc = {"description": _ERRORS[status], "content": {"application/json": {"schema": _ref("ErrorBody")}}}
    if status in ("429", "503"):
        error["headers"] = {"Retry-After": {"schema": {"type": "string", "pattern": "^[0-9]+$"}, "required": True}}
    return error


def _header(name: str, about: str, schema: Doc) -> Doc:
    return {"name": name, "in": "header", "required": False, "description": about, "schema": schema}


def _ref(name: str) -> Doc:
    return {"$ref": f"#/components/schemas/{name}"}
