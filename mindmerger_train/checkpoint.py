"""The checkpoint: `merger.safetensors` + `config.json` in a folder, and which encoder and LLM it belongs to.

A gate that was trained on a frozen mapping may be kept without it: `config.json` then names the other checkpoint that has
the mapping, and its weights' sha256.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from mindmerger.bundle import model_folders
from mindmerger.errors import CheckpointError
from mindmerger_train.encoders import EncoderSpec
from mindmerger_train.files import whole
from mindmerger_train.gate import GateSpec
from mindmerger_train.llms import LLMSpec, PromptSpec
from mindmerger_train.merger import Merger

FORMAT = "mindmerger-checkpoint"
FORMAT_VERSION = "1.1"
WEIGHTS_FILE = "merger.safetensors"
CONFIG_FILE = "config.json"
GATE_PREFIX = "gate."


@dataclass
class Checkpoint:
    """A merger, and all that is needed to run it again."""

    merger: Merger
    encoder: EncoderSpec
    llm: LLMSpec
    prompt: PromptSpec
    name: str = "mindmerger"
    calculator: bool = True
    languages: tuple[str, ...] = ()
    training: dict[str, Any] = field(default_factory=dict)
    folder: Path | None = None

    @property
    def method(self) -> str:
        """`mindmerger`, `langbridge`, `st-merge` or `mono`."""
        return self.merger.method

    def adapter_path(self) -> Path | None:
        """Where the LLM's adapter is. Raises CheckpointError when it is missing or is another file than at training."""
        if not self.llm.adapter:
            return None
        path = (self.folder or Path()) / self.llm.adapter
        if not path.is_file():
            raise CheckpointError(f"the checkpoint's LLM has an adapter, and {path} is missing")
        if self.llm.adapter_sha256 and file_sha256(path) != self.llm.adapter_sha256:
            raise CheckpointError(f"{path} is not the adapter that this checkpoint was trained with (sha256 differs)")
        return path


def file_sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def save_checkpoint(
    checkpoint: Checkpoint, folder: Path, dtype: torch.dtype = torch.float32, mapping_in: Path | None = None
) -> None:
    """Write the checkpoint; weights in `dtype`. Each file is written to a temporary name and renamed.

    With `mapping_in`, a checkpoint's folder that holds the same mapping in `dtype`, only the gate is written.
    Raises CheckpointError when the mapping there is another one.
    """
    state = {key: value.detach().to("cpu", dtype).contiguous() for key, value in checkpoint.merger.state_dict().items()}
    mapping = {}
    if mapping_in is not None:
        state = _without_mapping(state, mapping_in)
        shared = mapping_in / WEIGHTS_FILE
        place = os.path.relpath(mapping_in.resolve(), folder.resolve())
        mapping = {"mapping": {"checkpoint": Path(place).as_posix(), "sha256": file_sha256(shared)}}
    folder.mkdir(parents=True, exist_ok=True)
    with whole(folder / WEIGHTS_FILE) as part:
        # not save_file, whose files their owner alone can read, whatever the umask says
        part.write_bytes(save(state, metadata={"format": FORMAT, "format_version": FORMAT_VERSION}))
    config = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "name": checkpoint.name,
        "method": checkpoint.method,
        **({"gate": checkpoint.merger.gate.spec.to_json()} if checkpoint.merger.gate is not None else {}),
        **mapping,
        "encoder": checkpoint.encoder.to_json(),
        "llm": checkpoint.llm.to_json(),
        "prompt": checkpoint.prompt.to_json(),
        "calculator": checkpoint.calculator,
        "languages": list(checkpoint.languages),
        "training": checkpoint.training,
    }
    with whole(folder / CONFIG_FILE) as part:
        part.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint; the merger comes back in float32.

    Raises CheckpointError when a file is missing, damaged, of a newer major version, or when the weights do not have the
    widths of the encoder and the LLM that `config.json` names.
    """
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder} is no checkpoint: it has no {CONFIG_FILE}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{folder / CONFIG_FILE} is damaged: {error}") from error
    if config.get("format") != FORMAT:
        raise CheckpointError(f'{folder / CONFIG_FILE} does not say "format": "{FORMAT}"')
    if str(config.get("format_version", "")).split(".")[0] != FORMAT_VERSION.split(".")[0]:
        raise CheckpointError(
            f"{folder} has checkpoint format {config.get('format_version')}, this version reads {FORMAT_VERSION}: update"
        )
    try:
        encoder = EncoderSpec.from_json(config["encoder"])
        llm = LLMSpec.from_json(config["llm"])
        prompt = PromptSpec.from_json(config["prompt"])
        gate = GateSpec.from_json(config["gate"]) if "gate" in config else None
        merger = Merger(encoder.output_width, llm.width, config.get("method", "mindmerger"), gate)
        shared = _shared_mapping(folder, config["mapping"]) if "mapping" in config else {}
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / CONFIG_FILE} lacks or misnames a field: {error}") from error
    return Checkpoint(
        merger=_load_weights(folder / WEIGHTS_FILE, merger, encoder.output_width, llm.width, shared),
        encoder=encoder,
        llm=llm,
        prompt=prompt,
        name=config.get("name", folder.name),
        calculator=bool(config.get("calculator", False)),
        languages=tuple(config.get("languages", ())),
        training=config.get("training", {}),
        folder=folder,
    )


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise CheckpointError(f"the checkpoint's weights {path} are missing") from error
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged or no safetensors file: {error}") from error


def _without_mapping(state: dict[str, torch.Tensor], mapping_in: Path) -> dict[str, torch.Tensor]:
    """The gate's part of `state`, whose other part must be what the checkpoint `mapping_in` has, value by value."""
    other = _read_weights(mapping_in / WEIGHTS_FILE)
    mine = {key: value for key, value in state.items() if not key.startswith(GATE_PREFIX)}
    if other.keys() != mine.keys() or not all(torch.equal(other[key], value) for key, value in mine.items()):
        raise CheckpointError(f"{mapping_in} has another mapping: this checkpoint must be written whole")
    return {key: value for key, value in state.items() if key not in mine}


