"""The rules of a manifest: what its fields may hold, and together with which others.

What this module does not know: JSON, files, folders.
"""

from __future__ import annotations

import math
import re
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from mindmerger.errors import BundleError
from mindmerger.i18n import _

if TYPE_CHECKING:
    from mindmerger.manifest import EncoderInfo, Manifest

FORMAT_VERSION = "1.4"
METHODS = ("mindmerger", "langbridge", "st-merge")
BAKE_TYPES = ("q8_0", "q4_1")
GRANULARITIES = ("scalar", "vector", "token")
LANGUAGE_INPUTS = ("soft", "forced", "none")


def fault(field_name: str, what: str) -> BundleError:
    """The error of a field whose value cannot be."""
    return BundleError(f"{field_name} {what}; export the bundle again with mm-export")


def check_version(version: str) -> None:
    """A newer minor version is read, another major one is refused."""
    match = re.fullmatch(r"([0-9]{1,4})\.([0-9]{1,4})", version)
    if match is None:
        raise fault("format_version", f"must look like {FORMAT_VERSION!r}, not {version[:20]!r}")
    if match[1] != FORMAT_VERSION.split(".")[0]:
        raise BundleError(
            _(
                "the bundle has format version {version} and this MindMerger reads {major}.x: pip install -U "
                "mindmerger, or export the bundle again"
            ).format(version=version, major=FORMAT_VERSION.split(".")[0])
        )


def _positive(name: str, *values: int) -> None:
    # 2^31 - 1: what the native libraries count with
    if not all(0 < value < 2**31 for value in values):
        raise fault(name, "must be between 1 and 2147483647")


def check(manifest: Manifest) -> None:
    """What types alone do not say; raises BundleError that names the field. Dataclasses built by export pass here too."""
    check_version(manifest.format_version)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", manifest.name):
        raise fault("name", "must be 1 to 100 letters, digits, '.', '_' or '-'")
    if manifest.method not in METHODS:
        raise fault("method", f"must be one of {', '.join(METHODS)}, not {manifest.method[:40]!r}")
    if not _are_codes(manifest.languages):
        raise fault("languages", "must be a list of language codes such as 'sw'")
    _check_gate(manifest)
    encoder, llm, prompt = manifest.encoder, manifest.llm, manifest.prompt
    for name in ("width", "max_tokens", "vocabulary"):
        _positive(f"encoder.{name}", getattr(encoder, name))
    for name in ("width", "vocabulary", "context"):
        _positive(f"llm.{name}", getattr(llm, name))
    for name, parameters in (("encoder", encoder.parameters), ("llm", llm.parameters)):
        if parameters <= 0:
            raise fault(f"{name}.parameters", "must be positive")
    if not encoder.layers or not all(abs(layer) < 10_000 for layer in encoder.layers):
        raise fault("encoder.layers", "must name at least one layer")
    _check_frames(encoder)
    if prompt.template.count("{question}") not in (1, 2):
        raise fault("prompt.template", "must contain {question} once or twice")
    if "\0" in prompt.template:
        raise fault("prompt.template", "must not contain a NUL character")
    ids = [*prompt.stop_ids, *(prompt.before_ids or ()), *(prompt.after_ids or ())]
    ids += [] if prompt.bos_id is None else [prompt.bos_id]
    if not all(0 <= token < llm.vocabulary for token in ids):
        raise fault("prompt", f"has ids outside the LLM's vocabulary of {llm.vocabulary}")
    if (prompt.before_ids is None) != (prompt.after_ids is None):
        raise fault("prompt", "has before_ids without after_ids, or the reverse")
    if prompt.before_ids is not None and prompt.template.count("{question}") != 1:
        raise fault("prompt.template", "must contain {question} once where there are before_ids")
    if prompt.normaliser not in (None, "NFC"):
        raise fault("prompt.normaliser", "must be NFC where it is given")
    if prompt.digits not in (None, "ascii"):
        raise fault("prompt.digits", "must be ascii where it is given")
    if not (math.isfinite(manifest.injection_scale) and manifest.injection_scale > 0):
        raise fault("injection_scale", "must be a positive number")
    if not 0 <= manifest.filter_threshold <= 2:
        raise fault("filter_threshold", "must be between 0 and 2")
    _positive("generation.max_new_tokens", manifest.generation.max_new_tokens)
    if not 0 <= manifest.generation.temperature <= 10:
        raise fault("generation.temperature", "must be between 0 and 10")
    for i, golden in enumerate(manifest.golden):
        if not all(0 <= token < llm.vocabulary for token in golden.token_ids):
            raise fault(f"golden[{i}].token_ids", f"has an id outside the LLM's vocabulary of {llm.vocabulary}")
    _check_files(manifest)


