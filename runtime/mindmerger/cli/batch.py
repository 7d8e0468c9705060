"""mm-run --input: every question of a file answered into another file, with interruptions that lose nothing.

Files are the matter of batch_files.py, how several questions are answered at once that of the model.
"""

from __future__ import annotations

import dataclasses
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mindmerger.cli.batch_files import AnswerFile, Question, fingerprint, read_questions
from mindmerger.cli.interrupt import Reader
from mindmerger.cli.output import note
from mindmerger.cli.progress import Progress
from mindmerger.errors import InputError, MindMergerError
from mindmerger.i18n import _

if TYPE_CHECKING:
    from types import FrameType

    from mindmerger.generation import Generation
    from mindmerger.manifest import Manifest
    from mindmerger.model import MergedModel

SOME_FAILED = 10
"""Exit code: the batch is complete, and some of its lines have an error instead of an answer."""
TERMINATED = 143


class Terminated(BaseException):
    """SIGTERM, as an exception, so that files are closed on the way out."""


@dataclasses.dataclass(frozen=True)
class Batch:
    """What to answer, where to, and with which options of `generate`."""

    input: Path
    output: Path
    field: str | None
    retry_failed: bool
    quiet: bool
    keywords: dict[str, Any]


def run_batch(batch: Batch, manifest: Manifest, load: Callable[[], MergedModel]) -> None:
    """Answer what is not answered yet. Leaves by click's Exit with a code other than 0 when some have failed."""
    questions = read_questions(batch.input, batch.field)
    if batch.output.exists() and batch.output.samefile(batch.input):
        raise InputError(_("--input and --output are the same file: choose another --output"))
    run = fingerprint(questions, [manifest.to_json(), batch.keywords])
    lines = [question.line for question in questions]
    with AnswerFile(batch.output, run, lines, retry_failed=batch.retry_failed) as answers:
        if answers.cut and not batch.quiet:
            note(_("a half-written last line was removed from {path}").format(path=batch.output))
        left = [question for question in questions if question.line not in answers.done]
        if answers.done and left and not batch.quiet:
            note(_("continuing: {done} of {total} are answered").format(done=len(answers.done), total=len(questions)))
        try:
            with _sigterm_raises():
                if left:
                    _answer(batch, left, load, answers)
        except (KeyboardInterrupt, Terminated) as stop:
            if not batch.quiet:
                note(
                    _("stopped after {done} of {total}; the same command continues").format(
                        done=len(answers.done), total=len(questions)
                    )
                )
            if isinstance(stop, Terminated):
                raise click.exceptions.Exit(TERMINATED) from None
            raise
    failed = len(answers.failed)
    if not batch.quiet:
        note(
            _("{path}: {answered} answered, {failed} failed").format(
                path=batch.output, answered=len(answers.done) - failed, failed=failed
            )
        )
    if failed:
        raise click.exceptions.Exit(SOME_FAILED)


def _answer(batch: Batch, left: list[Question], load: Callable[[], MergedModel], answers: AnswerFile) -> None:
    with Progress(len(left), _("answering"), name="mm-run", quiet=batch.quiet) as progress:
        for question in left:
            if question.fault is not None:
                answers.write(question.line, _failure(question, InputError(question.fault)))
                progress.step()
        left = [question for question in left if question.fault is None]
        if not left:
            return
        with load() as model:
            items = model.generate_batch([question.text for question in left], **batch.keywords)
            with Reader(model, items) as reader:
                for item in reader:
                    question, result = left[item.index], item.generation
                    if result is not None and result.finish_reason == "cancelled":
                        continue  # nobody's answer: it is asked again
                    record = _success(question, result) if result else _failure(question, item.error)
                    answers.write(question.line, record)
                    progress.step()


def _identity(question: Question) -> dict[str, Any]:
    return ({} if question.id is None else {"id": question.id}) | {"question": question.text}


def _success(question: Question, result: Generation) -> dict[str, Any]:
    return _identity(question) | {
        "text": result.text,
        "answer": result.answer,
        "finish_reason": result.finish_reason,
        "tokens": len(result.token_ids),
    }


def _failure(question: Question, error: MindMergerError | None) -> dict[str, Any]:
    # the sentence is for people and in their language, the kind is for programs
    return _identity(question) | {"error": str(error), "error_kind": type(error).__name__}


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
