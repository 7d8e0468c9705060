"""mm-bench: how fast a bundle is on this machine, and how fast it could be.

Heavy imports are inside the command, so that --help is immediate.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mindmerger.cli import run_body, run_command
from mindmerger.errors import InputError
from mindmerger.i18n import _

if TYPE_CHECKING:
    from mindmerger.benchmark import Result


def _epilog() -> str:
    examples = [
        ("mm-bench", _("the default bundle")),
        ("mm-bench --compare --threads 2", _("beside bare llama.cpp and others")),
        ("mm-bench --compare --format markdown > speed.md", ""),
        ("mm-bench --bundle my-bundle --format json --output speed.json", ""),
        ("mm-bench --startup", _("cold costs: import, --help, first token")),
    ]
    lines = [
        ("load", _("a bundle, its libraries included, in a new process")),
        ("encode + merge", _("one graph does both: they cannot be told apart")),
        ("prefill", _("BOS, soft prompt and prompt, per second")),
        ("decode", _("after the first token")),
        ("peak memory (RSS)", _("the most the process held, files that it maps included")),
        ("own memory (RssAnon)", _("what of it is not files; the most seen between questions")),
        ("… ÷ bare", _("speed over the bare loop's (above 1: faster), side by side")),
    ]
    return "\n\n".join(
        [
            "\n".join(["\b", _("Examples:"), *(f"  {line:<33} {what}".rstrip() for line, what in examples)]),
            "\n".join(["\b", _("What the lines are:"), *(f"  {line:<21} {what}" for line, what in lines)]),
            _(
                "… ÷ bare is the median of repetitions that ran one after the other; by processor time it also says "
                "something on a machine that is busy."
            ),
            _(
                "--compare runs, in turns and each in a process of its own: the runtime; the bare low-level llama.cpp loop "
                "over the same GGUF (the limit: no text, no checks, tokens in place of the soft prompt's rows); "
                "llama-cpp-python's Llama class; and, where the extra [train] is installed, torch + transformers the way the "
                "papers do it (fewer tokens and repetitions: they are slow). The calculator is off and no token ends an "
                "answer."
            ),
            _(
                "Exit codes: those of mm-run; 130 when stopped with Ctrl-C. Measure on a machine that does nothing else."
            ),
        ]
    )


@click.command(
    help=_("Measure a bundle on this machine: load, encode, prefill, first token, decode, memory."),
    epilog=_epilog(),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option("--bundle", metavar="DIR_OR_NAME", help=_("The bundle to measure: a folder or an installed name."))
@click.option("--question", metavar="TEXT", help=_("What to ask (default: a short problem in Spanish)."))
@click.option("--repeats", type=click.IntRange(1, 1000), default=5, show_default=True, help=_("After one warm-up."))
@click.option(
    "--tokens", type=click.IntRange(2, 100_000), default=128, show_default=True, help=_("New tokens a repetition.")
)
@click.option("--threads", type=click.IntRange(1, 512), metavar="N", help=_("CPU threads (default: the cores)."))
@click.option("--compare", is_flag=True, help=_("Also the bare loop, the Llama class, and torch if installed."))
@click.option(
    "--checkpoint", metavar="DIR_OR_NAME", help=_("For torch: the bundle's checkpoint (default: of its name).")
)
@click.option("--startup", is_flag=True, help=_("Cold costs instead: import, --help, a question's first token."))
@click.option(
    "--format", "form", type=click.Choice(["text", "markdown", "csv", "json"]), default="text", show_default=True
)
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help=_("Instead of stdout."))
@click.option("--version", is_flag=True, help=_("Print the version and exit."))
def command(version: bool, **options: Any) -> None:
    """Read the command line."""
    if version:
        import mindmerger

        click.echo(f"mm-bench {mindmerger.__version__}")
        return
    if options["startup"] and (options["compare"] or options["checkpoint"]):
        raise click.UsageError(_("--startup measures processes: it does not go with --compare or --checkpoint."))
    run_body(lambda: _run(**options))


def _run(*, form: str, output: Path | None, startup: bool, **options: Any) -> None:
    if output is not None and not output.absolute().parent.is_dir():
        # before a minute of work
        raise InputError(_("{path} is not a folder: make it first").format(path=output.absolute().parent))
    from mindmerger.bench_report import FORMATS

    result = _startup(**options) if startup else _measure(**options)
    text = FORMATS[form](result, _machine()) + "\n"
    if output is None:
        sys.stdout.write(text)
        sys.stdout.flush()
    else:
        _write(output, text)


def _startup(*, bundle: str | None, question: str | None, repeats: int, **_others: Any) -> Result:
    from mindmerger.benchmark import DEFAULT_QUESTION
    from mindmerger.cli.progress import Progress
    from mindmerger.startup import STEPS, measure_startup

    with Progress(STEPS, _("measuring"), name="mm-bench") as progress:
        return measure_startup(bundle, question or DEFAULT_QUESTION, repeats, step=progress.step)


def _measure(
    *,
    bundle: str | None,
    question: str | None,
    repeats: int,
    tokens: int,
    threads: int | None,
    compare: bool,
    checkpoint: str | None,
) -> Result:
    from mindmerger.benchmark import DEFAULT_QUESTION, Options, Runner
    from mindmerger.cli.progress import Progress
    from mindmerger.llama import default_threads
    from mindmerger.tokenizer import check_question

    options = Options(
        bundle=bundle,
        question=check_question(DEFAULT_QUESTION if question is None else question),
        tokens=tokens,
        repeats=repeats,
        threads=threads or default_threads(),
        compare=compare,
        checkpoint=checkpoint,
    )

    def note(text: str) -> None:
        print(f"mm-bench: {text}", file=sys.stderr, flush=True)

    with Progress(Runner.steps(options), _("measuring"), name="mm-bench") as progress:
        return Runner(options, step=progress.step, note=note, at=progress.at).run()


def _machine() -> dict[str, Any]:
    import platform

    import mindmerger
    from mindmerger.machine import processor_name

    return {
        "mindmerger": mindmerger.__version__,
        "processor": processor_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
    }


def _write(path: Path, text: str) -> None:
    """All of the file or nothing."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise InputError(
            _("{path} cannot be written ({reason}): check space and permissions").format(
                path=path, reason=error.strerror
            )
        ) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def main() -> None:
    """The entry point of mm-bench."""
    run_command(command, "mm-bench")


if __name__ == "__main__":
    main()
