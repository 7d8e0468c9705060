"""mm-eval: how often a merge is right, language by language, and how often its LLM alone is.

Heavy imports are inside the command, so that --help is immediate.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

import click

from mindmerger.cli import run_body, run_command

if TYPE_CHECKING:
    from mindmerger_train.evaluation.results import Results
    from mindmerger_train.evaluation.run import Arm, Contestant

KINDS = ("qa", "mgsm", "msvamp", "xcsqa", "xnli")
# The papers' 512 for mathematics; a label is a few tokens; plain questions as the embedded default's own limit.
DEFAULT_MAX_TOKENS = {"qa": 256, "mgsm": 512, "msvamp": 512, "xcsqa": 16, "xnli": 16}
TERMINATED = 143

_EPILOG = """\b
Examples:
  mm-eval tests/data/arithmetic.tsv --bundle mindmerger --out runs/a
  mm-eval DATA/msvamp --kind msvamp --limit 200 --max-tokens 96 --out runs/msvamp
  mm-eval DATA/mgsm --kind mgsm --checkpoint runs/augmentation --languages sw,th
  mm-eval DATA/msvamp --kind msvamp --checkpoint runs/steering --out runs/abl --ablate
  mm-eval DATA/msvamp --kind msvamp --out runs/stages --ablate "mapping only=runs/mapping" \\
          --ablate "augmentation only=runs/augmentation-alone" --ablate both=runs/augmentation
  mm-eval --report --out runs/msvamp            the tables of what is there so far

\b
QUESTIONS by --kind:
  qa       TSV or JSON lines with language, question, answer (docs/data.md)
  mgsm, msvamp, xcsqa, xnli    the file or folder as its publishers lay it out

\b
The table goes to stdout. --out DIR keeps generations.jsonl (every answer, written as it ends),
results.md, results.csv, results.json and results.svg. The same command again goes on where it was
stopped; --limit and --languages may grow. A DIR of another model or other options is refused.

\b
Answers are greedy and scored as in the papers. "difference" is merge minus LLM alone; p is how likely
one at least as large is where there is none. docs/evaluation.md says how all figures are made.

