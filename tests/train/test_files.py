"""A file is there whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from mindmerger_train.files import whole


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with whole(path) as part:
        part.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("cause", [KeyboardInterrupt, OSError, ValueError])
def test_what_was_half_written_goes(tmp_path: Path, cause: type[BaseException]) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(cause), whole(path) as part:
        part.write_text("ne")
        raise cause
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]
