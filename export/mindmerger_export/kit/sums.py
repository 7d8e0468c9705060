"""SHA256SUMS, as `sha256sum -c` reads it: every file of a folder but itself.

Protects from accidents on the way; whoever can alter files can alter this one too, so the README of the kit tells how to
compare it by another way.
"""

from __future__ import annotations

from pathlib import Path

from mindmerger.cache import sha256_of
from mindmerger_export.talk import Talk

FILE = "SHA256SUMS"


def write_sums(folder: Path, talk: Talk | None = None) -> str:
    """Write `folder`/SHA256SUMS; returns the sha256 of that file, which stands for the whole folder."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / FILE)
    lines = []
    for path in (talk or Talk()).each(paths):
        name = path.relative_to(folder).as_posix()
        # sha256sum has its own way with these; nothing of ours needs them
        assert "\n" not in name and "\\" not in name, name
        lines.append(f"{sha256_of(path)}  {name}\n")
    (folder / FILE).write_text("".join(lines), encoding="utf-8", newline="\n")
    return sha256_of(folder / FILE)
