"""A terminal for tests: a program behind a pseudo-terminal, typed at and read from."""

from __future__ import annotations

import codecs
import os
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_COLOUR = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """mm-run on a terminal of its own. A context manager; the program is ended with it."""

    def __init__(self, *arguments: str, env: dict[str, str] | None = None, prelude: str = "") -> None:
        import pty

        self._ours, theirs = pty.openpty()
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"{prelude}\nfrom mindmerger.cli.run import main\nmain()", *arguments],
            stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True, close_fds=True,
            env={**os.environ, "PYTHONPATH": str(ROOT / "runtime"), "TERM": "xterm", "INPUTRC": "/dev/null", **(env or {})},
            preexec_fn=_own_terminal,
        )  # fmt: skip
        os.close(theirs)
        self.raw = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._read_to = 0

    @property
    def text(self) -> str:
        """Everything that was shown, without colours."""
        return _COLOUR.sub("", self.raw).replace("\r", "")

    def expect(self, pattern: str, timeout: float = 60) -> str:
        """Wait for `pattern` in what came since the last match; returns what came up to its end."""
        give_up = time.monotonic() + timeout
        while True:
            found = re.search(pattern, self.text[self._read_to :], re.DOTALL)
            if found:
                begin, self._read_to = self._read_to, self._read_to + found.end()
                return self.text[begin : self._read_to]
            if time.monotonic() > give_up or not self._more(give_up):
                raise AssertionError(f"no {pattern!r} in {self.text[self._read_to :]!r}")

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def line(self, text: str) -> None:
        self.type(text + "\n")

    def end(self, timeout: float = 60) -> int:
        """Wait for the program's end; its exit code."""
        while self._more(time.monotonic() + timeout):
            pass
        return self._process.wait(timeout)

    def _more(self, give_up: float) -> bool:
        ready, _, _ = select.select([self._ours], [], [], max(0.0, give_up - time.monotonic()))
        if not ready:
            return False
        try:
            data = os.read(self._ours, 65536)
        except OSError:  # Linux says so at the end
            return False
        self.raw += self._decoder.decode(data)  # a read may end within a character
        return bool(data)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
        os.close(self._ours)


def _own_terminal() -> None:
    """Make the pseudo-terminal the one that Ctrl-C comes from."""
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
