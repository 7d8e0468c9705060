"""`mm-export`: a checkpoint becomes a bundle. What is done with one that is there, is in cli_bundle.py.

Heavy imports are inside the commands, so that --help is immediate.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from mindmerger.cli import run_body, run_command
from mindmerger.errors import InputError
from mindmerger_export.cli_bundle import add_commands

_PRECISIONS = ("fp32", "w8", "w4")
_LLM_TYPES = ("f32", "f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q5_1", "q5_0", "q4_1", "q4_0")
_AUTO = "auto"


@click.group(
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""\b
Examples:
  mm-export --checkpoint runs/augmentation --out my-bundle
  mm-export --checkpoint mindmerger --llm package --prune-text texts/ --max-pieces 64000
  mm-export --checkpoint runs/augmentation --languages sw,bn,es --out small
  mm-export --checkpoint runs/augmentation --languages sw,bn,es --prune-text texts/ --out smaller
  mm-export --checkpoint runs/augmentation --precision fp32 --quant f16 --out exact
  mm-export --checkpoint runs/augmentation --quant auto --max-size 400MB --out fits
  mm-export inspect my-bundle
  mm-export verify my-bundle
  mm-export pack my-bundle my-bundle.mmb
  mm-export unpack my-bundle.mmb
  mm-export standalone mindmerger application/bundle

The bundle is compared with torch before it gets its name: rows and weights of the graph, injected rows against the LLM's
token path, logits and greedy answers. A figure out of bounds fails the export and leaves nothing. The figures are in
manifest.json, and with charts and times in report.html and report.json beside it.

Progress goes to stderr; the bundle's folder goes to stdout.
Exit codes: 0 done, 2 wrong command line, 3 bad option or existing folder, 4 missing package or damaged GGUF, 5 no space
or memory, 6 bad checkpoint, 7 unreadable text, 8 the bundle does not compute what torch computed, or no type of the LLM
meets the bounds, 130 interrupted, 143 terminated.""",
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
    help="Weights of the graph: fp32 as they are, w8 in 8 bits with a table in 4 where the rows stay, w4 in 4. Weights that "
    "were 4-bit before (the embedded default's encoder) keep exactly their values in 4 bits.",
)
@click.option(
    "--languages",
    metavar="CODES",
    help="The languages that the bundle is for, as es,sw,bn: named in the manifest, and the encoder's vocabulary is cut down "
    "to them: by --prune-text, else by their letters. [default: the checkpoint's, and the whole vocabulary]",
)
@click.option(
    "--prune-text",
    "prune_texts",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Cut the encoder's vocabulary down to what this text needs: a .txt, .tsv or .jsonl file or a folder of them; "
    "repeatable. Of a folder with files named by language (sw.txt), those of --languages. Unseen words fall apart into "
    "characters.",
)
@click.option(
    "--max-pieces",
    type=click.IntRange(min=1),
    metavar="N",
    help="Keep at most N pieces: single characters, small scripts (Thai, Bengali), then the most frequent ones.",
)
@click.option(
    "--whole-vocabulary", is_flag=True, help="With --languages: keep every piece of the encoder's vocabulary."
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
    "--quant",
    "--llm-type",
    "llm_type",
    type=click.Choice((*_LLM_TYPES, _AUTO), case_sensitive=False),
    help="Type of the LLM's matrices. auto: the smallest type that meets --max-size and --max-kl in every language. "
    "[default: q5_k_m of a Hugging Face folder; of a GGUF q8_0 where an adapter is applied, else as they are]",
)
@click.option(
    "--tensor-type",
    "tensor_types",
    multiple=True,
    metavar="PATTERN=TYPE",
    help="Another type for the LLM's tensors whose GGUF name matches the regular expression, as ffn_down=q6_k; repeatable, the "
    "first match decides.",
)
@click.option(
    "--llm-adapter",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Apply this LoRA adapter to the LLM: a PEFT folder or an adapter in GGUF form. For a checkpoint without one.",
)
@click.option(
    "--llm-tokenizer",
    type=click.Choice(["exact", "warn"]),
    default="exact",
    show_default=True,
    help="What to do where llama.cpp cuts text otherwise than the LLM's tokenizer: fail, or say so and go on.",
)
@click.option(
    "--max-size", metavar="SIZE", help="With --quant auto: the most that the whole bundle may take, as 400MB or 1.5GB."
)
@click.option(
    "--max-kl",
    type=click.FloatRange(min=0.0, min_open=True),
    metavar="X",
    help="With --quant auto: how far the LLM may be from F16, in nats a token, in the language that fares worst. "
    "[default: 0.1]",
)
@click.option(
    "--questions",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Questions that the LLM's types are judged by, one a line: LANGUAGE<TAB>QUESTION or LANGUAGE<TAB>QUESTION<TAB>ANSWER. "
    "[default: the golden questions]",
)
@click.option(
    "--compare/--no-compare",
    default=True,
    show_default=True,
    help="Judge the LLM's type against F16 (not above 2 billion parameters, unless by --quant auto) and measure what the "
    "encoder costs, for the report.",
)
@click.option(
    "--reference",
    type=click.Choice(["auto", "torch", "none"]),
    default="auto",
    show_default=True,
    help="Whether torch answers the golden questions too. auto: where its LLM in float32 fits into the memory.",
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
        raise click.UsageError("Give a --checkpoint, or a command: inspect, verify, pack, unpack, standalone.")
    run_body(lambda: _export(checkpoint, **options))


def _export(
    checkpoint: str,
    *,
    out: Path | None,
    precision: str,
    languages: str | None,
    prune_texts: tuple[Path, ...],
    max_pieces: int | None,
    whole_vocabulary: bool,
    llm: str,
    llm_type: str | None,
    llm_gguf: Path | None,
    context: int,
    max_size: str | None,
    max_kl: float | None,
    questions: Path | None,
    compare: bool,
    reference: str,
    tensor_types: tuple[str, ...],
    llm_adapter: Path | None,
    llm_tokenizer: str,
    golden: Path | None,
    force: bool,
) -> None:
    from mindmerger_export.request import Judged, Request, bytes_of

    asked = [] if golden is None else read_questions(golden)
    judged = [] if questions is None else read_questions(questions)
    request = Request(
        checkpoint=checkpoint,
        out=out,
        precision=precision,
        languages=tuple(code.strip() for code in (languages or "").split(",") if code.strip()),
        prune_texts=prune_texts,
        max_pieces=max_pieces,
        whole_vocabulary=whole_vocabulary,
        llm=llm,
        llm_type=llm_type,
        llm_gguf=llm_gguf,
        context=context,
        force=force,
        max_bytes=None if max_size is None else bytes_of(max_size),
        max_kl=max_kl,
        judged=tuple(Judged(*line) for line in judged),
        compare=compare,
        reference=reference,
        tensor_types=tensor_types,
        exact_ids=llm_tokenizer == "exact",
        llm_adapter=llm_adapter,
        **({"golden": tuple((language, question) for language, question, _ in asked)} if asked else {}),
    )
    # transformers draws bars for its own work; it reads this when it is first imported.
    os.environ.setdefault("TQDM_DISABLE", "1")
    from mindmerger_export.talk import Console
    from mindmerger_export.workspace import TERMINATED, terminable

    with Console("mm-export") as talk, terminable():
        try:
            # torch and transformers take seconds to import: not before the command line is known to be right.
            talk("starting")
            from mindmerger_export.bundle_writer import export_bundle

            made = export_bundle(request, talk)
        except KeyboardInterrupt:
            talk.lines(["mm-export: interrupted; nothing was written"])
            raise
        except SystemExit as ending:
            if ending.code == TERMINATED:
                talk.lines(["mm-export: terminated; nothing was written"])
            raise
    print(made)


def read_questions(path: Path) -> list[tuple[str, str, str | None]]:
    """Language, question and answer (None: not given) of a file of tab-separated lines. Raises InputError.

    A line that begins with # is a comment; a first line `language<TAB>question…` names the columns.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the questions {path} cannot be read ({error})") from None
    questions: list[tuple[str, str, str | None]] = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#") or (number == 1 and line.startswith("language\tquestion")):
            continue
        language, question, answer = (*(field.strip() for field in line.split("\t")), "", "")[:3]
        if not question:
            raise InputError(f"{path}, line {number}: expected LANGUAGE<TAB>QUESTION")
        questions.append((language, question, answer or None))
    if not questions:
        raise InputError(f"{path} has no questions")
    return questions


add_commands(command)


def main() -> None:
    """The entry point of mm-export."""
    run_command(command, "mm-export")


if __name__ == "__main__":
    main()
