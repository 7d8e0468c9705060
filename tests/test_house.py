"""The house rules: import arrows, linters, sizes, and what the runtime may depend on."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PARTS = {
    "mindmerger": ROOT / "runtime" / "mindmerger",
    "mindmerger_export": ROOT / "export" / "mindmerger_export",
    "mindmerger_train": ROOT / "mindmerger_train",
}
HEAVY = {"torch", "transformers", "optimum", "accelerate", "peft", "onnx", "onnxscript", "safetensors"}
# Data flows one way (DESIGN, section 1): what each part must not import.
FORBIDDEN = {
    "mindmerger": HEAVY | {"mindmerger_export", "mindmerger_train"},
    "mindmerger_export": set(),
    "mindmerger_train": {"mindmerger_export", "llama_cpp", "onnxruntime"},
}


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("part", PARTS)
def test_imports_follow_the_arrows(part):
    files = sorted(PARTS[part].rglob("*.py"))
    assert files
    wrong = {str(path.relative_to(ROOT)): imported(path) & FORBIDDEN[part] for path in files}
    assert not {path: names for path, names in wrong.items() if names}


def test_the_runtime_depends_on_nothing_heavy():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {requirement.split(">")[0].split("=")[0].split("<")[0].strip() for requirement in project["dependencies"]}
    assert names == {"click", "gguf", "llama-cpp-python", "numpy", "onnxruntime", "tokenizers"}


def test_every_subpackage_is_packaged():
    packages = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    for name, folder in PARTS.items():
        for init in folder.rglob("__init__.py"):
            relative = init.parent.relative_to(folder)
            assert ".".join([name, *relative.parts]) in packages


@pytest.mark.parametrize(
    "command", [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"]], ids=" ".join
)
def test_linters(command):
    result = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def tracked() -> list[Path]:
    result = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if result.returncode:
        pytest.skip("not a git checkout")
    return [path for name in result.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def test_the_repository_stays_small():
    sizes = {path: path.stat().st_size for path in tracked()}
    assert sum(sizes.values()) < 60_000_000
    assert max(sizes.values()) < 45_000_000
