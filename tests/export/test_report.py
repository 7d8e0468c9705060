"""The report of an export: complete, the same in manifest, JSON and page; the page needs nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import mindmerger
from mindmerger.errors import BundleError
from mindmerger_export import space
from mindmerger_export.bundle_writer import Request, export_bundle
from mindmerger_export.inspection import inspect, shown
from mindmerger_export.report import document_of, read_report
from mindmerger_export.report_charts import Bar, bars, log_bars
from mindmerger_export.report_html import page
from mindmerger_export.samples import QUESTIONS, SENTENCES

GOLDEN = QUESTIONS[:2]
# Some of the smaller types are farther from F16 than that, this random LLM being what it is.
BOUND = 0.2


@pytest.fixture(scope="module")
def bundle(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All that an export from the command line reports, with a type of the LLM chosen."""
    out = tmp_path_factory.mktemp("reported") / "bundle"
    request = Request(
        str(checkpoints["bert"]), out, precision="w8", compare=True, llm_type="auto", max_kl=BOUND, golden=GOLDEN
    )
    return export_bundle(request)


@pytest.fixture(scope="module")
def document(bundle: Path) -> dict[str, Any]:
    found = read_report(bundle)
    assert found is not None
    return found


def test_the_report_says_everything(bundle: Path, document: dict[str, Any]) -> None:
    parity = document["parity"]
    assert set(parity["rows"]["worst_by_text"]) == set(parity["rows"]["max_abs_by_text"]) == set(SENTENCES)
    languages = {language for language, _ in GOLDEN}
    assert set(parity["answers"]["by_language"]) == languages
    for figures in parity["answers"]["by_language"].values():
        assert {"kl_mean", "top1_agreement", "greedy_identical"} <= figures.keys()
    types = parity["llm_types"]
    assert types["chosen"] == parity["llm"] == types["candidates"][-1]["type"]
    assert all(set(one["by_language"]) == languages for one in types["candidates"])
    assert types["candidates"][-1]["kl_worst"] <= BOUND and types["candidates"][0]["of"] == 2
    assert document["sizes"]["llm.gguf"]["bytes"] == types["candidates"][-1]["bytes"]
    measured, memory = document["measured"], document["memory"]
    assert 0 < measured["encoder_share_of_answer"] <= measured["encoder_share_of_first_token"] <= 1
    assert measured["merged"].keys() == measured["llm_alone"].keys() >= {"encode_ms", "prefill_ms", "decode_ms"}
    assert memory["merged"] == memory["llm_alone"] + memory["encoder_and_merger"]
    assert memory["encoder_and_merger"] > memory["encoder_files"] > 0


def test_the_manifest_has_the_figures_and_no_times(bundle: Path, document: dict[str, Any]) -> None:
    manifest = mindmerger.read_manifest(bundle)
    assert manifest.parity == document["parity"]
    assert not {entry.path for entry in manifest.files} & {"report.json", "report.html"}
    assert not re.search(r"_ms\b|seconds", (bundle / "manifest.json").read_text(encoding="utf-8"))
    assert document_of(manifest, document["memory"], document["measured"]) == document
    text = shown(inspect(str(bundle)))
    assert "measured while exporting" in text and "encode_ms" in text


class Page(HTMLParser):
    """Tags that are closed, what is linked, and the text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.links: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "onload")]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data + " "


def read_page(text: str) -> Page:
    found = Page()
    found.feed(text)
    assert found.open == []
    return found


def test_the_page_stands_alone(bundle: Path, document: dict[str, Any]) -> None:
    text = (bundle / "report.html").read_text(encoding="utf-8")
    found = read_page(text)
    assert found.links == [] and "script" not in found.tags and "url(" not in text and "@import" not in text
    assert text.count("<svg") >= 5 and len(text) < 100_000
    assert "prefers-color-scheme:dark" in text and 'name="viewport"' in text
    for words in (
        "Rows of the soft prompt",
        "golden questions",
        "The LLM's type",
        "What merging costs",
        "chosen",
        "sw",
        "zh",
    ):
        assert words in found.text


def test_what_a_stranger_names_is_text(document: dict[str, Any]) -> None:
    evil = "<script>alert(1)</script>"
    changed = json.loads(json.dumps(document).replace("tiny-llama", evil).replace("tiny-bert", evil))
    found = read_page(page(changed))
    assert "script" not in found.tags and evil in found.text


def parts_left_out(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    left_out = {
        "answers": {"left_out": "torch was not asked"},
        "llm_types": {"left_out": "not beside F16, being too large"},
    }
    for parity in ({}, left_out):
        yield {**document, "parity": parity, "measured": None, "memory": None}


def test_a_page_of_less(document: dict[str, Any]) -> None:
    for less in parts_left_out(document):
        text = read_page(page(less)).text
        assert "Sizes" in text
        if less["parity"]:
            assert "Torch was not asked." in text and "Not beside F16, being too large." in text
            assert f"answered {len(GOLDEN)} questions with" in text


def test_what_was_not_compared_is_said(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An LLM above the bound, which for this one is lowered, and a type that was not to be compared."""
    monkeypatch.setattr(space, "LARGE", 1000)
    for compare, reason in ((True, "billion parameters"), (False, "--no-compare was given")):
        out = tmp_path / str(compare)
        request = Request(
            str(checkpoints["bert"]),
            out,
            precision="fp32",
            compare=compare,
            llm_type="q8_0",
            golden=GOLDEN[:1],
            reference="none",
        )
        export_bundle(request)
        text = read_page((out / "report.html").read_text(encoding="utf-8")).text
        assert "The LLM's type was not compared with F16" in text and reason in text
        assert "The answers were not compared with torch's: --reference none was given." in text
        assert "The bundle itself was loaded and answered 1 questions with" in text
        assert reason in mindmerger.read_manifest(out).parity["llm_types"]["left_out"]
        assert reason in shown(inspect(str(out)))


def test_a_damaged_report_is_said(tmp_path: Path) -> None:
    assert read_report(tmp_path) is None
    for text in ("{", "[]", "{}"):
        (tmp_path / "report.json").write_text(text, encoding="utf-8")
        with pytest.raises(BundleError, match="report"):
            read_report(tmp_path)


def test_bars_stay_in_the_picture() -> None:
    for values in ([0.0], [1.0], [1e-9, 1.0, 1e9], [0.0, 5.0]):
        pictures = [
            log_bars([("a", value, "t") for value in values], "t"),
            bars([Bar("a", [(value, 0), (value, 1)], "t") for value in values], "t"),
        ]
        for picture in pictures:
            rects = re.findall(r'x="([0-9.]+)%" y="\d+" width="([0-9.]+)%"', picture)
            assert all(float(x) + float(width) <= 74.01 for x, width in rects)
            assert "nan" not in picture and "inf" not in picture
