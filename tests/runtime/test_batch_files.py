"""The files of a batch: what is read as a question, and an answer file that loses and repeats nothing."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mindmerger.cli.batch_files import AnswerFile, Question, fingerprint, read_questions
from mindmerger.errors import InputError, ModelError

RUN = "0123456789ab-01234567"


def questions(path: Path, content: str | bytes, field: str | None = None) -> list[Question]:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_questions(path, field)


def test_text(tmp_path: Path) -> None:
    found = questions(tmp_path / "q.txt", "\ufeff¿Cuánto?\r\n\n  \nमोट\u2028कति\rlast")
    assert [(q.line, q.text) for q in found] == [(1, "¿Cuánto?"), (4, "मोट\u2028कति"), (5, "last")]


def test_json_lines(tmp_path: Path) -> None:
    lines = ['{"question": "a", "id": 7}', "", "{broken", '["question"]', '{"question": 5, "id": "x"}', '{"Q": "b"}']
    found = questions(tmp_path / "q.jsonl", "\n".join(lines))
    assert [(q.line, q.id, q.fault is None) for q in found] == [
        (1, 7, True), (3, None, False), (4, None, False), (5, "x", False), (6, None, False)
    ]  # fmt: skip
    assert questions(tmp_path / "q.jsonl", "\n".join(lines), "Q")[-1] == Question(6, "b")
    with pytest.raises(InputError, match=r"no line of .*'nope'.*--field"):
        read_questions(tmp_path / "q.jsonl", "nope")


def test_tables(tmp_path: Path) -> None:
    table = 'id,question,answer\n1,"How many, ""in all""\nand in two lines?",3\n,,\n2,second\n3\n'
    found = questions(tmp_path / "q.csv", table)
    assert [(q.line, q.id, q.text) for q in found] == [
        (2, "1", 'How many, "in all"\nand in two lines?'), (5, "2", "second"), (6, "3", ""),
    ]  # fmt: skip
    assert found[2].fault is not None
    found = questions(tmp_path / "q.tsv", 'lang\tText\nes\t"Hola, dijo "Ana\nsw\tNgapi?\n', "Text")
    assert [(q.line, q.text) for q in found] == [(2, '"Hola, dijo "Ana'), (3, "Ngapi?")]
    with pytest.raises(InputError, match=r"no column 'question'.*lang, Text"):
        read_questions(tmp_path / "q.tsv")


def test_bytes_that_are_no_utf8_fail_alone(tmp_path: Path) -> None:
    from mindmerger.tokenizer import check_question

    found = questions(tmp_path / "q.txt", b"good\ncaf\xe9\nfine\n")
    assert [q.text for q in found][::2] == ["good", "fine"]
    with pytest.raises(InputError, match="surrogate"):
        check_question(found[1].text)
    with AnswerFile(tmp_path / "a.jsonl", RUN, [2]) as answers:
        answers.write(2, {"question": found[1].text, "error": "no"})
    assert json.loads((tmp_path / "a.jsonl").read_text(encoding="utf-8"))["question"] == "caf\udce9"


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("q.txt", b"", "no questions"),
        ("q.txt", b" \n\n", "no questions"),
        ("q.jsonl", b"\n", "no questions"),
        ("q.csv", b"", "no column 'question'"),
        ("q.csv", b"question\n", "no questions"),
        ("q.txt", "¿?".encode("utf-16"), "UTF-16"),
        ("q.json", b"{}", r"must end in \.txt"),
        ("q", b"x", r"must end in \.txt"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, name: str, content: bytes, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        questions(tmp_path / name, content)


def test_no_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no file"):
        read_questions(tmp_path / "none.txt")
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(InputError, match="cannot be read"):
        read_questions(tmp_path / "folder.txt")


@given(content=st.binary(max_size=200), kind=st.sampled_from([".txt", ".jsonl", ".csv", ".tsv"]))
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_wild_files(tmp_path: Path, content: bytes, kind: str) -> None:
    """Any bytes: questions with lines of their own, or one clear refusal."""
    try:
        found = questions(tmp_path / f"wild{kind}", content)
    except InputError:
        return
    lines = [q.line for q in found]
    assert len(set(lines)) == len(lines) and lines == sorted(lines) and lines[0] >= 1


# --------------------------------------------------------------------------------------------------------- answers


def write(path: Path, lines: dict[int, str], run: str = RUN) -> None:
    with AnswerFile(path, run, range(1, 100)) as answers:
        for line, text in lines.items():
            answers.write(line, {"question": f"q{line}", **({"error": text} if text == "!" else {"answer": text})})


def test_a_cut_at_every_byte_is_continued(tmp_path: Path) -> None:
    """Whatever a crash leaves of the file, continuing gives every line once."""
    path = tmp_path / "a.jsonl"
    write(path, {1: "7", 2: "चार", 3: "!"})
    whole = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == 10]
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        with AnswerFile(path, RUN, range(1, 100)) as answers:
            done = sum(end <= size for end in ends)
            assert answers.done == {1, 2, 3} - set(range(done + 1, 4))
            assert answers.cut == size - ([0, *ends][done])
            for line, record in {1: {"answer": "7"}, 2: {"answer": "चार"}, 3: {"error": "!"}}.items():
                if line not in answers.done:
                    answers.write(line, {"question": f"q{line}", **record})
        assert path.read_bytes() == whole


def test_zeros_after_a_power_cut(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write(path, {1: "7"})
    good = path.read_bytes()
    for damage in (b"\0" * 40, b'{"line": 2, "q\0\0\0\0\n', b"\0\0\0\n"):
        path.write_bytes(good + damage)
        with AnswerFile(path, RUN, [1, 2]) as answers:
            assert answers.done == {1} and answers.cut == len(damage)
        assert path.read_bytes() == good


@pytest.mark.parametrize("content", [b"my thesis", b"my thesis\n", b"{}\n", b'{"line": 1}\n', b"\x00\x01binary", b"\n"])
def test_a_file_of_somebody_else_is_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError, match="something else"):
        AnswerFile(path, RUN, [1])
    assert path.read_bytes() == content


def test_other_runs_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    one, two = [Question(1, "a")], [Question(1, "b")]
    first = fingerprint(one, {"temperature": 0})
    write(path, {1: "7"}, run=first)
    before = path.read_bytes()
    with pytest.raises(InputError, match="another input"):
        AnswerFile(path, fingerprint(two, {"temperature": 0}), [1])
    with pytest.raises(InputError, match="other options"):
        AnswerFile(path, fingerprint(one, {"temperature": 1}), [1])
    with AnswerFile(path, fingerprint(one, {"temperature": 0}), [1]) as answers:
        assert answers.done == {1}
    assert path.read_bytes() == before


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    path = tmp_path / "a.jsonl"
    with AnswerFile(path, RUN, [1]) as answers:
        with pytest.raises(InputError, match="another mm-run"):
            AnswerFile(path, RUN, [1])
        answers.write(1, {"answer": "7"})
    AnswerFile(path, RUN, [1]).close()


def test_failed_lines_are_dropped_when_asked(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write(path, {1: "7", 2: "!", 3: "8"})
    with AnswerFile(path, RUN, range(9)) as answers:
        assert (answers.done, answers.failed) == ({1, 2, 3}, {2})
    with AnswerFile(path, RUN, range(9), retry_failed=True) as answers:
        assert (answers.done, answers.failed) == ({1, 3}, set())
        answers.write(2, {"answer": "9"})
    assert [json.loads(line)["line"] for line in path.read_text().splitlines()] == [1, 3, 2]
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.jsonl"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_is_said_once_and_clearly() -> None:
    with AnswerFile(Path("/dev/full"), RUN, [1]) as answers:
        with pytest.raises(ModelError, match=r"No space left.*make room"):
            answers.write(1, {"answer": "7"})
        assert answers.done == set()


def test_a_pipe_is_only_written_to(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with AnswerFile(path, RUN, [1]) as answers:
        answers.write(1, {"answer": "7"})
    assert json.loads(os.read(reader, 1000)) == {"line": 1, "answer": "7", "run": RUN}
    os.close(reader)


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be opened"):
        AnswerFile(tmp_path / "no" / "a.jsonl", RUN, [1])
    with pytest.raises(InputError, match="cannot be opened"):
        AnswerFile(tmp_path, RUN, [1])
