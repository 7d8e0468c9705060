"""Generated questions as text files."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from mindmerger.errors import DataError, InputError
from mindmerger_export.prune import read_texts
from mindmerger_train.data import problems
from mindmerger_train.data.questions import SOURCES, command, write_questions


@pytest.mark.parametrize("source", SOURCES)
def test_every_language_has_a_file_of_questions(tmp_path: Path, source: str) -> None:
    written = write_questions(source, tmp_path, 5, 3)
    assert [path.stem for path in written] == [*SOURCES[source].LANGUAGES]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in written)
    assert read_texts([tmp_path])["th"] == [found.query for found in SOURCES[source].generate("th", 5, 3)]


def test_the_command_writes_the_languages_that_are_asked_for(tmp_path: Path) -> None:
    arguments = ["problems", str(tmp_path / "texts"), "--count", "2", "--seed", "9", "--languages", "sw, bn"]
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [str(tmp_path / "texts" / "sw.txt"), str(tmp_path / "texts" / "bn.txt")]
    lines = (tmp_path / "texts" / "sw.txt").read_text(encoding="utf-8").splitlines()
    assert lines == [problem.query for problem in problems.generate("sw", 2, 9)]


def test_nothing_is_written_of_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="problems, generator"):
        write_questions("gsm8k", tmp_path / "texts", 2, 0)
    for languages, count in ((("sw", "tlh"), 2), (("sw",), -1)):
        with pytest.raises(DataError):
            write_questions("problems", tmp_path / "texts", count, 0, languages)
    assert not (tmp_path / "texts").exists()
