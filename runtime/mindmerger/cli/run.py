"""mm-run: ask one question, many, or one after the other, and get the reasoning and the answer.

Heavy imports are inside the command, so that --help is immediate.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mindmerger.cli import completion_option, run_body, run_command
from mindmerger.cli.options import NAMES, STEERING, generation_options, keywords
from mindmerger.devices import DEVICES
from mindmerger.errors import InputError
from mindmerger.i18n import _

if TYPE_CHECKING:
    from mindmerger.cli.output import Printer
    from mindmerger.manifest import Manifest
    from mindmerger.model import MergedModel

# A question on stdin: more than this is not read, it would be refused anyway.
_MAX_STDIN_BYTES = 4 * 1024 * 1024

_HELP = _(
    "Answer QUESTION, asked in any language that the bundle knows, with reasoning in English.\n\n"
    'Without QUESTION, it is read from stdin; on a terminal, you ask one after the other. "-" always means stdin.'
)


def _epilog() -> str:
    examples = [
        ('mm-run "¿Cuánto es 15 + 27?"', ""),
        ('echo "Maria ana vitabu 12. Anapata 5. Ana vingapi?" | mm-run', ""),
        ('mm-run --answer-only "15 और 27 का योग क्या है?"', ""),
        ('mm-run --json "15 と 27 を足すと?" | jq .answer', ""),
        ('mm-run --no-merge "¿Cuánto es 15 + 27?"', _("the LLM alone, to compare")),
        ("mm-run --input questions.csv --output answers.jsonl", ""),
        ('eval "$(mm-run --completion bash)"', ""),
    ]
    codes = [
        ("0", _("answered")),
        ("2", _("wrong command line")),
        ("3", _("the question or an option cannot be used")),
        ("4", _("the bundle is missing, damaged or of an unknown version")),
        ("5", _("the models could not be loaded or run, or the answers not be written, on this machine")),
        ("10", _("--input: all done, and some lines have an error instead of an answer")),
        ("130", _("stopped with Ctrl-C")),
        ("143", _("--input: stopped by SIGTERM")),
    ]
    return "\n\n".join(
        [
            "\n".join(["\b", _("Examples:"), *(f"  {line:<45} {what}".rstrip() for line, what in examples)]),
            _(
                'The reasoning goes to stdout as it is generated; the last line is "Answer: …" ("Answer: none" when the '
                "reasoning has no number). Everything else goes to stderr."
            ),
            _(
                "--input reads .txt (one question a line), .jsonl, .csv or .tsv (with a header; the field is "
                '"question") and appends one JSON object a line to --output as questions are answered. After an '
                "interruption, the same command continues: no line is lost or repeated. A question that fails has "
                '"error" in its line.'
            ),
            "\n".join(["\b", _("Exit codes:"), *(f"  {code:<4} {what}" for code, what in codes)]),
            _(
                "The bundle is --bundle, else $MINDMERGER_BUNDLE, else the default one. $MINDMERGER_LANG (en, es, fr, hi, "
                "sw) sets the language of these texts, else the locale does. Nothing is downloaded or sent: it works "
                "without a network."
            ),
        ]
    )


def _complete_bundle(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    from mindmerger.bundle import bundle_names

    return [name for name in bundle_names() if name.startswith(incomplete)]


@click.command(
    help=_HELP,
    epilog=_epilog(),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.argument("question", required=False)
@click.option(
    "--bundle",
    metavar="DIR_OR_NAME",
    shell_complete=_complete_bundle,
    help=_("The bundle to use: a folder or an installed name."),
)
@click.option("--input", type=click.Path(path_type=Path), metavar="FILE", help=_("Answer all questions of this file."))
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help=_("Where the answers to --input go, as JSON lines; continued if it is there."),
)
@click.option("--field", metavar="NAME", help=_('Field or column of --input with the question (default: "question").'))
@click.option("--retry-failed", is_flag=True, help=_("Ask the questions of --output that have an error again."))
@click.option("--threads", type=click.IntRange(1, 512), metavar="N", help=_("CPU threads (default: the cores)."))
@click.option(
    "--context",
    type=click.IntRange(min=1),
    metavar="N",
    help=_("Room for N tokens: question and answer (default: the bundle's)."),
)
@click.option(
    "--device",
    type=click.Choice(DEVICES),
    default="auto",
    help=_("What computes; what is not there is replaced by the CPU, with a notice."),
)
@click.option("--gpu-layers", type=int, metavar="N", help=_("Layers of the LLM that go to the GPU; -1: all."))
@click.option("--low-memory", is_flag=True, help=_("Release the encoder after each question."))
@generation_options
@click.option("--answer-only", is_flag=True, help=_("Print the final answer and nothing else."))
@click.option("--json", "as_json", is_flag=True, help=_("Print one JSON object: text, answer, timings, counts."))
@click.option("--explain", is_flag=True, help=_("Show the gate's weights, and the answers without and with them."))
@click.option("--quiet", "-q", is_flag=True, help=_("Nothing on stderr but errors."))
@click.option("--verbose", "-v", is_flag=True, help=_("Timings on stderr."))
@click.option(
    "--no-history",
    is_flag=True,
    envvar="MINDMERGER_NO_HISTORY",
    help=_("On a terminal: keep no history ($MINDMERGER_NO_HISTORY)."),
)
@completion_option
@click.option("--version", is_flag=True, help=_("Print the version and exit."))
def command(version: bool, **options: Any) -> None:
    """Read the command line."""
    if version:
        import mindmerger

        click.echo(f"mm-run {mindmerger.__version__}")
        return
    generation = keywords({name: options.pop(name) for name in NAMES})
    run_body(lambda: _run(_Request(**options), generation))


@dataclass(frozen=True)
class _Request:
    """The command line, but for the options of `generate`."""

    question: str | None
    bundle: str | None
    input: Path | None
    output: Path | None
    field: str | None
    retry_failed: bool
    threads: int | None
    context: int | None
    device: str
    gpu_layers: int | None
    low_memory: bool
    answer_only: bool
    as_json: bool
    explain: bool
    quiet: bool
    verbose: bool
    no_history: bool

    def load(self) -> MergedModel:
        from mindmerger import load

        if self.quiet:
            import logging

            logging.getLogger("mindmerger").setLevel(logging.ERROR)  # notices are talk
        return load(
            self.bundle,
            threads=self.threads,
            context=self.context,
            device=self.device,
            gpu_layers=self.gpu_layers,
            low_memory=self.low_memory,
        )

    def manifest(self) -> Manifest:
        """What the bundle says of itself, without the seconds that loading may take."""
        from mindmerger.bundle import resolve
        from mindmerger.manifest import read_manifest

        return read_manifest(resolve(self.bundle))


def _run(request: _Request, generation: dict[str, Any]) -> None:
    _check_options(request)
    if request.explain and "soft_prompt" in generation:
        raise click.UsageError(_("{one} and {other} exclude each other.").format(one="--explain", other="--no-merge"))
    _check_gate(request, generation)
    if request.input is not None:
        _batch(request, generation)
    elif request.question is None and sys.stdin is not None and sys.stdin.isatty():
        _session(request, generation)
    else:
        question = request.question
        _one(request, _read_stdin() if question is None or question == "-" else question, generation)


def _check_options(request: _Request) -> None:
    pairs: list[tuple[str, Any, str, Any]] = [
        ("--answer-only", request.answer_only, "--json", request.as_json),
        ("--quiet", request.quiet, "--verbose", request.verbose),
        ("--explain", request.explain, "--answer-only", request.answer_only),
    ]
    if request.input is not None:
        pairs += [
            ("--input", True, "QUESTION", request.question),
            ("--input", True, "--answer-only", request.answer_only),
            ("--input", True, "--json", request.as_json),
            ("--input", True, "--explain", request.explain),
        ]
        if request.output is None:
            raise click.UsageError(_("{one} needs {other}.").format(one="--input", other="--output"))
    else:
        for option in ("output", "field", "retry_failed"):
            if getattr(request, option):
                name = "--" + option.replace("_", "-")
                raise click.UsageError(_("{one} needs {other}.").format(one=name, other="--input"))
    for one, has_one, other, has_other in pairs:
        if has_one and has_other:
            raise click.UsageError(_("{one} and {other} exclude each other.").format(one=one, other=other))


def _check_gate(request: _Request, generation: dict[str, Any]) -> None:
    """Say at once, before the seconds that loading may take, what the bundle's method cannot do."""
    from mindmerger.cli.explain import need_gate, without_gate

    if "language" in generation:
        need_gate(request.manifest())
    if any(name in generation for name in STEERING) and not (request.quiet or request.explain):
        from mindmerger.cli.output import note

        if sentence := without_gate(request.manifest()):
            note(sentence)


