"""The body of a request: read within limits of size and time, then checked against a class of `requests`.

Every refusal is an `ApiError` that names what is wrong. Knows nothing about what the body is for.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request

from mindmerger.serve.failures import ApiError
from mindmerger.serve.requests import NO_ANSWER_OF_THIS_KIND

MAX_BYTES = 1 << 20
"""Of a body. A question has at most some thousand characters; the rest is room for a chat's earlier messages."""
_SECONDS = 20.0
_LARGE = 1 << 16  # parsed in a thread: the event loop serves everybody else meanwhile

_BRANCH = re.compile(r"str|constrained-\w+|[\w-]+[\[(].*", re.DOTALL)

M = TypeVar("M", bound=BaseModel)


async def read(request: Request, kind: type[M]) -> M:
    """The checked body; ApiError 400, 408, 413 or 415."""
    sort = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    # A form of a foreign page can send text/plain without asking first, but not JSON.
    if sort != "application/json":
        raise ApiError(415, "the body must be JSON: send it with Content-Type: application/json")
    data = await _bytes(request)
    if len(data) > _LARGE:
        return await asyncio.to_thread(_parse, data, kind)
    return _parse(data, kind)


async def _bytes(request: Request) -> bytes:
    announced = request.headers.get("content-length", "0")
    if not announced.isascii() or not announced.isdigit() or len(announced) > 12 or int(announced) > MAX_BYTES:
        raise _too_large()
    data = bytearray()
    try:
        async with asyncio.timeout(_SECONDS):
            async for chunk in request.stream():
                data += chunk
                if len(data) > MAX_BYTES:
                    raise _too_large()
    except TimeoutError:
        raise ApiError(
            408, f"the body took longer than {_SECONDS:g} seconds", code="timeout", headers={"Connection": "close"}
        ) from None
    except ClientDisconnect:
        raise ApiError(400, "the body is not complete") from None
    return bytes(data)


def _too_large() -> ApiError:
    return ApiError(413, f"the body has more than {MAX_BYTES} bytes: send one question", code="body_too_large")


def _parse(data: bytes, kind: type[M]) -> M:
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        raise _refusal(error) from None


def _weight(fault: Any) -> tuple[bool, int, bool]:
    return fault["type"] == "extra_forbidden", len(fault["loc"]), fault["type"] not in ("string_type", "list_type")


def _refusal(error: ValidationError) -> ApiError:
    """The first fault, in a sentence, with the name of the parameter."""
    faults = error.errors(include_url=False, include_input=False)
    # of alternatives (`str | list[str]`) each has a fault; the deepest, and not the text's, is of the one that was meant
    fault: Any = max(faults[:50], key=_weight)
    if fault["type"] == "json_invalid":
        return ApiError(400, f"the body is not JSON in UTF-8 ({fault['ctx']['error']})", code="invalid_json")
    # the branch of an alternative ("list[str]") is no name; what the client named has the last place
    where = fault["loc"]
    names = [str(part) for part in where[:-1] if not _BRANCH.fullmatch(str(part))] + [str(part) for part in where[-1:]]
    if fault["type"] != "extra_forbidden" and names and _BRANCH.fullmatch(names[-1]):
        names.pop()
    param = ".".join(names)[:200] if names else None
    first = names[0] if names else ""
    if fault["type"] == "extra_forbidden":
        return ApiError(
            400, f"there is no parameter {param!r}: check its spelling", param=param, code="unknown_parameter"
        )
    if fault["type"] == "missing":
        return ApiError(400, f"the parameter {param!r} is missing", param=param, code="missing_parameter")
    if first in NO_ANSWER_OF_THIS_KIND:
        return ApiError(400, NO_ANSWER_OF_THIS_KIND[first], param=first, code="unsupported_value")
    if param is None:
        return ApiError(400, "the body must be a JSON object")
    return ApiError(400, f"{param}: {fault['msg'][0].lower()}{fault['msg'][1:]}", param=param, code="invalid_value")
