"""Put a trained checkpoint into `models/`: weights in float16, the adapter where its bundle will keep it.

    python -m mindmerger_train.publish runs/augmentation models/mindmerger
    mm-export --checkpoint models/mindmerger --llm package …

A published checkpoint and its bundle share one adapter file, `bundle/adapter.gguf`: a repository keeps every copy for ever.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click
import torch

from mindmerger.cli import run_body, run_command
from mindmerger.errors import CheckpointError
from mindmerger_train.checkpoint import copy_adapter, load_checkpoint, save_checkpoint

BUNDLE = "bundle"


def publish(run: Path, folder: Path) -> None:
    """Copy the checkpoint `run` to `folder`. Raises CheckpointError when it has no adapter or is damaged."""
    checkpoint = load_checkpoint(run)
    adapter = checkpoint.adapter_path()
    if adapter is None:
        raise CheckpointError(f"{run} has no adapter: its LLM could be published as it is")
    name, sha256 = copy_adapter(adapter, folder / BUNDLE)
    llm = replace(checkpoint.llm, adapter=f"{BUNDLE}/{name}", adapter_sha256=sha256)
    save_checkpoint(replace(checkpoint, llm=llm, name=folder.name), folder, torch.float16)


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("folder", type=click.Path(path_type=Path))
def command(run: Path, folder: Path) -> None:
    """Publish the checkpoint RUN as FOLDER."""
    run_body(lambda: publish(run, folder))


if __name__ == "__main__":
    run_command(command, "publish")
