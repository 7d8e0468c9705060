"""Who may ask: the rules on Host, Origin and the API key, and the headers that every answer carries.

A service on the loopback interface is reachable by every web page that its user has open. So a foreign page's request is
refused by its Origin, and by its Host where a name of the page's own was pointed at this machine (DNS rebinding). Knows
nothing about what is asked.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import socket
from collections.abc import Iterable
from dataclasses import dataclass, field

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mindmerger.serve.failures import ApiError

_LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
_SEND_SECONDS = 60.0  # for one part of an answer: a client that reads nothing is no client
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Frame-Options": "DENY",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
}


def is_loopback(host: str) -> bool:
    """Whether an address or name to listen on is this machine's own."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


@dataclass(frozen=True)
class Rules:
    """`host` is the address that is listened on; `key` None asks for none.

    `hosts` are further names of this machine, `origins` pages of other origins that may ask ("https://example.org").
    `open_paths` need no key: they tell nothing of use to a stranger.
    """

    host: str
    key: str | None = None
    hosts: frozenset[str] = frozenset()
    origins: frozenset[str] = frozenset()
    open_paths: frozenset[str] = frozenset()
    _digest: bytes = field(init=False, repr=False, compare=False, default=b"")

    def __post_init__(self) -> None:
        if self.key is not None:
            object.__setattr__(self, "_digest", _digest(self.key))

    def check(self, headers: Headers, path: str) -> None:
        """ApiError where the request is not from whom it should be."""
        self._check_host(headers.getlist("host"))
        self._check_origin(headers)
        if self.key is not None and path not in self.open_paths:
            self._check_key(headers)

    def _check_host(self, named: list[str]) -> None:
        name = _host_name(named[0]) if len(named) == 1 else None
        if name is None or not self._is_ours(name):
            raise ApiError(
                403,
                "this service does not answer to that Host: use the address that it printed, or start it with --allow-host",
                kind="permission_error",
                code="foreign_host",
            )

    def _is_ours(self, name: str) -> bool:
        if name in self.hosts or name == self.host.lower():
            return True
        if is_loopback(self.host):
            return name in _LOOPBACK_NAMES
        # A rebound name is a name: whoever writes the address itself has not been led here by DNS.
        return name == "localhost" or name == socket.gethostname().lower() or _is_address(name)

    def _check_origin(self, headers: Headers) -> None:
        origin = headers.get("origin")
        if origin is None:
            foreign = headers.get("sec-fetch-site") in ("cross-site", "same-site")
            # a link to the page from elsewhere is no harm
            allowed = not foreign or headers.get("sec-fetch-mode") == "navigate"
        else:
            host = headers.get("host", "").lower()
            allowed = origin.lower() in self.origins or origin.lower() in (f"http://{host}", f"https://{host}")
        if not allowed:
            raise ApiError(
                403,
                "pages of another origin may not ask here: start the service with --allow-origin to let one",
                kind="permission_error",
                code="foreign_origin",
            )

    def _check_key(self, headers: Headers) -> None:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        # digests have one length, whatever was given
        if scheme.lower() != "bearer" or not hmac.compare_digest(_digest(given.strip()), self._digest):
            raise ApiError(
                401,
                "the API key is missing or wrong: send it as Authorization: Bearer KEY",
                kind="authentication_error",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )


class Guard:
    """Middleware: the rules before everything, the headers on everything, and an end to clients that do not read."""

    def __init__(self, app: ASGIApp, rules: Rules) -> None:
        self._app = app
        self._rules = rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                present = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    present.setdefault(name, value)
            async with asyncio.timeout(_SEND_SECONDS):
                await send(message)

        try:
            self._rules.check(Headers(scope=scope), scope["path"])
        except ApiError as error:
            await error.response()(scope, receive, guarded)
            return
        await self._app(scope, receive, guarded)


def lower_all(names: Iterable[str]) -> frozenset[str]:
    """Names of hosts and origins, which are compared without regard to case; an origin's last slash is no part of it."""
    return frozenset(name.lower().rstrip("/") for name in names)


def _host_name(value: str) -> str | None:
    """The name or address of a Host header, without port and brackets; None where it is none."""
    value = value.strip().lower()
    if value.startswith("["):
        name, bracket, port = value[1:].partition("]")
        if not bracket or (port and not port.startswith(":")):
            return None
        port = port[1:]
    else:
        name, _, port = value.partition(":")
    if port and not (port.isascii() and port.isdigit()):
        return None
    return name.rstrip(".") or None


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
