"""Data sources in the general formats and the benchmarks in their published ones; wild input ends in rows or in DataError."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mindmerger.errors import DataError
from mindmerger_train.data.benchmarks import KINDS, Question, read_benchmark
from mindmerger_train.data.languages import code_of
from mindmerger_train.data.readers import READERS, check_fit, read_source
from mindmerger_train.data.sources import Example
from mindmerger_train.recipe import load_recipe, load_sources


def write(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def lines(*rows: object) -> str:
    return "".join((row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)) + "\n" for row in rows)


# Benchmarks


def test_mgsm(tmp_path):
    write(tmp_path / "mgsm_sw.tsv", 'Jane ana "mayai" 3?\t1,450\nSwali\ttatu\t-7\n')
    write(tmp_path / "mgsm_en.tsv", "Q one?\t1450\nQ two\t-7\n")
    assert read_benchmark("mgsm", tmp_path) == [
        Question("en", 0, "Q one?", "1450", "mgsm"),
        Question("en", 1, "Q two", "-7", "mgsm"),
        Question("sw", 0, 'Jane ana "mayai" 3?', "1450", "mgsm"),
        Question("sw", 1, "Swali\ttatu", "-7", "mgsm"),
    ]
    assert {q.language for q in read_benchmark("mgsm", tmp_path, ["sw"])} == {"sw"}
    assert read_benchmark("mgsm", tmp_path / "mgsm_sw.tsv")[1].language == "sw"
    with pytest.raises(DataError, match="no mgsm questions in 'te': it has en, sw"):
        read_benchmark("mgsm", tmp_path, ["en", "te"])


def test_msvamp(tmp_path):
    write(tmp_path / "test_Swahili.jsonl", lines({"query": "how many", "m_query": "ngapi", "response": "8.0"}))
    write(tmp_path / "test_English.jsonl", lines({"m_query": "how many", "response": 8}))
    found = read_benchmark("msvamp", tmp_path, ["sw", "en"])
    assert [(q.language, q.text, float(q.target)) for q in found] == [("sw", "ngapi", 8.0), ("en", "how many", 8.0)]


CSQA = {
    "id": "x",
    "lang": "de",
    "question": {
        "stem": "Wo ist man?",
        "choices": [{"label": "A", "text": "Haus"}, {"label": "B", "text": "Wald"}, {"label": "C", "text": "See"}],
    },
    "answerKey": "C",
}


def test_xcsqa_is_put_as_in_the_papers(tmp_path):
    write(tmp_path / "de" / "dev.jsonl", lines(CSQA))
    write(tmp_path / "de" / "test.jsonl", lines({**CSQA, "answerKey": ""}))
    (question,) = read_benchmark("xcsqa", tmp_path)
    assert question == Question("de", 0, "Wo ist man?\nOptions:A. Haus\tB. Wald\tC. See\nAnswer:", "C", "xcsqa")


@pytest.mark.parametrize(
    "change", [{"answerKey": "D"}, {"answerKey": ""}, {"question": {"stem": "x"}}, {"question": 3}]
)
def test_xcsqa_rows_that_cannot_be_asked(tmp_path, change):
    path = write(tmp_path / "de" / "dev.jsonl", lines({**CSQA, **change}))
    with pytest.raises(DataError, match=r"dev\.jsonl, line 1"):
        read_benchmark("xcsqa", path)


XNLI_HEAD = "language\tgold_label\tsentence1_binary_parse\tsentence1\tsentence2\tpairID\n"


def test_xnli_is_put_as_in_the_papers(tmp_path):
    write(
        tmp_path / "xnli.test.tsv",
        XNLI_HEAD + 'ar\tneutral\t\tقال "نعم\tهو هنا\t1\nen\tentailment\t\tHe said "yes\tHe is here\t1\n',
    )
    write(tmp_path / "xnli.dev.tsv", XNLI_HEAD + "fr\tneutral\t\ta\tb\t1\n")
    english, arabic = read_benchmark("xnli", tmp_path, ["en", "ar"])
    assert english == Question("en", 0, 'Premise: He said "yes\nHypothesis: He is here\nLabel:', "entailment", "xnli")
    assert (arabic.index, arabic.target) == (0, "neutral")
    assert read_benchmark("xnli", tmp_path / "xnli.dev.tsv")[0].language == "fr"
    path = write(tmp_path / "multinli.train.sw.tsv", "premise\thypo\tlabel\nJe\tNdiyo\tcontradictory\n")
    assert read_benchmark("xnli", path)[0].target == "contradiction"
    whole = [{"language": "Swahili", "label": "neutral", "sentence1": "a", "sentence2": "b"}]
    path = write(tmp_path / "test.json", json.dumps(whole))
    assert read_benchmark("xnli", path)[0].language == "sw"
    with pytest.raises(DataError, match="no column 'gold_label'"):
        read_benchmark("xnli", write(tmp_path / "b.tsv", "language\tsentence1\tsentence2\nen\ta\tb\n"))


def test_plain_questions(tmp_path):
    path = write(
        tmp_path / "own.tsv", "language\tquestion\tanswer\nes\t¿Cuánto?\t42\nen\tHow much?\t42\nes\t¿Más?\tsí\n"
    )
    assert [(q.language, q.index) for q in read_benchmark("qa", path)] == [("en", 0), ("es", 0), ("es", 1)]
    path = write(tmp_path / "sw.jsonl", lines({"question": "Ngapi?", "answer": 3}))
    assert read_benchmark("qa", path) == [Question("sw", 0, "Ngapi?", "3", "qa")]
    path = write(tmp_path / "x1.tsv", "question\tanswer\nNgapi?\t3\n")
    assert read_benchmark("qa", path, ["sw"])[0].language == "sw"
    with pytest.raises(DataError, match="no 'language'"):
        read_benchmark("qa", path)


def test_a_bad_row_leaves_its_index_empty(tmp_path, capsys):
    rows = [f"Q {i}\t{i}" for i in range(250)]
    rows[7] = "no answer here"
    write(tmp_path / "mgsm_en.tsv", "\n".join(rows))
    found = read_benchmark("mgsm", tmp_path)
    assert len(found) == 249
    assert all(q.text == f"Q {q.index}" for q in found)
    assert "1 of 250 rows" in capsys.readouterr().err
    with pytest.raises(DataError, match=r"1 of 250 rows .* \(0\.4%, 0\.0% are allowed\).*line 8: no tab"):
        read_benchmark("mgsm", tmp_path, allowed_bad=0.0)


def test_what_is_no_benchmark(tmp_path):
    with pytest.raises(DataError, match="unknown kind"):
        read_benchmark("gsm", tmp_path)
    with pytest.raises(DataError, match="there is no benchmark at"):
        read_benchmark("mgsm", tmp_path / "none")
    with pytest.raises(DataError, match=r"expected mgsm_LANGUAGE\.tsv"):
        read_benchmark("mgsm", tmp_path)


# Data sources


def test_aligned_files(tmp_path):
    # A line separator of Unicode is a part of the line, and the two files stay aligned.
    write(tmp_path / "en-sw" / "train.sw", "habari\u2028ya leo\ntatu\r\n")
    write(tmp_path / "en-sw" / "train.en", "\ufeffnews of\x0b today\nthree\n")
    options = {
        "kind": "aligned",
        "path": "en-{language}/train.{language}",
        "english": "en-{language}/train.en",
        "languages": ["sw"],
    }
    assert read_source("lego", tmp_path, options) == [
        Example("sw", "habari\u2028ya leo", "news of\x0b today"),
        Example("sw", "tatu", "three"),
    ]
    write(tmp_path / "en-sw" / "train.en", "one\n")
    with pytest.raises(DataError, match=r"train\.sw has 2 lines and .*train\.en has 1"):
        read_source("lego", tmp_path, options)
    with pytest.raises(DataError, match="nothing says what language"):
        read_source("lego", tmp_path, {"kind": "aligned", "path": "en-sw/train.sw", "english": "en-sw/train.en"})


def test_tsv_and_json_lines(tmp_path):
    write(tmp_path / "a.tsv", "lang\tsource\ttarget\nfr\tdix\tten\nSwahili\tkumi\tten\n")
    options = {"path": "a.tsv", "columns": {"language": "lang", "query": "source", "english": "target"}}
    found = read_source("tsv", tmp_path, options)
    assert found == [Example("fr", "dix", "ten"), Example("sw", "kumi", "ten")]
    with pytest.raises(DataError, match=r"no column 'text': its first line names lang, source, target"):
        read_source("tsv", tmp_path, {"path": "a.tsv", "columns": {"query": "text", "language": "lang"}})
    write(
        tmp_path / "b.jsonl",
        lines({"language": "fr", "query": "2+2 ?", "response": "4"}, {"language": "en", "query": "q", "response": "r"}),
    )
    found = read_source("mine", tmp_path, {"kind": "jsonl", "path": "b.jsonl", "languages": ["fr"]})
    assert found == [Example("fr", "2+2 ?", "", "4")]
    check_fit("mine", found, "augmentation")
    with pytest.raises(DataError, match="learns from 'english', and 1 of 1 examples of 'mine' have none"):
        check_fit("mine", found, "mapping")
    text = [Example("fr", "dix", "ten")]
    check_fit("mine", text, "augmentation", retold=True)
    with pytest.raises(DataError, match="learns from 'response'"):
        check_fit("mine", text, "augmentation")


def test_a_cap_is_per_language_and_a_language_without_data_is_told(tmp_path):
    rows = [{"language": name, "query": f"q{i}", "response": "r"} for i in range(50) for name in ("fr", "sw")]
    write(tmp_path / "b.jsonl", lines(*rows, {"language": "de", "query": "q", "response": "r"}))
    found = read_source("m", tmp_path, {"kind": "jsonl", "path": "b.jsonl", "cap": 3})
    assert [e.query for e in found if e.language == "sw"] == ["q0", "q1", "q2"]
    assert len(found) == 7
    with pytest.raises(DataError, match="no data in 'te': it has de, fr, sw"):
        read_source("m", tmp_path, {"kind": "jsonl", "path": "b.jsonl", "languages": ["fr", "te"]})


def test_benchmarks_are_sources_with_their_english_side(tmp_path):
    write(tmp_path / "m" / "mgsm_sw.tsv", "Ngapi?\t3\n")
    write(tmp_path / "m" / "mgsm_en.tsv", "How many?\t3\n")
    found = read_source("mgsm", tmp_path, {"path": "m", "languages": ["sw"]})
    assert found == [Example("sw", "Ngapi?", "How many?", "3")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "csv"}, "unknown data source 'csv'"),
        ({"kind": "tsv"}, "needs the key 'path'"),
        ({"kind": "tsv", "path": "x.tsv", "colums": {}}, "unknown key 'colums'"),
        ({"kind": "tsv", "path": 3}, "path is 3: it must be a text"),
        ({"kind": "tsv", "path": "x.tsv", "languages": "sw"}, "must be a list"),
        ({"kind": "tsv", "path": "x.tsv", "columns": {"query": 1}}, "are texts"),
        ({"kind": "tsv", "path": "x.tsv", "columns": {"text": "a"}}, "columns names 'text'"),
        ({"kind": "tsv", "path": "x.tsv", "cap": 0}, "above 0"),
        ({"kind": "tsv", "path": "x.tsv", "allowed_bad": 7}, "a share"),
        ({"kind": "tsv", "path": "{language}.tsv"}, "say which"),
        ({"kind": "tsv", "path": "x.tsv"}, "is missing"),
        ({"kind": "generator", "languages": ["en"], "count": True}, "a whole number"),
    ],
)
def test_settings_that_cannot_be(tmp_path, options, message):
    with pytest.raises(DataError, match=message):
        read_source("mine", tmp_path, options)


def test_a_recipe_mixes_them(tmp_path):
    write(tmp_path / "b.jsonl", lines({"language": "fr", "query": "2+2 ?", "response": "4"}))
    write(tmp_path / "c.tsv", "language\tquery\tresponse\nsw\tNgapi?\tTatu\n")
    recipe = write(
        tmp_path / "r.toml",
        'stage = "augmentation"\n[schedule]\ntokens = 10\nlr = 1e-3\n'
        '[data.own]\nkind = "jsonl"\npath = "b.jsonl"\nweight = 0.7\n'
        '[data.other]\nkind = "tsv"\npath = "c.tsv"\ncolumns = { response = "response" }\n',
    )
    loaded = load_sources(load_recipe(recipe), tmp_path)
    assert [(s.name, s.weight, len(s.examples)) for s in loaded] == [("own", 0.7, 1), ("other", 1.0, 1)]


def test_names_of_languages():
    assert [code_of(name) for name in ("Swahili", "sw", " GERMAN ", "zh-CN", "Flemish", "no language", "", "X")] == [
        "sw", "sw", "de", "zh-CN", "nl", None, None, None,
    ]  # fmt: skip


# Wild input: whatever a file holds, a reader returns sound rows or raises DataError.

FIELD = st.sampled_from([
    "language", "query", "english", "response", "m_query", "question", "answer", "answerKey", "choices", "stem", "text",
    "label", "sentence1", "sentence2", "gold_label", "lang", "x",
])  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(FIELD, inner, max_size=4),
    max_leaves=8,
)
ROWS = st.lists(st.dictionaries(FIELD, JSON, max_size=7).map(json.dumps) | st.text(max_size=30), max_size=6)
WILD = (
    st.binary(max_size=120)
    | ROWS.map(lambda rows: "\n".join(rows).encode("utf-8", "surrogatepass"))
    | st.lists(st.lists(st.text(max_size=6), max_size=4).map("\t".join), max_size=6).map(
        lambda rows: ("language\tquestion\tanswer\n" + "\n".join(rows)).encode("utf-8", "surrogatepass")
    )
)
NAMES = {
    "mgsm": "mgsm_sw.tsv",
    "msvamp": "test_Swahili.jsonl",
    "xcsqa": "sw.jsonl",
    "xnli": "xnli.test.tsv",
    "qa": "q.tsv",
}


def sound(text: str) -> bool:
    text.encode("utf-8")
    return bool(text.strip()) and text == text.strip() and "\0" not in text


@settings(max_examples=80, deadline=None)
@given(kind=st.sampled_from(KINDS), data=WILD, as_json=st.booleans())
def test_benchmarks_of_anything(tmp_path_factory, kind, data, as_json):
    name = "rows.jsonl" if as_json and kind in ("xnli", "qa") else NAMES[kind]
    path = write(tmp_path_factory.mktemp("wild") / name, data)
    try:
        found = read_benchmark(kind, path, allowed_bad=1.0)
    except DataError as error:
        assert "\n" not in str(error).split(":")[0]
        return
    except UnicodeError as error:  # pragma: no cover
        pytest.fail(f"{error!r}")
    for question in found:
        assert sound(question.text) and sound(question.target) and question.language


@settings(max_examples=80, deadline=None)
@given(kind=st.sampled_from(["tsv", "jsonl", "aligned"]), data=WILD, other=WILD)
def test_sources_of_anything(tmp_path_factory, kind, data, other):
    folder = tmp_path_factory.mktemp("wild")
    write(folder / "a", data)
    write(folder / "b", other)
    options = {"kind": kind, "path": "a", "allowed_bad": 1.0, "language": "sw"}
    options |= {"english": "b"} if kind == "aligned" else {}
    if kind == "tsv":
        options["columns"] = {"query": "question"}
    try:
        found = read_source("wild", folder, options)
    except DataError:
        return
    assert found
    for example in found:
        assert example.language == "sw" and sound(example.query)
        assert not example.english or sound(example.english)


@given(st.lists(st.tuples(st.text(max_size=12), st.text(max_size=12)), min_size=1, max_size=8))
@settings(max_examples=60, deadline=None)
def test_what_is_written_as_json_lines_comes_back(tmp_path_factory, pairs):
    path = tmp_path_factory.mktemp("whole") / "a.jsonl"
    write(path, lines(*({"language": "sw", "query": q, "response": r} for q, r in pairs)).encode("utf-8", "replace"))
    good = [(q.strip(), r.strip()) for q, r in pairs if all(t.strip() and "\0" not in t for t in (q, r))]
    if not good:
        with pytest.raises(DataError):
            read_source("w", path.parent, {"kind": "jsonl", "path": "a.jsonl", "allowed_bad": 1})
        return
    found = read_source("w", path.parent, {"kind": "jsonl", "path": "a.jsonl", "allowed_bad": 1})
    # A response need not be there, but where it is, it must be sound.
    assert [(e.query, e.response) for e in found] == good


def test_every_kind_is_documented():
    text = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    assert all(f"`{kind}`" in text for kind in READERS)
