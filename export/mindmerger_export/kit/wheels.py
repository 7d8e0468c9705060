"""Wheels: fetch those that the runtime needs, and read what each of them says of itself.

pip does the fetching, in a process of its own; llama-cpp-python has no wheels on the index and is built from source, or
comes from pip's cache. What is read comes out of the wheel files, not out of what is installed here: a notice is about what
is shipped. Knows nothing about bundles.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
import zipfile
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from email.message import Message
from email.parser import HeaderParser
from pathlib import Path

from mindmerger.cache import sha256_of
from mindmerger.errors import InputError, MindMergerError, ModelError
from mindmerger_export.talk import Talk

NAME = "mindmerger"
LLAMA = "llama-cpp-python"
# Built for no processor in particular: what every x86-64 of the last ten years has (AVX2, FMA, F16C, BMI2), NEON on ARM.
_PORTABLE = "-DGGML_NATIVE=OFF"
_CHECKOUT = Path(__file__).resolve().parents[3]
_NO_NETWORK = re.compile(
    r"name resolution|Name or service not known|NewConnectionError|Network is unreachable|Connection refused|ProxyError"
    r"|ConnectTimeout|Could not fetch URL|getaddrinfo|Max retries exceeded|Connection aborted|timed out",
    re.IGNORECASE,
)
_LICENCE = re.compile(r"(?:^|/)(?:LICEN[CS]E|COPYING|NOTICE|AUTHORS|ThirdPartyNotices)[^/]*$", re.IGNORECASE)
_CLASSIFIER = "License :: OSI Approved :: "
# Old metadata have no SPDX expression; these say what the words of the classifiers mean.
_SPDX = {
    "Apache Software License": "Apache-2.0",
    "Apache License 2.0": "Apache-2.0",
    "Apache 2.0": "Apache-2.0",
    "BSD License": "BSD-3-Clause",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
    "ISC License (ISCL)": "ISC",
}


@dataclass(frozen=True)
class Wheel:
    """One wheel file and what its metadata say. `licence`: an SPDX expression where one is known, else their words, else ""."""

    path: Path
    name: str
    version: str
    licence: str
    home: str
    summary: str
    requires: tuple[str, ...]
    texts: tuple[tuple[str, str], ...]
    sha256: str


def canonical(name: str) -> str:
    """A project's name as the index compares it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def read_wheel(path: Path) -> Wheel:
    """Read METADATA and licence files of a wheel. Raises InputError where it is none."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            (metadata,) = [name for name in names if re.fullmatch(r"[^/]+\.dist-info/METADATA", name)]
            said = HeaderParser().parsestr(archive.read(metadata).decode("utf-8"))
            texts = tuple(
                (name, archive.read(name).decode("utf-8", "replace"))
                for name in sorted(names)
                if _LICENCE.search(name) and not name.endswith((".py", ".pyc", "/")) and "/site-packages/" not in name
            )
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is no wheel ({error}): fetch or build it again") from None
    home = said.get("Home-page") or next(
        (value.partition(",")[2].strip() for value in said.get_all("Project-URL", [])), ""
    )
    return Wheel(
        path=path,
        name=canonical(str(said["Name"])),
        version=str(said["Version"]),
        licence=_licence(said),
        home=str(home),
        summary=str(said.get("Summary") or ""),
        requires=tuple(str(one) for one in said.get_all("Requires-Dist", [])),
        texts=_unrepeated(texts),
        sha256=sha256_of(path),
    )


def _licence(said: Message) -> str:
    if expression := said.get("License-Expression"):
        return str(expression)
    named = [
        value.removeprefix(_CLASSIFIER)
        for value in said.get_all("Classifier", [])
        if str(value).startswith(_CLASSIFIER)
    ]
    # Some put the whole text into this field.
    words = str(said.get("License") or "").strip()
    if words and "\n" not in words and len(words) < 80:
        return _SPDX.get(words, words)
    return " AND ".join(_SPDX.get(one, one) for one in named)


def _unrepeated(texts: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """A wheel may carry the same text twice, beside the code and in its metadata."""
    seen: dict[str, tuple[str, str]] = {}
    for name, text in texts:
        seen.setdefault(" ".join(text.split()), (name, text))
    return tuple(seen.values())


def fetch(target: Path, *, mindmerger: str | None, extras: Sequence[str], portable: bool, talk: Talk) -> list[Wheel]:
    """Put the wheels of the runtime with `extras`, and of all that these need, into the empty folder `target`.

    `mindmerger`: a wheel, a source folder, or a requirement; None is the checkout that runs, else the version that runs, of the
    index. What is installed here is what was tested here, so the same versions are taken. Raises MindMergerError without a
    network or with a build that fails, InputError for a wheel or folder that is none.
    """
    own = own_wheel(target, mindmerger, talk)
    constraints = target / "constraints.txt"
    constraints.write_text("\n".join(sorted(_installed())), encoding="utf-8")
    try:
        found = ["--constraint", str(constraints), "--find-links", str(target)]
        if portable:
            talk(f"building {LLAMA} for any processor (minutes)")
            _pip(["wheel", "--no-deps", "--no-cache-dir", "--no-binary", LLAMA, *found, "--wheel-dir", str(target), LLAMA],
                 talk, CMAKE_ARGS=f"{os.environ.get('CMAKE_ARGS', '')} {_PORTABLE}".strip())  # fmt: skip
        talk("fetching packages")
        wanted = f"{own}[{','.join(extras)}]" if extras else str(own)
        _pip(["wheel", *found, "--wheel-dir", str(target), wanted], talk)
    finally:
        constraints.unlink()
    return sorted((read_wheel(path) for path in target.glob("*.whl")), key=lambda wheel: wheel.name)


def fetch_pip(target: Path, talk: Talk) -> Wheel:
    """pip itself as a wheel: it runs out of the file, so the other machine needs none."""
    _pip(["wheel", "--no-deps", "--wheel-dir", str(target), "pip"], talk)
    (path,) = target.glob("pip-*.whl")
    return read_wheel(path)


def own_wheel(target: Path, mindmerger: str | None, talk: Talk) -> Path:
    """The wheel of MindMerger in `target`: copied, built, or fetched."""
    import shutil

    source = Path(mindmerger) if mindmerger is not None else _CHECKOUT
    if source.suffix == ".whl":
        if not source.is_file() or read_wheel(source).name != NAME:
            raise InputError(f"{source} is no wheel of {NAME}: make one with python -m build")
        return Path(shutil.copy2(source, target))
    if (source / "pyproject.toml").is_file():
        talk(f"building the wheel of {source}")
        build_wheel(source, target)
    elif mindmerger is not None and source.exists():
        raise InputError(f"{source} is neither a wheel nor a source folder with a pyproject.toml")
    else:
        talk(f"fetching {NAME}")
        wanted = mindmerger or f"{NAME}=={importlib.metadata.version(NAME)}"
        _pip(["wheel", "--no-deps", "--wheel-dir", str(target), wanted], talk)
    (path,) = target.glob(f"{NAME}-*.whl")
    return path


def build_wheel(source: Path, target: Path) -> None:
    """Build a wheel by way of an sdist: what an earlier build left in the source folder does not get in."""
    # cannot run isolated where setuptools is here already: no second download
    isolated = ["--no-isolation"] if _has_setuptools() else []
    command = [sys.executable, "-m", "build", *isolated, "--outdir", str(target), str(source)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise _failed("the wheel of MindMerger cannot be built", result.stdout + result.stderr)
    for path in target.glob("*.tar.gz"):
        path.unlink()


def _has_setuptools() -> bool:
    try:
        return int(importlib.metadata.version("setuptools").split(".")[0]) >= 77  # as pyproject.toml wants it
    except importlib.metadata.PackageNotFoundError:
        return False


def _installed() -> set[str]:
    """`name==version` of everything that is installed here from an index."""
    found = set()
    for distribution in importlib.metadata.distributions():
        name = canonical(distribution.metadata["Name"] or "")
        # ours is given, and a local version (2.13.0+cpu) is on no index
        if name and name not in (NAME, "pip") and "+" not in distribution.version:
            found.add(f"{name}=={distribution.version}")
    return found


def _pip(arguments: Sequence[str], talk: Talk, **environment: str) -> None:
    """Run pip, tell what it is at. Raises MindMergerError with its last words."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    command += ["--progress-bar", "off", "--retries", "2"]
    said: deque[str] = deque(maxlen=60)
    try:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            env={**os.environ, **environment},
        )
    except OSError as error:
        raise ModelError(f"pip cannot be started ({error.strerror}): python -m ensurepip") from None
    with process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                said.append(line.rstrip())
                if match := re.match(r"\s*(Collecting|Building wheel for|Processing)\s+(\S+)", line):
                    talk(f"{'building' if match[1].startswith('B') else 'fetching'} {Path(match[2]).name}")
        except BaseException:
            process.terminate()
            raise
    if process.returncode:
        raise _failed("the packages cannot be fetched", "\n".join(said))


def _failed(what: str, said: str) -> MindMergerError:
    if _NO_NETWORK.search(said):
        return MindMergerError(
            f"{what}: the package index cannot be reached or breaks off. Make the kit where there is a network, or name a "
            "folder with the wheels in PIP_FIND_LINKS and set PIP_NO_INDEX=1"
        )
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")] or lines
    return MindMergerError(f"{what}: {errors[0][:300] if errors else 'pip said nothing'}")
