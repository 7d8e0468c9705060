"""What PyInstaller is told of the package, computed as it computes it. The freezing itself: test_frozen.py."""

from __future__ import annotations

import ast
import runpy
import tomllib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import mindmerger
from mindmerger import i18n
from mindmerger._pyinstaller import get_hook_dirs

pytest.importorskip("PyInstaller", reason="PyInstaller is not installed")
ROOT = Path(__file__).resolve().parents[2]
RUNTIME = ROOT / "runtime" / "mindmerger"
OTHERS = ("gguf", "huggingface_hub", "llama_cpp")


@pytest.fixture(scope="module")
def hook() -> dict[str, Any]:
    (folder,) = get_hook_dirs()
    return runpy.run_path(str(Path(folder) / "hook-mindmerger.py"))


def test_pyinstaller_is_told_where_the_hooks_are() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, _, name = project["entry-points"]["pyinstaller40"]["hook-dirs"].partition(":")
    assert (module, name) == (get_hook_dirs.__module__, get_hook_dirs.__name__)
    hooks = {path.name for path in Path(get_hook_dirs()[0]).glob("hook-*.py")}
    assert hooks == {f"hook-{name}.py" for name in ("mindmerger", *OTHERS)}


def test_modules_that_are_imported_by_name(hook: dict[str, Any]) -> None:
    wanted = set(hook["hiddenimports"])
    homes = {getattr(mindmerger, name).__module__ for name in mindmerger.__all__}
    assert homes <= wanted
    # … and whatever else the library (not its commands) hands to import_module as a text
    for path in RUNTIME.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
                (argument,) = node.args
                if isinstance(argument, ast.Constant):
                    assert argument.value in wanted, path
    assert all(find_spec(name) for name in wanted)


def test_native_libraries(hook: dict[str, Any]) -> None:
    found = {Path(source).name.split(".")[0]: target for source, target in hook["binaries"]}
    llama = [target for name, target in found.items() if name in ("libllama", "llama")]
    assert [Path(target).parts for target in llama] == [("llama_cpp", "lib")]  # where the bindings look
    assert not [name for name in found if "mtmd" in name]
    assert any("onnxruntime" in target for target in found.values())
    assert all(Path(source).is_file() for source, _target in hook["binaries"])


def test_catalogues_and_licences_and_no_weights(hook: dict[str, Any]) -> None:
    catalogues = {Path(target).parts[-2] for source, target in hook["datas"] if source.endswith(".mo")}
    assert catalogues == set(i18n.LANGUAGES)
    targets = {Path(target) for source, target in hook["datas"]}
    for name in ("gguf", "llama_cpp_python", "numpy", "onnxruntime", "tokenizers"):
        assert [target for target in targets if target.name.startswith(f"{name}-")], name
    assert Path("onnxruntime") in targets
    sizes = [path.stat().st_size for source, _target in hook["datas"] for path in [Path(source)] if path.is_file()]
    assert max(sizes) < 1_000_000


def test_what_stays_outside(hook: dict[str, Any]) -> None:
    assert {"torch", "transformers", "mindmerger_export", "mindmerger_train"} <= set(hook["excludedimports"])
    for name in OTHERS:
        other = runpy.run_path(str(Path(get_hook_dirs()[0]) / f"hook-{name}.py"))
        assert {"torch", "transformers"} <= set(other["excludedimports"])
