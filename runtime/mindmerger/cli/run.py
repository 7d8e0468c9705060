"""mm-run: ask one question and get the reasoning and the answer.

Heavy imports are inside the command, so that --help is immediate.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mindmerger.cli import run_body, run_command
from mindmerger.errors import InputError

if TYPE_CHECKING:
    from mindmerger.generation import Generation
    from mindmerger.model import MergedModel

# A question on stdin: more than this is not read, it would be refused anyway.
_MAX_STDIN_BYTES = 4 * 1024 * 1024

_EPILOG = """\b
Examples:
  mm-run "¿Cuánto es 15 + 27?"
  echo "Maria ana vitabu 12. Anapata 5. Ana vingapi?" | mm-run
  mm-run --answer-only "15 और 27 का योग क्या है?"
  mm-run --json "15 と 27 を足すと?" | jq .answer
  mm-run --no-merge "¿Cuánto es 15 + 27?"      the LLM alone, to compare

\b
The reasoning goes to stdout as it is generated; the last line is "Answer: …"
("Answer: none" when the reasoning has no number). Everything else goes to stderr.

\b
Exit codes:
  0    answered
  2    wrong command line
  3    the question or an option cannot be used
  4    the bundle is missing, damaged or of an unknown version
  5    the models could not be loaded or run on this machine
  130  stopped with Ctrl-C

\b
The bundle is --bundle, else $MINDMERGER_BUNDLE, else the default one. Nothing
is downloaded or sent: it works without a network.
"""


@click.command(epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.argument("question", required=False)
@click.option("--bundle", metavar="DIR_OR_NAME", help="The bundle to use: a folder or an installed name.")
@click.option("--max-tokens", type=click.IntRange(min=1), metavar="N", help="Generate at most N tokens.")
@click.option("--threads", type=click.IntRange(1, 512), metavar="N", help="CPU threads (default: the cores).")
@click.option("--temperature", type=float, metavar="T", help="0: always the likeliest token (default: the bundle's).")
@click.option("--seed", type=int, metavar="N", help="With a temperature above 0: the same seed, the same text.")
@click.option("--no-merge", is_flag=True, help="The LLM alone, without the encoder's soft prompt.")
@click.option("--no-calculator", is_flag=True, help="Let the LLM do its own sums in <<48/2=24>> annotations.")
@click.option("--answer-only", is_flag=True, help="Print the final answer and nothing else.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object: text, answer, timings, counts.")
@click.option("--verbose", "-v", is_flag=True, help="Timings on stderr.")
@click.option("--version", is_flag=True, help="Print the version and exit.")
def command(question: str | None, version: bool, **options: Any) -> None:
    """Answer QUESTION, asked in any language that the bundle knows, with reasoning in English.

    Without QUESTION, or with "-", the question is read from stdin.
    """
    if version:
        import mindmerger

        click.echo(f"mm-run {mindmerger.__version__}")
        return
    run_body(lambda: _run(question, **options))


def _run(
    question: str | None,
    *,
    bundle: str | None,
    max_tokens: int | None,
    threads: int | None,
    temperature: float | None,
    seed: int | None,
    no_merge: bool,
    no_calculator: bool,
    answer_only: bool,
    as_json: bool,
    verbose: bool,
) -> None:
    if answer_only and as_json:
        raise click.UsageError("--answer-only and --json exclude each other.")
    if question is None or question == "-":
        question = _read_stdin()
    from time import perf_counter

    from mindmerger.tokenizer import check_question

    # before the seconds that loading may take
    question = check_question(question)

    from mindmerger.loading import load

    began = perf_counter()
    with load(bundle, threads=threads) as model:
        load_ms = (perf_counter() - began) * 1e3
        stream = model.generate(
            question,
            max_new_tokens=max_tokens,
            temperature=temperature,
            seed=seed,
            calculator=False if no_calculator else None,
            soft_prompt=not no_merge,
        )
        quiet = answer_only or as_json
        text = ""
        for text in stream:
            if not quiet:
                sys.stdout.write(text)
                sys.stdout.flush()
        result = stream.result
        if as_json:
            print(json.dumps(_document(model, result, not no_merge, load_ms), ensure_ascii=False))
        elif answer_only:
            print(result.answer or "none")
        else:
            # The answer has a line of its own, whatever the text ended in.
            print("" if not text or text.endswith("\n") else "\n", end="")
            print(f"Answer: {result.answer or 'none'}")
        sys.stdout.flush()
        if result.finish_reason == "length":
            print(f"mm-run: stopped after {len(result.token_ids)} tokens; --max-tokens allows more", file=sys.stderr)
        if verbose:
            print(_report(model, result, load_ms), file=sys.stderr)


def _read_stdin() -> str:
    if sys.stdin is None or sys.stdin.isatty():
        raise click.UsageError('Give a QUESTION, for instance: mm-run "¿Cuánto es 15 + 27?"')
    data = sys.stdin.buffer.read(_MAX_STDIN_BYTES + 1)
    if len(data) > _MAX_STDIN_BYTES:
        raise InputError(f"stdin has more than {_MAX_STDIN_BYTES} bytes: give one question")
    try:
        return data.decode("utf-8-sig")  # Windows tools write a byte order mark
    except UnicodeDecodeError as error:
        raise InputError(f"stdin is not valid UTF-8 (at byte {error.start}): convert it, as with iconv") from None


def _document(model: MergedModel, result: Generation, merged: bool, load_ms: float) -> dict[str, Any]:
    return {
        "question": result.question,
        "text": result.text,
        "answer": result.answer,
        "finish_reason": result.finish_reason,
        "merged": merged,
        "counts": {
            "soft_prompt_rows": result.soft_prompt_rows,
            "prompt_tokens": result.prompt_tokens,
            "generated_tokens": len(result.token_ids),
            "forced_tokens": result.forced_tokens,
        },
        "timings": {
            "load_ms": round(load_ms, 2),
            **{
                key: None if value is None else round(value, 2)
                for key, value in dataclasses.asdict(result.timings).items()
            },
        },
        "bundle": {
            "name": model.manifest.name,
            "method": model.manifest.method,
            "folder": str(Path(model.bundle.folder).absolute()),
        },
    }


def _report(model: MergedModel, result: Generation, load_ms: float) -> str:
    times = result.timings
    speed = "" if times.tokens_per_second is None else f", {times.tokens_per_second:.0f} tokens/s"
    first = "" if times.first_token_ms is None else f", first token after {times.first_token_ms:.0f} ms"
    return (
        f"bundle   {model.manifest.name} ({model.manifest.method}), {model.bundle.folder}\n"
        f"load     {load_ms:.0f} ms\n"
        f"tokenise {times.tokenise_ms:.1f} ms, encode {times.encode_ms:.1f} ms{first}\n"
        f"prefill  {times.prefill_ms:.1f} ms: {result.soft_prompt_rows} rows + {result.prompt_tokens} tokens\n"
        f"decode   {times.decode_ms:.1f} ms: {len(result.token_ids)} tokens"
        f" ({result.forced_tokens} by the calculator){speed}\n"
        f"finish   {result.finish_reason}"
    )


def main() -> None:
    """The entry point of mm-run."""
    run_command(command, "mm-run")


if __name__ == "__main__":
    main()
