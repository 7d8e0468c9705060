"""mm-bench: what it measures is what happened, in four forms; nothing heavy is loaded where nothing heavy is asked for."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mindmerger.bench_report import FORMATS
from mindmerger.benchmark import BARE, OTHER_ATTENTION, RUNTIME, Figure, Options, Result, Runner
from mindmerger.contestants import lap
from mindmerger.errors import MindMergerError
from tests import tiny
from tests.runtime.conftest import ROOT

ENVIRONMENT = {"PYTHONPATH": os.pathsep.join([str(ROOT / "runtime"), str(ROOT)]), "PYTHONIOENCODING": "utf-8"}
QUICK = ("--repeats", "2", "--tokens", "8", "--threads", "1", "--question", "¿Cuánto?")


def mm_bench(*arguments: str, prelude: str = "") -> subprocess.CompletedProcess[str]:
    code = f"{prelude}\nfrom mindmerger.cli.bench import main\nmain()"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True, encoding="utf-8", timeout=120, env={**os.environ, **ENVIRONMENT}, check=False,
    )  # fmt: skip


def figures_of(document: dict) -> dict[tuple[str, str], dict]:
    return {(figure["contestant"], figure["metric"]): figure for figure in document["figures"]}


def test_the_figures_are_there_and_possible(tmp_path: Path) -> None:
    # a bundle whose LLM would stop after 11 tokens: measuring goes on
    folder = tiny.bundle(tmp_path / "b", llm="arithmetic")
    began = time.perf_counter()
    result = mm_bench("--bundle", str(folder), *QUICK[:2], "--tokens", "20", *QUICK[4:], "--format", "json")
    spent = (time.perf_counter() - began) * 1e3
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    settings, figures = document["settings"], figures_of(document)
    assert (settings["bundle"], settings["tokens"], settings["repeats"], settings["threads"]) == ("tiny", 20, 2, 1)
    assert settings["positions_before"] == 1 + 13 + len("Question: ¿Cuánto?\nAnswer:\n".encode())
    own = {metric: figure for (name, metric), figure in figures.items() if name == RUNTIME}
    for metric in ("load", "tokenise", "encode + merge", "prefill", "time to first token", "decode"):
        assert own[metric]["mean"] > 0 and own[metric]["n"] == (3 if metric == "load" else 2)
        assert own[metric]["sd"] is not None
    assert own["time to first token"]["mean"] > own["encode + merge"]["mean"] + own["tokenise"]["mean"]
    # what is measured took part of the time that passed
    assert 3 * own["load"]["mean"] + 2 * 19 / own["decode"]["mean"] * 1e3 < spent
    (share,) = [figure for metric, figure in own.items() if metric.startswith("not llama.cpp")]
    assert 0 < share["mean"] < 100 and re.search("of a [56][0-9]-token question", share["metric"])
    if sys.platform == "linux":
        rss, anonymous = own["peak memory (RSS)"]["mean"], own["own memory (RssAnon)"]["mean"]
        assert 20 < anonymous < rss < 1000


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> dict:
    folder = tiny.bundle(tmp_path_factory.mktemp("bench") / "b")
    result = mm_bench(
        "--compare", "--checkpoint", "no-such-checkpoint", "--bundle", str(folder), *QUICK, "--format", "json"
    )
    assert result.returncode == 0, result.stderr
    document: dict = json.loads(result.stdout)
    document["stderr"] = result.stderr
    return document


def test_compare(compared: dict) -> None:
    figures = figures_of(compared)
    for name in (RUNTIME, BARE, OTHER_ATTENTION, "Llama class"):
        assert figures[name, "decode"]["mean"] > 0 and figures[name, "prefill"]["mean"] > 0
    for name in (RUNTIME, OTHER_ATTENTION, "Llama class"):
        assert figures[name, "decode ÷ bare"]["mean"] > 0 and figures[name, "prefill ÷ bare"]["n"] == 2
    assert (BARE, "decode ÷ bare") not in figures


def test_what_cannot_be_compared_is_left_out_and_said(compared: dict) -> None:
    assert not any("torch" in name for name, _ in figures_of(compared))
    (note,) = compared["notes"]
    assert "left out" in note and note in compared["stderr"]


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
def test_the_published_way_is_a_contestant(tmp_path: Path) -> None:
    """A tiny checkpoint in torch, asked as mm-bench asks it."""
    from mindmerger.child import Child
    from tests import tiny_torch

    checkpoint = tiny_torch.checkpoint(tmp_path)
    with Child("mindmerger_train.published", what="torch") as child:
        child.ask(
            do="load", kind="published", checkpoint=str(checkpoint), question="¿Cuánto?", threads=1, dtype="float32"
        )
        reply = child.ask(do="run", tokens=5)
    assert reply["tokens"] == 5 and reply["rows"] > 10
    assert reply["first_ms"] > reply["prefill_ms"] > 0 and reply["decode_ms"] > 0


def test_ratios_are_of_repetitions_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice as slow by the row and by the token is a ratio of a half, however noisy the machine."""

    class Fake(Runner):
        factor = 0.0

        def _start(self, name: str, module: str, **request: object) -> dict:
            if name not in (RUNTIME, BARE):
                raise MindMergerError("not here")
            self._children[name] = self  # type: ignore[assignment]
            self._loads.setdefault(name, []).append(1.0)
            return {"bundle": "b", "method": "m", "llm": "/x/l.gguf", "context": 9, "gpu_layers": 0, "prompt": [1] * 10,
                    "plain_attention": False}  # fmt: skip

        def close(self) -> None:
            pass

        def _ask(self, name: str, **request: object) -> dict:
            if request["do"] == "share":
                return {"encoder_tokens": 60, "llama_ms": 92.0, "first_ms": 100.0}
            self.factor += 0.5  # both sides get slower and slower
            slow = 2.0 if name == RUNTIME else 1.0
            busy = 1 + self.factor // 1
            rows = 20 if name == RUNTIME else 10
            return lap(rows, 5, rows * slow * busy, rows * slow * busy + 1, 5 * slow * busy, 5 * slow)

    options = Options(bundle=None, question="x", tokens=5, repeats=6, threads=1, compare=True)
    steps: list[int] = []
    runner = Fake(options, step=lambda: steps.append(1), note=lambda text: None)
    figures = {figure.metric: figure for figure in runner.run().figures if figure.contestant == RUNTIME}
    assert figures["decode ÷ bare (processor time)"].mean == pytest.approx(0.5)
    assert figures["decode ÷ bare"].mean == pytest.approx(0.5, rel=0.35)
    assert figures["not llama.cpp, of the time to first token of a 60-token question"].mean == pytest.approx(8.0)


