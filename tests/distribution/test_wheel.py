"""What is packed: the wheel has all that the commands need and nothing else, the sdist all that a packager needs."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

from tests.distribution.conftest import Built

# Folder in the repository → package in the wheel.
PACKAGES = {
    "runtime/mindmerger/": "mindmerger/",
    "export/mindmerger_export/": "mindmerger_export/",
    "mindmerger_train/": "mindmerger_train/",
    "models/": "mindmerger_models/",
}
# Of the repository alone: what catalogues are compiled from.
LEFT_OUT = (".po",)


def contents(wheel: Path) -> dict[str, str]:
    """Name → sha256 of every file."""
    with zipfile.ZipFile(wheel) as archive:
        assert archive.testzip() is None
        return {name: hashlib.sha256(archive.read(name)).hexdigest() for name in archive.namelist()}


def test_the_wheel_is_the_packages_and_nothing_else(built: Built) -> None:
    found = contents(built.wheel)
    expected = {}
    for name in built.tracked:
        for folder, package in PACKAGES.items():
            if name.startswith(folder) and not name.endswith(LEFT_OUT):
                expected[package + name.removeprefix(folder)] = hashlib.sha256(
                    (built.tree / name).read_bytes()
                ).hexdigest()
    packed = {name: digest for name, digest in found.items() if ".dist-info/" not in name}
    assert sorted(packed.keys() ^ expected.keys()) == []
    assert packed == expected


def test_the_wheel_has_what_is_no_code(built: Built) -> None:
    """By name, so that a rule which takes too little cannot hide in the rule above."""
    found = contents(built.wheel)
    (information,) = {name.partition("/")[0] for name in found if ".dist-info/" in name}
    for name in (
        "mindmerger/locale/sw/LC_MESSAGES/mindmerger.mo",
        "mindmerger/py.typed",
        "mindmerger/serve/page/index.html",
        "mindmerger_export/kit/files/install.sh",
        "mindmerger_export/kit/texts/llama.cpp.txt",
        "mindmerger_models/mindmerger/NOTICE.txt",
        "mindmerger_models/mindmerger/bundle/manifest.json",
        "mindmerger_models/mindmerger/bundle/merger.data",
        "mindmerger_models/recipes/nano/2-mapping.toml",
        "mindmerger_train/data/problems/languages/sw.toml",
        "mindmerger_train/data/templates/es.toml",
        f"{information}/licenses/LICENSE",
    ):
        assert name in found
    commands = {"mm-run", "mm-serve", "mm-bench", "mm-doctor", "mm-eval", "mm-export", "mm-train", "mm-offline-kit"}
    with zipfile.ZipFile(built.wheel) as archive:
        points = archive.read(f"{information}/entry_points.txt").decode()
    assert {line.split(" = ")[0] for line in points.splitlines() if " = " in line} >= commands


def test_the_sdist_builds_the_same_wheel(built: Built) -> None:
    from_sdist, direct = contents(built.wheel), contents(built.direct)
    assert {name: digest for name, digest in from_sdist.items() if not name.endswith("/RECORD")} == {
        name: digest for name, digest in direct.items() if not name.endswith("/RECORD")
    }


def test_the_sdist_is_the_repository(built: Built) -> None:
    with tarfile.open(built.sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
        files = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    missing = [name for name in built.tracked if name not in names and name != ".gitignore"]
    assert missing == []
    # and nothing that a working folder gathers
    made = {"PKG-INFO", "setup.cfg"}
    assert {name for name in files - set(built.tracked) - made if not name.startswith("mindmerger.egg-info/")} == set()


def test_the_wheel_finds_its_bundle_without_a_checkout(built: Built, tmp_path: Path) -> None:
    with zipfile.ZipFile(built.wheel) as archive:
        archive.extractall(tmp_path / "site")
    program = (
        "import mindmerger.bundle as b; print(b.__file__); print(b.resolve()); print(b.bundle_names())\n"
        "import mindmerger.i18n as i, os; os.environ['MINDMERGER_LANG'] = 'sw'; print(i._('ok'))"
    )
    variables = {name: value for name, value in os.environ.items() if name != "MINDMERGER_BUNDLE"}
    result = subprocess.run(
        [sys.executable, "-P", "-c", program],
        cwd=tmp_path,
        env={**variables, "PYTHONPATH": str(tmp_path / "site"), "PYTHONUTF8": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    code, bundle, names, _word = result.stdout.splitlines()
    assert code.startswith(str(tmp_path))
    assert bundle == str(tmp_path / "site" / "mindmerger_models" / "mindmerger" / "bundle")
    assert names == "['mindmerger']"
