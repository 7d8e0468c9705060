"""How much memory a bundle needs, known before anything is loaded.

Exact where it is arithmetic (files, KV cache), measured where it is other people's code (docs/doctor.md has the
measurements). Reads the header of the GGUF and nothing else of the files.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mindmerger.bundle import Bundle
from mindmerger.errors import BundleError
from mindmerger.gguf_file import read_gguf
from mindmerger.i18n import _
from mindmerger.llama import AT_ONCE, BATCH
from mindmerger.manifest import EncoderInfo

_MAPPED_ROLES = ("merger", "merger-data", "tokenizer", "llm")
_FLOAT = 4
_HALF = 2  # the KV cache is in float16
# What of the graph's files ONNX Runtime packs anew into memory of its own: the weights that are no table.
_REPACKED = 0.6
# Python, numpy, ONNX Runtime and llama.cpp, loaded and idle.
_PROGRAM = 75 * 1024 * 1024
# A Unigram vocabulary as mindmerger.unigram holds it (the tokenizers library alone takes five times as much); llama.cpp's.
_BYTES_PER_PIECE = 210
_BYTES_PER_LLM_TOKEN = 250


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes. `files` are mapped: the system may drop and reread them, at the price of speed; the rest is not.

    `cache` is the LLM's KV cache at its full context, `buffers` what a computation of the largest size needs, `libraries`
    are Python's and native ones, `vocabularies` both models' in their tables. `llm` of the files is the GGUF, which is mapped
    twice: that takes address space, not memory.
    """

    files: int
    llm: int
    cache: int
    buffers: int
    libraries: int
    vocabularies: int

    @property
    def program(self) -> int:
        return self.libraries + self.vocabularies

    @property
    def total(self) -> int:
        return self.files + self.cache + self.buffers + self.program


def memory_needed(bundle: Bundle, context: int | None = None) -> int:
    """Peak resident bytes of a process that loads `bundle` and answers questions of any length, on the CPU.

    Counted: every file that is mapped, in full (the LLM, baked where the manifest says so; the merger graph; the
    tokenizer); the KV cache at `context` positions (default: the bundle's), in float16; llama.cpp's buffers for a batch
    of 128; ONNX Runtime's copy of quantised weights and its buffers for the longest question; both vocabularies; Python
    and the libraries. Not counted: what baking needs (once, less than this), batches of several questions, and a GPU's
    memory. Short questions need up to a fifth less. BundleError when the GGUF cannot be read.
    """
    return estimate(bundle, context).total


def estimate(bundle: Bundle, context: int | None = None) -> MemoryNeed:
    """`memory_needed`, in its parts."""
    manifest = bundle.manifest
    by_role = {role: sum(entry.bytes for entry in manifest.files if entry.role == role) for role in _MAPPED_ROLES}
    gguf, llm_bytes = _llm(bundle)
    shape = _Shape.of(gguf)
    positions = -(-(context or manifest.llm.context) // 256) * 256  # llama.cpp rounds up
    return MemoryNeed(
        files=sum(by_role.values()) - by_role["llm"] + llm_bytes,
        llm=llm_bytes,
        cache=positions * shape.cache_row * _HALF,
        # the encoder gives its buffers back before the LLM fills its own
        buffers=int(_REPACKED * (by_role["merger"] + by_role["merger-data"]))
        + max(shape.buffers(positions), _encoder_buffers(manifest.encoder)),
        libraries=_PROGRAM,
        vocabularies=_BYTES_PER_PIECE * manifest.encoder.vocabulary + _BYTES_PER_LLM_TOKEN * manifest.llm.vocabulary,
    )


def _llm(bundle: Bundle) -> tuple[Path, int]:
    """A GGUF whose header is that of the LLM, and the bytes of the LLM's own."""
    manifest = bundle.manifest
    try:
        if manifest.bake is None:
            return bundle.paths["llm"], manifest.file("llm").bytes
        from mindmerger.bake import baked_bytes

        base = bundle.paths["llm-base"]
        return base, baked_bytes(base, bundle.paths["adapter"], manifest.bake.type)
    except KeyError as error:
        raise BundleError(
            _("the bundle's file of role {role} is missing: copy, install or export it again").format(role=error)
        ) from None


@dataclass(frozen=True)
class _Shape:
    """What of an LLM decides about its memory, in numbers per position."""

    width: int
    feed_forward: int
    vocabulary: int
    cache_row: int

    @classmethod
    def of(cls, path: Path) -> _Shape:
        try:
            return cls._read(path)
        except (ValueError, OverflowError, TypeError):  # NaN where a count should be
            raise BundleError(
                _("{path} has a header that makes no sense: install or export it again").format(path=path)
            ) from None

    @classmethod
    def _read(cls, path: Path) -> _Shape:
        file = read_gguf(path)
        name = file.text("general.architecture")
        width = int(file.number(f"{name}.embedding_length"))
        blocks = int(file.number(f"{name}.block_count"))
        heads = int(file.number(f"{name}.attention.head_count", 1)) or 1
        # Some architectures have a list here, one number a block: then each head counts, which is the most it can be.
        kv_heads = int(file.number(f"{name}.attention.head_count_kv", heads)) or heads
        head = width // heads
        keys = int(file.number(f"{name}.attention.key_length", head))
        values = int(file.number(f"{name}.attention.value_length", head))
        if min(width, blocks) < 1:
            raise BundleError(
                _("{path} does not say how wide and deep its LLM is: install or export it again").format(path=path)
            )
        vocabulary = next((t.shape[0] for t in file.tensors if t.name == "token_embd.weight"), 0)
        return cls(
            width=width,
            feed_forward=int(file.number(f"{name}.feed_forward_length", 4 * width)),
            vocabulary=vocabulary,
            cache_row=blocks * kv_heads * (keys + values),
        )

    def buffers(self, positions: int) -> int:
        """llama.cpp's scratch for a batch (a handful of rows of each kind at a time), its mask, one row of logits."""
        batch = min(AT_ONCE, positions)
        rows = batch * (6 * self.width + 3 * self.feed_forward) * _FLOAT
        mask = batch * positions * (_FLOAT + _HALF)
        # our own batch of rows in mindmerger.llama
        given = min(BATCH, positions) * self.width * _FLOAT
        return rows + mask + self.vocabulary * _FLOAT + given


def _encoder_buffers(encoder: EncoderInfo) -> int:
    """What ONNX Runtime takes for the longest question: scores of all heads, and rows."""
    length = encoder.max_tokens
    heads = max(1, encoder.width // 32)  # the most that is usual; the manifest does not say
    scores = 2 * heads * length * length
    rows = 10 * length * encoder.width
    return (scores + rows) * _FLOAT
