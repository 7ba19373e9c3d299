"""Errors as a client sees them: an HTTP status and OpenAI's body. A message says what to change."""

import math
import re

import msgspec


class ErrorDetail(msgspec.Struct, kw_only=True):
    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(msgspec.Struct, kw_only=True):
    error: ErrorDetail


class ApiError(Exception):
    """Ends a request with `status`. Raised anywhere below the routes; harms no other request."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        retry_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.detail = ErrorDetail(message=message, type=type, param=param, code=code)
        self.headers: dict[str, str] = {}
        if retry_s is not None:
            self.headers["retry-after"] = str(max(1, math.ceil(retry_s)))

    def body(self) -> bytes:
        return msgspec.json.encode(ErrorBody(error=self.detail))


def bad(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    return ApiError(400, message, param=param, code=code)


def busy(reason: str, retry_s: float = 1.0) -> ApiError:
    return ApiError(429, reason, type="rate_limit_error", code="server_overloaded", retry_s=retry_s)


def unavailable(reason: str, retry_s: float = 1.0, code: str = "server_unavailable") -> ApiError:
    return ApiError(503, reason, type="server_error", code=code, retry_s=retry_s)


def internal() -> ApiError:
    """For what should never happen; the details are in the server's log, not in the answer."""
    message = "Something went wrong inside the server while it handled this request; its log says what."
    return ApiError(500, message, type="server_error", code="internal_error")


_AT = re.compile(r" - at (?:key in )?`\$(?P<path>[^`]*)`$")


def undecodable(error: msgspec.DecodeError) -> ApiError:
    """What msgspec found wrong with a body, with the field's name apart."""
    text = str(error)
    where = _AT.search(text)
    if not isinstance(error, msgspec.ValidationError):
        return bad(f"The request body must be a JSON object: {text}.", code="invalid_json")
    if where is None:
        return bad(f"{text}.")
    param = where["path"].lstrip(".") or None
    return bad(f"{param or 'request body'}: {text[: where.start()]}.", param)
