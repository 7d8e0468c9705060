"""A kit made, installed into a fresh environment where there is no network, asked, replaced and removed: `make test-kit`.

It fetches packages and takes minutes. MINDMERGER_KIT=1 makes a kit of the embedded default; a folder there is a kit to test.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mindmerger.cache import sha256_of
from tests.distribution import network

if not os.environ.get("MINDMERGER_KIT"):
    pytest.skip("make test-kit makes and installs an offline kit", allow_module_level=True)

QUESTION = "¿Cuánto es 15 + 27?"


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if os.environ["MINDMERGER_KIT"] != "1":
        return Path(os.environ["MINDMERGER_KIT"]).absolute()
    folder = tmp_path_factory.mktemp("kit") / "kit"
    command = [sys.executable, "-m", "mindmerger_export.kit.cli", "--out", str(folder)]
    # pip's cache has llama-cpp-python, built: no cache folder of our own
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == str(folder)
    assert sha256_of(folder / "SHA256SUMS") in result.stderr
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


def bare(home: Path) -> dict[str, str]:
    """The environment of somebody who has never heard of this project."""
    return {
        "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin",
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "OMP_WAIT_POLICY": "passive",
    }


def run(home: Path, *command: str) -> network.Outcome:
    if (reason := network.why_not_sealed()) is not None:
        pytest.skip(reason)
    outcome = network.sealed(command, home, bare(home))
    assert outcome.attempts == ()
    return outcome


def python() -> str:
    """The interpreter under the virtual environment that tests run in."""
    return str(Path(sys.executable).resolve())


def test_install_ask_replace_uninstall(kit: Path, home: Path) -> None:
    prefix, links = home / "pre fix", home / "bin"
    arguments = ["--prefix", str(prefix), "--bin", str(links), "--python", python()]
    outcome = run(home, str(kit / "install.sh"), *arguments)
    assert outcome.code == 0, outcome.stderr
    assert outcome.stdout.strip() == str(prefix)
    answer = run(home, str(links / "mm-run"), "--json", QUESTION)
    document = json.loads(answer.stdout)
    assert document["answer"] == "42" and document["merged"]
    assert document["bundle"]["folder"].startswith(str(prefix))
    with_page = [sys.executable, str(Path(__file__).parent / "ask_service.py"), QUESTION, str(links / "mm-serve")]
    served = json.loads(run(home, *with_page, "--slots", "1").stdout)
    assert served["answer"]["mindmerger"]["answer"] == "42" and set(served["page"].values()) == {200}
    # no package of the making machine is in use
    site = run(
        home, str(prefix / "current" / "venv" / "bin" / "python"), "-c", "import mindmerger; print(mindmerger.__file__)"
    )
    assert site.stdout.startswith(str(prefix))
    first = (prefix / "current").readlink()
    assert run(home, str(kit / "install.sh"), *arguments, "--no-check").code == 0
    assert (prefix / "current").readlink() != first and not (prefix / first).exists()
    assert run(home, str(links / "mm-run"), "--version").code == 0
    assert run(home, str(kit / "install.sh"), "--uninstall", "--prefix", str(prefix)).code == 0
    assert not prefix.exists() and list(links.iterdir()) == []


def test_a_damaged_wheel_is_found(kit: Path, tmp_path: Path, home: Path) -> None:
    copy = tmp_path / "kit"
    shutil.copytree(kit, copy, copy_function=os.link)
    wheel = next((copy / "wheels").glob("llama_cpp_python*.whl"))
    data = bytearray(wheel.read_bytes())
    wheel.unlink()  # a link: the kit itself stays whole
    data[len(data) // 2] ^= 1
    wheel.write_bytes(data)
    outcome = run(home, str(copy / "install.sh"), "--prefix", str(tmp_path / "p"), "--bin", str(tmp_path / "bin"))
    assert outcome.code == 4 and wheel.name in outcome.stderr
    assert not (tmp_path / "p").exists()


def test_it_has_everything_that_it_says(kit: Path) -> None:
    from mindmerger_export.kit import sbom

    text = (kit / "sbom.cdx.json").read_text(encoding="utf-8")
    sbom.check(text)
    named = {one["name"] for one in json.loads(text)["components"]} | {"mindmerger"}
    shipped = {path.name.partition("-")[0].replace("_", "-").lower() for path in kit.glob("*/*.whl")}
    assert shipped <= named
    notices = (kit / "THIRD_PARTY_NOTICES.txt").read_text(encoding="utf-8")
    assert all(name in notices for name in shipped - {"mindmerger"})
    assert "not told by the package" not in notices