def _shared_mapping(folder: Path, where: dict[str, str]) -> dict[str, torch.Tensor]:
    """The mapping that `folder` shares with another checkpoint."""
    path = folder / where["checkpoint"] / WEIGHTS_FILE
    if not path.is_file():
        raise CheckpointError(f"{folder} has a gate alone: its mapping is in {path}, which is missing")
    if file_sha256(path) != where["sha256"]:
        raise CheckpointError(f"{path} is not the mapping that the gate in {folder} belongs to (sha256 differs)")
    return _read_weights(path)


def _load_weights(
    path: Path, merger: Merger, input_width: int, output_width: int, shared: dict[str, torch.Tensor]
) -> Merger:
    state = {**shared, **_read_weights(path)}
    expected = {key: tuple(value.shape) for key, value in merger.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in state.items()}
    if expected != found:
        wrong = sorted(key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key))[0]
        raise CheckpointError(
            f"{path} does not fit an encoder of width {input_width} and an LLM of width {output_width}: "
            f"{wrong} is {found.get(wrong)}, expected {expected.get(wrong)}"
        )
    if not all(bool(torch.isfinite(value).all()) for value in state.values()):
        raise CheckpointError(f"{path} contains NaN or infinite weights")
    merger.load_state_dict({key: value.float() for key, value in state.items()})
    return merger


def resolve_checkpoint(name_or_folder: str) -> Path:
    """A folder, or the name of a checkpoint that ships with the package (`models/NAME`).

    Raises CheckpointError with the known names when there is none.
    """
    folder = Path(name_or_folder)
    if (folder / CONFIG_FILE).is_file():
        return folder
    roots = model_folders()
    for root in roots:
        if (root / name_or_folder / CONFIG_FILE).is_file():
            return root / name_or_folder
    known = sorted({path.parent.name for root in roots for path in root.glob(f"*/{CONFIG_FILE}")})
    raise CheckpointError(f"no checkpoint {name_or_folder!r}: give a folder with {CONFIG_FILE}, or one of {known}")


def copy_adapter(source: Path, folder: Path) -> tuple[str, str]:
    """Copy an adapter beside a checkpoint; returns its relative path and sha256."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / "adapter.gguf"
    if source.resolve() != target.resolve():
        with whole(target) as part:
            shutil.copyfile(source, part)
    return target.name, file_sha256(target)
