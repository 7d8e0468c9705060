"""The parts of the offline kit, each for itself. The whole, made and installed, is in test_kit_whole.py (`make test-kit`)."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from mindmerger.cache import sha256_of
from mindmerger.errors import InputError, MindMergerError, ModelError
from mindmerger.manifest import read_manifest
from mindmerger_export.kit import make, native, notices, sbom, sums
from mindmerger_export.kit.wheels import Wheel, read_wheel
from tests import tiny
from tests.distribution.conftest import ROOT, Built
from tests.distribution.network import environment

DEFAULT = ROOT / "models" / "mindmerger" / "bundle"
INSTALL = Path(make.__file__).parent / "files" / "install.sh"
PACKED = ("click", "gguf", "llama-cpp-python", "packaging", "tokenizers")
linux = pytest.mark.skipif(sys.platform != "linux", reason="kits are for Linux")


def packed(name: str, folder: Path) -> Path:
    """What is installed as `name`, as a wheel again: its metadata, its licences, and the shared libraries of llama.cpp."""
    distribution = importlib.metadata.distribution(name)
    path = folder / f"{name.replace('-', '_')}-{distribution.version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for file in distribution.files or ():
            if ".dist-info/" in file.as_posix() or file.as_posix().startswith("llama_cpp/lib/"):
                archive.write(str(file.locate()), file.as_posix())
    return path


@pytest.fixture(scope="module")
def wheels(built: Built, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Wheel]:
    """Ours, and some that the runtime needs."""
    folder = tmp_path_factory.mktemp("wheels")
    paths = [built.wheel, *(packed(name, folder) for name in PACKED)]
    return {wheel.name: wheel for wheel in map(read_wheel, paths)}


def test_notices_name_everything_with_its_licence(wheels: dict[str, Wheel]) -> None:
    manifest = read_manifest(DEFAULT)
    said = notices.notice_of(DEFAULT)
    assert said is not None and "Microsoft" in said
    parts = notices.parts_of(
        wheels.values(), manifest, {"libgomp.so.1": Path("libgomp.so.1.0.0")}, [("NOTICE.txt", said)]
    )
    licences = {part.name: part.licence for part in parts}
    assert {name: licences[name] for name in PACKED} == {
        "click": "BSD-3-Clause",
        "gguf": "MIT",
        "llama-cpp-python": "MIT",
        "packaging": "Apache-2.0 OR BSD-2-Clause",
        "tokenizers": "Apache-2.0",
    }
    assert licences["llama.cpp"] == "MIT" and "GCC-exception" in licences["libgomp.so.1"]
    assert licences[manifest.encoder.name] == "MIT" and licences[manifest.llm.name] == "Apache-2.0"
    assert "mindmerger" not in licences
    text = notices.render(parts)
    for words in (
        "Pallets",  # click's text, out of the wheel
        "The ggml authors",  # inside another wheel
        "Apache License",  # tokenizers carries no text
        "Copyright (c) Microsoft Corporation",
        "Georgi Gerganov",  # gguf
    ):
        assert words in text
    # one text of both models, given once
    assert text.count("What the bundle") == 1 and "the same text as under multilingual-e5-small" in text


def test_a_missing_licence_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "silent-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("silent-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: silent\nVersion: 1.0\n")
    parts = notices.parts_of([read_wheel(path)], read_manifest(DEFAULT), {})
    assert parts[0].licence == notices.UNKNOWN
    assert "carries no text" in notices.render(parts)
    path.write_bytes(b"no zip")
    with pytest.raises(InputError, match="no wheel"):
        read_wheel(path)


def test_the_bill_of_materials_is_valid_and_right(wheels: dict[str, Wheel], tmp_path: Path) -> None:
    manifest = read_manifest(DEFAULT)
    library = tmp_path / "libgomp.so.1"
    library.write_bytes(b"x")
    text = sbom.render(wheels.values(), manifest, {"libgomp.so.1": library})
    document = json.loads(text)
    assert document["bomFormat"] == "CycloneDX" and document["specVersion"] == "1.6"
    found = {one["name"]: one for one in document["components"]}
    assert found.keys() == {*PACKED, manifest.encoder.name, manifest.llm.name, "libgomp.so.1"}
    for name in PACKED:
        assert found[name]["hashes"] == [{"alg": "SHA-256", "content": sha256_of(wheels[name].path)}]
        assert found[name]["purl"] == f"pkg:pypi/{name}@{importlib.metadata.version(name)}"
        assert found[name]["licenses"]
    assert found["llama-cpp-python"]["components"][0]["name"] == "llama.cpp"
    model = found[manifest.encoder.name]
    assert model["type"] == "machine-learning-model" and model["licenses"] == [{"license": {"id": "MIT"}}]
    hashes = {one["name"]: one["hashes"][0]["content"] for one in model["components"]}
    assert hashes["bundle/merger.onnx"] == manifest.file("merger").sha256
    ours = document["metadata"]["component"]
    assert ours["name"] == "mindmerger"
    depends = {one["ref"]: set(one.get("dependsOn", ())) for one in document["dependencies"]}
    needed = {found[name]["bom-ref"] for name in ("click", "gguf", "llama-cpp-python", "tokenizers")}
    assert needed <= depends[ours["bom-ref"]] and found["packaging"]["bom-ref"] not in depends[ours["bom-ref"]]
    assert "library:libgomp.so.1" in depends[found["llama-cpp-python"]["bom-ref"]]
    # the same parts, the same number
    again = json.loads(sbom.render(wheels.values(), manifest, {"libgomp.so.1": library}))
    assert again["serialNumber"] == document["serialNumber"]
    document["components"][0]["type"] = "spell"
    with pytest.raises(MindMergerError, match="not valid CycloneDX"):
        sbom.check(json.dumps(document))


@linux
def test_what_the_native_code_needs_is_what_this_machine_has(wheels: dict[str, Wheel]) -> None:
    llama = wheels["llama-cpp-python"]
    needs = native.needs_of([llama], llama)
    flags = Path("/proc/cpuinfo").read_text().partition("flags")[2].partition("\n")[0].split()
    if platform.machine() == "x86_64":
        assert "avx2" in needs.flags and set(needs.flags) <= set(flags)
    assert 17 <= needs.glibc <= int(platform.libc_ver()[1].split(".")[1])
    assert "libgomp.so.1" in needs.libraries
    assert all(path.is_file() for path in needs.libraries.values())
    assert not {"libc.so.6", "libm.so.6", "libggml-base.so.0"} & needs.libraries.keys()


# ------------------------------------------------------------------------------------------------------ install.sh


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    """install.sh for this machine, whole, with files to check but no packages."""
    folder = tmp_path / "a kit"
    (folder / "wheels").mkdir(parents=True)
    (folder / "installer").mkdir()
    shutil.copy(packed("pip", tmp_path), folder / "installer")
    shutil.copy(INSTALL, folder)
    (folder / "wheels" / "some.whl").write_bytes(bytes(range(256)) * 100)
    seal(folder)
    return folder


def seal(folder: Path, **told: str) -> None:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    values = {
        "KIT_ID": "1",
        "KIT_MACHINE": platform.machine(),
        "KIT_PYTHON": version,
        "KIT_PYTHON_TUPLE": version.replace(".", ", "),
        "KIT_GLIBC": "17",
        "KIT_FLAGS": "",
        "KIT_KILOBYTES": "1000",
        "KIT_REQUIREMENT": "mindmerger==0.1.0",
        "KIT_COMMANDS": "mm-run mm-doctor",
        **told,
    }
    (folder / "kit.env").write_text("".join(f"{key}='{value}'\n" for key, value in values.items()))
    sums.write_sums(folder)


def install(kit: Path, prefix: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["sh", str(kit / "install.sh"), "--prefix", str(prefix), "--bin", str(prefix.parent / "bin"), *arguments]
    where = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PATH": where}, check=False)


def refused(result: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    assert result.returncode == code, result.stderr
    assert result.stdout == ""
    assert all(word in result.stderr for word in words), result.stderr


@linux
def test_a_damaged_kit_is_not_installed(kit: Path, tmp_path: Path) -> None:
    path = kit / "wheels" / "some.whl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + b"?")
    refused(install(kit, tmp_path / "p"), 4, "wheels/some.whl", "copy the kit again")
    path.unlink()
    refused(install(kit, tmp_path / "p"), 4, "wheels/some.whl")
    path.write_bytes(whole)
    (kit / "kit.env").write_text("KIT_MACHINE='$(touch hacked)'\n")
    refused(install(kit, tmp_path / "p"), 4, "kit.env")
    (kit / "SHA256SUMS").unlink()
    refused(install(kit, tmp_path / "p"), 4, "SHA256SUMS is missing")
    assert not (tmp_path / "p").exists() and not (tmp_path / "bin").exists() and not (kit / "hacked").exists()


@linux
@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"KIT_MACHINE": "s390x"}, "for s390x"),
        ({"KIT_GLIBC": "999"}, "glibc 2.999"),
        ({"KIT_FLAGS": "fpu9 mmx9"}, "lacks fpu9 mmx9"),
        ({"KIT_PYTHON": "3.99", "KIT_PYTHON_TUPLE": "3, 99"}, "Python 3.99 is not here"),
        ({"KIT_KILOBYTES": "999999999999"}, "MB and"),
    ],
    ids=["architecture", "glibc", "processor", "python", "disk"],
)
def test_another_machine_is_told(kit: Path, tmp_path: Path, told: dict[str, str], words: str) -> None:
    seal(kit, **told)
    refused(install(kit, tmp_path / "p"), 5, words)
    assert not (tmp_path / "p").exists()


@linux
def test_what_is_in_the_way_stays(kit: Path, tmp_path: Path) -> None:
    refused(install(kit, tmp_path / "p", "--colour"), 2, "--colour")
    refused(install(kit, tmp_path / "it's"), 2, "quotes")
    refused(install(kit, tmp_path / "p", "--uninstall"), 3, "nothing of this kit")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "mm-run").write_text("mine")
    refused(install(kit, tmp_path / "p"), 3, "bin/mm-run is there")
    (tmp_path / "bin" / "mm-run").unlink()
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "letters").write_text("mine")
    refused(install(kit, tmp_path / "p"), 3, "not empty")
    assert (tmp_path / "p" / "letters").read_text() == "mine"


@linux
def test_a_failed_installation_leaves_nothing(kit: Path, tmp_path: Path) -> None:
    """There is no package in this kit; pip itself runs, out of its wheel."""
    wheel = packed_whole("pip", tmp_path)
    shutil.copy(wheel, next((kit / "installer").iterdir()))
    seal(kit)
    result = install(kit, tmp_path / "p")
    refused(result, 1, "No matching distribution found for mindmerger", "pip could not install")
    assert not (tmp_path / "p").exists()


def packed_whole(name: str, folder: Path) -> Path:
    distribution = importlib.metadata.distribution(name)
    path = folder / "whole.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for file in distribution.files or ():
            if not file.as_posix().startswith("..") and "__pycache__" not in file.as_posix():
                archive.write(str(file.locate()), file.as_posix())
    return path


# ------------------------------------------------------------------------------------------------- the command


def offline_kit(out: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-c",
        "from mindmerger_export.kit.cli import main\nmain()",
        "--out",
        str(out),
        *arguments,
    ]
    found = {**environment(out.parent / "cache"), **variables}
    return subprocess.run(command, capture_output=True, text=True, env=found, cwd=out.parent, check=False)


def test_it_needs_no_torch() -> None:
    program = (
        "import sys, mindmerger_export.kit.cli, mindmerger_export.kit.make\n"
        "print([name for name in ('torch', 'transformers', 'onnx', 'onnxruntime') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.stdout == "[]\n", result.stdout + result.stderr


@linux
def test_without_an_index_it_says_so_and_leaves_nothing(built: Built, tmp_path: Path) -> None:
    bundle = tiny.bundle(tmp_path / "tiny")
    nowhere = "http://127.0.0.1:9/simple"
    settings = {"PIP_INDEX_URL": nowhere, "PIP_EXTRA_INDEX_URL": nowhere, "PIP_CONFIG_FILE": os.devnull}
    result = offline_kit(
        tmp_path / "kit", "--bundle", str(bundle), "--mindmerger", str(built.wheel),
        PIP_NO_CACHE_DIR="1", PIP_FIND_LINKS=str(tmp_path), PIP_RETRIES="0", **settings,
    )  # fmt: skip
    assert result.returncode == 1, result.stderr
    assert "the package index cannot be reached or breaks off" in result.stderr and "Traceback" not in result.stderr
    assert result.stdout == ""
    assert not (tmp_path / "kit").exists() and not list(tmp_path.glob(".kit*"))


@linux
def test_errors_before_anything_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = tiny.bundle(tmp_path / "tiny")
    (bundle / "llm.gguf").write_bytes(b"damaged")
    result = offline_kit(tmp_path / "kit", "--bundle", str(bundle))
    assert result.returncode == 4 and "llm.gguf" in result.stderr, result.stderr
    (tmp_path / "kit").mkdir()
    assert offline_kit(tmp_path / "kit", "--bundle", str(bundle)).returncode == 3
    result = offline_kit(tmp_path / "kit", "--bundle", str(bundle), "--force")
    assert result.returncode == 3 and "no kit" in result.stderr
    assert list((tmp_path / "kit").iterdir()) == []
    with pytest.raises(InputError, match="this is darwin"):
        make.check_platform("darwin")
    monkeypatch.setattr("mindmerger_export.kit.make.free_disk", lambda _folder: 1000)
    with pytest.raises(ModelError, match="the kit needs"):
        make.make_kit(make.KitRequest(bundle=str(DEFAULT), out=tmp_path / "other"))
