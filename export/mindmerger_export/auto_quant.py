"""The types of the LLM beside each other: one that was asked for against F16, or the smallest that meets given bounds.

Types are tried from small to large; each is written, judged in every language, and deleted unless it is the one. What this
module does not know: how a type is written (it is handed that), what is measured (quality.py).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mindmerger.errors import ParityError
from mindmerger_export.llm import TYPES
from mindmerger_export.quality import Judge, Quality, overall, worst
from mindmerger_export.rows import three
from mindmerger_export.space import gigabytes
from mindmerger_export.talk import Talk, table

REFERENCE = "f16"
# By bits a weight. The 5-bit and 4-bit types without a K are for LLMs whose rows do not divide into blocks of 256.
CANDIDATES = tuple(
    kind for kind in ("q4_0", "q4_k_m", "q4_1", "q5_k_m", "q5_1", "q6_k", "q8_0", REFERENCE) if kind in TYPES
)

Write = Callable[[str, Path], Path]
"""Type and an empty folder → the GGUF of the LLM in that type, in the folder."""


@dataclass(frozen=True)
class Bounds:
    """`kl`: nats a token, in the language that fares worst. `llm_bytes`: what the rest of the bundle leaves for the LLM."""

    kl: float
    llm_bytes: int | None = None


@dataclass(frozen=True)
class Candidate:
    """One type, its size, and how it did; `verdict` says in a few words why it was (not) taken."""

    type: str
    bytes: int
    by_language: dict[str, Quality] | None
    verdict: str

    def to_json(self) -> dict[str, Any]:
        document: dict[str, Any] = {"type": self.type, "bytes": self.bytes, "verdict": self.verdict}
        if self.by_language is not None:
            whole = overall(self.by_language)
            document |= {
                "kl_mean": three(whole.kl),
                "kl_worst": three(worst(self.by_language).kl),
                "top1_agreement": three(whole.top1),
                **({} if whole.right is None else {"right": whole.right, "of": whole.of}),
                "by_language": {language: quality.to_json() for language, quality in self.by_language.items()},
            }
        return document


def report_of(candidates: Sequence[Candidate], chosen: str | None) -> dict[str, Any]:
    """The part of the report about types."""
    return {
        "reference": REFERENCE,
        "chosen": chosen,
        "candidates": [candidate.to_json() for candidate in candidates],
    }


def shown(candidates: Sequence[Candidate]) -> list[str]:
    """The table for people: types by languages, KL in nats a token."""
    languages = list(dict.fromkeys(code for one in candidates for code in one.by_language or ()))
    answered = any(one.by_language and overall(one.by_language).right is not None for one in candidates)
    rows = []
    for one in candidates:
        qualities = one.by_language or {}
        row = [one.type, gigabytes(one.bytes)]
        row += [f"{qualities[code].kl:.2g}" if code in qualities else "" for code in languages]
        row.append(f"{100 * overall(qualities).top1:.1f} %" if qualities else "")
        if answered:
            whole = overall(qualities) if qualities else None
            row.append("" if whole is None or whole.right is None else f"{whole.right}/{whole.of}")
        rows.append([*row, one.verdict])
    header = ["type", "size", *(f"KL {code}" for code in languages), "top-1", *(["right"] if answered else []), ""]
    return table(header, rows)


def compare(judge: Judge, write: Write, folder: Path, gguf: Path, kind: str, talk: Talk) -> list[Candidate]:
    """The LLM of the bundle, `gguf`, against its F16."""
    place = folder / ".f16"
    place.mkdir()
    try:
        talk("writing the LLM in F16 to compare with")
        f16 = write(REFERENCE, place)
        talk("asking the LLM in F16")
        reference = Candidate(REFERENCE, f16.stat().st_size, judge.reference(f16), "reference")
        talk(f"asking the LLM in {kind}")
        return [Candidate(kind, gguf.stat().st_size, judge.judge(gguf), "shipped"), reference]
    finally:
        shutil.rmtree(place, ignore_errors=True)


def choose(
    judge: Judge, write: Write, folder: Path, bounds: Bounds, talk: Talk, candidates: Sequence[str] = CANDIDATES
) -> tuple[str, list[Candidate]]:
    """Write types from small to large until one meets the bounds in every language; its file stays at `folder`/llm.gguf.

    Raises ParityError, after showing the table, when none does.
    """
    tried: list[Candidate] = []
    place = folder / ".f16"
    place.mkdir()
    try:
        talk("writing the LLM in F16 to compare with")
        f16 = write(REFERENCE, place)
        talk("asking the LLM in F16")
        reference = judge.reference(f16)
        for kind in candidates:
            trial = folder / f".{kind}"
            if kind == REFERENCE:
                gguf, size = f16, f16.stat().st_size
            else:
                trial.mkdir()
                talk(f"writing the LLM in {kind}")
                gguf = write(kind, trial)
                size = gguf.stat().st_size
            if bounds.llm_bytes is not None and size > bounds.llm_bytes:
                # Larger types follow, but two types may be as large as each other: each is looked at.
                tried.append(Candidate(kind, size, None, "too large"))
            else:
                talk(f"asking the LLM in {kind}")
                found = reference if kind == REFERENCE else judge.judge(gguf)
                fits = worst(found).kl <= bounds.kl
                tried.append(Candidate(kind, size, found, "chosen" if fits else "too far from F16"))
                if fits:
                    gguf.replace(folder / gguf.name)
                    talk.lines(shown(tried))
                    return kind, tried
            shutil.rmtree(trial, ignore_errors=True)
    finally:
        for kind in (*candidates, REFERENCE):
            shutil.rmtree(folder / f".{kind}", ignore_errors=True)
    talk.lines(shown(tried))
    room = "" if bounds.llm_bytes is None else f" in the {gigabytes(max(bounds.llm_bytes, 0))} left for the LLM"
    raise ParityError(
        f"no type of the LLM is within a KL of {bounds.kl:g} in every language{room}: allow more by --max-kl or --max-size"
    )
