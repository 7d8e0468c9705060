"""The LLM of a bundle as GGUF: taken as it is, converted and quantised with its adapter, or named by its package.

Every way ends in an `LLMFiles`: which files with which roles go into the bundle, and what was done. What this module does
not know: encoders, mergers, manifests' other fields.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mindmerger.bake import bake
from mindmerger.cache import sha256_of
from mindmerger.errors import BundleError, CheckpointError, InputError, ModelError
from mindmerger.gguf_file import read_gguf as read_layout
from mindmerger.machine import available_memory
from mindmerger.manifest import FileInfo
from mindmerger.manifest_rules import BAKE_TYPES
from mindmerger.packages import find_package_file
from mindmerger_export import kquants
from mindmerger_export.adapters import adapter_pairs
from mindmerger_export.requantise import FILE_TYPES, read_gguf, requantise
from mindmerger_export.space import check_disk, gigabytes
from mindmerger_export.talk import Talk
from mindmerger_train.checkpoint import Checkpoint
from mindmerger_train.llms import PACKAGE_FILE, PACKAGE_SOURCE

LLM_FILE = "llm.gguf"
ADAPTER_FILE = "adapter.gguf"
# Type → llama_ftype of a file whose matrices are mostly of it.
TYPES = FILE_TYPES | kquants.TYPES
FOREIGN_DEFAULT = "q5_k_m"


@dataclass(frozen=True)
class LLMOptions:
    """How an LLM is converted. `tensor_types`: PATTERN=TYPE, the first match decides a tensor.

    `exact_ids`: fail where llama.cpp's ids are not those of transformers; otherwise say so and go on.
    """

    tensor_types: tuple[str, ...] = ()
    exact_ids: bool = True


@dataclass(frozen=True)
class LLMFiles:
    """The LLM's part of a bundle. `gguf` is what the runtime will load, or (bake) what it starts from.

    `report`: what was done, for the manifest; `normaliser`: the form that text has to be brought into before llama.cpp.
    """

    entries: tuple[FileInfo, ...]
    gguf: Path
    bake: str | None
    kind: str
    report: dict[str, Any] = field(default_factory=dict)
    normaliser: str | None = None


def prepare_llm(
    checkpoint: Checkpoint,
    folder: Path,
    mode: str,
    type: str | None,
    ready: Path | None,
    options: LLMOptions | None = None,
    talk: Talk | None = None,
) -> LLMFiles:
    """Put the LLM's files into `folder`.

    `ready`: a GGUF that is taken as it is. Mode `package`: the LLM stays in its Python package, its adapter is baked in by
    the runtime at first use. Mode `embed`: one GGUF with the adapter applied, in `type`. Default: q5_k_m out of a Hugging
    Face folder; out of a GGUF the runtime's q8_0 with an adapter, as it is without.
    """
    options, talk = options or LLMOptions(), talk or Talk()
    if type is not None and type not in TYPES:
        raise InputError(f"the LLM cannot be written as {type!r}: the types are {', '.join(TYPES)}")
    overrides = [kquants.parse_override(text) for text in options.tensor_types]
    if overrides and (ready is not None or mode == "package"):
        raise InputError("--tensor-type is for an LLM that is converted: leave out --llm-gguf and --llm package")
    adapter = checkpoint.adapter_path()
    out = folder / LLM_FILE
    if ready is not None:
        if not ready.is_file():
            raise CheckpointError(f"there is no GGUF {ready}: check the path of --llm-gguf")
        check_disk(ready.stat().st_size, folder, "copying the LLM")
        shutil.copyfile(ready, out)
        return LLMFiles((file_entry("llm", out),), out, None, "ready", {"tensors": kquants.tensor_types(out)})
    if mode == "package":
        return _from_package(checkpoint, folder, adapter, type or "q8_0")
    work = _Conversion(out, type, overrides, adapter, talk)
    source = Path(checkpoint.llm.source)
    if checkpoint.llm.source == PACKAGE_SOURCE:
        report, normaliser = work.from_gguf(find_package_file(PACKAGE_SOURCE, PACKAGE_FILE)), None
    elif source.suffix == ".gguf" and source.is_file():
        report, normaliser = work.from_gguf(source), None
    else:
        report, normaliser = work.from_folder(source, checkpoint, options.exact_ids)
    report["tensors"] = kquants.tensor_types(out)
    if work.kind in kquants.TYPES and (others := kquants.fallbacks(out)):
        report["fallbacks"] = others
        talk(f"{len(others)} of the LLM's matrices do not divide into blocks of 256 and have other types")
    return LLMFiles((file_entry("llm", out),), out, None, work.kind, report, normaliser)


def file_entry(role: str, path: Path, package: str | None = None, name: str | None = None) -> FileInfo:
    """The manifest's entry of a file that exists."""
    return FileInfo(role, name or path.name, path.stat().st_size, sha256_of(path), package)


