"""mm-run without a question on a terminal: ask one after the other, and steer in between.

A line is a question. Several lines are one question when each but the last ends in a backslash, or when they stand
between two lines of three quotation marks. A line that begins with "/" is a command. Ctrl-C stops an answer, Ctrl-D ends.
Each question is answered alone: nothing is remembered of the one before.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mindmerger.cli.explain import compare, explanation, need_gate, without_gate
from mindmerger.cli.interrupt import Reader
from mindmerger.cli.options import STEERING
from mindmerger.cli.output import Printer, note, paint, report
from mindmerger.errors import InputError, MindMergerError
from mindmerger.i18n import _

if TYPE_CHECKING:
    from mindmerger.generation import Generation
    from mindmerger.model import MergedModel

_PROMPT = "> "
_MORE = "… "
_QUOTES = '"""'
_HISTORY_LINES = 1000


class Quit(Exception):
    """/quit."""


@dataclass
class Session:
    """A conversation with one model: the settings in force, and what was seen so far."""

    model: MergedModel
    keywords: dict[str, Any]
    printer: Printer
    load_ms: float = 0.0
    last: Generation | None = None
    answered: int = 0
    tokens: int = 0
    decode_ms: float = 0.0
    began_with: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.began_with = dict(self.keywords)

    def enter(self, entry: str) -> None:
        """Do what one entry says. MindMergerError where it cannot be done; Quit at /quit."""
        if entry.startswith("/"):
            name, *arguments = entry.split()
            command = self._commands().get(name)
            if command is None:
                raise InputError(_("there is no command {name}: /help lists them").format(name=name[:40]))
            command(arguments)
        elif entry.strip():
            self._ask(entry)

    def _commands(self) -> dict[str, Callable[[list[str]], None]]:
        return {
            "/help": self._help,
            "/language": self._language,
            "/steer": self._steer,
            "/explain": self._explain,
            "/stats": self._stats,
            "/reset": self._reset,
            "/quit": self._quit,
        }

    def _ask(self, question: str) -> None:
        stream = self.model.generate(question, **self.keywords)
        try:
            with Reader(self.model, stream) as chunks:
                self.printer.stream(chunks)
        except KeyboardInterrupt:
            note(_("stopped"))
            return
        self._keep(stream.result)
        merged = self.keywords.get("soft_prompt", True)
        self.printer.finish(self.model, stream.result, merged=merged, load_ms=self.load_ms)

    def _keep(self, result: Generation) -> None:
        self.last = result
        self.answered += 1
        self.tokens += len(result.token_ids)
        self.decode_ms += result.timings.decode_ms

    def _help(self, _arguments: list[str]) -> None:
        lines = {
            "/language sw": _("answer as if the question were in this language; /language alone: let the gate decide"),
            "/steer 0.5 1.2": _("encoder weight and LLM weight, each from 0 to 2; /steer alone: as trained"),
            "/explain": _("the last question again: LLM alone, as trained, as set, with the gate's weights"),
            "/stats": _("timings of the last answer, and totals"),
            "/reset": _("settings as at the start, totals at zero"),
            "/quit": _("leave, as Ctrl-D does"),
        }
        width = max(map(len, lines))
        click.echo("\n".join(f"{name:<{width}}  {text}" for name, text in lines.items()), file=sys.stderr)
        click.echo(
            _(
                'A question of several lines: end each but the last with "\\", or put it between lines of \'"""\'. Ctrl-C '
                "stops an answer. Each question is answered alone."
            ),
            file=sys.stderr,
        )

    def _language(self, arguments: list[str]) -> None:
        need_gate(self.model.manifest)
        if len(arguments) > 1:
            raise InputError(_("{command} takes one value, as in {example}").format(
                command="/language", example="/language sw"
            ))  # fmt: skip
        if not arguments:
            self.keywords.pop("language", None)
        else:
            gate = self.model.manifest.gate
            known = () if gate is None else gate.names
            if arguments[0] not in known:
                raise InputError(_("this bundle does not know the language {code}: give one of {known}").format(
                    code=arguments[0][:40], known=", ".join(sorted(known))
                ))  # fmt: skip
            self.keywords["language"] = arguments[0]
        self._say_settings()

    def _steer(self, arguments: list[str]) -> None:
        if not arguments:
            self.keywords.pop("encoder_weight", None)
            self.keywords.pop("llm_weight", None)
        else:
            try:
                encoder, llm = map(float, arguments)
            except ValueError:
                encoder = llm = -1.0
            if not (0 <= encoder <= 2 and 0 <= llm <= 2):  # NaN is in no range
                raise InputError(_("{command} takes two numbers from 0 to 2, as in {example}").format(
                    command="/steer", example="/steer 0.5 1.2"
                ))  # fmt: skip
            self.keywords |= {"encoder_weight": encoder, "llm_weight": llm}
        if sentence := without_gate(self.model.manifest):
            note(sentence)
        self._say_settings()

    def _say_settings(self) -> None:
        set_now = [f"{name} {self.keywords[name]}" for name in STEERING if name in self.keywords]
        note(", ".join(set_now) or _("as trained"))

    def _explain(self, _arguments: list[str]) -> None:
        if self.last is None:
            raise InputError(_("there is no answer to explain yet: ask a question first"))

        try:
            click.echo(explanation(compare(self.model, self.last.question, self.keywords), self.model.manifest))
        except KeyboardInterrupt:
            note(_("stopped"))

    def _stats(self, _arguments: list[str]) -> None:
        if self.last is not None:
            click.echo(report(self.model, self.last, self.load_ms), file=sys.stderr)
        speed = f", {self.tokens / self.decode_ms * 1e3:.0f} tokens/s" if self.decode_ms else ""
        click.echo(f"total    {self.answered} answers, {self.tokens} tokens{speed}", file=sys.stderr)

    def _reset(self, _arguments: list[str]) -> None:
        self.keywords = dict(self.began_with)
        self.last, self.answered, self.tokens, self.decode_ms = None, 0, 0, 0.0
        self._say_settings()

    def _quit(self, _arguments: list[str]) -> None:
        raise Quit


