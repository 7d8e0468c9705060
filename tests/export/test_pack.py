"""A bundle as one file and back: the same bytes, aligned, and nothing from a stranger's file outside the folder."""

from __future__ import annotations

import json
import mmap
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import mindmerger
from mindmerger.errors import BundleError, InputError, MindMergerError, ModelError
from mindmerger_export import inspection, space
from mindmerger_export.pack import ALIGNMENT, pack, read_packed, unpack
from tests import tiny


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny.bundle(tmp_path_factory.mktemp("whole") / "tiny")
    (folder / "report.json").write_text('{"format": "mindmerger-report", "measured": null}', encoding="utf-8")
    (folder / "diary.txt").write_text("no part of the bundle", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def packed(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack(str(bundle), tmp_path_factory.mktemp("packed") / "tiny.mmb")


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_there_and_back(bundle: Path, packed: Path, tmp_path: Path) -> None:
    out = unpack(packed, tmp_path / "out")
    assert files(out) == {name: data for name, data in files(bundle).items() if name != "diary.txt"}
    with mindmerger.load(out, threads=1) as model:
        assert model.continuation_ids("hola", 4)
    again = pack(str(out), tmp_path / "again.mmb")
    assert again.read_bytes() == packed.read_bytes()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_bundles_are_handled_without_torch(bundle: Path, tmp_path: Path) -> None:
    code = """
import sys
sys.modules["torch"] = sys.modules["transformers"] = None  # what is not installed
from mindmerger_export.cli import main
sys.argv = ["mm-export", *sys.argv[1:]]
main()
"""
    for command in (
        ("inspect", str(bundle)),
        ("pack", str(bundle), str(tmp_path / "tiny.mmb")),
        ("unpack", str(tmp_path / "tiny.mmb"), str(tmp_path / "tiny")),
        ("verify", str(tmp_path / "tiny")),
    ):
        done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, (command, done.stderr)


def test_every_file_begins_at_a_page_and_lies_as_it_is(bundle: Path, packed: Path) -> None:
    """What a reader of zips says where data begins is true, and there the GGUF can be mapped."""
    assert zipfile.ZipFile(packed).testzip() is None
    with packed.open("rb") as stream, zipfile.ZipFile(packed) as archive:
        for entry in archive.infolist():
            stream.seek(entry.header_offset + 26)
            name, extra = int.from_bytes(stream.read(2), "little"), int.from_bytes(stream.read(2), "little")
            begin = entry.header_offset + 30 + name + extra
            assert begin % ALIGNMENT == 0 and entry.date_time == (1980, 1, 1, 0, 0, 0)
            if entry.filename == "llm.gguf":
                with mmap.mmap(stream.fileno(), entry.file_size, access=mmap.ACCESS_READ, offset=begin) as view:
                    assert view[:] == (bundle / "llm.gguf").read_bytes()


def test_what_is_there_is_not_replaced(packed: Path, bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="exists"):
        pack(str(bundle), packed)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "diary.txt").touch()
    for force in (False, True):
        with pytest.raises(InputError, match="exists"):
            unpack(packed, mine, force=force)
    assert (mine / "diary.txt").is_file()
    out = unpack(packed, tmp_path / "out")
    (out / "stale").touch()
    assert not (unpack(packed, out, force=True) / "stale").exists()


def test_the_manifest_is_read_without_unpacking(packed: Path) -> None:
    assert read_packed(packed).name == "tiny"
    assert inspection.inspect(str(packed))["name"] == "tiny"


def test_the_runtime_says_that_a_packed_bundle_is_to_be_unpacked(packed: Path) -> None:
    with pytest.raises(BundleError, match="mm-export unpack"):
        mindmerger.load(packed)


def test_a_damaged_bundle_is_not_packed(bundle: Path, tmp_path: Path) -> None:
    import shutil

    damaged = tmp_path / "damaged"
    shutil.copytree(bundle, damaged)
    (damaged / "merger.onnx").write_bytes(b"x" * (damaged / "merger.onnx").stat().st_size)
    with pytest.raises(BundleError, match="sha256"):
        pack(str(damaged), tmp_path / "damaged.mmb")
    assert not list(tmp_path.glob("*.mmb")) and not list(tmp_path.glob(".*"))


def test_no_space(bundle: Path, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(space, "free_disk", lambda _folder: 1000)
    with pytest.raises(ModelError, match="free"):
        unpack(packed, tmp_path / "out")
    with pytest.raises(ModelError, match="free"):
        pack(str(bundle), tmp_path / "x.mmb")
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------ strangers' files

Forge = Callable[[Path, dict[str, bytes]], None]


def forged(path: Path, content: dict[str, bytes], change: Callable[[zipfile.ZipInfo], None] | None = None) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in content.items():
            entry = zipfile.ZipInfo(name)
            entry.external_attr = 0o644 << 16
            if change is not None:
                change(entry)
            archive.writestr(entry, data, compress_type=entry.compress_type)
    return path


def refused(file: Path, tmp_path: Path, match: str) -> None:
    place = tmp_path / "place"
    place.mkdir()
    with pytest.raises(BundleError, match=match) as caught:
        unpack(file, place / "out")
    assert "\n" not in str(caught.value)
    assert list(place.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["../evil", "a/../../evil", "/etc/evil", "C:/evil", "..\\evil", "\\\\host\\evil", "a//b", "./a", ""]
)
def test_paths_that_lead_outside(bundle: Path, tmp_path: Path, name: str) -> None:
    content = {"manifest.json": (bundle / "manifest.json").read_bytes(), name: b"evil"}
    refused(forged(tmp_path / "x.mmb", content), tmp_path, "outside")
    assert not (tmp_path.parent / "evil").exists()


def test_links_compression_twice_and_strangers(bundle: Path, tmp_path: Path) -> None:
    whole = {name: data for name, data in files(bundle).items() if name != "diary.txt"}

    def link(entry: zipfile.ZipInfo) -> None:
        entry.external_attr = (stat.S_IFLNK | 0o777) << 16

    def squeezed(entry: zipfile.ZipInfo) -> None:
        entry.compress_type = zipfile.ZIP_DEFLATED

    cases = [
        (whole, link, "link"),
        (whole, squeezed, "compressed"),
        ({**whole, "Manifest.json": b"{}"}, None, "twice"),
        ({**whole, "setup.py": b"evil"}, None, "does not name"),
        ({name: data for name, data in whole.items() if name != "llm.gguf"}, None, "lacks"),
        ({**whole, "llm.gguf": whole["llm.gguf"][:-1]}, None, "bytes instead of"),
        ({**whole, "llm.gguf": whole["llm.gguf"][:-1] + b"?"}, None, "sha256"),
        ({"readme.txt": b"hello"}, None, "without a manifest"),
        ({**whole, "manifest.json": b"{}"}, None, "format"),
    ]
    for number, (content, change, match) in enumerate(cases):
        folder = tmp_path / str(number)
        folder.mkdir()
        refused(forged(folder / "x.mmb", content, change), folder, match)


def test_a_manifest_that_names_a_file_outside(bundle: Path, tmp_path: Path) -> None:
    document = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    document["files"][0]["path"] = "../outside.onnx"
    content = files(bundle) | {"manifest.json": json.dumps(document).encode()}
    del content["diary.txt"]
    refused(forged(tmp_path / "x.mmb", content), tmp_path, "inside the bundle")


def test_declared_sizes_beyond_the_file(packed: Path, tmp_path: Path) -> None:
    """A bomb of overlapping entries: each is stored, together they are larger than the file."""
    data = bytearray(packed.read_bytes())
    at, found = data.rfind(b"PK\x05\x06"), 0
    where = int.from_bytes(data[at + 16 : at + 20], "little")
    while data[where : where + 4] == b"PK\x01\x02":
        lengths = sum(int.from_bytes(data[where + i : where + i + 2], "little") for i in (28, 30, 32))
        for field in (20, 24):  # as large as a zip without long forms can say
            data[where + field : where + field + 4] = (0xFFFFFFF0).to_bytes(4, "little")
        where, found = where + 46 + lengths, found + 1
    assert found > 3
    file = tmp_path / "bomb.mmb"
    file.write_bytes(data)
    refused(file, tmp_path, "more data than it has")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 10_000_000), byte=st.integers(0, 255), cut=st.integers(0, 10_000_000), whole=st.booleans())
def test_damage_is_a_sentence_or_nothing(
    packed: Path, tmp_path_factory: pytest.TempPathFactory, at: int, byte: int, cut: int, whole: bool
) -> None:
    data = bytearray(packed.read_bytes())
    # half of the damage in the directory at the end, where all names and sizes are
    at = len(data) - 1 - at % 700 if at % 2 else at % len(data)
    data[at] = byte
    folder = tmp_path_factory.mktemp("damage")
    file = folder / "x.mmb"
    file.write_bytes(bytes(data) if whole else bytes(data[: cut % len(data)]))
    try:
        unpack(file, folder / "out")
    except MindMergerError:
        assert [path.name for path in folder.iterdir()] == ["x.mmb"]
    else:
        # changed where nothing reads: padding, time stamps
        assert {name: d for name, d in files(folder / "out").items() if name != "report.json"}


def test_not_a_zip(tmp_path: Path) -> None:
    file = tmp_path / "x.mmb"
    file.write_bytes(b"not a zip")
    refused(file, tmp_path, "no packed bundle")
    refused_missing = tmp_path / "missing.mmb"
    with pytest.raises(BundleError, match="no file"):
        unpack(refused_missing, tmp_path / "out")
