"""No command of the runtime reaches for a network: docs/offline.md says what is proved here and how."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.distribution import network
from tests.distribution.network import Outcome

QUESTION = "¿Cuánto es 15 + 27?"
Run = Callable[[Sequence[str]], Outcome]
HERE = Path(__file__).parent


def of(module: str) -> list[str]:
    return [sys.executable, "-c", f"from mindmerger.cli.{module} import main\nmain()"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all of this module: the first question prepares the LLM, which must need no network either."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(params=["sealed", "guarded"])
def offline(request: pytest.FixtureRequest, tmp_path: Path, cache: Path) -> Run:
    """Runs a command; `sealed` is skipped where the system allows no namespaces or no strace."""
    if request.param == "sealed" and (reason := network.why_not_sealed()) is not None:
        pytest.skip(reason)
    run = network.sealed if request.param == "sealed" else network.guarded

    def ran(command: Sequence[str]) -> Outcome:
        outcome = run(command, tmp_path, network.environment(cache))
        assert outcome.attempts == ()
        return outcome

    return ran


def test_mm_run(offline: Run) -> None:
    outcome = offline([*of("run"), QUESTION])
    assert outcome.code == 0, outcome.stderr
    assert outcome.stdout.splitlines()[-1] == "Answer: 42"


def test_mm_doctor(offline: Run) -> None:
    outcome = offline([*of("doctor"), "--quick", "--json"])
    findings = {one["check"]: one["level"] for one in json.loads(outcome.stdout)["findings"]}
    # memory and processor are this machine's matter
    assert findings["network"] == findings["packages"] == findings["file merger.onnx"] == "ok", outcome.stdout


def test_mm_serve_and_its_page(offline: Run) -> None:
    outcome = offline([sys.executable, str(HERE / "ask_service.py"), QUESTION, *of("serve"), "--slots", "1"])
    assert outcome.code == 0, outcome.stderr
    found = json.loads(outcome.stdout)
    assert found["foreign"] == []
    assert set(found["page"].values()) == {200} and len(found["page"]) >= 5, found["page"]
    assert set(found["api"].values()) == {200} and found["status"] == 200 and found["code"] == 0
    assert found["answer"]["mindmerger"]["answer"] == "42"
    # the service and who asks it did use sockets, and they were seen
    assert outcome.calls > 5


def test_a_frozen_application(tmp_path: Path, cache: Path) -> None:
    """$MINDMERGER_FROZEN: the command line of a frozen application; it is given the question as its last argument.

    One that prints its answer has to be right. A window does not end by itself: after a while it is told to, and must by then
    have opened an LLM and still be there.
    """
    frozen = os.environ.get("MINDMERGER_FROZEN")
    if not frozen:
        pytest.skip("MINDMERGER_FROZEN names no application")
    if (reason := network.why_not_sealed()) is not None:
        pytest.skip(reason)
    variables = network.environment(cache, QT_QPA_PLATFORM="offscreen")
    variables.pop("PYTHONPATH")
    if bundle := os.environ.get("MINDMERGER_BUNDLE"):
        variables["MINDMERGER_BUNDLE"] = bundle
    seconds = os.environ.get("MINDMERGER_FROZEN_SECONDS", "30")
    outcome = network.sealed(
        ["timeout", "--preserve-status", seconds, *shlex.split(frozen), QUESTION], tmp_path, variables, also=("openat",)
    )
    assert outcome.attempts == ()
    opened = re.findall(r'openat\([^"]*"([^"]+\.gguf)"[^)]*\) = \d', (tmp_path / "trace").read_text(errors="replace"))
    assert opened, outcome.stderr
    assert outcome.code == 128 + signal.SIGTERM or (outcome.code == 0 and "42" in outcome.stdout), outcome.stderr


def test_onnx_runtime_is_imported_at_one_place_which_silences_it() -> None:
    """It reports home by native code unless it is told before it is loaded."""
    importing = {
        path.name
        for folder in ("runtime", "export")
        for path in (network.ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if (isinstance(node, ast.Import) and any(alias.name.partition(".")[0] == "onnxruntime" for alias in node.names))
        or (isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "onnxruntime")
    }
    assert importing == {"onnx_runtime.py"}


# ------------------------------------------------------------------------------------- would it be seen, if it were so?

CULPRITS = {
    "connect": "socket.create_connection(('192.0.2.1', 80), 2)",
    "connect6": "socket.create_connection(('2001:db8::1', 443), 2)",
    "send": "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('192.0.2.1', 53))",
    "name": "socket.getaddrinfo('example.invalid', 443)",
    "here-name": "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(('127.0.0.53', 53))",
    "grandchild": "subprocess.run([sys.executable, '-c', 'import socket; socket.create_connection((\"192.0.2.1\", 80), 2)'])",
}


@pytest.mark.parametrize("culprit", CULPRITS)
def test_an_attempt_would_be_seen(culprit: str, tmp_path: Path) -> None:
    """Documentation addresses, tried only where nothing can leave: in the namespace, and behind a hook that refuses."""
    program = f"import socket, subprocess, sys\ntry: {CULPRITS[culprit]}\nexcept OSError: pass"
    command = [sys.executable, "-c", program]
    (tmp_path / "guarded").mkdir()
    (tmp_path / "sealed").mkdir()
    variables = network.environment(tmp_path)
    if culprit != "here-name":  # to this machine: the hook lets it, strace knows what is at this port
        assert network.guarded(command, tmp_path / "guarded", variables).attempts
    if network.why_not_sealed() is None:
        resolver = Path("/etc/resolv.conf")
        if culprit == "name" and "nameserver" not in (resolver.read_text() if resolver.is_file() else ""):
            pytest.skip("no name server is configured here, so none is asked")
        assert network.sealed(command, tmp_path / "sealed", variables).attempts


def test_what_stays_here_is_no_attempt() -> None:
    trace = """
1 socket(AF_UNIX, SOCK_STREAM|SOCK_CLOEXEC, 0) = 3
1 connect(3, {sa_family=AF_UNIX, sun_path="/var/run/nscd/socket"}, 110) = -1 ENOENT
1 socket(AF_NETLINK, SOCK_RAW|SOCK_CLOEXEC, NETLINK_ROUTE) = 3
1 connect(4, {sa_family=AF_INET, sin_port=htons(8017), sin_addr=inet_addr("127.0.0.1")}, 16) = 0
1 connect(4, {sa_family=AF_INET6, sin6_port=htons(8017), inet_pton(AF_INET6, "::1", &sin6_addr)}, 28) = 0
"""
    assert network.attempts(trace) == []
    assert len(network.attempts(trace.replace("127.0.0.1", "10.0.0.1").replace('"::1"', '"fe80::1"'))) == 2
    assert network.attempts("1 socket(AF_PACKET, SOCK_RAW, 768) = -1 EPERM")
