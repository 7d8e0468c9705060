"""`mm-train`: one stage of training from a recipe, or its plan."""

from __future__ import annotations

import os
from pathlib import Path

import click

from mindmerger.cli import run_body, run_command
from mindmerger_train.cli_interchange import export_command, import_command


@click.group(
    invoke_without_command=True,
    no_args_is_help=True,
    subcommand_metavar="[COMMAND]",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""\b
Examples:
  mm-train --config models/recipes/nano/1-reason.toml --data DATA --out runs/reason
  mm-train --config models/recipes/nano/2-mapping.toml --data DATA --out runs/mapping
  mm-train --config models/recipes/nano/3-augmentation.toml --data DATA --out runs/augmentation \\
           --merger runs/mapping --adapter runs/reason/adapter.gguf
  mm-train --dry-run --config models/recipes/nano/2-mapping.toml --set schedule.tokens=2_000_000

\b
The folder DATA holds gsm8k/, mawps_asdiv/, tatoeba/ and ntrex/ as their publishers lay them out.

\b
Several processes, the same numbers (each takes a GPU, where there are any):
  mm-train --processes 2 --config …
  accelerate launch --cpu --num_processes 2 -m mindmerger_train.cli --config …
  torchrun --nproc_per_node 2 -m mindmerger_train.cli --config …

\b
The output folder gets the result, state/ (to go on from), metrics.jsonl and training.svg; its name goes to stdout, progress to
stderr. Ctrl-C finishes the step and saves the state; after kill -9 at most schedule.save_seconds are computed again.
Exit codes: 0 done, 2 wrong command line, 3 bad recipe, 5 a full disk, 6 bad checkpoint, 7 bad data, 9 the loss became NaN,
130 interrupted (start again with --resume).""",
)
@click.option("--config", type=click.Path(path_type=Path), help="The stage's recipe (TOML).")
@click.option("--data", type=click.Path(path_type=Path), help="Folder of training data.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the result, log and state.")
@click.option("--merger", type=str, help="Checkpoint to start from (a folder, or a name in models/).")
@click.option(
    "--adapter", type=click.Path(path_type=Path), help="Adapter of the LLM: to go on training (reason) or to use."
)
@click.option("--resume", is_flag=True, help="Go on from the state in the output folder, if there is one.")
@click.option("--start-over", is_flag=True, help="Throw away the state in the output folder.")
@click.option(
    "--dry-run",
    is_flag=True,
    help="Print parameters, memory, steps and time, and stop. Needs no weights; --data and --out make it more exact.",
)
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key of the recipe; repeatable."
)
@click.option(
    "--processes", type=click.IntRange(min=1), metavar="N", help="Share every step among N processes of this machine."
)
@click.pass_context
def command(
    context: click.Context,
    config: Path | None,
    data: Path | None,
    out: Path | None,
    merger: str | None,
    adapter: Path | None,
    resume: bool,
    start_over: bool,
    dry_run: bool,
    overrides: tuple[str, ...],
    processes: int | None,
) -> None:
    """Train one stage: reason, mapping, augmentation or steering.

    The encoder and the LLM stay frozen: `reason` trains a LoRA adapter of the LLM, the others train the merger. Stages
    build on each other; give the previous one's result with --merger and --adapter.
    """
    if context.invoked_subcommand is not None:
        return
    needed = {"--config": config} if dry_run else {"--config": config, "--data": data, "--out": out}
    missing = [name for name, value in needed.items() if value is None]
    if missing:
        raise click.UsageError(f"Missing option '{missing[0]}'.")
    if resume and start_over:
        raise click.UsageError("--resume and --start-over exclude each other.")

    def body() -> None:
        # torch and transformers take seconds to import: not before the command line is known to be right, nor by a process
        # that only starts others.
        from mindmerger_train.processes import processes_to_start, run_group

        assert config is not None
        count = 1 if dry_run else processes_to_start(processes)
        if count > 1:
            raise click.exceptions.Exit(run_group(count, _arguments(context)))
        from mindmerger_train.launch import Order, plan_stage, run_stage
        from mindmerger_train.recipe import load_recipe

        order = Order(load_recipe(config, overrides), data, out, merger, adapter, resume, start_over)
        if dry_run:
            click.echo(plan_stage(order).text())
            return
        try:
            run_stage(order)
        except KeyboardInterrupt:
            click.echo(f"mm-train: interrupted; go on with --resume (state in {out})", err=True)
            raise
        if os.environ.get("RANK", "0") == "0":
            click.echo(out)

    run_body(body)


def _arguments(context: click.Context) -> list[str]:
    """The command line once more, without --processes."""
    words: list[str] = []
    for option in context.command.params:
        value = context.params.get(str(option.name))
        if option.name == "processes" or value in (None, False, ()):
            continue
        for each in value if isinstance(value, tuple) else (value,):
            words += [option.opts[0]] if each is True else [option.opts[0], str(each)]
    return words


command.add_command(import_command)
command.add_command(export_command)


def main() -> None:
    """The entry point of mm-train."""
    run_command(command, "mm-train")


if __name__ == "__main__":
    main()
