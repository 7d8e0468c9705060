"""mm-run as a process: stdout is data, stderr is talk, codes are documented, nothing heavy or networked is loaded."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import tiny
from tests.runtime.conftest import ROOT, Run

TEXT = "<<48/2=24>>#### 7"


def refused(result: subprocess.CompletedProcess[bytes], code: int) -> str:
    stderr = result.stderr.decode()
    assert result.returncode == code, stderr
    assert result.stdout == b""
    assert "Traceback" not in stderr
    assert stderr.startswith("mm-run: ") and stderr.count("\n") == 1, stderr
    return stderr


def test_answer(mm_run: Run, arithmetic_bundle: Path) -> None:
    result = mm_run("¿Cuánto es 48 / 2?", "--bundle", str(arithmetic_bundle))
    assert (result.returncode, result.stderr) == (0, b"")
    assert result.stdout.decode() == f"{TEXT}\nAnswer: 7\n"


def test_stdin_and_answer_only(mm_run: Run, arithmetic_bundle: Path) -> None:
    for arguments in ((), ("-",)):
        result = mm_run(*arguments, "--answer-only", stdin="¿Cuánto?\n".encode(),
                        env={"MINDMERGER_BUNDLE": str(arithmetic_bundle)})  # fmt: skip
        assert (result.returncode, result.stdout) == (0, b"7\n")


def test_json(mm_run: Run, arithmetic_bundle: Path) -> None:
    result = mm_run("মোট কত?", "--json", "--bundle", str(arithmetic_bundle), "--no-calculator", "--verbose")
    document = json.loads(result.stdout)
    assert result.returncode == 0
    assert document["question"] == "মোট কত?"
    assert document["text"] == "<<48/2=9>>#### 7" and document["answer"] == "7"
    assert document["finish_reason"] == "stop" and document["merged"] is True
    assert document["counts"]["generated_tokens"] == 11 and document["counts"]["soft_prompt_rows"] > 5
    assert document["timings"]["load_ms"] > 0
    assert document["bundle"]["name"] == "tiny"
    assert b"tokens/s" in result.stderr


def test_llm_alone(mm_run: Run, arithmetic_bundle: Path) -> None:
    result = mm_run("x", "--json", "--no-merge", "--bundle", str(arithmetic_bundle))
    document = json.loads(result.stdout)
    assert document["counts"]["soft_prompt_rows"] == 0 and document["merged"] is False


def test_limit_is_said_on_stderr(mm_run: Run, arithmetic_bundle: Path) -> None:
    result = mm_run("x", "--max-tokens", "2", "--bundle", str(arithmetic_bundle))
    assert result.stdout == b"<<4\nAnswer: 4\n"
    assert b"--max-tokens" in result.stderr and result.returncode == 0


def test_questions_that_are_none(mm_run: Run, arithmetic_bundle: Path) -> None:
    use = ("--bundle", str(arithmetic_bundle))
    assert "empty" in refused(mm_run("", *use), 3)
    assert "empty" in refused(mm_run(" \n", *use), 3)
    assert "empty" in refused(mm_run(*use, stdin=b""), 3)
    assert "100000 characters" in refused(mm_run(*use, stdin=b"x" * 100_000), 3)
    assert "100000 characters" in refused(mm_run("x" * 100_000, *use), 3)
    assert "UTF-8" in refused(mm_run(*use, stdin=b"caf\xe9"), 3)
    assert "surrogate" in refused(mm_run(b"caf\xe9", *use), 3)  # type: ignore[arg-type]
    assert "NUL" in refused(mm_run(*use, stdin=b"a\0b"), 3)
    assert "64" in refused(mm_run("x" * 80, *use), 3)
    assert "context of 256" in refused(mm_run("x", "--max-tokens", "5000", *use), 3)
    assert "temperature" in refused(mm_run("x", "--temperature", "nan", *use), 3)


def test_wrong_command_line(mm_run: Run) -> None:
    for arguments in (("--nonsense",), ("a", "--max-tokens", "0"), ("a", "b"), ("a", "--json", "--answer-only")):
        result = mm_run(*arguments)
        assert result.returncode == 2 and b"Traceback" not in result.stderr and result.stdout == b""


def test_bundles_that_are_none(mm_run: Run, tmp_path: Path) -> None:
    assert "no bundle" in refused(mm_run("x", "--bundle", "no-such-name"), 4)
    assert "manifest.json" in refused(mm_run("x", "--bundle", str(tmp_path)), 4)
    folder = tiny.bundle(tmp_path / "b")
    path = folder / "manifest.json"
    text = path.read_text()
    path.write_text(re.sub(r'"format_version": "[^"]*"', '"format_version": "9.0"', text))
    assert "9.0" in refused(mm_run("x", "--bundle", str(folder)), 4)
    path.write_text(text.replace('"merger.onnx"', '"../merger.onnx"'))
    assert "inside the bundle" in refused(mm_run("x", "--bundle", str(folder)), 4)
    path.write_text(text)
    for name in ("llm.gguf", "merger.onnx", "tokenizer.json"):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: len(whole) // 2])
        assert name in refused(mm_run("x", "--bundle", str(folder)), 4)
        (folder / name).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        assert "sha256" in refused(mm_run("x", "--bundle", str(folder)), 4)
        (folder / name).unlink()
        assert "missing" in refused(mm_run("x", "--bundle", str(folder)), 4)
        (folder / name).write_bytes(whole)


def test_damaged_models_with_a_right_hash(mm_run: Run, tmp_path: Path) -> None:
    """A bundle whose maker wrote nonsense: the hashes are right, the files are not."""
    folder = tiny.bundle(tmp_path / "b")
    (folder / "llm.gguf").write_bytes(b"GGUF" + bytes(200))
    files = [tiny.file_info(role, folder / name) for role, name in
             (("merger", "merger.onnx"), ("tokenizer", "tokenizer.json"), ("llm", "llm.gguf"))]  # fmt: skip
    (folder / "manifest.json").write_text(tiny.manifest(files).to_json())
    refused(mm_run("x", "--bundle", str(folder)), 4)


def test_broken_pipe_is_quiet(arithmetic_bundle: Path) -> None:
    code = "from mindmerger.cli.run import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "x", "--bundle", str(arithmetic_bundle)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT / "runtime")},
    )  # fmt: skip
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    stderr = process.stderr.read()
    assert process.wait(30) == 0 and stderr == b""


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c(tmp_path: Path) -> None:
    folder = tiny.bundle(tmp_path / "b", recipe=tiny.Recipe(stop_ids=()))
    # an LLM that is slow enough to be interrupted
    code = (
        "import time, mindmerger.llama as llama\n"
        "step = llama.LLM.step\n"
        "llama.LLM.step = lambda self, token: (time.sleep(0.1), step(self, token))[1]\n"
        "from mindmerger.cli.run import main; main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, "x", "--bundle", str(folder)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT / "runtime")},
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130 and stderr == b""


def test_nothing_heavy_is_imported_and_no_socket_is_opened(mm_run: Run, arithmetic_bundle: Path) -> None:
    prelude = """
