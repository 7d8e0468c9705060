"""mm-eval as a user meets it: tables, files, going on after a stop, refusals, ablations."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from mindmerger_train.evaluation.journal import FILE_NAME, Entry, Head, Journal, Mark, read
from mindmerger_train.evaluation.modes import (
    ALONE,
    ENCODER_ONLY,
    GATE_OFF,
    MERGE,
    MODES,
    NO_LANGUAGE,
    Traits,
    available,
)
from mindmerger_train.evaluation.report import markdown
from mindmerger_train.evaluation.results import AVERAGE, evaluate
from tests import tiny, tiny_torch

ROOT = Path(__file__).resolve().parents[2]


def environment(tmp: Path) -> dict[str, str]:
    path = os.pathsep.join(str(ROOT / part) for part in ("runtime", "export", ""))
    return {**os.environ, "PYTHONPATH": path, "XDG_CACHE_HOME": str(tmp / "cache"), "PYTHONIOENCODING": "utf-8"}


def command(*arguments: object) -> list[str]:
    code = "from mindmerger_train.evaluation.cli import main; main()"
    return [sys.executable, "-c", code, *map(str, arguments)]


def mm_eval(tmp: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), env=environment(tmp), capture_output=True, text=True, encoding="utf-8", timeout=120
    )


def questions(path: Path, rows: list[tuple[str, str, str]]) -> Path:
    lines = ["language\tquestion\tanswer", *("\t".join(row) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return questions(
        tmp_path / "small.tsv",
        [("es", "¿Cuánto es 3 + 4?", "7"), ("es", "¿Y 4 + 4?", "8"), ("sw", "Saba?", "7"), ("sw", "Nane?", "8")],
    )


def entries(folder: Path) -> list[dict[str, object]]:
    # not splitlines(): a random LLM writes line separators that are none in JSON lines
    documents = [json.loads(line) for line in (folder / FILE_NAME).read_bytes().split(b"\n")[:-1]]
    return [document for document in documents if "format" not in document]


# ---------------------------------------------------------------------------------------------- the command


def test_a_bundle_from_end_to_end(tmp_path, small):
    """The tiny LLM always says "<<48/2=24>>#### 7"-like text: 7 is right, 8 is wrong, merged or alone."""
    bundle, out = tiny.bundle(tmp_path / "bundle", llm="arithmetic"), tmp_path / "out"
    options = (small, "--bundle", bundle, "--out", out, "--max-tokens", 32)
    result = mm_eval(tmp_path, *options)
    assert result.returncode == 0, result.stderr
    table = result.stdout.splitlines()
    assert table[0] == "| language | questions | merge | LLM alone | difference | p |"
    assert table[2].startswith("| es | 2 | 50.0 [0.0, 100.0] | 50.0 [0.0, 100.0] | +0.0 | 1.000 |")
    assert "**average** | 4 | 50.0" in result.stdout
    assert result.stdout == (out / "results.md").read_text(encoding="utf-8")
    assert len(entries(out)) == 8 and {entry["mode"] for entry in entries(out)} == {"merge", "alone"}
    assert all(entry["text"].startswith("<<48/2=24>>") and entry["forced"] for entry in entries(out))
    document = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert document["arms"][0]["shares"]["es"]["value"] == 0.5
    with (out / "results.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["mode"], row["language"]) for row in rows] == [
        (mode, language) for mode in ("merge", "alone") for language in ("es", "sw", AVERAGE)
    ]
    picture = ElementTree.parse(out / "results.svg").getroot()
    assert len([node for node in picture.iter() if node.tag.endswith("}g")]) == 6  # a bar an arm and row
    assert "http" not in (out / "results.svg").read_text().replace("http://www.w3.org/2000/svg", "")

    # the same command again asks nothing and says the same; --report does not even load the bundle
    again = mm_eval(tmp_path, *options)
    assert again.stdout == result.stdout and len(entries(out)) == 8
    (bundle / "llm.gguf").unlink()
    assert mm_eval(tmp_path, "--report", "--out", out).stdout == result.stdout


def test_what_cannot_be_asked_is_told_and_counts_as_wrong(tmp_path, small):
    """The tiny context has 256 positions: no room for as many new tokens."""
    result = mm_eval(tmp_path, small, "--bundle", tiny.bundle(tmp_path / "bundle"), "--max-tokens", 250)
    assert result.returncode == 0
    assert "es/0 could not be asked: the question takes" in result.stderr
    assert "counted as wrong: merge 4, LLM alone 4" in result.stdout


def test_stopped_and_gone_on_with(tmp_path):
    """SIGTERM in the middle: exit 143, nothing left running, half a line is tolerated, no question asked twice."""
    bundle, out = tiny.bundle(tmp_path / "bundle"), tmp_path / "out"
    many = questions(tmp_path / "many.tsv", [("es" if n % 2 else "sw", f"{n} + {n}?", str(2 * n)) for n in range(300)])
    arguments = (many, "--bundle", bundle, "--out", out, "--threads", 1, "--max-tokens", 32)
    process = subprocess.Popen(command(*arguments), env=environment(tmp_path), stderr=subprocess.PIPE, text=True)
    file = out / FILE_NAME
    deadline = time.monotonic() + 60
    while not (file.exists() and file.read_bytes().count(b"\n") > 20) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, talk = process.communicate(timeout=30)
    assert process.returncode == 143
    assert "goes on" in talk
    before = entries(out)
    assert 20 <= len(before) < 600
    with file.open("a", encoding="utf-8") as stream:
        stream.write('{"key": "cut of')
    result = mm_eval(tmp_path, *arguments)
    assert result.returncode == 0, result.stderr
    assert f"{len(before)} generations are there already" in result.stderr
    after = entries(out)
    assert len(after) == len({entry["key"] for entry in after}) == 600
    assert after[: len(before)] == before


def test_another_run_is_refused(tmp_path, small):
    bundle, other, out = (
        tiny.bundle(tmp_path / "one", llm="arithmetic"),
        tiny.bundle(tmp_path / "two"),
        tmp_path / "out",
    )
    assert mm_eval(tmp_path, small, "--bundle", bundle, "--out", out, "--limit", 1).returncode == 0
    whole = (out / FILE_NAME).read_bytes()
    for arguments, word in [
        (("--bundle", other), "another model"),
        (("--bundle", bundle, "--max-tokens", 5), "max tokens"),
        (("--bundle", bundle, "--no-calculator"), "calculator"),
    ]:
        result = mm_eval(tmp_path, small, "--out", out, *arguments)
        assert (result.returncode, result.stdout) == (7, "")
        assert word in result.stderr and "Traceback" not in result.stderr
    changed = questions(tmp_path / "changed.tsv", [("es", "¿Cuánto es 3 + 5?", "8"), ("sw", "Saba?", "7")])
    result = mm_eval(tmp_path, changed, "--bundle", bundle, "--out", out)
    assert result.returncode == 7 and "another question" in result.stderr
    assert (out / FILE_NAME).read_bytes() == whole
    # more of the same is welcome
    assert mm_eval(tmp_path, small, "--bundle", bundle, "--out", out).returncode == 0
    assert len(entries(out)) == 8


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        ((), 2, "QUESTIONS"),
        (("missing.tsv",), 7, "missing.tsv"),
        (("small.tsv", "--bundle", "nowhere"), 4, "nowhere"),
        (("small.tsv", "--checkpoint", "nowhere"), 6, "nowhere"),
        (("small.tsv", "--ablate", "x=nowhere"), 6, "nowhere"),
        (("small.tsv", "--ablate", "x="), 2, "NAME=MODEL"),
        (("--ablate", "small.tsv"), 2, "put it last"),
        (("small.tsv", "--languages", "tlh"), 7, "tlh"),
        (("small.tsv", "--bundle", "a", "--checkpoint", "b"), 2, "exclude"),
        (("--report",), 2, "--out"),
        (("--report", "--out", "nothing"), 7, "no generations"),
    ],
)
def test_errors(tmp_path, small, monkeypatch, capsys, arguments, code, word):
    """In this process: starting Python for each would take longer than the rest."""
    from mindmerger_train.evaluation.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["mm-eval", *arguments])
    with pytest.raises(SystemExit) as leaving:
        main()
    output = capsys.readouterr()
    assert leaving.value.code == code, output.err
    assert word in output.err and output.out == ""


def test_ablations_of_a_gate_and_several_models(tmp_path, small):
    """In torch: all modes of a tiny ST-Merge; a MindMerger with another LLM beside it has fewer."""
    from mindmerger_train.gate import GateSpec

    gated = tiny_torch.checkpoint(tmp_path / "a", method="st-merge", gate=GateSpec(languages=("es",), heads=2))
    plain = tiny_torch.checkpoint(tmp_path / "b", adapter=True)
    out = tmp_path / "out"
    result = mm_eval(
        tmp_path,
        small,
        "--checkpoint",
        gated,
        "--ablate",
        f"plain={plain}",
        "--max-tokens",
        4,
        "--out",
        out,
        "--ablate",
    )
    assert result.returncode == 0, result.stderr
    document = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert [(arm["model"], arm["mode"]) for arm in document["arms"]] == [
        *(("tiny-bert", mode.name) for mode in MODES),
        *(("plain", mode.name) for mode in (MERGE, ALONE, ENCODER_ONLY)),
    ]
    assert "plain: no mode 'gate-off', the method mindmerger has no gate" in result.stderr
    assert "Left out: plain: no mode 'no-language'" in result.stdout
    assert "| average | % | minus the LLM alone | p | minus tiny-bert | p |" in result.stdout
    assert len(entries(out)) == 8 * 4


# -------------------------------------------------------------------------------------------------- journal

HEAD = Head("qa", 8, None, {"m": Mark("bundle", "m", "mindmerger", "f", "l")})


def entry(index: int, mode: str = "merge", right: bool = True, language: str = "es", kind: str = "qa", **more) -> Entry:
    values = {"finish": "stop", "model": "m", "tokens": 1, "forced": 0, **more}
    return Entry(
        mode=mode, language=language, index=index, kind=kind, question="q", target="1", text="1", predicted=1.0,
        right=right, **values,
    )  # fmt: skip


def test_every_beginning_of_a_file_can_be_gone_on_from(tmp_path):
    """Whatever a crash leaves, no answer that was whole is lost and none is made up."""
    with Journal(tmp_path, HEAD) as journal:
        for index in range(3):
            journal.add(entry(index))
    whole = (tmp_path / FILE_NAME).read_bytes()
    ends = [place + 1 for place, byte in enumerate(whole) if byte == 10]
    for cut in range(0, len(whole), 7):
        folder = tmp_path / str(cut)
        folder.mkdir()
        (folder / FILE_NAME).write_bytes(whole[:cut])
        lines = sum(end <= cut for end in ends)
        with Journal(folder, HEAD) as journal:
            assert len(journal.entries) == max(0, lines - 1)
            journal.add(entry(9))
        head, found = read(folder / FILE_NAME)
        assert head == HEAD and len(found) == max(0, lines - 1) + 1


def test_a_damaged_middle_is_named(tmp_path):
    from mindmerger.errors import DataError

    with Journal(tmp_path, HEAD) as journal:
        journal.add(entry(0))
        journal.add(entry(1))
    file = tmp_path / FILE_NAME
    lines = file.read_text().splitlines()
    file.write_text("\n".join([lines[0], "{", lines[2]]) + "\n")
    with pytest.raises(DataError, match="line 2"):
        read(file)
    file.write_text("\n".join(lines[1:]) + "\n")
    with pytest.raises(DataError, match="head"):
        read(file)
    file.write_text('{"some": "thing"}\n')
    with pytest.raises(DataError, match="line 1"):
        read(file)


# --------------------------------------------------------------------------------------------- modes, results


def test_which_method_has_which_mode():
    def names(method: str, gate: bool = False, language: str = "none") -> set[str]:
        has, lacks = available(MODES, Traits(method, gate, language))
        assert len(has) + len(lacks) == len(MODES)
        return {mode.name for mode in has}

    assert names("mono") == {ALONE.name}
    assert names("langbridge") == {MERGE.name, ALONE.name}
    assert names("mindmerger") == {MERGE.name, ALONE.name, ENCODER_ONLY.name}
    assert names("st-merge", True) == names("mindmerger") | {GATE_OFF.name}
    assert names("st-merge", True, "soft") == names("st-merge", True) | {NO_LANGUAGE.name}


def test_only_what_all_arms_have_counts():
    arms = [("m", "merge"), ("m", "alone")]
    given = [entry(i) for i in range(10)] + [entry(i, "alone", right=i % 2 == 0) for i in range(6)]
    results = evaluate("qa", 8, None, HEAD.models, arms, given, wanted=10)
    merge, alone = results.arms
    assert (merge.shares["es"].n, merge.shares["es"].right) == (6, 6)
    assert (alone.shares["es"].n, alone.shares["es"].right) == (6, 3)
    assert merge.against_alone is not None and merge.against_alone["es"].only_first == 3
    assert "Unfinished: 6 of 10" in markdown(results)


def test_translations_are_paired_by_index():
    """The same index in two languages is one unit: a difference in both is one piece of evidence, not two."""
    arms = [("m", "merge"), ("m", "alone")]

    def p_of(kind: str) -> float:
        given = [
            entry(i, mode, right=mode == "merge" or i >= 8, language=language, kind=kind)
            for i in range(40)
            for mode in ("merge", "alone")
            for language in ("es", "sw")
        ]
        comparison = evaluate(kind, 8, None, HEAD.models, arms, given).arms[0].against_alone
        assert comparison is not None
        return comparison[AVERAGE].p

    assert p_of("msvamp") == pytest.approx(2 / 2**8, abs=0.004)
    assert p_of("qa") < 0.001


def test_errors_and_cuts_are_told():
    arms = [("m", "merge")]
    given = [entry(0, finish="length"), entry(1, right=False, error="too long")]
    text = markdown(evaluate("qa", 8, None, HEAD.models, arms, given))
    assert "cut off at 8 tokens: merge 1" in text and "counted as wrong: merge 1" in text