def repl(session: Session, *, history: bool) -> None:
    """Read and do entries until Ctrl-D or /quit."""
    remember = _history() if history else _editing()
    if not session.printer.quiet:
        note(_("{bundle}: ask in any language; /help, Ctrl-D ends").format(bundle=session.model.manifest.name))
    while True:
        try:
            entry = read_entry()
        except KeyboardInterrupt:  # what was typed is thrown away, as in a shell
            click.echo(file=sys.stderr)
            continue
        except EOFError:
            click.echo(file=sys.stderr)
            return
        remember()
        try:
            session.enter(entry)
        except Quit:
            return
        except MindMergerError as error:
            click.echo(paint(f"mm-run: {error}", sys.stderr, fg="red"), file=sys.stderr)
        except KeyboardInterrupt:
            note(_("stopped"))


def read_entry(read: Callable[[str], str] | None = None) -> str:
    """One entry, of one line or several. EOFError at the end of the input."""
    read = read or _read_line
    line = read(_PROMPT)
    if line.strip().startswith(_QUOTES):
        lines = [line.strip().removeprefix(_QUOTES)]
        while not (lines[-1].rstrip().endswith(_QUOTES)):
            lines.append(read(_MORE))
        lines[-1] = lines[-1].rstrip().removesuffix(_QUOTES)
        return "\n".join(lines).strip("\n")
    lines = [line]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1][:-1]
        lines.append(read(_MORE))
    return "\n".join(lines)


def _read_line(prompt: str) -> str:
    if sys.stdout.isatty():
        return input(prompt)
    # stdout is a file or a pipe: the prompt is talk and has no business there
    sys.stderr.write(prompt)
    sys.stderr.flush()
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.removesuffix("\n")


def _editing() -> Callable[[], None]:
    """Line editing and completion of commands, where the system has readline."""
    with contextlib.suppress(ImportError):
        import readline

        names = ("/explain", "/help", "/language ", "/quit", "/reset", "/stats", "/steer ")

        def complete(text: str, state: int) -> str | None:
            return [*(name for name in names if text and name.startswith(text)), None][state]

        readline.set_completer_delims(" \t\n")
        readline.set_completer(complete)
        readline.parse_and_bind("tab: complete")
    return lambda: None


def _history() -> Callable[[], None]:
    """Read the history; returns what to call after each entry to have it kept, so that a killed session loses none."""
    nothing = _editing()
    try:
        import readline
    except ImportError:
        return nothing
    path = history_file()
    if path is None:
        return nothing
    try:
        # only its owner may read what was asked
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        readline.read_history_file(path)
    except OSError:
        return nothing
    readline.set_history_length(_HISTORY_LINES)
    kept = readline.get_current_history_length()

    def keep() -> None:
        nonlocal kept
        now = readline.get_current_history_length()
        if now > kept:
            with contextlib.suppress(OSError, AttributeError):
                readline.append_history_file(now - kept, path)
            kept = now

    return keep


def history_file() -> Path | None:
    """Where the history is kept: in the cache folder; None where there is none."""
    from mindmerger.cache import writable_folder

    folder = writable_folder("history")
    return None if folder is None else folder / "mm-run"
