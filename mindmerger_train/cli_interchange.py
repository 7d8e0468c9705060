"""`mm-train import-mindmerger` and `mm-train export-mindmerger`: checkpoints of the authors' code, both ways."""

from __future__ import annotations

from pathlib import Path

import click

from mindmerger.cli import run_body

_ALPACA = "the papers' Alpaca prompt"


@click.command(
    "import-mindmerger",
    epilog="""\b
Example:
  mm-train import-mindmerger pytorch_model.bin --encoder models/mt5-xl --llm models/MetaMath-7B --out my-merge
  mm-export --checkpoint my-merge --out my-bundle""",
)
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--encoder", required=True, metavar="DIR", help="Hugging Face folder of the encoder (its last layer is mapped)."
)
@click.option("--llm", required=True, metavar="DIR", help="Hugging Face folder of the LLM.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the checkpoint.")
@click.option("--languages", metavar="CODES", help="Languages that it was trained with, as bn,sw,th.")
@click.option("--template", metavar="TEXT", help=f"Prompt with one {{question}}. [default: {_ALPACA}]")
def import_command(file: Path, encoder: str, llm: str, out: Path, languages: str | None, template: str | None) -> None:
    """Turn FILE, a pytorch_model.bin of MindMerger's published code, into a checkpoint.

    Only tensors are read from FILE, never code. The keys and shapes must be exactly those of the published format and fit
    the encoder and the LLM.
    """

    def body() -> None:
        from mindmerger.errors import CheckpointError
        from mindmerger_train import encoders, llms
        from mindmerger_train.checkpoint import Checkpoint, save_checkpoint
        from mindmerger_train.interchange import read_published
        from mindmerger_train.prompts import prompt_spec

        merger = read_published(file)
        encoder_spec, llm_spec = encoders.spec_from_folder(Path(encoder)), llms.spec_from_folder(Path(llm))
        widths = (merger.mlp.linear1.in_features, merger.end_boundary.shape[2])  # type: ignore[union-attr]
        if widths != (encoder_spec.output_width, llm_spec.width):
            raise CheckpointError(
                f"{file} maps width {widths[0]} to {widths[1]}; this encoder has {encoder_spec.output_width} and "
                f"this LLM {llm_spec.width}"
            )
        prompt = prompt_spec(llm_spec, template or "alpaca")
        codes = tuple(code.strip() for code in (languages or "").split(",") if code.strip())
        training = {"imported_from": file.name}
        save_checkpoint(
            Checkpoint(
                merger, encoder_spec, llm_spec, prompt, out.name, calculator=False, languages=codes, training=training
            ),
            out,
        )
        click.echo(out)

    run_body(body)


@click.command("export-mindmerger")
@click.argument("checkpoint")
@click.argument("file", type=click.Path(path_type=Path))
def export_command(checkpoint: str, file: Path) -> None:
    """Write CHECKPOINT (a folder, or a name in models/) as FILE in the format of MindMerger's published code."""

    def body() -> None:
        from mindmerger_train.checkpoint import load_checkpoint, resolve_checkpoint
        from mindmerger_train.interchange import write_published

        write_published(load_checkpoint(resolve_checkpoint(checkpoint)).merger, file)
        click.echo(file)

    run_body(body)
