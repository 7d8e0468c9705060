"""What goes wrong over HTTP, in OpenAI's form: `{"error": {"message", "type", "param", "code"}}`.

One class, `ApiError`; the functions below are its instances by name, so that a status, a type and a code are decided once.
Knows nothing about models.
"""

from __future__ import annotations

import json
from typing import Any

from starlette.responses import Response

from mindmerger.errors import InputError, MindMergerError
from mindmerger.serve.tickets import Busy


class Json(Response):
    """A JSON answer in UTF-8; text that is no Unicode (half of a surrogate pair) stays an escape."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return encode(content)


def encode(content: Any) -> bytes:
    """JSON in one line."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode("utf-8", "backslashreplace")


class ApiError(Exception):
    """An answer that is an error. `kind` is OpenAI's `type`; `retry_after` is in seconds."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.param = param
        self.code = code
        self.headers = dict(headers or {})
        if retry_after is not None:
            self.headers["Retry-After"] = str(retry_after)

    def document(self) -> dict[str, Any]:
        """The body."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    def response(self) -> Json:
        """The whole answer."""
        return Json(self.document(), status_code=self.status, headers=self.headers)


def from_error(error: BaseException) -> ApiError:
    """What a failure of the model is over HTTP: a question that cannot be asked is the client's, the rest is ours."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, Busy):
        return stopping(error.retry_after) if error.stopping else queue_full(error.retry_after)
    if isinstance(error, InputError):
        return ApiError(400, str(error))
    if isinstance(error, MindMergerError):
        return ApiError(500, str(error), kind="server_error")
    return ApiError(500, "the service failed: its log on stderr says why", kind="server_error")


def queue_full(retry_after: int) -> ApiError:
    """More questions wait than the service was told to keep."""
    return ApiError(
        429,
        "too many questions are waiting: ask again later",
        kind="rate_limit_error",
        code="queue_full",
        retry_after=retry_after,
    )


def stopping(retry_after: int) -> ApiError:
    """The service ends: what runs is finished, nothing new begins."""
    return ApiError(
        503,
        "the service is stopping: ask again when it has been started anew",
        kind="server_error",
        code="stopping",
        retry_after=retry_after,
    )


def unknown_model(name: str, known: str) -> ApiError:
    """A request for a model that is not served here."""
    return ApiError(
        404,
        f"the model {name[:100]!r} is not served here: ask for {known!r}",
        param="model",
        code="model_not_found",
    )


def not_found(path: str) -> ApiError:
    """No such address."""
    return ApiError(404, f"there is nothing at {path[:200]!r}: /openapi.json says what there is", code="not_found")
