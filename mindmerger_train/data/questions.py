"""Generated questions as text, a file for each language: what an encoder's vocabulary is pruned by, among other texts.

    python -m mindmerger_train.data.questions problems texts/problems --count 3000 --seed 331
    mm-export --checkpoint runs/augmentation --prune-text texts --out smaller

News and sentences lack the words of word problems (`docs/export.md`). What this module does not know: how texts are used.
"""

from __future__ import annotations

from pathlib import Path

import click

from mindmerger.cli import run_body, run_command
from mindmerger.errors import InputError
from mindmerger_train.data import generator, problems
from mindmerger_train.files import whole

SOURCES = {"problems": problems, "generator": generator}


def write_questions(source: str, folder: Path, count: int, seed: int, languages: tuple[str, ...] = ()) -> list[Path]:
    """Write `count` questions in each language to `folder`/LANGUAGE.txt, one a line; returns the files.

    Args:
        source: a key of `SOURCES`.
        languages: which ones; none: all that the source has.

    Raises:
        InputError: for an unknown source.
        DataError: for a language that the source has not, or a negative count; nothing is written then.
    """
    if source not in SOURCES:
        raise InputError(f"there is no source {source!r} of questions; use one of {', '.join(SOURCES)}")
    module = SOURCES[source]
    drawn = [(code, module.generate(code, count, seed)) for code in languages or module.LANGUAGES]
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for code, found in drawn:
        target = folder / f"{code}.txt"
        with whole(target) as part:
            part.write_text("".join(f"{problem.query}\n" for problem in found), encoding="utf-8")
        written.append(target)
    return written


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("source", type=click.Choice([*SOURCES]))
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--count", default=3000, show_default=True, help="Questions in each language.")
@click.option("--seed", default=0, show_default=True, help="Other questions with another one.")
@click.option("--languages", default="", help="Only these, as sw,bn. [default: all that the source has]")
def command(source: str, folder: Path, count: int, seed: int, languages: str) -> None:
    """Write questions of SOURCE into FOLDER, a text file for each language."""

    def body() -> None:
        codes = tuple(code.strip() for code in languages.split(",") if code.strip())
        for path in write_questions(source, folder, count, seed, codes):
            click.echo(path)

    run_body(body)


if __name__ == "__main__":
    run_command(command, "questions")
