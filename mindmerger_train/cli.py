"""`mm-train`: one stage of training from a recipe."""

from __future__ import annotations

from pathlib import Path

import click

from mindmerger.cli import run_body, run_command


@click.command(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""\b
Examples:
  mm-train --config models/recipes/nano/1-reason.toml --data DATA --out runs/reason
  mm-train --config models/recipes/nano/2-mapping.toml --data DATA --out runs/mapping
  mm-train --config models/recipes/nano/3-augmentation.toml --data DATA --out runs/augmentation \\
           --merger runs/mapping --adapter runs/reason/adapter.gguf

\b
The folder DATA holds gsm8k/, mawps_asdiv/, tatoeba/ and ntrex/ as their publishers lay them out.

\b
Progress goes to stderr and to metrics.jsonl in the output folder; the folder's name goes to stdout.
Exit codes: 0 done, 2 wrong command line, 3 bad recipe, 6 bad checkpoint, 7 bad data, 9 the loss became NaN,
130 interrupted (start again with --resume).""",
)
@click.option("--config", type=click.Path(path_type=Path), required=True, help="The stage's recipe (TOML).")
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Folder of training data.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the result, log and state.")
@click.option("--merger", type=str, help="Checkpoint to start from (a folder, or a name in models/).")
@click.option(
    "--adapter", type=click.Path(path_type=Path), help="Adapter of the LLM: to go on training (reason) or to use."
)
@click.option("--resume", is_flag=True, help="Go on from the state in the output folder.")
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key of the recipe; repeatable."
)
def command(
    config: Path,
    data: Path,
    out: Path,
    merger: str | None,
    adapter: Path | None,
    resume: bool,
    overrides: tuple[str, ...],
) -> None:
    """Train one stage: reason, mapping or augmentation.

    The encoder and the LLM stay frozen: `reason` trains a LoRA adapter of the LLM, the others train the merger. Stages
    build on each other; give the previous one's result with --merger and --adapter.
    """

    def body() -> None:
        try:
            run(config, data, out, merger, adapter, resume, overrides)
        except KeyboardInterrupt:
            click.echo(f"mm-train: interrupted; go on with --resume (state in {out})", err=True)
            raise
        click.echo(out)

    run_body(body)


def run(
    config: Path,
    data: Path,
    out: Path,
    merger: str | None,
    adapter: Path | None,
    resume: bool,
    overrides: tuple[str, ...],
) -> None:
    """The command without its shell: raises MindMergerError instead of leaving."""
    # torch and transformers take seconds to import: not before the command line is known to be right.
    import itertools

    from mindmerger_train.build import build_task, row_maker
    from mindmerger_train.data.mixture import batches, cut_by_length, draw, hold_out
    from mindmerger_train.engine import train
    from mindmerger_train.layout import Row
    from mindmerger_train.recipe import load_recipe, load_sources

    recipe = load_recipe(config, overrides)
    schedule = recipe.schedule
    sources, held = hold_out(load_sources(recipe, data))
    task = build_task(recipe, sources, merger, adapter, fresh=not resume)
    maker = row_maker(recipe, task.checkpoint)
    held_rows = itertools.islice(maker.rows(draw(held or sources, schedule.seed), schedule.seed), recipe.held_out)
    held_out = cut_by_length(
        [row for row in held_rows if row.length() <= recipe.longest], Row.length, schedule.batch_tokens
    )
    stream = batches(
        maker.rows(draw(sources, schedule.seed), schedule.seed),
        Row.length,
        schedule.batch_tokens,
        recipe.longest,
        schedule.seed,
    )
    train(task, stream, held_out, schedule, out, resume=resume)


def main() -> None:
    """The entry point of mm-train."""
    run_command(command, "mm-train")


if __name__ == "__main__":
    main()