RESULT = Result(
    {"bundle": "b|c", "tokens": 3},
    [
        Figure(RUNTIME, "decode", "tokens/s", 77.86, 1.25, 5),
        Figure(BARE, "decode", "tokens/s", 78.0, None, 1),
        Figure(RUNTIME, "decode ÷ bare", "×", 0.9934, 0.01, 5, "≥ 0.98"),
    ],
    ["a note"],
)


def test_forms() -> None:
    machine = {"processor": "P"}
    text = FORMATS["text"](RESULT, machine)
    assert "77.9 ± 1.2" in text and "0.993 ± 0.010" in text
    assert "decode ÷ bare" in text and "≥ 0.98" in text and text.endswith("a note")
    markdown = FORMATS["markdown"](RESULT, machine).splitlines()
    assert markdown[0] == f"| mean ± sd | {RUNTIME} | {BARE} | target |"
    assert markdown[2] == "| decode, tokens/s | 77.9 ± 1.2 | 78.0 |  |"
    assert markdown[3] == "| decode ÷ bare | 0.993 ± 0.010 |  | ≥ 0.98 |"
    rows = list(csv.DictReader(FORMATS["csv"](RESULT, machine).splitlines()))
    assert len(rows) == 3 and rows[1]["sd"] == "" and float(rows[0]["mean"]) == 77.86
    document = json.loads(FORMATS["json"](RESULT, machine))
    assert document["machine"] == machine and document["figures"][2]["target"] == "≥ 0.98"


def test_output_is_a_whole_file(tmp_path: Path) -> None:
    folder = tiny.bundle(tmp_path / "b")
    out = tmp_path / "speed.csv"
    result = mm_bench("--bundle", str(folder), *QUICK, "--format", "csv", "--output", str(out))
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert "decode" in {row["metric"] for row in csv.DictReader(out.open(encoding="utf-8"))}
    assert not list(tmp_path.glob(".speed*"))


def test_wrong_input(tmp_path: Path) -> None:
    folder = tiny.bundle(tmp_path / "b")
    for arguments, code, words in (
        (("--bundle", "no-such-name"), 4, "no bundle"),
        (("--bundle", str(folder), "--question", " "), 3, "empty"),
        (("--bundle", str(folder), "--question", "x", "--tokens", "9999"), 3, "context of 256"),
        (("--bundle", str(folder), "--output", str(tmp_path / "no" / "x")), 3, "not a folder"),
        (("--startup", "--compare"), 2, "--startup"),
        (("--repeats", "0"), 2, "repeats"),
    ):
        result = mm_bench(*arguments)
        assert result.returncode == code, result.stderr
        assert words in result.stderr and "Traceback" not in result.stderr and result.stdout == ""


def test_startup(tmp_path: Path) -> None:
    folder = tiny.bundle(tmp_path / "b")
    result = mm_bench("--startup", "--bundle", str(folder), "--question", "x", "--repeats", "2", "--format", "json")
    assert result.returncode == 0, result.stderr
    means = {figure["metric"]: figure["mean"] for figure in json.loads(result.stdout)["figures"]}
    assert 0 < means["import mindmerger"] < means["mm-run --help"] < means["mm-run to the first token"]


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_leaves_nothing_behind(tmp_path: Path) -> None:
    folder = tiny.bundle(tmp_path / "b")
    out = tmp_path / "speed.json"
    process = subprocess.Popen(
        [sys.executable, "-m", "mindmerger.cli.bench", "--bundle", str(folder), "--question", "x", "--repeats", "1000",
         "--output", str(out)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, **ENVIRONMENT}, start_new_session=True,
    )  # fmt: skip
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    deadline = time.monotonic() + 60
    while children.exists() and not children.read_text().split() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    os.killpg(process.pid, signal.SIGINT)
    stdout, stderr = process.communicate(timeout=30)
    assert (process.returncode, stdout, stderr) == (130, b"", b"")
    assert not out.exists()
    with pytest.raises(ProcessLookupError):  # no child is left in the group
        os.killpg(process.pid, 0)


def test_help_imports_nothing_heavy() -> None:
    prelude = """
import atexit, sys
heavy = {"numpy", "onnxruntime", "llama_cpp", "torch", "statistics"}
atexit.register(lambda: print(sorted(heavy & set(sys.modules)), file=sys.stderr))
"""
    result = mm_bench("--help", prelude=prelude)
    assert result.returncode == 0 and "Examples" in result.stdout and result.stderr == "[]\n"
