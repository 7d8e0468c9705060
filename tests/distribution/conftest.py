"""A copy of what git tracks, and what is built of it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Weights are as long as they like to be; what is packed where does not depend on that.
SHORTENED = 100_000


@dataclass(frozen=True)
class Built:
    """`tree`: the copy. `wheel` was made of `sdist`, `direct` of the tree. Files above SHORTENED bytes are cut to that."""

    tree: Path
    tracked: tuple[str, ...]
    sdist: Path
    wheel: Path
    direct: Path


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """An sdist and wheels, by `python -m build` without isolation, so without a network."""
    folder = tmp_path_factory.mktemp("build")
    tree = folder / "tree"
    tracked = copy_tracked(tree, SHORTENED)
    for target, arguments in (("dist", []), ("direct", ["--wheel"])):
        command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder / target), *arguments, "."]
        result = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stdout + result.stderr
    (sdist,) = (folder / "dist").glob("*.tar.gz")
    (wheel,) = (folder / "dist").glob("*.whl")
    (direct,) = (folder / "direct").glob("*.whl")
    return Built(tree, tracked, sdist, wheel, direct)


def copy_tracked(tree: Path, limit: int | None = None) -> tuple[str, ...]:
    """Copy what git tracks, or would, into `tree`, at most `limit` bytes of each; skips the test outside of a checkout."""
    names = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if names.returncode:
        pytest.skip("not a git checkout")
    found = tuple(name for name in sorted(set(names.stdout.split("\0"))) if name and (ROOT / name).is_file())
    for name in found:
        target = tree / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if limit is not None and (ROOT / name).stat().st_size > limit:
            with (ROOT / name).open("rb") as file:
                target.write_bytes(file.read(limit))
        else:
            shutil.copy2(ROOT / name, target)
    return found
