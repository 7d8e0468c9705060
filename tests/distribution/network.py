"""Run a command where it cannot reach anything, and see whether it tries.

Two ways. `sealed`: in a network namespace that has a loopback interface and nothing else, every network system call of every
process written down by strace. `guarded`: an audit hook in every Python process (guard/sitecustomize.py), on any system; and
strace beside it where it may be used.
"""

from __future__ import annotations

import functools
import ipaddress
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GUARD = Path(__file__).parent / "guard"
SECONDS = 300

_CALLS = ("socket", "connect", "sendto", "sendmsg", "sendmmsg")
# --seccomp-bpf: only these calls are stopped at, or every step of the LLM would be.
_STRACE = ["strace", "-f", "--seccomp-bpf", "-qq", "-s", "256", "-e", f"trace={','.join(_CALLS)}"]
_FAMILY = re.compile(r"sa_family=AF_(\w+)")
_ADDRESS = re.compile(r'inet_addr\("([^"]+)"\)|inet_pton\(AF_INET6, "([^"]+)"')
_PORT = re.compile(r"sin6?_port=htons\((\d+)\)")
_SOCKET = re.compile(r"\bsocket\(AF_(\w+)")
_CI = ("CI", "TF_BUILD", "GITHUB_ACTIONS", "GITLAB_CI", "CIRCLECI", "TRAVIS", "JENKINS_URL", "CODEBUILD_BUILD_ID", "BUILDKITE",
       "TEAMCITY_VERSION", "APPVEYOR", "BITBUCKET_BUILD_NUMBER", "FCI")  # fmt: skip
# Sockets that cannot leave the machine: pipes of the system, and the kernel's own tables.
_INSIDE = {"UNIX", "LOCAL", "NETLINK", "UNSPEC"}


@dataclass(frozen=True)
class Outcome:
    """What a command did. `attempts`: every try to reach something else than this machine, in words."""

    code: int
    stdout: str
    stderr: str
    attempts: tuple[str, ...]
    calls: int


def attempts(trace: str) -> list[str]:
    """The lines of an strace that reach for another machine, or ask for a name anywhere."""
    found = []
    for line in trace.splitlines():
        if (kind := _SOCKET.search(line)) and kind[1] not in {"INET", "INET6", *_INSIDE}:
            found.append(line)  # raw packets and the like have no place here
        for family in _FAMILY.findall(line):
            if family in _INSIDE:
                if "systemd/resolve" in line:
                    found.append(line)
                continue
            address = _ADDRESS.search(line)
            port = _PORT.search(line)
            here = address is not None and ipaddress.ip_address(address[1] or address[2]).is_loopback
            # A resolver on this machine (127.0.0.53) asks others in our name.
            if not here or (port is not None and port[1] == "53"):
                found.append(line)
    return found


def environment(cache: Path, **more: str) -> dict[str, str]:
    """As a user's, with a cache of its own, and this checkout's code."""
    path = os.pathsep.join([str(ROOT / "runtime"), str(ROOT / "export"), str(ROOT)])
    # ONNX Runtime reports nothing where it believes itself under test: a user's machine does not say so.
    told = {"MINDMERGER_BUNDLE", "ORT_DISABLE_TELEMETRY", "ORT_RUNNING_UNIT_TESTS", *_CI}
    kept = {name: value for name, value in os.environ.items() if name not in told}
    # Threads that spin while they wait take minutes on a busy machine.
    return {**kept, "PYTHONPATH": path, "XDG_CACHE_HOME": str(cache), "OMP_WAIT_POLICY": "passive", **more}


@functools.cache
def why_not_sealed() -> str | None:
    """Why there are no network namespaces with strace here; None where there are."""
    for name in ("unshare", "ip", "strace"):
        if shutil.which(name) is None:
            return f"{name} is not installed"
    probe = [*_namespace(), *_STRACE, "-o", os.devnull, "true"]
    result = subprocess.run(probe, capture_output=True, text=True, timeout=SECONDS, check=False)
    return None if result.returncode == 0 else f"no namespaces or no strace: {result.stderr.strip()[-200:]}"


def _namespace() -> list[str]:
    return ["unshare", "-rn", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]


def _traced() -> bool:
    if shutil.which("strace") is None:
        return False
    return subprocess.run([*_STRACE, "-o", os.devnull, "true"], capture_output=True, check=False).returncode == 0


def sealed(command: Sequence[str], folder: Path, variables: dict[str, str], *, also: Sequence[str] = ()) -> Outcome:
    """Run `command` in a namespace of its own, under strace, which writes to `folder`/trace; `also`: further system calls."""
    trace = [*_STRACE[:-1], f"trace={','.join([*_CALLS, *also])}", "-o", str(folder / "trace")]
    return _run([*_namespace(), *trace, *command], folder, variables)


def guarded(command: Sequence[str], folder: Path, variables: dict[str, str]) -> Outcome:
    """Run `command` with the audit hook, and under strace where that may be and `sealed` may not."""
    path = os.pathsep.join([str(GUARD), variables["PYTHONPATH"]])
    variables = {**variables, "PYTHONPATH": path, "MINDMERGER_GUARD_LOG": str(folder / "guard.log")}
    trace = [*_STRACE, "-o", str(folder / "trace")] if why_not_sealed() is not None and _traced() else []
    return _run([*trace, *command], folder, variables)


def _run(command: Sequence[str], folder: Path, variables: dict[str, str]) -> Outcome:
    result = subprocess.run(
        command, capture_output=True, encoding="utf-8", env=variables, cwd=folder, timeout=SECONDS, check=False
    )
    found, calls = [], 0
    if (folder / "trace").exists():
        text = (folder / "trace").read_text(encoding="utf-8", errors="replace")
        found += attempts(text)
        calls += len(text.splitlines())
    if (folder / "guard.log").exists():
        lines = (folder / "guard.log").read_text(encoding="utf-8").splitlines()
        found += [line for line in lines if line.startswith("refused")]
        calls += len(lines)
    return Outcome(result.returncode, result.stdout, result.stderr, tuple(found), calls)
