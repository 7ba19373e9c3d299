"""The ASGI application: routes, keys, request ids, and errors in OpenAI's shape. Built over a home; owns no engine."""

import asyncio
import contextlib
import hmac
import logging
import secrets
from collections.abc import Awaitable, Callable
from typing import cast

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from penstock.api import admin, instances
from penstock.api.call import Call, ClientGone
from penstock.api.chat import chat
from penstock.api.completions import completions
from penstock.api.config import FrontConfig
from penstock.api.errors import ApiError, internal
from penstock.api.front import Front
from penstock.api.sse import error_frames
from penstock.api.story import timeline
from penstock.drivers.home import BaseHome

log = logging.getLogger("penstock.api")

Handler = Callable[[Front, Call], Awaitable[None]]

_ROUTES: tuple[tuple[str, str, Handler], ...] = (
    ("POST", "/v1/chat/completions", chat),
    ("POST", "/v1/completions", completions),
    ("GET", "/v1/models", admin.models),
    ("GET", "/v1/models/{model:path}", admin.model),
    ("GET", "/v1/requests/{request}/timeline", timeline),
    ("POST", "/tokenize", admin.tokenize),
    ("POST", "/detokenize", admin.detokenize),
    ("GET", "/health", admin.health),
    ("GET", "/ping", admin.health),
    ("GET", "/version", admin.version),
    ("GET", "/load", admin.load),
    ("GET", "/metrics", admin.metrics),
    ("GET", "/openapi.json", admin.openapi),
    ("GET", "/admin/instances", instances.instances),
    ("POST", "/admin/instances", instances.add),
    ("POST", "/admin/instances/restart", instances.restart),
    ("DELETE", "/admin/instances/{instance:int}", instances.remove),
    ("POST", "/admin/instances/{instance:int}/drain", instances.drain),
    ("POST", "/admin/instances/{instance:int}/role", instances.role),
    ("POST", "/admin/instances/{instance:int}/move", instances.move),
)

#: How long the client may take for the error that ends its stream.
_LAST_WORDS_S = 5.0

_KEYED = ("/v1/", "/tokenize", "/detokenize")
_ADMIN = "/admin/"


def create_app(home: BaseHome, config: FrontConfig) -> Starlette:
    """The application; `app.state.front.ledger` is what `ledger.status_line` reads.

    Raises FileNotFoundError or ValueError if the model folder has no usable tokenizer or a setting is unknown.
    """
    front = Front(home, config)
    app = Starlette(
        routes=[Route(path, _Endpoint(front, handler), methods=[method]) for method, path, handler in _ROUTES],
        middleware=[Middleware(_Door, api_key=config.api_key, admin_key=config.admin_key)],
        exception_handlers={HTTPException: _http_error},
    )
    app.router.redirect_slashes = False
    app.state.front = front
    return app


class _Endpoint:
    """One handler as an ASGI application. Whatever goes wrong in it ends this one request."""

    def __init__(self, front: Front, handler: Handler) -> None:
        self._front = front
        self._handler = handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        call = Call(scope, receive, send)
        try:
            await self._handler(self._front, call)
        except ClientGone:
            pass
        except ApiError as error:
            await _fail(call, error)
        except Exception:
            log.exception("%s %s failed", scope["method"], scope["path"])
            await _fail(call, internal())


async def _fail(call: Call, error: ApiError) -> None:
    if call.started:
        # Perhaps it failed because the client does not read: then it will not read this either.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WORDS_S):
                await call.write(error_frames(error))
                await call.end()
    else:
        await call.reply(error.status, error.body(), headers=error.headers)


class _Door:
    """Checks the key, and gives every answer its x-request-id: the client's, or a new one."""

    def __init__(self, app: ASGIApp, api_key: str, admin_key: str) -> None:
        self._app = app
        self._key = api_key.encode()
        self._admin_key = admin_key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        named = (b"x-request-id", _request_id(headers.get(b"x-request-id", b"")))

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"].append(named)
            await send(message)

        if (refusal := self._refusal(scope["path"], headers.get(b"authorization", b""))) is not None:
            await _fail(Call(scope, receive, send_named), refusal)
            return
        await self._app(scope, receive, send_named)

    def _refusal(self, path: str, authorization: bytes) -> ApiError | None:
        """Why this one may not do that."""
        if path.startswith(_ADMIN):
            if not self._admin_key:
                return ApiError(404, "Start the server with --admin-key to have this path.", code="not_found")
            if not _is(self._admin_key, authorization):
                message = "The admin key is missing or wrong: send it in the header 'Authorization: Bearer <key>'."
                return ApiError(401, message, code="invalid_admin_key")
        elif self._key and path.startswith(_KEYED) and not _is(self._key, authorization):
            message = "The API key is missing or wrong: send it in the header 'Authorization: Bearer <key>'."
            return ApiError(401, message, code="invalid_api_key")
        return None


def _is(known: bytes, authorization: bytes) -> bool:
    kind, _, key = authorization.partition(b" ")
    return kind.lower() == b"bearer" and hmac.compare_digest(key.strip(), known)


def _request_id(given: bytes) -> bytes:
    """The client's id if it is a decent header value, else a new one."""
    decent = 0 < len(given) <= 128 and all(0x21 <= byte <= 0x7E for byte in given)
    return given if decent else secrets.token_hex(16).encode()


async def _http_error(request: Request, error: Exception) -> Response:
    """What the router refuses: unknown paths and wrong methods."""
    status = cast(HTTPException, error).status_code
    headers = dict(cast(HTTPException, error).headers or {})
    if status == 405:
        text = f"{request.url.path} does not take {request.method}: use {headers.get('Allow', 'another method')}."
        refusal = ApiError(405, text, code="method_not_allowed")
    else:
        text = f"There is nothing at {request.url.path}; /openapi.json lists what there is."
        refusal = ApiError(status, text, code="not_found")
    return Response(refusal.body(), status, headers, "application/json")
