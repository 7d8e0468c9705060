"""uvicorn with this service's manners: its own socket, limits on slow connections, and an end in two steps.

SIGTERM or the first SIGINT: nothing new is taken, what runs is finished, exit code 0. A second signal cuts what runs; the exit
code then is the signal's. Knows nothing about what is served.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from mindmerger.errors import InputError
from mindmerger.i18n import _

_HEADER_SECONDS = 10.0  # from the first byte of a request to the end of its headers
_HEADER_BYTES = 1 << 15
_KEEP_ALIVE_SECONDS = 15
_CONNECTIONS = 500
_BACKLOG = 128


class PatientProtocol(H11Protocol):
    """uvicorn's HTTP with an end to its patience: a connection that does not finish its request's head is closed.

    uvicorn itself waits for ever for the rest of a head ("slow loris"), and for the first byte.
    """

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        super().connection_lost(exc)

    def _watch(self) -> None:
        waits = self.cycle is None or self.cycle.response_complete
        if not waits:
            self._forget()
        elif self._timer is None and not self.transport.is_closing():
            self._timer = self.loop.call_later(_HEADER_SECONDS, self._give_up)

    def _forget(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        self._timer = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.abort()


class Server(uvicorn.Server):
    """Ends in two steps: `on_stop` with the first signal, `on_force` with the second."""

    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None], on_stop: Callable[[], None],
                 on_force: Callable[[], None]) -> None:  # fmt: skip
        super().__init__(config)
        self._loop: asyncio.AbstractEventLoop
        self._on_ready, self._on_stop, self._on_force = on_ready, on_stop, on_force
        self.forced_by: int | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._loop = asyncio.get_running_loop()
        self._on_ready()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn's, but without raising the signals once more at the end: a service that stops in order has not failed."""
        numbers = [signal.SIGINT, signal.SIGTERM]
        before = {number: signal.signal(number, self.handle_exit) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # In the event loop and not here: a signal may come in the middle of anything, a line to stderr among it.
        self._loop.call_soon_threadsafe(self._stop, sig)

    def _stop(self, number: int) -> None:
        if not self.should_exit:
            self.should_exit = True
            self._on_stop()
        elif not self.force_exit:
            self.force_exit = True
            self.forced_by = number
            self._on_force()
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # what is cut here is no defect
            for connection in list(self.server_state.connections):
                connection.transport.abort()


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens at the address; who comes before `serve` waits. InputError where it cannot be had."""
    try:
        (family, kind, protocol, _name, address), *_more = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except (OSError, UnicodeError):
        raise InputError(
            _("--host {host!r} is no address of this machine: give an address, as in 127.0.0.1").format(host=host)
        ) from None
    found = socket.socket(family, kind, protocol)
    try:
        if sys.platform != "win32":  # there it would let two services share a port
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen(_BACKLOG)
        found.setblocking(False)
    except OSError as error:
        found.close()
        raise _unusable(host, port, error) from None
    return found


def _unusable(host: str, port: int, error: OSError) -> InputError:
    if error.errno == errno.EADDRINUSE:
        return InputError(
            _("port {port} is in use: another program, or another mm-serve, listens there; give another --port").format(
                port=port
            )
        )
    if error.errno == errno.EACCES:
        return InputError(_("port {port} may not be opened by this user: give a --port above 1023").format(port=port))
    return InputError(
        _("{host} port {port} cannot be opened ({reason}): give another --host or --port").format(
            host=host, port=port, reason=error.strerror
        )
    )


def url(found: socket.socket) -> str:
    """Where a browser on this machine finds the service."""
    host, port = found.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(
    app: ASGIApp,
    found: socket.socket,
    *,
    on_ready: Callable[[], None],
    on_stop: Callable[[], None],
    on_force: Callable[[], None],
    access_log: bool = False,
) -> int:
    """Serve until a signal says stop. Returns the exit code: 0, or 128 + the signal that cut what ran."""
    config = uvicorn.Config(
        app,
        http=PatientProtocol,
        ws="none",
        lifespan="off",
        loop="asyncio",
        log_config=_logging(access_log),
        access_log=access_log,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=_CONNECTIONS,
        backlog=_BACKLOG,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        h11_max_incomplete_event_size=_HEADER_BYTES,
    )
    server = Server(config, on_ready, on_stop, on_force)
    server.run(sockets=[found])
    return 0 if server.forced_by is None else 128 + server.forced_by


def _logging(access_log: bool) -> dict[str, Any]:
    """All talk to stderr: stdout has the address and nothing else."""
    level = "INFO" if access_log else "ERROR"
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"plain": {"format": "mm-serve: %(message)s"}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "plain", "stream": "ext://sys.stderr"}},
        "loggers": {
            "uvicorn": {"handlers": ["stderr"], "level": "ERROR", "propagate": False},
            "uvicorn.access": {"handlers": ["stderr"], "level": level, "propagate": False},
            "mindmerger.serve": {"handlers": ["stderr"], "level": "INFO", "propagate": False},
        },
    }
