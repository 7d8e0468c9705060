"""The mean of checkpoints that were trained on from the same one: a model that can do better than each of them.

    python -m mindmerger_train.average runs/a runs/b models/mindmerger --out runs/mean

Wortsman et al. 2022, Model soups: averaging weights of multiple fine-tuned models improves accuracy without increasing
inference time. It costs seconds, and nothing when the model is used. Of models that do not descend from one the mean is noise:
their hidden units stand in another order.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import torch

from mindmerger.cli import run_body, run_command
from mindmerger.errors import CheckpointError, InputError
from mindmerger_train.adapter import Pair, read_adapter, write_adapter
from mindmerger_train.checkpoint import WEIGHTS_FILE, Checkpoint, file_sha256, load_checkpoint, save_checkpoint
from mindmerger_train.llms import load_llm_config

ADAPTER = "adapter.gguf"


def average(folders: Sequence[Path], out: Path) -> float | None:
    """Write the mean of the checkpoints in `folders`, each counting the same, to `out`.

    Weights are averaged one by one; adapters (`average_pairs`) to the rank of the first. Returns the share of the mean of the
    adapters' updates that this rank holds (of the sum of its squares); None where the LLM has no adapter.
    Raises InputError for fewer than two checkpoints or one that is `out`, CheckpointError when one is damaged or is a merge of
    other models, with another prompt or of another method.
    """
    if len(folders) < 2:
        raise InputError("an average needs two checkpoints or more")
    if out.resolve() in [folder.resolve() for folder in folders]:
        raise InputError(f"{out} is one of the checkpoints: give another folder for their mean")
    checkpoints = [load_checkpoint(folder) for folder in folders]
    first = checkpoints[0]
    for folder, other in zip(folders[1:], checkpoints[1:], strict=True):
        _check_same(first, other, folders[0], folder)
    states = [checkpoint.merger.state_dict() for checkpoint in checkpoints]
    merger = copy.deepcopy(first.merger)
    merger.load_state_dict({key: torch.stack([state[key] for state in states]).mean(0) for key in states[0]})
    llm, kept = first.llm, None
    paths = [path for checkpoint in checkpoints if (path := checkpoint.adapter_path()) is not None]
    if paths:
        config = load_llm_config(first.llm)
        pairs, kept = average_pairs([read_adapter(path, config) for path in paths])
        rank = next(iter(pairs.values())).a.shape[0]
        out.mkdir(parents=True, exist_ok=True)
        write_adapter(out / ADAPTER, pairs, float(rank), config, f"{first.name} average")
        llm = replace(llm, adapter=ADAPTER, adapter_sha256=file_sha256(out / ADAPTER))
    training = {
        "average": [
            {"name": c.name, "sha256": file_sha256(f / WEIGHTS_FILE)} for c, f in zip(checkpoints, folders, strict=True)
        ]
    }
    save_checkpoint(replace(first, merger=merger, llm=llm, training=training, folder=out), out)
    return kept


def average_pairs(adapters: Sequence[tuple[dict[str, Pair], float]]) -> tuple[dict[str, Pair], float]:
    """The mean of low-rank updates, (pairs, alpha) of each, as updates of the first's rank with alpha = rank.

    The mean of n updates of rank r has a rank of up to n r. Of all updates of rank r the one nearest to it is taken (Eckart and
    Young), from the singular values of a small matrix between two orthogonal ones. Returns it and the share of the sum of
    squares that it holds, over all modules. Raises CheckpointError when they change different modules.
    """
    modules = adapters[0][0].keys()
    if any(pairs.keys() != modules for pairs, _ in adapters):
        raise CheckpointError("the adapters change different modules of the LLM")
    means, kept, whole = {}, 0.0, 0.0
    for module in modules:
        own = [(pairs[module], alpha / pairs[module].a.shape[0]) for pairs, alpha in adapters]
        if len({(pair.a.shape[1], pair.b.shape[0]) for pair, _ in own}) > 1:
            raise CheckpointError(f"the adapters are of different LLMs: {module} differs in shape")
        left, upper = np.linalg.qr(np.concatenate([pair.b * scale / len(own) for pair, scale in own], axis=1))
        right, lower = np.linalg.qr(np.concatenate([pair.a for pair, _ in own]).T)
        u, values, v = np.linalg.svd(upper @ lower.T)
        rank = min(own[0][0].a.shape[0], len(values))
        root = np.sqrt(values[:rank])
        means[module] = Pair((root[:, None] * v[:rank]) @ right.T, left @ u[:, :rank] * root)
        kept += float(np.square(values[:rank]).sum())
        whole += float(np.square(values).sum())
    return means, kept / whole if whole else 1.0


def _check_same(first: Checkpoint, other: Checkpoint, one: Path, two: Path) -> None:
    """Raises CheckpointError where two checkpoints are not merges of the same models in the same way."""
    parts = {
        "method": (first.method, other.method),
        "encoder": (first.encoder, other.encoder),
        "LLM": tuple(replace(each.llm, adapter="", adapter_sha256="") for each in (first, other)),
        "prompt": (first.prompt, other.prompt),
        "gate": tuple(each.merger.gate and each.merger.gate.spec for each in (first, other)),
        "adapter of the LLM": (bool(first.llm.adapter), bool(other.llm.adapter)),
        "calculator": (first.calculator, other.calculator),
    }
    for name, (mine, theirs) in parts.items():
        if mine != theirs:
            raise CheckpointError(f"{one} and {two} cannot be averaged: they differ in the {name}")


@click.command()
@click.argument("checkpoints", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the mean.")
def command(checkpoints: tuple[Path, ...], out: Path) -> None:
    """Average CHECKPOINTS, all trained on from the same one."""

    def body() -> None:
        kept = average(checkpoints, out)
        if kept is not None:
            click.echo(f"the adapters' mean in their rank: {100 * kept:.1f} % of it", err=True)
        click.echo(out)

    run_body(body)


if __name__ == "__main__":
    run_command(command, "average")