def _printer(request: _Request) -> Printer:
    from mindmerger.cli.output import Form, Printer

    form: Form = "json" if request.as_json else "answer" if request.answer_only else "text"
    return Printer(form, quiet=request.quiet, verbose=request.verbose)


def _one(request: _Request, question: str, generation: dict[str, Any]) -> None:
    from time import perf_counter

    from mindmerger.tokenizer import check_question

    # before the seconds that loading may take
    question = check_question(question)
    from mindmerger.cli.interrupt import Reader

    printer = _printer(request)
    began = perf_counter()
    with request.load() as model:
        load_ms = (perf_counter() - began) * 1e3
        if request.explain:
            _explain(model, question, generation, request)
            return
        stream = model.generate(question, **generation)
        with Reader(model, stream) as chunks:
            printer.stream(chunks)
        printer.finish(model, stream.result, merged=generation.get("soft_prompt", True), load_ms=load_ms)


def _explain(model: MergedModel, question: str, generation: dict[str, Any], request: _Request) -> None:
    import json

    from mindmerger.cli.explain import compare, document, explanation
    from mindmerger.cli.progress import Progress

    count = 3 if any(name in generation for name in STEERING) else 2
    with Progress(count, _("answering"), name="mm-run", quiet=request.quiet) as progress:
        answers = compare(model, question, generation, step=progress.step)
    if request.as_json:
        print(json.dumps({"question": question, "explain": document(answers)}, ensure_ascii=False))
    else:
        print(explanation(answers, model.manifest))


