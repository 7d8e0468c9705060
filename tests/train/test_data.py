"""Readers of published sets, and the mixture that training draws from."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindmerger.errors import DataError
from mindmerger_train.data import sources
from mindmerger_train.data.mixture import Source, batches, cut_by_length, draw, hold_out
from mindmerger_train.data.sources import Example


def write_gsm8k(folder):
    folder.mkdir()
    rows = [{"question": f"Q{i}?", "answer": f"<<{i}+1={i + 1}>>\n#### {i + 1}"} for i in range(3)]
    (folder / "en.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "es.jsonl").write_text(json.dumps({"gsm8k_index": 2, "question": "¿P2?"}))


def test_gsm8k_translations_are_joined_by_index(tmp_path):
    write_gsm8k(tmp_path / "g")
    examples = sources.gsm8k(tmp_path / "g", ["en", "es"])
    assert len(examples) == 4
    assert examples[-1] == Example("es", "¿P2?", "Q2?", "<<2+1=3>>\n#### 3")


@pytest.mark.parametrize(
    "line",
    ['{"gsm8k_index": 9, "question": "x"}', '{"question": "x"}', "{", '{"gsm8k_index": 0}', '{"gsm8k_index": true}'],
)
def test_gsm8k_bad_rows_name_file_and_line(tmp_path, line):
    write_gsm8k(tmp_path / "g")
    (tmp_path / "g" / "es.jsonl").write_text(line)
    with pytest.raises(DataError, match=r"es\.jsonl, line 1"):
        sources.gsm8k(tmp_path / "g", ["es"])


def test_a_few_bad_rows_are_left_out_and_told(tmp_path, capsys):
    write_gsm8k(tmp_path / "g")
    rows = [json.dumps({"gsm8k_index": 1, "question": "¿P?"})] * 300
    (tmp_path / "g" / "es.jsonl").write_text("\n".join([*rows, "{", '{"gsm8k_index": 77, "question": "x"}']))
    assert len(sources.gsm8k(tmp_path / "g", ["es"])) == 300
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "warning: 2 of 302 rows" in captured.err
    assert "es.jsonl, line 301" in captured.err and "line 302: gsm8k_index 77" in captured.err


def test_mawps_rows(tmp_path):
    path = tmp_path / "train.csv"
    path.write_text(
        'Question,Numbers,Equation,Answer\n"He has number0 pens , and number1 more . All ?",3.0 4.0,+ number0 number1,7.0\n'
    )
    (example,) = sources.mawps_asdiv(path)
    assert example.query in {"He has 3 pens , and 4 more . All ?", "He has 3 pens, and 4 more. All?"}
    assert example.response == "3 + 4 = <<3+4=7>>7\n#### 7"
    first, *variants = sources.mawps_asdiv(path, variants=60, asides=0.5)
    assert first == example and len({variant.response for variant in variants}) > 30
    assert {variant.origin for variant in variants} == {example.origin}
    path.write_text("Question,Numbers,Equation\nhe,3.0,+ number0 number7\n")
    with pytest.raises(DataError, match="line 2"):
        sources.mawps_asdiv(path)
    path.write_text("Question,Equation\nhe,+ 1 2\n")
    with pytest.raises(DataError, match="no column 'Numbers'"):
        sources.mawps_asdiv(path)


def test_variants_of_a_problem_are_held_out_together(tmp_path):
    path = tmp_path / "train.csv"
    rows = [f"item{i} number0 and number1 . All ?,3.0 4.0,+ number0 number1" for i in range(300)]
    path.write_text("\n".join(["Question,Numbers,Equation", *rows]))
    (kept,), (held,) = hold_out([Source("m", sources.mawps_asdiv(path, variants=5, asides=0.5), 1.0)], one_in=8)
    assert len(kept.examples) + len(held.examples) == 1800
    assert held.examples and not {e.origin for e in kept.examples} & {e.origin for e in held.examples}


def test_pairs_report_damage(tmp_path):
    (tmp_path / "es.tsv").write_text("hola\thello\nsolo\n")
    with pytest.raises(DataError, match=r"es\.tsv, line 2"):
        sources.tatoeba(tmp_path)
    with pytest.raises(DataError, match="no sentence pairs"):
        sources.tatoeba(tmp_path, ["fr"])
    (tmp_path / "en.txt").write_text("a\nb\n")
    (tmp_path / "de.txt").write_text("a\n")
    with pytest.raises(DataError, match=r"has 1 lines and .* has 2"):
        sources.ntrex(tmp_path)


def examples(language, count):
    return [Example(language, f"{language}{i}", f"text {i}") for i in range(count)]


def test_the_mixture_follows_seed_and_weights():
    parts = [Source("a", examples("a", 10), 3.0), Source("b", examples("b", 10), 1.0)]
    first = [e.query for e in itertools.islice(draw(parts, 5), 4000)]
    assert first == [e.query for e in itertools.islice(draw(parts, 5), 4000)]
    assert first != [e.query for e in itertools.islice(draw(parts, 6), 4000)]
    share = sum(query.startswith("a") for query in first) / 4000
    assert 0.7 < share < 0.8
    assert {e for e in first if e.startswith("b")} == {f"b{i}" for i in range(10)}
    with pytest.raises(DataError, match="'c' has no examples"):
        next(draw([Source("c", [], 1.0)], 0))
    with pytest.raises(DataError, match="must be above 0"):
        next(draw([Source("a", examples("a", 3), 0.0)], 0))


def test_translations_are_held_out_together():
    parts = [Source("es", examples("es", 2000), 1.0), Source("de", examples("de", 2000), 1.0)]
    kept, held = hold_out(parts)
    out = [{e.english for e in source.examples} for source in held]
    assert out[0] == out[1]
    assert 10 < len(out[0]) < 60
    assert not out[0] & {e.english for source in kept for e in source.examples}


def test_what_has_no_english_is_not_all_held_out():
    parts = [Source("es", [Example("es", f"pregunta {i}", "") for i in range(2000)], 1.0)]
    kept, held = hold_out(parts)
    assert 10 < len(held[0].examples) < 60
    assert len(kept[0].examples) + len(held[0].examples) == 2000


@given(st.lists(st.integers(1, 40), min_size=1, max_size=60), st.integers(40, 100))
def test_batches_lose_no_row_and_stay_in_bounds(lengths, tokens):
    cuts = cut_by_length(lengths, int, tokens)
    assert sorted(row for cut in cuts for row in cut) == sorted(lengths)
    assert all(max(cut) * len(cut) <= tokens for cut in cuts)


def test_batches_leave_out_what_is_too_long():
    stream = batches(itertools.cycle([3, 50, 7]), int, 20, 10, seed=0, pool=30)
    assert all(row <= 10 for cut in itertools.islice(stream, 40) for row in cut)
