"""The two files of a batch: questions that are read, and answers that are appended and never lost or repeated.

Questions: .txt (one a line), .jsonl (one object a line), .csv and .tsv (with a header). What cannot be read as a
question becomes one that fails alone.

Answers: one JSON object a line, in the order in which they end. Each line says which question it answers (`line`, the
line of the input) and which run it belongs to (`run`, a fingerprint of the questions, the bundle and the options), so
the file alone is enough to continue: there is no second file that could be lost or grow stale. A line is written by
one call; what a crash left of a last line is cut.

Knows nothing about models.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import hashlib
import io
import json
import os
import secrets
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from mindmerger.errors import InputError, ModelError
from mindmerger.i18n import _

FORMATS = (".txt", ".jsonl", ".csv", ".tsv")
DEFAULT_FIELD = "question"

# A process that dies loses nothing that was written; only a machine that loses power does, at most this many seconds.
_SYNC_SECONDS = 1.0
_BEGINNING = b'{"line": '
_LONGEST_FIELD = 16 * 1024 * 1024


@dataclass(frozen=True)
class Question:
    """One question of the input. `line` counts from 1 and is unique; `fault` is why it cannot be asked."""

    line: int
    text: str
    id: Any = None
    fault: str | None = None


# ------------------------------------------------------------------------------------------------------- questions


def read_questions(path: Path, field: str | None = None) -> list[Question]:
    """All questions of `path`, by its suffix. InputError where the file as a whole cannot be used."""
    kind = path.suffix.lower()
    if kind not in FORMATS:
        raise InputError(
            _("{path} is not a file of questions by its name: it must end in {formats}").format(
                path=path, formats=", ".join(FORMATS)
            )
        )
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise InputError(_("there is no file {path}: check the name after --input").format(path=path)) from None
    except OSError as error:
        raise InputError(_("{path} cannot be read ({reason})").format(path=path, reason=error.strerror)) from None
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise InputError(_("{path} is UTF-16: convert it to UTF-8, as with iconv").format(path=path))
    # Bytes that are no UTF-8 become lone surrogates, and only the question that has them is refused.
    text = data.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
    if kind == ".txt":
        found = list(_lines(text))
    elif kind == ".jsonl":
        found = list(_objects(text, field or DEFAULT_FIELD))
        if found and all(question.fault for question in found):
            raise InputError(
                _("no line of {path} is a JSON object with text in the field {field}: name it with --field").format(
                    path=path, field=repr(field or DEFAULT_FIELD)
                )
            )
    else:
        found = list(_rows(text, field or DEFAULT_FIELD, path, tabs=kind == ".tsv"))
    if not found:
        raise InputError(_("{path} has no questions").format(path=path))
    return found


def _lines(text: str) -> Iterator[Question]:
    # a line ends where an editor ends it; U+2028 and its kind are part of a question
    for number, line in enumerate(io.StringIO(text, newline=None), 1):
        if line.strip():
            yield Question(number, line.strip("\n"))


def _objects(text: str, field: str) -> Iterator[Question]:
    for number, line in enumerate(io.StringIO(text, newline=None), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            yield Question(number, line.strip(), fault=_("this line is not valid JSON"))
            continue
        text_of = value.get(field) if isinstance(value, dict) else None
        if isinstance(text_of, str):
            yield Question(number, text_of, value.get("id"))
        else:
            own_id = value.get("id") if isinstance(value, dict) else None
            fault = _("this line is not a JSON object with text in the field {field}").format(field=repr(field))
            yield Question(number, line.strip(), own_id, fault)


def _rows(text: str, field: str, path: Path, *, tabs: bool) -> Iterator[Question]:
    csv.field_size_limit(_LONGEST_FIELD)
    source = io.StringIO(text, newline="")
    # A tab-separated file has no quoting (IANA text/tab-separated-values): a quote in it is a quote.
    reader = csv.reader(source, delimiter="\t", quoting=csv.QUOTE_NONE) if tabs else csv.reader(source)
    try:
        header = [name.strip() for name in next(reader, [])]
        if field not in header:
            raise InputError(
                _("{path} has no column {field} (it has {columns}): name the right one with --field").format(
                    path=path, field=repr(field), columns=", ".join(header)[:200] or "-"
                )
            )
        column, identity = header.index(field), header.index("id") if "id" in header else None
        began = reader.line_num + 1
        for row in reader:
            number, began = began, reader.line_num + 1
            if not any(cell.strip() for cell in row):
                continue
            own_id = row[identity] if identity is not None and identity < len(row) else None
            if column >= len(row):
                fault = _("this row has no column {field}").format(field=repr(field))
                yield Question(number, "", own_id, fault)
            else:
                yield Question(number, row[column], own_id)
    except csv.Error as error:
        raise InputError(
            _("{path} is not a table at line {line} ({reason}): correct it").format(
                path=path, line=reader.line_num, reason=error
            )
        ) from None


# --------------------------------------------------------------------------------------------------------- answers


def fingerprint(questions: Iterable[Question], settings: object) -> str:
    """What a run is known by: 12 hex digits of the questions, 8 of the settings (a JSON value)."""
    asked = json.dumps([[question.line, question.text, question.id] for question in questions], default=str)
    return f"{_digest(asked, 12)}-{_digest(json.dumps(settings, sort_keys=True, default=str), 8)}"


def _digest(text: str, length: int) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:length]


def _is_part_of_answer(text: bytes) -> bool:
    """Whether this is what a crash may have left of a line of ours, and may be cut."""
    try:
        json.loads(text)
    except ValueError:
        return bool(text) and (text.startswith(_BEGINNING) or _BEGINNING.startswith(text) or not text.strip(b"\0"))
    # whole, and only its line end is missing: ours are `{"line": ...}`, so anything else is somebody's
    return text.startswith(_BEGINNING) and text.endswith(b"}") and b'"run": ' in text


class AnswerFile:
    """The answers of one run, appended to a file that may hold some of them already. A context manager.

    `done` are the lines of the input that are answered, `failed` those of them that have an error, `cut` the bytes of a
    half-written line that were removed. A target that is no regular file (a pipe, /dev/stdout) is only written to.
    """

    def __init__(self, path: Path, run: str, lines: Iterable[int], *, retry_failed: bool = False) -> None:
        self.path = path
        self.run = run
        self.done: set[int] = set()
        self.failed: set[int] = set()
        self.cut = 0
        self._size = 0
        self._synced = monotonic()
        self._descriptor = self._open()
        try:
            self._regular = stat.S_ISREG(os.fstat(self._descriptor).st_mode)
            if self._regular:
                self._lock()
                self._read(frozenset(lines))
                if retry_failed and self.failed:
                    self._drop_failed()
        except BaseException:
            os.close(self._descriptor)
            raise

    def write(self, line: int, record: dict[str, Any]) -> None:
        """Append the answer to the question of `line`. ModelError where it cannot be kept; what was kept before stays."""
        text = json.dumps({"line": line, **record, "run": self.run}, ensure_ascii=False)
        data = text.encode("utf-8", "backslashreplace") + b"\n"
        try:
            self._append(data)
            if monotonic() - self._synced > _SYNC_SECONDS:
                self.sync()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise self._full(error) from None
        self._size += len(data)
        self.done.add(line)
        if "error" in record:
            self.failed.add(line)

    def sync(self) -> None:
        """Have everything on the disk."""
        if self._regular:
            os.fsync(self._descriptor)
        self._synced = monotonic()

    def close(self) -> None:
        """Sync and close. Harmless when called twice."""
        if self._descriptor < 0:
            return
        descriptor = self._descriptor
        try:
            self.sync()
        except OSError as error:
            raise self._full(error) from None
        finally:
            self._descriptor = -1
            os.close(descriptor)

    def __enter__(self) -> AnswerFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self) -> int:
        try:
            # O_RDWR: what is there is read by the same descriptor that holds the lock
            access = os.O_WRONLY if self.path.exists() and not self.path.is_file() else os.O_RDWR
            return os.open(self.path, access | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
        except OSError as error:
            raise InputError(
                _("{path} cannot be opened for writing ({reason}): check the folder and its permissions").format(
                    path=self.path, reason=error.strerror
                )
            ) from None

    def _lock(self) -> None:
        """Two runs that append to one file would answer everything twice."""
        try:
            import fcntl
        except ImportError:  # Windows
            return
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                raise InputError(
                    _("another mm-run is writing {path}: wait for it, or choose another --output").format(
                        path=self.path
                    )
                ) from None
            # some network file systems have no locks; that is no reason to refuse

    def _read(self, lines: frozenset[int]) -> None:
        """Find out what is answered. Cuts what follows the last whole line; refuses the answers of another run."""
        data = self._whole()
        end = data.rfind(b"\n") + 1
        whole = data[:end].split(b"\n")[:-1]
        # A machine that lost power may have kept the length of the last line and not its bytes.
        if whole and self._record(whole[-1], lines) is None and _is_part_of_answer(whole[-1]):
            end -= len(whole.pop()) + 1
        elif data[end:] and not _is_part_of_answer(data[end:]):
            whole.append(data[end:])  # somebody else's file without a last line end: nothing of it is cut
        for number, text in enumerate(whole, 1):
            record = self._record(text, lines)
            if record is None:
                raise InputError(
                    _(
                        "{path} has something else than answers of mm-run (line {line}): choose another --output or "
                        "remove the file"
                    ).format(path=self.path, line=number)
                )
            self._check_run(str(record["run"]))
            self.done.add(record["line"])
            if "error" in record:
                self.failed.add(record["line"])
        self.cut = len(data) - end
        self._size = end
        if self.cut:
            os.ftruncate(self._descriptor, end)

    def _whole(self) -> bytes:
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        blocks = []
        while block := os.read(self._descriptor, 1 << 20):
            blocks.append(block)
        return b"".join(blocks)

    def _record(self, text: bytes, lines: frozenset[int]) -> dict[str, Any] | None:
        try:
            record = json.loads(text)
        except (ValueError, RecursionError):
            return None
        if not isinstance(record, dict) or not isinstance(record.get("line"), int):
            return None
        if "run" not in record or (record["run"] == self.run and record["line"] not in lines):
            return None
        return record

    def _check_run(self, run: str) -> None:
        if run == self.run:
            return
        if run.partition("-")[0] != self.run.partition("-")[0]:
            raise InputError(
                _("{path} holds the answers to another input: choose another --output or remove the file").format(
                    path=self.path
                )
            )
        raise InputError(
            _(
                "{path} holds answers of another bundle or of other options: use the same, choose another --output or "
                "remove the file"
            ).format(path=self.path)
        )

    def _drop_failed(self) -> None:
        """Replace the file by one without the lines that have an error, so that these are asked again."""
        kept = [line for line in self._whole().split(b"\n")[:-1] if "error" not in json.loads(line)]
        data = b"".join(line + b"\n" for line in kept)
        temporary = self.path.with_name(f".{self.path.name}.{secrets.token_hex(6)}.tmp")
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.path)
        except OSError as error:
            raise self._full(error) from None
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()
        os.close(self._descriptor)
        self._descriptor = self._open()
        self._lock()
        self._size = len(data)
        self.done -= self.failed
        self.failed.clear()

    def _append(self, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._descriptor, view) :]
        except OSError:
            if self._regular:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._descriptor, self._size)
            raise

    def _full(self, error: OSError) -> ModelError:
        return ModelError(
            _(
                "{path} cannot be written ({reason}); the {count} answers in it are kept: make room, and the same "
                "command continues"
            ).format(path=self.path, reason=error.strerror, count=len(self.done))
        )
