"""The page without a browser: its files, its words in five languages, and what it makes of a stream (by node)."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from mindmerger import i18n
from mindmerger.serve.page import FOLDER, PATHS
from tests.serve.conftest import Served

needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")


class Elements(HTMLParser):
    """All elements with their attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


@pytest.fixture
def elements() -> list[tuple[str, dict[str, str | None]]]:
    parser = Elements()
    parser.feed((FOLDER / "index.html").read_text(encoding="utf-8"))
    return parser.found


def node(code: str) -> str:
    found = subprocess.run(
        ["node", "--input-type=module", "-e", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert found.returncode == 0, found.stderr
    return found.stdout


def test_all_files_are_served_and_nothing_else(served: Served) -> None:
    assert {path.name for path in FOLDER.iterdir()} == {Path(path).name or "index.html" for path in PATHS}
    for path in PATHS:
        found = served.ask(path)
        assert found.status == 200 and found.data == (FOLDER / (Path(path).name or "index.html")).read_bytes()


def test_nothing_is_loaded_from_elsewhere(elements: list[tuple[str, dict[str, str | None]]]) -> None:
    for tag, attributes in elements:
        for name in ("src", "href"):
            if value := attributes.get(name):
                assert value in PATHS or value.startswith("#"), (tag, value)
        # the policy forbids them: they would silently do nothing
        assert "style" not in attributes and not any(name.startswith("on") for name in attributes), tag
    for path in FOLDER.iterdir():
        text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://|@import|url\(|innerHTML|eval\(|document\.write", text), path


def test_every_control_has_a_name(elements: list[tuple[str, dict[str, str | None]]]) -> None:
    labelled = {attributes["for"] for tag, attributes in elements if tag == "label" and "for" in attributes}
    inside = {"interface", "theme", "language"}  # inside their labels
    for tag, attributes in elements:
        if tag in ("input", "select", "textarea"):
            assert attributes["id"] in labelled | inside, attributes
    ids = [attributes["id"] for _tag, attributes in elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _tag, attributes in elements:
        for name in ("aria-labelledby", "aria-describedby", "for"):
            assert name not in attributes or attributes[name] in ids
    texts = {attributes.get("id"): attributes for _tag, attributes in elements}
    for name in ("question", "asked", "text", "number"):  # whatever is written in any language has its own direction
        assert texts[name]["dir"] == "auto"


@needs_node
def test_words_are_whole(elements: list[tuple[str, dict[str, str | None]]]) -> None:
    words = json.loads(node(f"import {{ WORDS }} from '{FOLDER}/words.js'; console.log(JSON.stringify(WORDS));"))
    assert set(words) == {"en", *i18n.LANGUAGES}
    for language, sentences in words.items():
        assert set(sentences) == set(words["en"]), language
        for key, sentence in sentences.items():
            assert sentence.strip()
            assert set(re.findall(r"\{\w+\}", sentence)) == set(re.findall(r"\{\w+\}", words["en"][key])), (
                language,
                key,
            )
    used = {
        attributes[name] for _tag, attributes in elements for name in ("data-word", "data-label") if name in attributes
    }
    script = (FOLDER / "page.js").read_text(encoding="utf-8")
    used |= set(re.findall(r'word\("(\w+)"', script)) | {"own", "set"}
    assert used == set(words["en"])


@needs_node
def test_calculations() -> None:
    code = f"import {{ parts }} from '{FOLDER}/stream.js'; console.log(JSON.stringify(JSON.parse(process.argv[1]).map(parts)));"
    texts = ["", "a <<48/2=24>>24 b", "<<1+1=2>>3", "<<4", "<<4+5=9>", "1 < 2 << 3", "<<a>><<b=1>>"]
    found = subprocess.run(
        ["node", "--input-type=module", "-e", code, json.dumps(texts)], capture_output=True, text=True, check=True
    ).stdout
    assert json.loads(found) == [
        [],
        [{"text": "a "}, {"step": "48/2", "value": "24"}, {"text": " b"}],
        [{"step": "1+1", "value": "2"}, {"text": "3"}],
        [{"step": "4", "value": None}],
        [{"step": "4+5", "value": "9"}],
        [{"text": "1 < 2 "}, {"step": " 3", "value": None}],
        [{"step": "a", "value": None}, {"step": "b", "value": "1"}],
    ]


@needs_node
def test_a_stream_in_any_pieces(served: Served) -> None:
    """Byte by byte, in the middle of a character: the same events as in one piece; a stream that breaks off is an error."""
    body = {"model": "tiny", "messages": [{"role": "user", "content": "¿"}], "stream": True}
    data = served.ask("/v1/chat/completions", body).data
    code = f"""
        import {{ events }} from '{FOLDER}/stream.js';
        const data = Buffer.from('{data.hex()}', 'hex');
        const reader = (size, end) => {{ let at = 0; return {{ read: async () => at >= end ? {{ done: true }}
          : {{ done: false, value: data.subarray(at, Math.min(end, at += size)) }} }}; }};
        const all = async (size, end = data.length) => {{ let text = "";
          try {{ for await (const one of events(reader(size, end))) text += one.choices[0].delta.content ?? ""; }}
          catch (error) {{ text += "!" + error.message; }} return text; }};
        console.log(JSON.stringify([await all(1), await all(7), await all(1e6), await all(50, data.length - 20)]));
    """
    whole = "<<48/2=24>>#### 7"
    assert json.loads(node(code)) == [whole, whole, whole, whole + "!cut"]
