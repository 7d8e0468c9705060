"""The manifest: what is accepted, what is refused, and that a refusal is one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindmerger.errors import BundleError
from mindmerger.manifest import FileInfo, GoldenInfo, Manifest, read_manifest
from mindmerger.manifest_rules import is_inside
from tests import tiny

FILES = [FileInfo(role, f"{role}.bin", 3, "0" * 64) for role in ("merger", "tokenizer", "llm")]


def document() -> dict[str, Any]:
    return unsealed(tiny.manifest(FILES))


def unsealed(manifest: Manifest) -> dict[str, Any]:
    """What a manifest says, to be edited: without its own sha256."""
    parsed: dict[str, Any] = json.loads(manifest.to_json())
    del parsed["sha256"]
    return parsed


def write(folder: Path, value: Any) -> Path:
    (folder / "manifest.json").write_text(json.dumps(value), encoding="utf-8")
    return folder


def test_round_trip(tmp_path: Path) -> None:
    manifest = replace(tiny.manifest(FILES), golden=(GoldenInfo("¿Cuánto?", "es", (1, 2)),), parity={"max_abs": 1e-5})
    (tmp_path / "manifest.json").write_text(manifest.to_json(), encoding="utf-8")
    read = read_manifest(tmp_path)
    assert read == manifest
    assert read.to_json() == manifest.to_json()


GATE = {"languages": ["sw", "en"], "granularity": "token", "language_input": "soft"}


def test_a_gate_and_prompt_ids_round_trip(tmp_path: Path) -> None:
    value = document() | {"method": "st-merge", "gate": GATE}
    value["prompt"] |= {"before_ids": [1, 5], "after_ids": [], "digits": "ascii"}
    read = read_manifest(write(tmp_path, value))
    assert read.gate is not None and read.gate.names == ("unknown", "sw", "en")
    assert read.prompt.ids("hola", lambda text: [len(text)]) == [1, 5, 4]
    assert read.prompt.ids("৪", lambda text: [ord(text)]) == [1, 5, ord("4")]
    assert unsealed(read) == value


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"languages": ["sw", "sw"]}, "gate.languages"),
        ({"languages": ["unknown language"]}, "gate.languages"),
        ({"languages": "sw"}, "gate.languages"),
        ({"granularity": "matrix"}, "gate.granularity"),
        ({"language_input": None}, "gate.language_input"),
        ({"language_input": "hard"}, "gate.language_input"),
    ],
)
def test_a_wrong_gate_is_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    value = document() | {"method": "st-merge", "gate": GATE | change}
    with pytest.raises(BundleError, match=words):
        read_manifest(write(tmp_path, value))


def test_a_bundle_of_format_1_0_is_read(tmp_path: Path) -> None:
    value = document() | {"format_version": "1.0"}
    del value["gate"]
    read = read_manifest(write(tmp_path, value))
    assert read.gate is None and read.prompt.before_ids is None


def test_a_template_may_have_the_question_twice(tmp_path: Path) -> None:
    value = document()
    value["prompt"]["template"] = "Q: {question}\nQ: {question}\nA:"
    prompt = read_manifest(write(tmp_path, value)).prompt
    assert prompt.render("{x} 2 + 3?") == "Q: {x} 2 + 3?\nQ: {x} 2 + 3?\nA:"


def test_newer_minor_version_and_unknown_keys_are_accepted(tmp_path: Path) -> None:
    value = document()
    value["format_version"] = "1.7"
    value["novelty"] = {"x": 1}
    value["encoder"]["novelty"] = True
    value["files"].append({"role": "novelty", "path": "new.bin", "bytes": 1, "sha256": "1" * 64})
    assert read_manifest(write(tmp_path, value)).format_version == "1.7"


def _set(*keys: Any, to: Any) -> Callable[[dict[str, Any]], None]:
    def change(value: dict[str, Any]) -> None:
        for key in keys[:-1]:
            value = value[key]
        value[keys[-1]] = to

    return change


def _drop(*keys: Any) -> Callable[[dict[str, Any]], None]:
    def change(value: dict[str, Any]) -> None:
        for key in keys[:-1]:
            value = value[key]
        del value[keys[-1]]

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_set("format_version", to="2.0"), "2.0"),
        (_set("format_version", to="one"), "format_version"),
        (_set("format_version", to=1.0), "format_version"),
        (_set("format", to="other"), "format"),
        (_drop("format"), "format"),
        (_set("name", to="../x"), "name"),
        (_set("name", to=""), "name"),
        (_set("method", to="magic"), "method"),
        (_set("languages", to="en"), "languages"),
        (_set("languages", to=[1]), "languages"),
        (_set("encoder", to=[]), "encoder"),
        (_drop("encoder", "width"), "encoder.width"),
        (_set("encoder", "width", to=True), "encoder.width"),
        (_set("encoder", "width", to="384"), "encoder.width"),
        (_set("encoder", "width", to=0), "encoder.width"),
        (_set("encoder", "max_tokens", to=-1), "encoder.max_tokens"),
        (_set("encoder", "layers", to=[]), "encoder.layers"),
        (_set("encoder", "layers", to=["4"]), "encoder.layers"),
        (_set("llm", "context", to=2**40), "llm.context"),
        (_set("prompt", "template", to="no place"), "prompt.template"),
        (_set("prompt", "template", to="{question}" * 3), "prompt.template"),
        (
            lambda value: value["prompt"].update(template="{question} {question}", before_ids=[5], after_ids=[6]),
            "prompt.template",
        ),
        (_set("prompt", "bos_id", to=10**6), "prompt"),
        (_set("prompt", "digits", to="roman"), "prompt.digits"),
        (_set("prompt", "bos_id", to="1"), "prompt.bos_id"),
        (_set("prompt", "stop_ids", to=[-1]), "prompt"),
        (_set("injection_scale", to=0), "injection_scale"),
        (_set("injection_scale", to=float("nan")), "injection_scale"),
        (_set("injection_scale", to=10**400), "injection_scale"),
        (_set("generation", "max_new_tokens", to=0), "generation.max_new_tokens"),
        (_set("generation", "temperature", to=-1), "generation.temperature"),
        (_set("generation", "calculator", to=1), "generation.calculator"),
        (_set("filter_threshold", to=3), "filter_threshold"),
        (_set("gate", to={"languages": []}), "gate.granularity"),
        (_set("gate", to={"languages": ["sw"], "granularity": "scalar", "language_input": "soft"}), "gate"),
        (_set("method", to="st-merge"), "gate"),
        (_set("gate", to=[]), "gate"),
        (_set("prompt", "before_ids", to=[1]), "before_ids"),
        (_set("prompt", "before_ids", to=None), "before_ids"),
        (_set("files", to={}), "files"),
        (_set("files", to=[]), "files"),
        (_set("files", 0, "path", to="../../etc/passwd"), "files[0].path"),
        (_set("files", 0, "path", to="/etc/passwd"), "files[0].path"),
        (_set("files", 0, "path", to="a\\..\\b"), "files[0].path"),
        (_set("files", 0, "path", to="C:/x"), "files[0].path"),
        (_set("files", 0, "sha256", to="xyz"), "files[0].sha256"),
        (_set("files", 0, "bytes", to=-1), "files[0].bytes"),
        (_set("files", 0, "package", to="no such; name"), "files[0].package"),
        (_set("files", 1, "role", to="merger"), "merger"),
        (_set("files", 2, "role", to="adapter"), "llm"),
        (_set("bake", to={"type": "q8_0"}), "llm-base"),
        (_set("bake", to={"type": "q2_k"}), "bake.type"),
        (_set("golden", to=[{"question": "x", "language": "en", "token_ids": [10**9]}]), "golden[0]"),
    ],
)
def test_refused_with_the_field_in_one_sentence(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], words: str
) -> None:
    value = document()
    change(value)
    with pytest.raises(BundleError) as caught:
        read_manifest(write(tmp_path, value))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff\xfe", b"null", b"[" * 100_000, b'{"format": 3}'])
def test_garbage(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(BundleError):
        read_manifest(tmp_path)


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="not a bundle"):
        read_manifest(tmp_path / "nothing")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)


@given(VALUES, st.sampled_from(sorted(document())))
def test_any_value_in_any_field_is_read_or_refused(value: Any, key: str) -> None:
    from mindmerger.manifest import _parse

    changed = document()
    changed[key] = value
    try:
        manifest = _parse(changed)
    except BundleError:
        return
    assert isinstance(manifest, Manifest)
    manifest.to_json()


@pytest.mark.parametrize("path", ["a", "a/b.onnx", "a/..b", ".hidden"])
def test_inside(path: str) -> None:
    assert is_inside(path)


@pytest.mark.parametrize("path", ["", ".", "..", "a/../b", "a//b", "/a", "a/", "a\0b", "c:a", "\\\\host\\a"])
def test_outside(path: str) -> None:
    assert not is_inside(path)


@pytest.mark.parametrize(
    "old, new", [('"injection_scale": 1.0', '"injection_scale": 1.5'), ('"max_new_tokens": 32', '"max_new_tokens": 33')]
)
def test_a_figure_that_a_disk_altered(tmp_path: Path, old: str, new: str) -> None:
    text = tiny.manifest(FILES).to_json()
    path = tmp_path / "manifest.json"
    assert text.count(old) == 1
    path.write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(BundleError, match="its own sha256"):
        read_manifest(tmp_path)
    # neither white space nor the order of keys is the matter
    path.write_text(json.dumps(json.loads(text), sort_keys=True), encoding="utf-8")
    assert read_manifest(tmp_path).to_json() == text
