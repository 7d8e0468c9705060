"""THIRD_PARTY_NOTICES.txt: every package, library and model of a kit, its licence, and the licence's text.

Texts come out of the wheels. A package without one gets the text of its licence, where that is the same for everybody. What
cannot be told is said to be so: a missing licence must be seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mindmerger.manifest import Manifest
from mindmerger_export.kit.wheels import LLAMA, NAME, Wheel

FILE = "THIRD_PARTY_NOTICES.txt"
_TEXTS = Path(__file__).parent / "texts"
_RULE = "=" * 100
UNKNOWN = "not told by the package"
BUNDLE_FILE = "NOTICE.txt"
# Debian and its kin keep the copyright of an installed library there.
_DOCUMENTS = Path("/usr/share/doc")
_GCC = ("libgomp.so.1", "libstdc++.so.6", "libgcc_s.so.1")


@dataclass(frozen=True)
class Part:
    """One thing that somebody else made."""

    name: str
    version: str
    licence: str
    home: str
    texts: tuple[tuple[str, str], ...]


def parts_of(
    wheels: Iterable[Wheel], manifest: Manifest, libraries: Mapping[str, Path], notices: Sequence[tuple[str, str]] = ()
) -> list[Part]:
    """Everything that is not ours: packages and what is inside them, models, shared libraries.

    `notices`: name and text of what the bundle says of its models' origin.
    """
    wheels = list(wheels)
    standard = standard_texts(wheels)
    parts = []
    for wheel in wheels:
        if wheel.name == NAME:
            continue
        texts = wheel.texts or _standard(wheel.licence, standard)
        parts.append(Part(wheel.name, wheel.version, wheel.licence or UNKNOWN, wheel.home, texts))
        if wheel.name == LLAMA:
            texts = (("texts/llama.cpp.txt", (_TEXTS / "llama.cpp.txt").read_text(encoding="utf-8")),)
            parts.append(Part("llama.cpp", f"in {LLAMA} {wheel.version}", "MIT", "https://ggml.ai", texts))
    parts += [
        Part(one.name, "model", one.licence or UNKNOWN, "", (*notices, *_standard(one.licence, standard)))
        for one in (manifest.encoder, manifest.llm)
    ]
    for soname, path in sorted(libraries.items()):
        known = soname in _GCC
        licence = "GPL-3.0-or-later WITH GCC-exception-3.1" if known else UNKNOWN
        home = "https://gcc.gnu.org" if known else ""
        parts.append(Part(soname, path.name, licence, home, _library_texts(soname)))
    return parts


def notice_of(bundle: Path) -> str | None:
    """What the makers of a bundle say of its parts' origin: NOTICE.txt in its folder, or beside it in models/NAME."""
    for folder in (bundle, bundle.parent):
        if (folder / BUNDLE_FILE).is_file():
            return (folder / BUNDLE_FILE).read_text(encoding="utf-8")
    return None


def standard_texts(wheels: Iterable[Wheel]) -> dict[str, str]:
    """The texts of licences whose words are the same for everybody. Apache-2.0 is our own, so our wheel has it."""
    found = {"MIT": (_TEXTS / "MIT.txt").read_text(encoding="utf-8")}
    for wheel in wheels:
        if wheel.name == NAME and wheel.texts:
            found["Apache-2.0"] = wheel.texts[0][1]
    return found


def _standard(licence: str, standard: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple((f"the licence {one}", text) for one, text in standard.items() if one.lower() == licence.lower())


def _library_texts(soname: str) -> tuple[tuple[str, str], ...]:
    for folder in sorted(_DOCUMENTS.glob(f"{soname.partition('.so')[0]}*")):
        path = folder / "copyright"
        if path.is_file():
            return ((str(path), path.read_text(encoding="utf-8", errors="replace")),)
    return ()


def render(parts: Sequence[Part]) -> str:
    """The file: a table, then the texts. One text of several parts, models above all, is given once."""
    rows = [(part.name, part.version, part.licence) for part in parts]
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    lines = ["What is in this folder besides MindMerger Edge (Apache-2.0), and its licences.", ""]
    lines += [f"{name:<{widths[0]}}  {version:<{widths[1]}}  {licence}" for name, version, licence in rows]
    where: dict[str, str] = {}
    for part in parts:
        lines += ["", _RULE, f"{part.name} {part.version}", f"Licence: {part.licence}"]
        lines += [part.home] if part.home else []
        for title, text in part.texts:
            key = " ".join(text.split())
            if key in where:
                lines += ["", f"--- {title}: the same text as under {where[key]}"]
                continue
            where[key] = part.name
            lines += ["", f"--- {title}", "", text.strip()]
        if not part.texts:
            lines += ["", "The package carries no text of its licence."]
    return "\n".join(lines) + "\n"
