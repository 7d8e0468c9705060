"""mm-doctor: what is right and wrong with this installation and a bundle, line by line, each with what to do.

Heavy imports are inside the command, so that --help is immediate.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from mindmerger.cli import run_body, run_command
from mindmerger.i18n import _

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mindmerger.findings import Finding


def _epilog() -> str:
    examples = [
        ("mm-doctor", _("the default bundle on this machine")),
        ("mm-doctor --bundle my-bundle", _("another one")),
        ("mm-doctor --quick", _("without hashes and golden questions")),
        ("mm-doctor --context 8192", _("is there memory for a longer context?")),
        ("mm-doctor --json | jq '.findings[] | select(.level != \"ok\")'", ""),
    ]
    codes = [
        ("0", _("all is well")),
        ("2", _("wrong command line")),
        ("4", _("the bundle is missing, damaged or of an unknown version")),
        ("5", _("the models cannot be loaded or run on this machine")),
        ("130", _("stopped with Ctrl-C")),
    ]
    return "\n\n".join(
        [
            "\n".join(["\b", _("Examples:"), *(f"  {line:<32} {what}".rstrip() for line, what in examples)]),
            _(
                "Looks at: versions of packages; the processor against what llama.cpp was built with; GPUs that could be "
                "used; every file of the bundle (its full sha256, not a remembered one); free memory and disk against what "
                "the bundle needs; and the golden questions, whose first tokens the exporting machine wrote down."
            ),
            "\n".join(
                [
                    "\b",
                    _("Exit codes, of the first problem (a warning is none):"),
                    *(f"  {code:<4} {what}" for code, what in codes),
                ]
            ),
            _("Everything is looked at without a network."),
        ]
    )


_COLOURS = {"ok": "green", "warning": "yellow", "problem": "red"}


@click.command(
    help=_("Check this installation and a bundle; every line says ok, warning or problem, and what to do."),
    epilog=_epilog(),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option("--bundle", metavar="DIR_OR_NAME", help=_("The bundle to look at: a folder or an installed name."))
@click.option("--context", type=click.IntRange(1, 2**24), metavar="N", help=_("Positions to count memory for."))
@click.option("--quick", is_flag=True, help=_("Without hashes and golden questions."))
@click.option("--json", "as_json", is_flag=True, help=_("Print one JSON object: findings and the exit code."))
@click.option("--version", is_flag=True, help=_("Print the version and exit."))
def command(bundle: str | None, context: int | None, quick: bool, as_json: bool, version: bool) -> None:
    """Read the command line."""
    if version:
        import mindmerger

        click.echo(f"mm-doctor {mindmerger.__version__}")
        return
    run_body(lambda: _run(bundle, context, quick, as_json))


def _run(bundle: str | None, context: int | None, quick: bool, as_json: bool) -> None:
    from mindmerger.doctor import examine
    from mindmerger.findings import worst

    found = list(_shown(examine(bundle, quick=quick, context=context), as_json))
    code = worst(found)
    if as_json:
        import dataclasses
        import json

        document = {"exit_code": code, "findings": [dataclasses.asdict(finding) for finding in found]}
        print(json.dumps(document, ensure_ascii=False, indent=2))
    else:
        counts = {level: sum(finding.level == level for finding in found) for level in _COLOURS}
        print(
            _("{ok} ok, {warnings} warnings, {problems} problems").format(
                ok=counts["ok"], warnings=counts["warning"], problems=counts["problem"]
            )
        )
    sys.stdout.flush()
    if code:
        raise click.exceptions.Exit(code)


def _shown(findings: Iterator[Finding], as_json: bool) -> Iterator[Finding]:
    """Pass findings on, printing each as soon as it is there: that is the progress, too."""
    waiting = sys.stderr.isatty()
    while True:
        if waiting:
            print("…", end="\r", file=sys.stderr, flush=True)
        finding = next(findings, None)
        if waiting:
            print(" ", end="\r", file=sys.stderr, flush=True)
        if finding is None:
            return
        if not as_json:
            _show(finding)
        yield finding


def _show(finding: Finding) -> None:
    from mindmerger.cli.output import paint

    levels = {"ok": _("ok"), "warning": _("warning"), "problem": _("problem")}
    width = max(map(len, levels.values())) + 1
    level = paint(
        f"{levels[finding.level]:<{width}}", sys.stdout, fg=_COLOURS[finding.level], bold=finding.level != "ok"
    )
    print(f"{level} {finding.check}: {finding.text}", flush=True)
    if finding.advice:
        print(f"{'':<{width}} → {finding.advice}", flush=True)


def main() -> None:
    """The entry point of mm-doctor."""
    run_command(command, "mm-doctor")


if __name__ == "__main__":
    main()