def _batch(request: _Request, generation: dict[str, Any]) -> None:
    from mindmerger.cli.batch import Batch, run_batch

    assert request.input is not None and request.output is not None  # _check_options
    batch = Batch(request.input, request.output, request.field, request.retry_failed, request.quiet, generation)
    run_batch(batch, request.manifest(), request.load)


def _session(request: _Request, generation: dict[str, Any]) -> None:
    from time import perf_counter

    from mindmerger.cli.repl import Session, repl

    if request.explain:
        raise click.UsageError(_("{one} needs {other}.").format(one="--explain", other="QUESTION"))
    began = perf_counter()
    with request.load() as model:
        session = Session(model, generation, _printer(request), load_ms=(perf_counter() - began) * 1e3)
        repl(session, history=not request.no_history)


def _read_stdin() -> str:
    if sys.stdin is None:
        raise click.UsageError(
            _("Give a QUESTION, for instance: {example}").format(example='mm-run "¿Cuánto es 15 + 27?"')
        )
    data = sys.stdin.buffer.read(_MAX_STDIN_BYTES + 1)
    if len(data) > _MAX_STDIN_BYTES:
        raise InputError(_("stdin has more than {limit} bytes: give one question").format(limit=_MAX_STDIN_BYTES))
    try:
        return data.decode("utf-8-sig")  # Windows tools write a byte order mark
    except UnicodeDecodeError as error:
        raise InputError(
            _("stdin is not valid UTF-8 (at byte {position}): convert it, as with iconv").format(position=error.start)
        ) from None


def main() -> None:
    """The entry point of mm-run."""
    run_command(command, "mm-run")


if __name__ == "__main__":
    main()
