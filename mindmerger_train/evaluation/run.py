"""Ask every question of every arm, and remember the answers.

An arm is a model in a mode. Models are loaded one after another; of one model, the questions go round by round through all its
modes, so that what an interrupted run has is balanced. What this module does not know: how answers become tables, how a
model computes them.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import click

from mindmerger.errors import DataError
from mindmerger_train.data.benchmarks import Question
from mindmerger_train.evaluation.backends import Backend, Identity, Model
from mindmerger_train.evaluation.journal import Entry, Journal, Mark, key_of
from mindmerger_train.evaluation.modes import ALONE, Mode, available
from mindmerger_train.evaluation.scoring import score

# Questions of a mode before it is the next mode's turn: enough for the last slots of a batch not to matter.
ROUND = 256
_ERRORS_SHOWN = 3
_QUIET_SECONDS = 30.0  # between lines where the progress is no terminal


@dataclass(frozen=True)
class Contestant:
    """A model in this run. `name` is how tables call it."""

    name: str
    model: Model
    identity: Identity

    @property
    def mark(self) -> Mark:
        identity = self.identity
        return Mark(identity.engine, identity.name, identity.traits.method, identity.fingerprint, identity.llm)


@dataclass(frozen=True)
class Arm:
    """A model in a mode: one column of the tables."""

    contestant: Contestant
    mode: Mode


@dataclass(frozen=True)
class Settings:
    """How all arms are asked."""

    max_tokens: int
    calculator: bool | None = None
    threads: int | None = None
    slots: int | None = None


Opener = Callable[[Contestant], Backend]


def choose_arms(contestants: Sequence[Contestant], modes: Iterable[Mode]) -> tuple[list[Arm], list[str]]:
    """The arms, and a sentence for every mode that is left out: a model does not have it, or its LLM alone is another's."""
    wanted = list(modes)
    arms: list[Arm] = []
    notes: list[str] = []
    asked_alone: dict[str, str] = {}
    for contestant in contestants:
        has, lacks = available(wanted, contestant.identity.traits)
        notes += [f"{contestant.name}: no mode {mode.name!r}, {reason}" for mode, reason in lacks]
        for mode in has:
            if mode is ALONE:
                same = asked_alone.setdefault(contestant.identity.llm, contestant.name)
                if same != contestant.name:
                    notes.append(f"{contestant.name}: its LLM alone is that of {same}, asked once")
                    continue
            arms.append(Arm(contestant, mode))
    return arms, notes


def unasked(arms: Sequence[Arm], questions: Sequence[Question], journal: Journal) -> int:
    """How many generations are left to do. Raises DataError where an answer in the file is to another question."""
    left = 0
    for arm in arms:
        for question in questions:
            entry = journal.entries.get(_key(arm, question))
            if entry is None:
                left += 1
            elif (entry.question, entry.target, entry.kind) != (question.text, question.target, question.kind):
                raise DataError(
                    f"the generations in --out answer another question {question.language}/{question.index}: "
                    "the benchmark's file has changed; choose another --out"
                )
    return left


def ask(
    arms: Sequence[Arm],
    questions: Sequence[Question],
    journal: Journal,
    settings: Settings,
    opener: Opener,
    tick: Callable[[Entry], None] = lambda entry: None,
) -> None:
    """Ask what the journal does not have; `tick` is told every answer."""
    for contestant in dict.fromkeys(arm.contestant for arm in arms):
        own = [arm for arm in arms if arm.contestant == contestant]
        rounds = [questions[start : start + ROUND] for start in range(0, len(questions), ROUND)]
        work = [
            (arm, left)
            for part in rounds
            for arm in own
            if (left := [question for question in part if _key(arm, question) not in journal.entries])
        ]
        if not work:
            continue
        with closing(opener(contestant)) as backend:
            for arm, left in work:
                for entry in _answers(backend, arm, left, settings):
                    journal.add(entry)
                    tick(entry)


def _answers(backend: Backend, arm: Arm, questions: Sequence[Question], settings: Settings) -> Iterator[Entry]:
    traits = arm.contestant.identity.traits
    replies = backend.generate(
        [question.text for question in questions],
        max_tokens=settings.max_tokens,
        calculator=settings.calculator,
        options=arm.mode.options,
        languages=[traits.told(arm.mode, question.language) for question in questions] if traits.languages else (),
    )
    for reply in replies:
        question = questions[reply.index]
        result = score(question.kind, reply.text, question.target)
        yield Entry(
            model=arm.contestant.name,
            mode=arm.mode.name,
            language=question.language,
            index=question.index,
            kind=question.kind,
            question=question.text,
            target=question.target,
            text=reply.text,
            predicted=result.predicted,
            # a question that could not be asked is not right, even where 0 is
            right=result.right and reply.error is None,
            finish=reply.finish,
            tokens=reply.tokens,
            forced=reply.forced,
            error=reply.error,
        )


def _key(arm: Arm, question: Question) -> str:
    return key_of(arm.contestant.name, arm.mode.name, question.language, question.index)


class Progress:
    """How far it is, on stderr: a bar with the remaining time on a terminal, else a line now and then."""

    def __init__(self, total: int, done_before: int) -> None:
        stream = sys.stderr
        self._bar: Any = (
            click.progressbar(length=total, label="generations", show_pos=True, show_eta=True, file=stream)
            if stream.isatty()
            else None
        )
        self._total, self._done = total, 0
        self._said = time.monotonic()
        self._first = 0.0
        self._errors = 0
        if done_before:
            click.echo(f"mm-eval: {done_before} generations are there already, {total} are left", err=True)

    def tick(self, entry: Entry) -> None:
        """One more is done."""
        self._done += 1
        if entry.error is not None:
            self._complain(entry)
        now = time.monotonic()
        if self._done == 1:
            self._first = now  # loading the model says nothing about the pace
        if self._bar is not None:
            self._bar.update(1)
        elif now - self._said >= _QUIET_SECONDS or self._done == self._total:
            self._said = now
            left = ""
            if 1 < self._done < self._total:
                pace = (now - self._first) / (self._done - 1)
                left = f", {_duration(pace * (self._total - self._done))} left"
            click.echo(f"mm-eval: {self._done} of {self._total} generations{left}", err=True)

    def _complain(self, entry: Entry) -> None:
        self._errors += 1
        if self._errors <= _ERRORS_SHOWN:
            more = "" if self._errors < _ERRORS_SHOWN else " (others are only counted)"
            click.echo(f"mm-eval: {entry.language}/{entry.index} could not be asked: {entry.error}{more}", err=True)

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.render_finish()


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
