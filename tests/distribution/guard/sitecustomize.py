"""Python imports this when it starts, in every process below one that has this folder in PYTHONPATH.

Each look-up of a name and each connection that is not to this machine is written to $MINDMERGER_GUARD_LOG and refused. An audit
hook sees what Python code does, whatever it imports and whenever, and cannot be taken off; what native code does by itself it
does not see, which is what strace is for.
"""

from __future__ import annotations

import ipaddress
import os
import sys
from pathlib import Path
from typing import Any

_ADDRESSED = ("socket.connect", "socket.sendto", "socket.sendmsg", "socket.bind")
_NAMED = ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr", "socket.getnameinfo")
_HERE = ("localhost", "", None)


def _is_here(host: Any) -> bool:
    if isinstance(host, bytes):
        host = host.decode("ascii", "replace")
    if host in _HERE:
        return True
    try:
        return ipaddress.ip_address(str(host).partition("%")[0]).is_loopback
    except ValueError:
        return False


def _guard(event: str, arguments: tuple[Any, ...]) -> None:
    if event in _ADDRESSED:
        address = arguments[1]
        # paths are sockets of this machine; None is a socket that is connected already
        wrong = isinstance(address, tuple) and not _is_here(address[0])
    elif event in _NAMED:
        address = arguments[0]
        wrong = not _is_here(address[0] if isinstance(address, tuple) else address)
    else:
        return
    with Path(os.environ["MINDMERGER_GUARD_LOG"]).open("a", encoding="utf-8") as log:
        print("refused" if wrong else "allowed", event, address, file=log)
    if wrong:
        raise OSError(f"the network is off: {event} {address}")


if os.environ.get("MINDMERGER_GUARD_LOG"):
    sys.addaudithook(_guard)
