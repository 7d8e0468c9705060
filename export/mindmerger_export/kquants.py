"""K-quants (Q4_K_M …) by llama.cpp's own quantiser, in a process of its own.

`llama_model_quantize` may end its process, cannot be interrupted, and is silent for minutes: in a child it can be
killed, watched, and its memory is its own. Its log, a line per tensor, is the progress. What this module does not know:
where the GGUF to quantise comes from.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mindmerger.errors import InputError, ModelError

# Type of a file → llama_ftype.
TYPES = {"q6_k": 18, "q5_k_m": 17, "q4_k_m": 15}
# Bits a weight in a file of this type, for estimates of its size (Llama 7B; smaller models need a little more).
BITS = {
    "f32": 32.0,
    "f16": 16.0,
    "bf16": 16.0,
    "q8_0": 8.5,
    "q6_k": 6.6,
    "q5_k_m": 5.8,
    "q5_1": 6.1,
    "q5_0": 5.7,
    "q4_k_m": 5.0,
    "q4_1": 5.1,
    "q4_0": 4.7,
}
# What one tensor may be given for itself (ggml_type).
TENSOR_TYPES = {
    "f32": 0,
    "f16": 1,
    "bf16": 30,
    "q8_0": 8,
    "q6_k": 14,
    "q5_k": 13,
    "q4_k": 12,
    "q5_1": 7,
    "q5_0": 6,
    "q4_1": 3,
    "q4_0": 2,
}
# Rows kept in memory at once; llama.cpp's own default is 8 GiB.
_BUFFER = 512 << 20
_LINE = re.compile(r"^\[\s*(\d+)/\s*(\d+)\]")

Overrides = Sequence[tuple[str, str]]


def parse_override(text: str) -> tuple[str, str]:
    """`PATTERN=TYPE` → both. Raises InputError when the pattern is no regular expression or the type is unknown."""
    pattern, equals, type = text.rpartition("=")
    type = type.lower()
    try:
        re.compile(pattern)
    except re.error as error:
        raise InputError(f"--tensor-type {text!r}: the pattern is no regular expression ({error})") from None
    if not equals or not pattern or type not in TENSOR_TYPES:
        raise InputError(
            f"--tensor-type {text!r}: expected PATTERN=TYPE, as ffn_down=q6_k; types: {', '.join(TENSOR_TYPES)}"
        )
    return pattern, type


def quantise_gguf(
    source: Path,
    out: Path,
    file_type: int,
    overrides: Overrides = (),
    threads: int = 0,
    advance: Callable[[int, int], None] = lambda _done, _total: None,
) -> None:
    """Write `source` to `out` as llama_ftype `file_type`; the first matching override decides a tensor.

    `advance(done, total)` counts tensors. On any failure, and on Ctrl-C, `out` is removed. Raises ModelError when llama.cpp
    fails, with its own words.
    """
    request = {
        "source": str(source),
        "out": str(out),
        "file_type": file_type,
        "overrides": list(overrides),
        "threads": threads or max(1, int(os.environ.get("OMP_NUM_THREADS") or 0) or os.cpu_count() or 1),
    }
    roots = os.pathsep.join(path for path in sys.path if path)
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", __name__, json.dumps(request)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        env={**os.environ, "PYTHONPATH": roots},
        # Ctrl-C is for this process alone: it knows what has to be removed.
        start_new_session=True,
    )
    words: list[str] = []
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if counted := _LINE.match(line):
                advance(int(counted[1]), int(counted[2]))
            elif line.strip():
                words = [*words[-20:], line.strip()]
        code = process.wait()
    except BaseException:
        process.kill()
        process.wait()
        out.unlink(missing_ok=True)
        raise
    if code:
        out.unlink(missing_ok=True)
        said = next((line for line in reversed(words) if "fail" in line or "error" in line.lower()), "")
        raise ModelError(
            f"llama.cpp could not quantise the LLM ({said[:200] or f'it ended with code {code}'}): free memory and disk, or "
            "choose another --llm-type"
        )


def _main(request: dict[str, Any]) -> int:
    """In the child: one call. Returns its status."""
    from mindmerger.llama import backend

    native = backend(verbose=True)
    parameters = native.llama_model_quantize_default_params()
    parameters.nthread = request["threads"]
    parameters.ftype = request["file_type"]
    parameters.allow_requantize = True
    parameters.max_buf_size = _BUFFER
    overrides = request["overrides"]
    if overrides:
        entries = (native.llama_model_tensor_override * (len(overrides) + 1))()
        for entry, (pattern, type) in zip(entries, overrides, strict=False):
            entry.pattern, entry.type = pattern.encode(), TENSOR_TYPES[type]
        parameters.tt_overrides = entries
    paths = [os.fsencode(request[name]) for name in ("source", "out")]
    return int(native.llama_model_quantize(*paths, ctypes.byref(parameters)))


def fallbacks(path: Path) -> dict[str, str]:
    """Matrices of a K-quantised file whose rows do not divide into blocks of 256 → the type that they got instead."""
    from gguf import GGMLQuantizationType

    from mindmerger.gguf_file import read_gguf

    return {
        tensor.name: GGMLQuantizationType(tensor.type).name.lower()
        for tensor in read_gguf(path).tensors
        if len(tensor.shape) > 1 and tensor.shape[-1] % 256
    }


def tensor_types(path: Path) -> dict[str, int]:
    """How many matrices of a GGUF have which type."""
    from gguf import GGMLQuantizationType

    from mindmerger.gguf_file import read_gguf

    counts: dict[str, int] = {}
    for tensor in read_gguf(path).tensors:
        if len(tensor.shape) > 1:
            name = GGMLQuantizationType(tensor.type).name.lower()
            counts[name] = counts.get(name, 0) + 1
    return dict(sorted(counts.items()))


if __name__ == "__main__":
    sys.exit(_main(json.loads(sys.argv[1])))
