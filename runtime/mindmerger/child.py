"""A process of our own that answers requests, one JSON document a line.

For what must not happen in the asking process: native code that may end it (a library built for another processor, a
damaged model), and measurements that would see each other's memory. The child is in the same process group, so Ctrl-C
reaches both, and it ends when its stdin does, so it cannot outlive who asks.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mindmerger.errors import BundleError, InputError, MindMergerError, ModelError
from mindmerger.i18n import _

Document = dict[str, Any]
_ERRORS = {error.exit_code: error for error in (MindMergerError, InputError, BundleError, ModelError)}

# The hook: Ctrl-C that arrives inside a callback from native code would be printed and forgotten.
_PROGRAM = """
import os, signal, sys
sys.unraisablehook = lambda it: os._exit(130) if it.exc_type is KeyboardInterrupt else sys.__unraisablehook__(it)
try:
    sys.path.append({root!r})
    from {module} import main
    if os.name != "nt":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {{signal.SIGINT}})
    main()
except KeyboardInterrupt:
    os._exit(130)
"""


class Child:
    """Runs `module`'s `main()` in a new interpreter; `main` is expected to call `serve`."""

    def __init__(self, module: str, *, what: str) -> None:
        self.what = what
        # -P: a stray folder in the working directory is not ours to import. The root goes last, for checkouts that
        # are not installed.
        root = str(Path(__file__).resolve().parents[1])
        program = _PROGRAM.format(root=root, module=module)
        # While Python itself starts, Ctrl-C would be a traceback: it is for the child when it has its own words for it.
        masked = None if os.name == "nt" else signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", program],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                encoding="utf-8",
                env={**os.environ, "PYTHONUTF8": "1"},
            )
        finally:
            if masked is not None:
                signal.pthread_sigmask(signal.SIG_SETMASK, masked)

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, **request: Any) -> Document:
        """Send one request, wait for its answer. An error of the child is raised here, in its class."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except OSError:
            raise self._death() from None
        line = self._process.stdout.readline()
        if not line.endswith("\n"):
            raise self._death()
        answer: Document = json.loads(line)
        if "error" in answer:
            raise _ERRORS.get(answer["exit_code"], MindMergerError)(answer["error"])
        return answer

    def _death(self) -> MindMergerError:
        code = self._process.wait()
        if code == -signal.SIGINT or code == 130:
            raise KeyboardInterrupt
        if code < 0:
            name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
            reasons = {
                "SIGILL": _("a native library was built for another processor: {command}").format(
                    command="pip install --force-reinstall --no-cache-dir llama-cpp-python onnxruntime"
                ),
                "SIGKILL": _("probably there was too little memory: close other programs or use a smaller bundle"),
            }
            reason = reasons.get(name) or _("run mm-doctor, and report this with the bundle")
            return ModelError(_("{what} ended with {name}; {reason}").format(what=self.what, name=name, reason=reason))
        return ModelError(
            _("{what} ended with code {code}: see its last words above").format(what=self.what, code=code)
        )

    def close(self) -> None:
        """End the child, politely first: it may have a half-written file to remove. Harmless when called twice."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        try:
            for seconds, stop in ((1.0, self._interrupt), (2.0, self._process.kill)):
                try:
                    self._process.wait(seconds)
                    return
                except subprocess.TimeoutExpired:
                    stop()
        except BaseException:
            self._process.kill()
            raise
        finally:
            self._process.wait()

    def _interrupt(self) -> None:
        if os.name != "nt":
            self._process.send_signal(signal.SIGINT)

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


def serve(answer: Callable[[Document], Document]) -> None:
    """In the child: answer requests until stdin ends."""
    # Native libraries may print to stdout; the answers get a descriptor of their own.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        for line in sys.stdin:
            try:
                reply = answer(json.loads(line))
            except MindMergerError as error:
                reply = {"error": str(error), "exit_code": error.exit_code}
            except MemoryError:
                reply = {
                    "error": _("there is not enough memory: close other programs or use a smaller bundle"),
                    "exit_code": 5,
                }
            out.write(json.dumps(reply) + "\n")
            out.flush()
    except (KeyboardInterrupt, BrokenPipeError):
        os._exit(130)