def _from_package(checkpoint: Checkpoint, folder: Path, adapter: Path | None, type: str) -> LLMFiles:
    if checkpoint.llm.source != PACKAGE_SOURCE:
        raise InputError(f"--llm package needs an LLM that a Python package ships, not {checkpoint.llm.source!r}")
    base = find_package_file(PACKAGE_SOURCE, PACKAGE_FILE)
    if adapter is None:
        return LLMFiles((file_entry("llm", base, PACKAGE_SOURCE, PACKAGE_FILE),), base, None, "package")
    if type not in BAKE_TYPES:
        raise InputError(f"the runtime can bake an adapter into {' or '.join(BAKE_TYPES)}, not into {type!r}")
    copy = folder / ADAPTER_FILE
    shutil.copyfile(adapter, copy)
    entries = (file_entry("llm-base", base, PACKAGE_SOURCE, PACKAGE_FILE), file_entry("adapter", copy))
    return LLMFiles(entries, base, type, f"package, baked to {type}")


class _Conversion:
    """One conversion into `out`. `kind` is the type that it comes out in."""

    def __init__(
        self, out: Path, type: str | None, overrides: kquants.Overrides, adapter: Path | None, talk: Talk
    ) -> None:
        self.out = out
        self.kind = type or ""
        self._overrides = overrides
        self._adapter = adapter
        self._talk = talk

    @property
    def _native(self) -> bool:
        """Whether llama.cpp has to quantise."""
        return self.kind in kquants.TYPES or bool(self._overrides)

    def _pairs(self) -> Any:
        return None if self._adapter is None else (self._adapter, adapter_pairs(self._adapter))

    def from_gguf(self, base: Path) -> dict[str, Any]:
        """Out of a GGUF; returns the report. Raises BundleError when it is none, CheckpointError for a foreign adapter."""
        if not self.kind:
            self.kind = "q8_0" if self._adapter is not None else "" if not self._overrides else FOREIGN_DEFAULT
        weights = [_weights(tensor.shape) for tensor in read_layout(base).tensors]
        if not self.kind:
            check_disk(base.stat().st_size, self.out.parent, "copying the LLM")
            shutil.copyfile(base, self.out)
            self.kind = "as stored"
        elif self._native:
            self._check(sum(weights), max(weights), 2 if self._adapter is not None else 0)
            if self._adapter is None:
                self._quantise(base)
            else:
                half = self.out.with_name(".half.gguf")
                self._through(
                    half, lambda advance: requantise(base, self._pairs(), half, "f16", advance), 2 * sum(weights)
                )
        elif self._adapter is not None and self.kind in BAKE_TYPES:
            # The runtime's own recipe, so that both ways into a bundle give the same LLM.
            bake(base, self._adapter, self.out, self.kind)
        else:
            self._check(sum(weights), 0, 0)
            self._talk(f"writing the LLM in {self.kind}")
            size = int(sum(weights) * kquants.BITS[self.kind] / 8)
            requantise(base, self._pairs(), self.out, self.kind, self._counter(size))
        return {}

    def from_folder(self, folder: Path, checkpoint: Checkpoint, exact_ids: bool) -> tuple[dict[str, Any], str | None]:
        """Out of a Hugging Face folder; returns the report and the normaliser of its tokenizer."""
        from mindmerger_export.hf_gguf import about, open_hf, write_gguf

        self.kind = self.kind or FOREIGN_DEFAULT
        model = open_hf(folder)
        plans = model.plans("f16")
        total, largest = model.parameters, max(_weights(plan.shape) for plan in plans)
        self._check(total, largest if self._native else 0, 2 if self._native else 0)
        self._talk("comparing the LLM's tokenizer with llama.cpp's")
        proof = model.prove_tokenizer(self.out.parent, exact_ids)
        if proof.different:
            self._talk(f"llama.cpp's ids differ from the tokenizer's in {proof.different} of {proof.texts} texts")
        says = about(folder, checkpoint.llm.name, checkpoint.llm.licence, checkpoint.languages)
        half = self.out.with_name(".half.gguf")
        target, type = (half, "f32" if self.kind == "f32" else model.half) if self._native else (self.out, self.kind)

        def convert(advance: Callable[[int], None]) -> None:
            write_gguf(model, target, type, says, proof.pre, self._pairs(), advance)

        size = sum(plan.nbytes for plan in model.plans(type))
        if self._native:
            self._through(half, convert, size)
        else:
            self._talk(f"writing the LLM in {type}")
            convert(self._counter(size))
        return {"tokenizer": proof.to_json()}, model.vocabulary.normaliser

    def _through(self, half: Path, convert: Callable[[Callable[[int], None]], None], size: int) -> None:
        """Convert into the temporary file `half`, and quantise that."""
        try:
            self._talk("writing the LLM in 16 bits")
            convert(self._counter(size))
            self._quantise(half)
        finally:
            half.unlink(missing_ok=True)

    def _quantise(self, base: Path) -> None:
        self._talk(f"quantising the LLM to {self.kind}")
        kquants.quantise_gguf(base, self.out, TYPES[self.kind], self._overrides, advance=self._talk.at)

    def _counter(self, total: int) -> Callable[[int], None]:
        done = 0

        def advance(size: int) -> None:
            nonlocal done
            done += size
            # In megabytes, which people can read. Vectors stay in 32 bits, so that the sum may be a little above an estimate.
            self._talk.at(min(done, total) >> 20, max(1, total >> 20))

        return advance

    def _check(self, weights: int, largest: int, half: float) -> None:
        """Raises ModelError where disk or memory cannot hold the conversion; `half`: bytes a weight of a temporary file."""
        check_disk(int(weights * (half + kquants.BITS[self.kind] / 8)), self.out.parent, "converting the LLM")
        # llama.cpp holds one tensor in float32 and what it makes of it.
        needed, room = 9 * largest + 500_000_000, available_memory()
        if largest and room is not None and room < needed:
            raise ModelError(
                f"quantising the LLM needs about {gigabytes(needed)} of memory and {gigabytes(room)} are available: close "
                "other programs"
            )


