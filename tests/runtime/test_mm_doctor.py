"""mm-doctor: every damage is a line, every line says what to do, and none of it is a traceback."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mindmerger
from mindmerger import cache, doctor, installation, machine
from mindmerger.bundle import Bundle, open_bundle
from mindmerger.child import Child
from mindmerger.errors import ModelError
from mindmerger.manifest import GoldenInfo
from mindmerger.memory import estimate, memory_needed
from tests import tiny
from tests.runtime.conftest import ROOT

QUESTIONS = ("¿Cuánto?", "Wieviel?", "Ngapi?")
Doctor = Callable[..., tuple[int, list[dict[str, object]]]]


@pytest.fixture
def mm_doctor() -> Doctor:
    """Run mm-doctor --json as its own process: exit code and findings."""

    def run(*arguments: str, env: dict[str, str] | None = None) -> tuple[int, list[dict[str, object]]]:
        path = os.pathsep.join([str(ROOT / "runtime"), str(ROOT)])
        result = subprocess.run(
            [sys.executable, "-m", "mindmerger.cli.doctor", "--json", *arguments],
            capture_output=True, timeout=120, env={**os.environ, "PYTHONPATH": path, **(env or {})}, check=False,
        )  # fmt: skip
        assert b"Traceback" not in result.stderr, result.stderr
        document = json.loads(result.stdout)
        assert document["exit_code"] == result.returncode
        for finding in document["findings"]:
            assert finding["text"] and bool(finding["advice"]) == (finding["level"] != "ok"), finding
            assert (finding["exit_code"] != 0) == (finding["level"] == "problem"), finding
        return result.returncode, document["findings"]

    return run


def with_golden(folder: Path, *, llm: str = "random", wrong: int = 0) -> Path:
    """A bundle with golden questions as this machine answers them, the first `wrong` of them altered."""
    tiny.bundle(folder, llm=llm)
    golden = []
    with mindmerger.load(folder) as model:
        files, bake = model.manifest.files, model.manifest.bake
        for number, question in enumerate(QUESTIONS):
            ids = model.continuation_ids(question, 6)
            golden.append(GoldenInfo(question, "es", (5, *ids[1:]) if number < wrong else tuple(ids)))
    recipe = tiny.Recipe(golden=tuple(golden), bake=None if bake is None else bake.type)
    (folder / "manifest.json").write_text(tiny.manifest(files, recipe).to_json(), encoding="utf-8")
    return folder


def examined(folder: Path, **options: Any) -> list[dict[str, object]]:
    """The bundle's findings, as the command shows them, without another process for the command."""
    return [dataclasses.asdict(finding) for finding in doctor.examine_bundle(str(folder), **options)]


def of(findings: list[dict[str, object]], check: str) -> dict[str, object]:
    (finding,) = [finding for finding in findings if finding["check"] == check]
    return finding


def problems(findings: list[dict[str, object]]) -> list[str]:
    return [str(finding["check"]) for finding in findings if finding["level"] == "problem"]


def test_all_is_well(mm_doctor: Doctor, tmp_path: Path) -> None:
    code, findings = mm_doctor("--bundle", str(with_golden(tmp_path / "b", llm="bake")))
    assert (code, problems(findings)) == (0, [])
    assert "3 of 3" in str(of(findings, "golden questions")["text"])
    assert "sha256 is right" in str(of(findings, "file base.gguf")["text"])
    assert of(findings, "prepared LLM")["level"] == of(findings, "network")["level"] == "ok"
    assert "llama-cpp-python" in str(of(findings, "packages")["text"])