import atexit, socket, sys
def refuse(*a, **k): raise OSError("the network is off")
socket.socket.connect = socket.socket.connect_ex = socket.create_connection = socket.getaddrinfo = refuse
def report():
    heavy = {"torch", "transformers", "optimum", "huggingface_hub", "requests", "sentencepiece", "onnx"}
    print("loaded", sorted(heavy & set(sys.modules)), file=sys.stderr)
atexit.register(report)
"""
    result = mm_run("x", "--bundle", str(arithmetic_bundle), prelude=prelude)
    assert result.stdout.decode() == f"{TEXT}\nAnswer: 7\n"
    assert result.stderr == b"loaded []\n"


def test_help_and_version(mm_run: Run) -> None:
    result = mm_run("--help")
    text = result.stdout.decode()
    assert result.returncode == 0 and "Exit codes" in text and "Examples" in text and "--no-merge" in text
    assert mm_run("--version").stdout.startswith(b"mm-run ")


@pytest.mark.parametrize(("code", "limit"), [("import mindmerger", 0.1), ("import mindmerger.cli.run", 0.15)])
def test_starts_quickly(code: str, limit: float) -> None:
    """CPU time of the import alone: the wall clock of a busy machine says nothing about us."""
    program = f"import time; t = time.process_time(); {code}; print(time.process_time() - t)"
    best = min(
        float(
            subprocess.run(
                [sys.executable, "-c", program], capture_output=True, check=True, cwd=ROOT / "runtime"
            ).stdout
        )
        for _ in range(3)
    )
    assert best < limit


def test_own_module_names_do_not_load_native_code() -> None:
    program = (
        "import sys, mindmerger.cli.run; print([m for m in ('numpy', 'onnxruntime', 'llama_cpp') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, cwd=ROOT / "runtime")
    assert result.stdout.strip() == b"[]"


def test_package_import_of_llama_cpp_still_works_afterwards(tmp_path: Path) -> None:
    """The bindings are loaded without the package's __init__; who imports the package later gets all of it."""
    folder = tiny.bundle(tmp_path / "b")
    program = (
        f"import mindmerger; model = mindmerger.load({str(folder)!r}); import llama_cpp; "
        "from mindmerger.llama import backend; "
        "print(llama_cpp.Llama.__name__, llama_cpp.llama_cpp is backend()); model.close()"
    )
    began = time.perf_counter()
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, cwd=ROOT / "runtime", check=False)
    assert result.stdout.split() == [b"Llama", b"True"], result.stderr
    assert time.perf_counter() - began < 30