\b
Exit codes:
  0    done
  2    wrong command line
  3    an option cannot be used
  4    the bundle is missing, damaged or of an unknown version
  5    the models could not be loaded or run on this machine
  6    the checkpoint is missing, damaged or does not fit
  7    the questions or the folder of --out cannot be used
  130  stopped with Ctrl-C, 143 by SIGTERM: nothing is lost, the same command goes on"""


@click.command(epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.argument("questions", required=False, type=click.Path(path_type=Path))
@click.option("--kind", type=click.Choice(KINDS), default="qa", show_default=True, help="What QUESTIONS are.")
@click.option("--bundle", metavar="DIR_OR_NAME", help="Ask a bundle (default: the default one).")
@click.option("--checkpoint", metavar="DIR_OR_NAME", help="Ask a checkpoint, in torch.")
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), metavar="DIR", help="Keep generations and results here."
)
@click.option("--languages", metavar="CODES", help="Only these, as in es,sw,th.")
@click.option(
    "--limit", type=click.IntRange(min=1), metavar="N", help="N questions per language, spread evenly over its file."
)
@click.option("--max-tokens", type=click.IntRange(min=1), metavar="N",
              help="Longest answer (default: qa 256, mgsm and msvamp 512 as in the papers, others 16).")  # fmt: skip
@click.option("--ablate", "ablations", multiple=True, is_flag=False, flag_value="", metavar="[NAME=MODEL]",
              help="Alone: also encoder only, gate off, no language embedding, where the model has them. "
                   "With NAME=MODEL (repeatable): models side by side; MODEL is a bundle or a checkpoint.")  # fmt: skip
@click.option("--no-calculator", is_flag=True, help="Let the LLM do its own sums in <<48/2=24>> annotations.")
@click.option("--threads", type=click.IntRange(1, 512), metavar="N", help="CPU threads (default: the cores).")
@click.option(
    "--batch", "slots", type=click.IntRange(1, 256), metavar="N", help="Questions side by side (default: 16)."
)
@click.option("--report", is_flag=True, help="Ask nothing: the tables of what --out has.")
def command(
    questions: Path | None,
    kind: str,
    bundle: str | None,
    checkpoint: str | None,
    out: Path | None,
    languages: str | None,
    limit: int | None,
    max_tokens: int | None,
    ablations: tuple[str, ...],
    no_calculator: bool,
    threads: int | None,
    slots: int | None,
    report: bool,
) -> None:
    """Ask QUESTIONS of a merge and of its LLM alone, and print how often each is right, by language."""
    named = [text for text in ablations if text]
    _check(questions, bundle, checkpoint, out, named, report)
    wanted = tuple(code.strip() for code in (languages or "").split(",") if code.strip())

    def body() -> None:
        signal.signal(signal.SIGTERM, _terminated)
        if report:
            assert out is not None
            results = read_results(out)
        else:
            assert questions is not None
            chosen = _contestants(bundle, checkpoint, named)
            results = evaluate_all(
                questions,
                kind,
                chosen,
                out,
                languages=wanted,
                limit=limit,
                max_tokens=max_tokens or DEFAULT_MAX_TOKENS[kind],
                every_mode=len(named) < len(ablations),
                calculator=False if no_calculator else None,
                threads=threads,
                slots=slots,
            )
        from mindmerger_train.evaluation.report import markdown, write

        if out is not None:
            write(results, out)
        click.echo(markdown(results), nl=False)

    run_body(body)


def _check(
    questions: Path | None, bundle: str | None, checkpoint: str | None, out: Path | None, named: list[str], report: bool
) -> None:
    if report:
        if out is None:
            raise click.UsageError("--report needs --out DIR, the folder of a run.")
        if questions is not None:
            raise click.UsageError("--report asks nothing: leave QUESTIONS out.")
        return
    for text in named:
        name, sign, model = text.partition("=")
        if not (sign and name.strip() and model):
            raise click.UsageError(f"--ablate takes NAME=MODEL or nothing, not {text!r}; without a value, put it last.")
    if len({text.partition("=")[0].strip() for text in named}) < len(named):
        raise click.UsageError("every --ablate NAME=MODEL needs a name of its own.")
    if questions is None:
        raise click.UsageError("Give QUESTIONS, for instance: mm-eval tests/data/arithmetic.tsv")
    if bundle is not None and checkpoint is not None:
        raise click.UsageError(
            "--bundle and --checkpoint exclude each other; --ablate NAME=MODEL compares several models."
        )


def _contestants(bundle: str | None, checkpoint: str | None, named: list[str]) -> list[Contestant]:
    """The models of this run; without any option the default bundle."""
    from mindmerger_train.evaluation.backends import Model, identify, model_at
    from mindmerger_train.evaluation.run import Contestant

    models: list[tuple[str | None, Model]] = []
    if checkpoint is not None:
        models.append((None, Model("checkpoint", checkpoint)))
    elif bundle is not None or not named:
        models.append((None, Model("bundle", bundle)))
    for text in named:
        own, _, place = text.partition("=")
        models.append((own.strip(), model_at(place)))
    contestants = []
    for name, model in models:
        identity = identify(model)
        contestants.append(Contestant(name or identity.name, model, identity))
    if len({contestant.name for contestant in contestants}) < len(contestants):
        raise click.UsageError(f"two models are called {contestants[0].name!r}: give --ablate another NAME.")
    return contestants


def evaluate_all(
    questions: Path,
    kind: str,
    contestants: list[Contestant],
    out: Path | None,
    *,
    languages: tuple[str, ...] = (),
    limit: int | None = None,
    max_tokens: int,
    every_mode: bool = False,
    calculator: bool | None = None,
    threads: int | None = None,
    slots: int | None = None,
) -> Results:
    """The command without its shell: raises MindMergerError instead of leaving.

    Every generation is in `out` when it is made, so whatever ends this early loses nothing.
    """
    from mindmerger_train.data.benchmarks import read_benchmark
    from mindmerger_train.evaluation.backends import Backend, open_backend
    from mindmerger_train.evaluation.journal import Head, Journal
    from mindmerger_train.evaluation.modes import MODES, STANDARD
    from mindmerger_train.evaluation.results import evaluate
    from mindmerger_train.evaluation.run import Progress, Settings, ask, choose_arms, unasked
    from mindmerger_train.evaluation.selection import select

    chosen = select(read_benchmark(kind, questions, languages), languages, limit)
    arms, notes = choose_arms(contestants, MODES if every_mode else STANDARD)
    for note in notes:
        click.echo(f"mm-eval: left out: {note}", err=True)
    settings = Settings(max_tokens, calculator, threads, slots)
    marks = {contestant.name: contestant.mark for contestant in contestants}

    def opener(contestant: Contestant) -> Backend:
        return open_backend(contestant.model, threads=settings.threads, slots=settings.slots)

    with Journal(out, Head(kind, max_tokens, calculator, marks)) as journal:
        left = unasked(arms, chosen, journal)
        with Progress(left, len(arms) * len(chosen) - left) as progress:
            ask(arms, chosen, journal, settings, opener, progress.tick)
        asked = {(question.language, question.index) for question in chosen}
        entries = [entry for entry in journal.entries.values() if (entry.language, entry.index) in asked]
    return evaluate(kind, max_tokens, calculator, marks, _names(arms), entries, len(chosen), notes)


def _names(arms: list[Arm]) -> list[tuple[str, str]]:
    return [(arm.contestant.name, arm.mode.name) for arm in arms]


def read_results(out: Path) -> Results:
    """The results of what a folder has. Raises DataError where it has nothing."""
    from mindmerger.errors import DataError
    from mindmerger_train.evaluation.journal import FILE_NAME, read
    from mindmerger_train.evaluation.results import evaluate

    head, entries = read(out / FILE_NAME)
    if head is None:
        raise DataError(f"{out} has no generations of mm-eval: give the --out of a run")
    arms = list(dict.fromkeys((entry.model, entry.mode) for entry in entries.values()))
    return evaluate(head.benchmark, head.max_tokens, head.calculator, head.models, arms, entries.values())


def _terminated(_signal: int, _frame: FrameType | None) -> NoReturn:
    """As Ctrl-C: what is open is closed on the way out, and no thread or process stays behind."""
    raise SystemExit(TERMINATED)


def main() -> None:
    """The entry point of mm-eval."""
    try:
        run_command(command, "mm-eval")
    except SystemExit as leaving:
        if leaving.code in (130, TERMINATED):
            click.echo("mm-eval: stopped; with --out, the same command goes on where this one was", err=True)
        sys.exit(leaving.code)


if __name__ == "__main__":
    main()
