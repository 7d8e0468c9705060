"""Where a result comes to be: a hidden folder beside its target, renamed when all is right, gone when anything is not.

Knows nothing about what is written.
"""

from __future__ import annotations

import secrets
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from mindmerger.errors import InputError, MindMergerError, ModelError
from mindmerger.manifest import MANIFEST_NAME

TERMINATED = 128 + signal.SIGTERM


def check_free(out: Path, force: bool) -> None:
    """Raises InputError where `out` is taken: by anything without `force`, by anything but a bundle with it."""
    if not out.exists() and not out.is_symlink():
        return
    if not force:
        raise InputError(f"{out} exists: give another --out, or --force to replace it")
    # --force replaces a bundle, not somebody's home.
    if not out.is_dir() or (any(out.iterdir()) and not (out / MANIFEST_NAME).is_file()):
        raise InputError(f"{out} exists and is not a bundle: --force replaces bundles only")


@contextmanager
def building(out: Path) -> Iterator[Path]:
    """A hidden folder beside `out`, removed on the way out whatever happened. OSError and MemoryError become ModelErrors."""
    temporary = out.parent / f".{out.name}.{secrets.token_hex(6)}.tmp"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        yield temporary
    except MindMergerError:
        raise
    except OSError as error:
        raise ModelError(f"{out} cannot be written ({error.strerror or error}): check space and permissions") from None
    except MemoryError:
        raise ModelError("there is not enough memory for this: close other programs") from None
    finally:
        with _undisturbed():
            shutil.rmtree(temporary, ignore_errors=True)


def publish(temporary: Path, out: Path) -> None:
    """Give `temporary` its name; what had it before stays until then, and comes back if that fails."""
    old = temporary.with_suffix(".old")
    with _undisturbed():
        if out.exists():
            out.replace(old)
        try:
            temporary.replace(out)
        except OSError:
            if old.exists():
                old.replace(out)
            raise
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM ends the work as Ctrl-C does, with cleaning up, and with the exit code 143."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(_number: int, _frame: FrameType | None) -> None:
        raise SystemExit(TERMINATED)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """A second Ctrl-C, pressed by someone who lost patience, does not stop the cleaning up."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