def test_every_damaged_file_has_a_line(mm_doctor: Doctor, tmp_path: Path) -> None:
    folder = with_golden(tmp_path / "b")
    flipped = folder / "merger.onnx"
    data = bytearray(flipped.read_bytes())
    stat = flipped.stat()
    data[-1] ^= 1
    flipped.write_bytes(data)
    os.utime(flipped, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    (folder / "tokenizer.json").write_bytes(b"{}")
    (folder / "llm.gguf").unlink()
    code, findings = mm_doctor("--bundle", str(folder))
    assert code == 4
    assert problems(findings) == ["file merger.onnx", "file tokenizer.json", "file llm.gguf"]
    assert "sha256" in str(of(findings, "file merger.onnx")["text"])
    assert "2 bytes instead of" in str(of(findings, "file tokenizer.json")["text"])
    assert "missing" in str(of(findings, "file llm.gguf")["text"])
    assert of(findings, "golden questions")["level"] == of(findings, "memory")["level"] == "warning"
    # a look at sizes alone does not see the flipped bit
    assert problems(examined(folder, quick=True)) == ["file tokenizer.json", "file llm.gguf"]


def test_a_hash_that_is_remembered_is_not_believed(tmp_path: Path) -> None:
    """A disk can lose a bit without any time stamp changing: then a start believes its note, and the doctor does not."""
    folder = tiny.bundle(tmp_path / "b")
    opened = open_bundle(folder)
    path = opened.merger
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    cache.remember(path, opened.manifest.file("merger").sha256, path.stat())
    open_bundle(folder)
    found = {finding.check: finding.level for finding in doctor.files(Bundle(folder, opened.manifest, {}), quick=False)}
    assert found == {"file merger.onnx": "problem", "file tokenizer.json": "ok", "file llm.gguf": "ok"}


def test_bundles_that_are_none(tmp_path: Path) -> None:
    for folder, words in ((tmp_path / "none", "no bundle"), (tmp_path, "manifest.json")):
        (finding,) = examined(folder)
        assert finding["exit_code"] == 4 and words in str(finding["text"]) and finding["advice"]
    (tmp_path / "manifest.json").write_text("{")
    assert problems(examined(tmp_path)) == ["bundle"]


def test_models_that_are_none_behind_right_hashes(tmp_path: Path) -> None:
    folder = tiny.bundle(tmp_path / "b")
    (folder / "llm.gguf").write_bytes(b"GGUF" + bytes(200))
    files = [tiny.file_info(role, folder / name) for role, name in
             (("merger", "merger.onnx"), ("tokenizer", "tokenizer.json"), ("llm", "llm.gguf"))]  # fmt: skip
    (folder / "manifest.json").write_text(tiny.manifest(files).to_json())
    findings = examined(folder)
    assert problems(findings) == ["file llm.gguf"] and of(findings, "file llm.gguf")["exit_code"] == 4
    assert of(findings, "memory")["level"] == of(findings, "golden questions")["level"] == "warning"


def test_other_answers_than_the_recorded(tmp_path: Path) -> None:
    findings = examined(with_golden(tmp_path / "one", wrong=1))
    assert problems(findings) == [] and of(findings, "golden questions")["level"] == "warning"
    assert "from token 1 of" in str(of(findings, "golden question 1")["text"])
    findings = examined(with_golden(tmp_path / "two", wrong=2))
    assert problems(findings) == ["golden questions"] and of(findings, "golden questions")["exit_code"] == 5


def test_too_little_memory_is_known_before_loading(tmp_path: Path) -> None:
    folder = tiny.bundle(tmp_path / "b")
    free = machine.available_memory()
    assert free is not None
    if memory_needed(open_bundle(folder), 2**24) > free:
        assert of(examined(folder, quick=True, context=2**24), "memory")["exit_code"] == 5
    assert doctor._enough_memory(100, "", 99).exit_code == ModelError.exit_code
    assert [doctor._enough_memory(100, "", free).level for free in (None, 110, 121)] == ["warning", "warning", "ok"]


@pytest.mark.skipif(sys.platform != "linux", reason="ulimit -v")
def test_too_little_address_space_is_a_line(tmp_path: Path) -> None:
    import resource

    folder = tiny.bundle(tmp_path / "b")
    for megabytes, checks in ((150, ["memory"]), (265, ["memory limit"])):
        limit = megabytes * 1024 * 1024
        result = subprocess.run(
            [sys.executable, "-m", "mindmerger.cli.doctor", "--json", "--quick", "--bundle", str(folder)],
            capture_output=True, text=True, check=False,
            preexec_fn=lambda limit=limit: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
            env={**os.environ, "PYTHONPATH": str(ROOT / "runtime"), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert result.returncode == 5 and "Traceback" not in result.stderr
        found = [one for one in json.loads(result.stdout)["findings"] if one["level"] == "problem"]
        assert [one["check"] for one in found if "ulimit -v" in one["text"]] == checks, found


def test_the_processor_against_the_build() -> None:
    features = machine.cpu_features()
    assert installation.processor(set(features.present)).level == "ok"
    if features.asked - features.present:
        lacking = min(features.asked - features.present)
        found = installation.processor({*features.present, lacking})
        assert found.level == "problem" and lacking in found.text
    with Child("mindmerger.probe", what="llama.cpp") as child:
        assert set(child.ask(do="llama")["features"]) & features.asked <= features.present


def test_features_of_processors_that_are_not_this_one(tmp_path: Path) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text("processor : 0\nFeatures  : fp asimd asimddp i8mm\n")
    arm = machine.cpu_features(path)
    assert arm.present == {"NEON", "ARM_FMA", "DOTPROD", "MATMUL_INT8"} and "SVE" in arm.asked
    path.write_text("flags : fpu pni ssse3 avx avx2 fma f16c avx512f avx512cd\n")
    assert machine.cpu_features(path).present == {"SSE3", "SSSE3", "AVX", "AVX2", "FMA", "F16C"}
    assert machine.cpu_features(tmp_path / "none").asked == frozenset()


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_native_code_that_dies_is_an_error_with_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "unlucky.py").write_text(
        "import os, signal, sys\ndef main():\n    sys.stdin.readline()\n    os.kill(os.getpid(), signal.SIGILL)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with Child("unlucky", what="llama.cpp") as child, pytest.raises(ModelError, match=r"SIGILL.*pip install"):
        child.ask(do="anything")


@pytest.mark.skipif(machine.resident() is None, reason="the system does not say")
@pytest.mark.parametrize("name", ["tiny", "default"])
def test_the_estimate_of_memory_holds(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within a quarter of what a process really holds at its peak, with the longest question that fits."""
    if name == "tiny":
        bundle, question = str(tiny.bundle(tmp_path / "b")), "7" * 50
    else:
        bundle, question = str(ROOT / "models" / "mindmerger" / "bundle"), " ".join(["7"] * 240)
        monkeypatch.undo()  # the real cache: the LLM is prepared there
    opened = open_bundle(bundle)
    opened.llm()
    need = estimate(opened)
    assert need.total == memory_needed(opened) > need.files + need.cache
    with Child("mindmerger.contestants", what="the runtime") as child:
        child.ask(do="load", kind="runtime", bundle=bundle, question=question, threads=1)
        peak = child.ask(do="run", tokens=4)["memory"]["peak"]
    assert 0.75 < peak / need.total < 1.25
    assert memory_needed(opened, 2 * opened.manifest.llm.context) > need.total + 0.9 * need.cache


def test_the_default_is_well(mm_doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    code, findings = mm_doctor("--quick")
    assert code == 0, findings
    assert of(findings, "bundle")["level"] == "ok"


def test_text_is_data_and_help_is_whole() -> None:
    program = [sys.executable, "-m", "mindmerger.cli.doctor"]
    env = {**os.environ, "PYTHONPATH": str(ROOT / "runtime")}
    result = subprocess.run(
        [*program, "--bundle", "no-such-name"], capture_output=True, text=True, env=env, check=False
    )
    lines = result.stdout.splitlines()
    assert result.returncode == 4 and result.stderr == ""
    assert any(line.startswith("problem  bundle: ") for line in lines) and any("→" in line for line in lines)
    assert lines[-1].endswith("1 problems")
    text = subprocess.run([*program, "--help"], capture_output=True, text=True, env=env, check=True).stdout
    assert "Exit codes" in text and "--quick" in text
