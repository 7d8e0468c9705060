"""Put a trained checkpoint into `models/`: weights in float16, the adapter where its bundle will keep it.

    python -m mindmerger_train.publish runs/augmentation models/mindmerger
    python -m mindmerger_train.publish runs/steering models/st-merge \\
           --adapter-in models/mindmerger/bundle --mapping-in models/mindmerger
    mm-export --checkpoint models/mindmerger --llm package …

A repository keeps every copy for ever, so nothing is there twice: checkpoints and bundle share one adapter file,
`bundle/adapter.gguf`, and a gate that was trained on a frozen mapping names the checkpoint that has it.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import click
import torch

from mindmerger.cli import run_body, run_command
from mindmerger.errors import CheckpointError
from mindmerger_train.checkpoint import copy_adapter, load_checkpoint, save_checkpoint

BUNDLE = "bundle"


def publish(run: Path, folder: Path, adapter_in: Path | None = None, mapping_in: Path | None = None) -> None:
    """Copy the checkpoint `run` to `folder`, its adapter to `adapter_in` (default: the folder of its bundle).

    `mapping_in` is a published checkpoint with the same mapping, of which no second copy is made.
    Raises CheckpointError when `run` has no adapter or is damaged, or when the mappings differ.
    """
    checkpoint = load_checkpoint(run)
    adapter = checkpoint.adapter_path()
    if adapter is None:
        raise CheckpointError(f"{run} has no adapter: its LLM could be published as it is")
    kept = adapter_in or folder / BUNDLE
    name, sha256 = copy_adapter(adapter, kept)
    place = Path(os.path.relpath((kept / name).resolve(), folder.resolve())).as_posix()
    llm = replace(checkpoint.llm, adapter=place, adapter_sha256=sha256)
    save_checkpoint(replace(checkpoint, llm=llm, name=folder.name), folder, torch.float16, mapping_in)


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--adapter-in", type=click.Path(path_type=Path), help="Folder of the adapter (default: FOLDER/bundle).")
@click.option("--mapping-in", type=click.Path(path_type=Path), help="Published checkpoint with the same mapping.")
def command(run: Path, folder: Path, adapter_in: Path | None, mapping_in: Path | None) -> None:
    """Publish the checkpoint RUN as FOLDER."""
    run_body(lambda: publish(run, folder, adapter_in, mapping_in))


if __name__ == "__main__":
    run_command(command, "publish")