def _check_frames(encoder: EncoderInfo) -> None:
    if not encoder.frames:
        return
    if "" not in encoder.frames:
        raise fault("encoder.frames", 'has no "", the frame for texts of an unknown language')
    default = encoder.frames[""]
    for language, frame in encoder.frames.items():
        if not all(0 <= token < encoder.vocabulary for token in (*frame.before_ids, *frame.after_ids)):
            raise fault(
                f"encoder.frames.{language}", f"has ids outside the encoder's vocabulary of {encoder.vocabulary}"
            )
        # what fits with one language must fit with any other
        if [len(frame.before_ids), len(frame.after_ids)] != [len(default.before_ids), len(default.after_ids)]:
            raise fault(f"encoder.frames.{language}", "must be as long as the other frames")


def _are_codes(values: tuple[Any, ...]) -> bool:
    return all(isinstance(code, str) and re.fullmatch(r"[A-Za-z]{2,3}([_-][A-Za-z0-9]+)*", code) for code in values)


def _check_gate(manifest: Manifest) -> None:
    gate = manifest.gate
    if (gate is not None) != (manifest.method == "st-merge"):
        raise fault("gate", f"{'is missing' if gate is None else 'must be null'} where the method is {manifest.method}")
    if gate is None:
        return
    if not _are_codes(gate.languages) or len(set(gate.languages)) != len(gate.languages):
        raise fault("gate.languages", "must be a list of different language codes such as 'sw'")
    for name, value, allowed in (
        ("granularity", gate.granularity, GRANULARITIES),
        ("language_input", gate.language_input, LANGUAGE_INPUTS),
    ):
        if value not in allowed:
            raise fault(f"gate.{name}", f"must be one of {', '.join(allowed)}, not {value[:40]!r}")


def _check_files(manifest: Manifest) -> None:
    for i, entry in enumerate(manifest.files):
        name = f"files[{i}]"
        if not is_inside(entry.path):
            raise fault(f"{name}.path", f"must be a relative path inside the bundle, not {entry.path[:80]!r}")
        if entry.bytes < 0:
            raise fault(f"{name}.bytes", "must not be negative")
        if not re.fullmatch(r"[0-9a-f]{64}", entry.sha256):
            raise fault(f"{name}.sha256", "must be 64 hexadecimal digits in lower case")
        if entry.package is not None and not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?", entry.package):
            raise fault(f"{name}.package", "must be the name of a Python distribution")
    places = [(entry.package, entry.path) for entry in manifest.files]
    if len(set(places)) != len(places):
        raise fault("files", "names the same file twice")
    roles = [entry.role for entry in manifest.files]
    for role in ("merger", "tokenizer", "llm", "llm-base", "adapter"):
        if roles.count(role) > 1:
            raise fault("files", f"has more than one file of role {role!r}")
    for role in ("merger", "tokenizer"):
        if role not in roles:
            raise fault("files", f"has no file of role {role!r}")
    if manifest.bake is None:
        if "llm" not in roles:
            raise fault("files", "has no file of role 'llm' and bake is null")
        return
    if manifest.bake.type not in BAKE_TYPES:
        raise fault("bake.type", f"must be one of {', '.join(BAKE_TYPES)}")
    if "llm" in roles or "llm-base" not in roles or "adapter" not in roles:
        raise fault("files", "must have 'llm-base' and 'adapter', and no 'llm', where bake is given")


def is_inside(path: str) -> bool:
    """Whether `path` is a plain relative POSIX path: no root, drive, `..`, back-slash or NUL, on any platform."""
    if not path or "\\" in path or "\0" in path or ":" in path:
        return False
    parts = path.split("/")
    return not PurePosixPath(path).is_absolute() and all(part not in ("", ".", "..") for part in parts)
