"""What is in a bundle, and whether it is sound here: `mm-export inspect` and `mm-export verify`.

Works on the manifest and through the runtime; torch is not needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mindmerger.bundle import open_bundle, resolve
from mindmerger.errors import ParityError
from mindmerger.manifest import Manifest, read_manifest
from mindmerger_export.pack import read_packed
from mindmerger_export.report import read_report

# Other processors round otherwise, and two tokens that are almost equally likely then swap. More than half of all questions
# is no rounding.
_GOLDEN_SHARE = 0.5


def inspect(bundle: str) -> dict[str, Any]:
    """Facts of the manifest as one JSON object, and the measured times beside it; `bundle` may be a packed file."""
    packed = Path(bundle)
    folder = packed if packed.is_file() else resolve(bundle)
    manifest = read_packed(packed) if packed.is_file() else read_manifest(folder)
    report = None if packed.is_file() else read_report(folder)
    return {
        "folder": str(folder),
        "name": manifest.name,
        "method": manifest.method,
        "format_version": manifest.format_version,
        "languages": list(manifest.languages),
        "encoder": _part(manifest.encoder),
        "llm": _part(manifest.llm),
        "gate": None if manifest.gate is None else {
            "languages": list(manifest.gate.languages),
            "granularity": manifest.gate.granularity,
            "language_input": manifest.gate.language_input,
            "filter_threshold": manifest.filter_threshold,
        },
        "bytes": {entry.path: entry.bytes for entry in manifest.files},
        "in_packages": sorted(entry.path for entry in manifest.files if entry.package is not None),
        "bake": None if manifest.bake is None else manifest.bake.type,
        "golden_questions": len(manifest.golden),
        "parity": manifest.parity,
        "measured": None if report is None else report["measured"],
        "tools": manifest.tools,
    }  # fmt: skip


def _part(part: Any) -> dict[str, Any]:
    keys = ("name", "architecture", "width", "layers", "parameters", "vocabulary", "context", "max_tokens", "licence")
    return {key: getattr(part, key) for key in keys if hasattr(part, key)}


def shown(facts: dict[str, Any]) -> str:
    """The facts for people."""
    gate = facts["gate"]
    lines = [
        f"{facts['name']}: {facts['method']}, format {facts['format_version']}, {facts['folder']}",
        f"languages  {' '.join(facts['languages']) or 'not named'}",
        *(f"{part:<10} {_described(facts[part])}" for part in ("encoder", "llm")),
    ]
    if gate is not None:
        lines.append(
            f"gate       {gate['granularity']} weights, filter below {gate['filter_threshold']:g}, knows "
            f"{' '.join(gate['languages']) or 'no language'}"
        )
    lines += ["files"]
    for path, size in facts["bytes"].items():
        place = " (in an installed package)" if path in facts["in_packages"] else ""
        lines.append(f"  {size / 1e6:10.2f} MB  {path}{place}")
    if facts["bake"] is not None:
        lines.append(f"  the LLM is made of base and adapter at first use, as {facts['bake']}")
    lines += ["parity", *_tree(facts["parity"], "  ")]
    if facts["measured"]:
        lines += ["measured while exporting", *_tree(facts["measured"], "  ")]
    lines.append(f"{facts['golden_questions']} golden questions")
    return "\n".join(lines)


def _described(part: dict[str, Any]) -> str:
    layers = f", layers {' '.join(map(str, part['layers']))}" if "layers" in part else ""
    room = f", context {part['context']}" if "context" in part else f", at most {part['max_tokens']} tokens"
    return (
        f"{part['name']} ({part['architecture']}, {part['parameters'] / 1e6:.1f} M parameters, width {part['width']}{layers}"
        f"{room}), {part['licence'] or 'no licence named'}"
    )


def _tree(value: dict[str, Any], indent: str) -> Iterator[str]:
    """Nested figures, one a line; long lists and tables by their number."""
    for key, entry in value.items():
        if isinstance(entry, dict) and len(entry) <= 12:
            yield f"{indent}{key}"
            yield from _tree(entry, indent + "  ")
        elif isinstance(entry, (dict, list)):
            yield f"{indent}{key}: {len(entry)} entries (--json shows them)"
        else:
            yield f"{indent}{key}: {entry}"


def verify(bundle: str, progress: Callable[[str], None]) -> Iterator[str]:
    """Check a bundle, yielding a line for each thing that is in order.

    Raises BundleError for a damaged one, ModelError where it does not run here, ParityError when more than half of the golden
    questions are continued otherwise than on the exporting machine.
    """
    progress(f"checking the files of {resolve(bundle)}")
    opened = open_bundle(bundle)
    manifest = opened.manifest
    yield f"manifest: format {manifest.format_version}, in order"
    yield f"files: {len(manifest.files)}, sizes and sha256 in order"
    from mindmerger.loading import load

    progress("loading it")
    with load(opened.folder) as model:
        yield "loads: encoder and LLM, in order"
        different = []
        for number, golden in enumerate(manifest.golden, 1):
            progress(f"golden question {number} of {len(manifest.golden)}")
            told = golden.language in manifest.encoder.frames and manifest.gate is None
            found = model.continuation_ids(
                golden.question, len(golden.token_ids), language=golden.language if told else None
            )
            place = _difference(golden.token_ids, found)
            if place is not None:
                different.append(f"{golden.question[:60]!r} from token {place + 1}")
    yield from _judge(manifest, different)


def _difference(wanted: tuple[int, ...], found: list[int]) -> int | None:
    if list(wanted) == found:
        return None
    pairs = zip(wanted, found, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(wanted), len(found)))


def _judge(manifest: Manifest, different: list[str]) -> Iterator[str]:
    total = len(manifest.golden)
    if total and len(different) > _GOLDEN_SHARE * total:
        raise ParityError(
            f"{len(different)} of {total} golden questions are continued otherwise than on the exporting machine (first: "
            f"{different[0]}): update llama-cpp-python and onnxruntime, or export the bundle again"
        )
    yield f"golden questions: {total - len(different)} of {total} identical" + (
        "" if not different else f"; by rounding otherwise: {'; '.join(different)}"
    )
