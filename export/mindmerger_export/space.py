"""Will it fit? Disk and memory that an export takes, known before anything is written.

Weights are counted in the headers of their files; what is estimated is on the safe side. What this module does not know:
how anything is converted.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mindmerger.errors import ModelError
from mindmerger.machine import available_memory, free_disk
from mindmerger.packages import find_package_file
from mindmerger_export.request import AUTO, Request

if TYPE_CHECKING:  # both bring torch, and a bundle's disk is asked for without it
    from mindmerger_train.checkpoint import Checkpoint

# Bytes a weight, the blocks' scales included.
_GRAPH = {"fp32": 4.0, "w8": 1.25, "w4": 0.75}
_LLM = {"f32": 4.0, "f16": 2.0, "bf16": 2.0, "q8_0": 1.0625, "q6_k": 0.83, "q5_1": 0.75, "q5_k_m": 0.73, "q5_0": 0.69}
_LLM |= {"q4_1": 0.625, "q4_k_m": 0.62, "q4_0": 0.5625}
_PROGRAM = 700_000_000  # torch, transformers, ONNX Runtime and llama.cpp, idle
_BLOCKS = 600_000_000  # rows of tensors that are being converted
_MARGIN = 64_000_000
# An LLM above this is not compared with F16 unless asked to: it takes minutes a question on a small machine.
LARGE = 2_000_000_000


@dataclass(frozen=True)
class Sizes:
    """Numbers of weights. `llm` is 0 where it is not known."""

    encoder: int
    table: int
    llm: int


@dataclass(frozen=True)
class Need:
    """Bytes: the most that lies on the disk at once, the most anonymous memory, and that with torch's LLM in it."""

    disk: int
    memory: int
    memory_with_torch: int


def sizes_of(checkpoint: Checkpoint) -> Sizes:
    """Weights of encoder and LLM, by the headers of their files. A damaged file counts nothing: reading it will tell."""
    from mindmerger_train import encoders, llms

    source = checkpoint.encoder.source
    if source == encoders.PACKAGE_SOURCE:
        encoder, table = 118_000_000, 96_000_000
    else:
        shapes = _shapes(Path(source))
        half = {key: shape for key, shape in shapes.items() if "decoder" not in key and "lm_head" not in key}
        encoder = sum(_product(shape) for shape in half.values())
        table = max((_product(shape) for shape in half.values()), default=0)
    if checkpoint.llm.source == llms.PACKAGE_SOURCE:
        return Sizes(encoder, table, 134_515_008)
    path = Path(checkpoint.llm.source)
    if path.is_file():
        return Sizes(encoder, table, 2 * path.stat().st_size)
    return Sizes(encoder, table, sum(_product(shape) for shape in _shapes(path).values()))


def _product(shape: tuple[int, ...]) -> int:
    count = 1
    for length in shape:
        count *= length
    return count


def _shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Tensors of a Hugging Face folder: name → shape, from the JSON at the beginning of each safetensors file."""
    found: dict[str, tuple[int, ...]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with file.open("rb") as stream:
                length = int.from_bytes(stream.read(8), "little")
                header = json.loads(stream.read(min(length, 100_000_000)))
            found |= {key: tuple(entry["shape"]) for key, entry in header.items() if key != "__metadata__"}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    return found


def need(request: Request, sizes: Sizes, compared: bool) -> Need:
    """What the export takes, all copies that exist at one time counted."""
    graph = int(sizes.encoder * _GRAPH.get(request.precision, 4.0)) + 20_000_000
    kind = request.llm_type or "q8_0"
    if request.llm_gguf is not None:
        llm = request.llm_gguf.stat().st_size if request.llm_gguf.is_file() else 0
    elif request.llm == "package":
        llm = _package_bytes()
    elif kind == AUTO:
        llm = int(sizes.llm * _LLM["q8_0"])
    else:
        llm = int(sizes.llm * _LLM.get(kind, 4.0))
    half = int(sizes.llm * _LLM["f16"])
    converted = request.llm_gguf is None and request.llm != "package"
    # Quantising goes by way of a file of the LLM as it is stored; F16, to compare with, lies beside the result.
    disk = graph + llm + max(half if compared or kind == AUTO else 0, half if converted else 0) + _MARGIN
    # The encoder in torch; ONNX Runtime's weights are mapped, but packed anew.
    encoder = int(sizes.encoder * (4 + _GRAPH.get(request.precision, 4.0)))
    memory = _PROGRAM + max(encoder, _BLOCKS)
    return Need(disk, memory, _PROGRAM + encoder + 4 * sizes.llm)


def _package_bytes() -> int:
    from mindmerger_train import llms

    return find_package_file(llms.PACKAGE_SOURCE, llms.PACKAGE_FILE).stat().st_size // 4  # an adapter, and room


def check_space(needed: Need, out: Path) -> None:
    """Raises ModelError where the disk or the memory cannot hold the work."""
    free = free_disk(out.parent)
    if free is not None and free < needed.disk:
        raise ModelError(
            f"the export needs about {gigabytes(needed.disk)} on the disk of {out.parent} and {gigabytes(free)} are free: "
            "make room, or give another --out"
        )
    room = available_memory()
    if room is not None and room < needed.memory:
        raise ModelError(
            f"the export needs about {gigabytes(needed.memory)} of memory and {gigabytes(room)} are available: close other "
            "programs, or use a larger machine"
        )


def asks_torch(request: Request, needed: Need) -> bool:
    """Whether torch's LLM answers too, to be compared with."""
    if request.reference != "auto":
        return request.reference == "torch"
    room = available_memory()
    return room is None or needed.memory_with_torch <= room


def check_disk(size: int, folder: Path, what: str) -> None:
    """Raises ModelError where `folder` has no room for `size` bytes."""
    free = free_disk(folder)
    if free is not None and free < size + _MARGIN:
        raise ModelError(
            f"{what} needs {gigabytes(size + _MARGIN)} on the disk of {folder} and {gigabytes(free)} are free: make room, "
            "or give another --out"
        )


def gigabytes(size: int) -> str:
    """A size for people."""
    if size >= 1e9:
        return f"{size / 1e9:.1f} GB"
    return f"{size / 1e6:.0f} MB" if size >= 1e7 else f"{size / 1e6:.2f} MB"
