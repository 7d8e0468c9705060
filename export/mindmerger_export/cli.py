"""`mm-export`: a checkpoint becomes a bundle; `inspect` and `verify` look at one that is there.

Heavy imports are inside the commands, so that --help is immediate.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

from mindmerger.cli import run_body, run_command
from mindmerger.errors import InputError

_PRECISIONS = ("fp32", "w8", "w4")
_LLM_TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")


@click.group(
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""\b
Examples:
  mm-export --checkpoint runs/augmentation --out my-bundle
  mm-export --checkpoint mindmerger --llm package --prune-text texts/ --max-pieces 64000
  mm-export --checkpoint runs/augmentation --precision fp32 --llm-type f16 --out exact
  mm-export inspect my-bundle
  mm-export verify my-bundle

The bundle is compared with torch before it gets its name: rows and weights of the graph, injected rows against the LLM's
token path, logits and greedy answers. A figure out of bounds fails the export and leaves nothing. The figures are in
manifest.json.

Progress goes to stderr; the bundle's folder goes to stdout.
Exit codes: 0 done, 2 wrong command line, 3 bad option or existing folder, 4 missing package or damaged GGUF, 5 no space
or memory, 6 bad checkpoint, 7 unreadable text, 8 the bundle does not compute what torch computed, 130 interrupted.""",
)
@click.option("--checkpoint", metavar="NAME|DIR", help="A folder that mm-train wrote, or a name in models/.")
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="DIR", help="The bundle's folder. [default: CHECKPOINT/bundle]"
)
@click.option(
    "--precision",
    type=click.Choice(_PRECISIONS),
    default="w8",
    show_default=True,
    help="Weights of the graph: fp32 as they are, w8 in 8 bits, w4 in 4. Weights that were 4-bit before (the embedded "
    "default's encoder) keep exactly their values in 4 bits.",
)
@click.option(
    "--languages",
    metavar="CODES",
    help="What the manifest names as its languages, as es,sw,bn. [default: the checkpoint's]",
)
@click.option(
    "--prune-text",
    "prune_texts",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Cut the encoder's vocabulary down to what this text needs: a .txt, .tsv or .jsonl file or a folder of them; "
    "repeatable. Unseen words fall apart into characters.",
)
@click.option(
    "--max-pieces",
    type=click.IntRange(min=1),
    metavar="N",
    help="Keep at most N pieces: single characters, then the most frequent ones.",
)
@click.option(
    "--llm",
    type=click.Choice(["embed", "package"]),
    default="embed",
    show_default=True,
    help="embed: the LLM as a file of the bundle, its adapter applied. package: name the Python package that ships it; the "
    "adapter is applied on the user's machine at first use.",
)
@click.option(
    "--llm-type",
    type=click.Choice(_LLM_TYPES),
    help="Type of the LLM's matrices. [default: q8_0 where an adapter is applied, else as they are]",
)
@click.option(
    "--llm-gguf", type=click.Path(path_type=Path), metavar="FILE", help="Take this GGUF as the LLM, as it is."
)
@click.option(
    "--context",
    type=click.IntRange(min=64),
    default=2048,
    show_default=True,
    metavar="N",
    help="Longest sequence, in tokens, that the bundle offers.",
)
@click.option(
    "--golden",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Golden questions, one a line: LANGUAGE<TAB>QUESTION.",
)
@click.option("--force", is_flag=True, help="Replace an existing bundle.")
@click.pass_context
def command(invocation: click.Context, /, checkpoint: str | None, **options: Any) -> None:
    """Turn a checkpoint into a bundle that the runtime loads.

    Encoder, mapping, boundary and gate become one ONNX graph, the LLM with its adapter becomes a GGUF, and a manifest says
    what belongs together, with hashes and the parity report.
    """
    if invocation.invoked_subcommand is not None:
        if checkpoint is not None:
            raise click.UsageError(f"{invocation.invoked_subcommand} takes a bundle, not --checkpoint.")
        return
    if checkpoint is None:
        raise click.UsageError("Give a --checkpoint, or a command: inspect, verify.")
    run_body(lambda: _export(checkpoint, **options))


def _export(
    checkpoint: str,
    *,
    out: Path | None,
    precision: str,
    languages: str | None,
    prune_texts: tuple[Path, ...],
    max_pieces: int | None,
    llm: str,
    llm_type: str | None,
    llm_gguf: Path | None,
    context: int,
    golden: Path | None,
    force: bool,
) -> None:
    if llm_gguf is not None and (llm_type is not None or llm == "package"):
        raise InputError("--llm-gguf takes the file as it is: leave out --llm-type and --llm package")
    questions = _read_golden(golden) if golden is not None else None
    # transformers draws bars for its own work; it reads this when it is first imported.
    os.environ.setdefault("TQDM_DISABLE", "1")
    try:
        # torch and transformers take seconds to import: not before the command line is known to be right.
        from mindmerger_export.bundle_writer import Request, export_bundle

        request = Request(
            checkpoint=checkpoint,
            out=out,
            precision=precision,
            languages=tuple(code.strip() for code in (languages or "").split(",") if code.strip()),
            prune_texts=prune_texts,
            max_pieces=max_pieces,
            llm=llm,
            llm_type=llm_type,
            llm_gguf=llm_gguf,
            context=context,
            force=force,
            **({} if questions is None else {"golden": questions}),
        )
        print(export_bundle(request, _say))
    except KeyboardInterrupt:
        _say("interrupted; nothing was written")
        raise


@command.command("inspect")
@click.argument("bundle", metavar="BUNDLE")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def inspect_command(bundle: str, as_json: bool) -> None:
    """Say what is in BUNDLE, a folder or the name of an installed one: parts, sizes, and the parity report."""

    def body() -> None:
        import json

        from mindmerger_export.inspection import inspect, shown

        found = inspect(bundle)
        print(json.dumps(found, ensure_ascii=False, indent=2) if as_json else shown(found))

    run_body(body)


@command.command("verify")
@click.argument("bundle", metavar="BUNDLE")
def verify_command(bundle: str) -> None:
    """Check BUNDLE on this machine: manifest, hashes, that it loads, and its golden questions.

    Exit codes: 0 sound, 4 damaged, 5 does not run here, 8 most golden questions are answered otherwise.
    """

    def body() -> None:
        from mindmerger_export.inspection import verify

        for line in verify(bundle, _say):
            print(line, flush=True)

    run_body(body)


def _say(message: str) -> None:
    print(f"mm-export: {message}", file=sys.stderr, flush=True)


def _read_golden(path: Path) -> tuple[tuple[str, str], ...]:
    """Questions of a file of `LANGUAGE<TAB>QUESTION` lines. Raises InputError."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the golden questions {path} cannot be read ({error})") from None
    questions = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        language, tab, question = line.partition("\t")
        if not tab or not question.strip():
            raise InputError(f"{path}, line {number}: expected LANGUAGE<TAB>QUESTION")
        questions.append((language.strip(), question.strip()))
    if not questions:
        raise InputError(f"{path} has no questions")
    return tuple(questions)


def main() -> None:
    """The entry point of mm-export."""
    run_command(command, "mm-export")


if __name__ == "__main__":
    main()
