"""The tokenizer with a small vocabulary in memory gives the ids of the library, for any text and any vocabulary."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from mindmerger.errors import BundleError
from mindmerger.machine import resident
from mindmerger.tokenizer import QuestionTokenizer
from mindmerger.unigram import UnigramTokenizer
from tests import tiny
from tests.bench.soak import questions
from tests.runtime.conftest import ROOT

DEFAULT = ROOT / "models" / "mindmerger" / "bundle" / "tokenizer.json"
TEXTS = [
    "¿Cuánto es 15 + 27?", "Maria ana vitabu 12. Anapata 5. Ana vingapi?", "15 और 27 का योग क्या है?", "15 と 27 を足すと?",
    "小明有15个苹果,又买了27个。", "Сколько будет 15 + 27?", "১৫ আর ২৭ যোগ করলে কত?", "๑๕ บวก ๒๗ เท่ากับเท่าไร", "15 + 27 எவ்வளவு?",
    "👨‍👩‍👧‍👦 ﷺ ﬁ ① ｱｲｳ", "e\u0301e\u0301", " ▁ ▁▁a", "<s> a </s>", "a<mask>b", "\u2028\u00a0\u200b", "aaaa" * 100,
    "\U00012000\U00012000x",
]  # fmt: skip


@pytest.fixture(scope="module")
def pair() -> tuple[UnigramTokenizer, Any]:
    library = Tokenizer.from_file(str(DEFAULT))
    return UnigramTokenizer(DEFAULT.read_bytes(), lambda: library), library


@pytest.mark.parametrize("text", TEXTS)
def test_the_default_in_many_scripts(pair: tuple[UnigramTokenizer, Any], text: str) -> None:
    own, library = pair
    assert own.encode(text) == library.encode(text).ids


@settings(max_examples=400, deadline=None)
@given(text=questions())
def test_the_default_and_any_text(pair: tuple[UnigramTokenizer, Any], text: str) -> None:
    own, library = pair
    text = text[:2000].encode("utf-8", "replace").decode()
    assert own.encode(text) == library.encode(text).ids


def document(vocabulary: list[tuple[str, float]], **model: Any) -> dict[str, Any]:
    special = [("<s>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    added = [
        {"id": i, "content": name, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": True}
        for i, (name, _score) in enumerate(special)
    ]  # fmt: skip
    template = [
        {"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
        {"SpecialToken": {"id": "</s>", "type_id": 0}},
    ]  # fmt: skip
    tokens = {name: {"id": name, "ids": [i], "tokens": [name]} for i, name in enumerate(("<s>", "</s>"))}
    return {
        "version": "1.0", "truncation": {"max_length": 3, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
        "padding": None, "added_tokens": added, "normalizer": {"type": "NFKC"},
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
        "post_processor": {"type": "TemplateProcessing", "single": template, "pair": template, "special_tokens": tokens},
        "decoder": None,
        "model": {"type": "Unigram", "unk_id": 2, "vocab": [*special, *vocabulary], **model},
    }  # fmt: skip


# Few letters and few scores: most texts have several segmentations that are equally good, or almost.
PIECES = st.dictionaries(
    st.text("abé▁", min_size=1, max_size=4), st.sampled_from([-1.0, -2.0, -3.0, -2.1, -0.7, 0.0]), max_size=20
)


@settings(max_examples=150, deadline=None)
@given(pieces=PIECES, text=st.text("abé zß<s>", max_size=40))
def test_any_vocabulary(pieces: dict[str, float], text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    written = json.dumps(document(list(pieces.items()))).encode()
    library = Tokenizer.from_str(written.decode())
    library.no_truncation()
    own = UnigramTokenizer(written, lambda: library)
    assert own.encode(text) == library.encode(text).ids


def test_what_is_not_known_to_be_exact_is_left_to_the_library(tmp_path: Path) -> None:
    bytes_only = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    cases: dict[str, dict[str, Any]] = {
        "byte fallback": document([("a", -1.0)], byte_fallback=True),
        "a piece twice": document([("a", -1.0), ("a", -2.0)]),
        "post-processor": document([("a", -1.0)]) | {"post_processor": bytes_only},
    }  # fmt: skip
    for name, content in cases.items():
        path = tmp_path / "t.json"
        path.write_text(json.dumps(content))
        with pytest.raises(ValueError):
            UnigramTokenizer(path.read_bytes(), lambda: None)
        library = Tokenizer.from_file(str(path))
        library.no_truncation()
        assert QuestionTokenizer(path, 64, 64).encode("a b aa") == library.encode("a b aa").ids, name
    QuestionTokenizer(tiny.tokenizer(tmp_path / "bpe.json"), 64, 512).encode("abc")
    for damaged in ("{", "[]", '{"model": {"type": "Unigram", "vocab": [1]}}', '{"model": null}'):
        path.write_text(damaged)
        with pytest.raises(BundleError, match="not a tokenizer"):
            QuestionTokenizer(path, 64, 64)


def test_threads_do_not_disturb_each_other(pair: tuple[UnigramTokenizer, Any]) -> None:
    own, library = pair
    texts = TEXTS[:12] * 20
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(own.encode, texts)) == [library.encode(text).ids for text in texts]


_PROGRAM = """
import sys
from pathlib import Path
import tokenizers
from mindmerger.machine import resident
from mindmerger.tokenizer import QuestionTokenizer
tokenizer = QuestionTokenizer.__new__(QuestionTokenizer)
tokenizer.path = Path(sys.argv[1])
before = resident().anonymous
own = tokenizer._load()
between = resident().anonymous
library = tokenizer._library()
print(between - before, resident().anonymous - between)
"""


@pytest.mark.skipif(resident() is None, reason="the system does not say")
def test_a_fifth_of_the_memory() -> None:
    output = subprocess.run(
        [sys.executable, "-c", _PROGRAM, str(DEFAULT)], check=True, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "runtime")},
    ).stdout  # fmt: skip
    own, library = map(int, output.split())
    assert own < 20e6 and 3 * own < library