def _weights(shape: tuple[int, ...]) -> int:
    count = 1
    for length in shape:
        count *= length
    return count


# Families that multiply token embeddings by √d; transformers does it inside the embedding layer.
_SCALED = ("gemma", "gemma2", "gemma3")


@dataclass(frozen=True)
class LLMFacts:
    """What a GGUF says about itself."""

    architecture: str
    width: int
    vocabulary: int
    context: int
    parameters: int

    @property
    def embedding_scale(self) -> float:
        """What the LLM multiplies the rows of its table by before its first block."""
        return float(np.sqrt(np.float32(self.width))) if self.architecture in _SCALED else 1.0


def llm_facts(path: Path) -> LLMFacts:
    """Read architecture and sizes. Raises BundleError when the file lacks them."""
    reader = read_gguf(path)

    def value(key: str) -> Any:
        field = reader.get_field(key)
        if field is None:
            raise BundleError(f"{path} does not say its {key!r}: it is not a GGUF of an LLM")
        return field.contents()

    architecture = str(value("general.architecture"))
    return LLMFacts(
        architecture=architecture,
        width=int(value(f"{architecture}.embedding_length")),
        vocabulary=len(value("tokenizer.ggml.tokens")),
        context=int(value(f"{architecture}.context_length")),
        parameters=sum(int(tensor.n_elements) for tensor in reader.tensors),
    )
