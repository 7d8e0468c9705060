"""Types of the LLM judged against F16 in every language, and the smallest that meets the bounds, on one tiny bundle."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from mindmerger.errors import InputError, ParityError
from mindmerger.manifest import read_manifest
from mindmerger_export import auto_quant, space
from mindmerger_export.auto_quant import Bounds, Candidate
from mindmerger_export.cli import read_questions
from mindmerger_export.quality import Judge, overall, same_number, worst
from mindmerger_export.request import Judged, Request, bytes_of
from mindmerger_export.talk import Talk
from tests import tiny

QUESTIONS = (
    Judged("en", "What is 15 + 27?", "42"),
    Judged("es", "Cuanto es 15 + 27?"),
    Judged("es", "Y 3 + 4?"),
    Judged("sw", "Juma ana mbuzi 9."),
)
TYPES = ("q4_0", "q5_0", "q8_0", "f16")


class Kept(Talk):
    """What would be shown."""

    def __init__(self) -> None:
        self.text: list[str] = []

    def lines(self, text: object) -> None:
        self.text += text  # type: ignore[operator]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.bundle(tmp_path_factory.mktemp("judged") / "tiny")


def judge_of(bundle: Path) -> Judge:
    return Judge(bundle, read_manifest(bundle), QUESTIONS, Talk())


def write(kind: str, folder: Path) -> Path:
    """The same random weights in another type: what an export writes."""
    return tiny.random_llm(folder / "llm.gguf", quantised=kind)


def test_a_small_context_cuts_answers_short(bundle: Path, tmp_path: Path) -> None:
    """160 tokens do not fit, what is left does."""
    manifest = read_manifest(bundle)
    small = replace(manifest, llm=replace(manifest.llm, context=96))
    found = Judge(bundle, small, QUESTIONS[:1], Talk()).reference(write("f16", tmp_path))
    assert found["en"].of == 1 and found["en"].positions > 1


def test_f16_is_its_own_reference_and_fewer_bits_are_farther(bundle: Path, tmp_path: Path) -> None:
    judge = judge_of(bundle)
    found = {}
    for kind in reversed(TYPES):
        (tmp_path / kind).mkdir()
        gguf = write(kind, tmp_path / kind)
        if kind == "f16":
            judge.reference(gguf)
        found[kind] = judge.judge(gguf)
    assert list(found["f16"]) == ["en", "es", "sw"]
    assert all(quality.kl == 0 and quality.top1 == 1 for quality in found["f16"].values())
    distances = [overall(found[kind]).kl for kind in TYPES]
    assert distances == sorted(distances, reverse=True) and distances[0] > 10 * distances[2] > 0
    assert worst(found["q4_0"]).kl == max(quality.kl for quality in found["q4_0"].values())
    assert (found["f16"]["en"].of, found["f16"]["es"].right) == (1, None)
    # the same figures again: a report may not differ between two exports
    assert judge.judge(tmp_path / "q8_0" / "llm.gguf") == found["q8_0"]


def choose(bundle: Path, folder: Path, bounds: Bounds) -> tuple[str, list[Candidate], list[str]]:
    talk = Kept()
    kind, tried = auto_quant.choose(judge_of(bundle), write, folder, bounds, talk, TYPES)
    return kind, tried, talk.text


def test_the_smallest_type_within_the_bound_is_kept(bundle: Path, tmp_path: Path) -> None:
    loose = tmp_path / "loose"
    loose.mkdir()
    kind, tried, shown = choose(bundle, loose, Bounds(kl=100.0))
    assert (kind, len(tried)) == ("q4_0", 1) and [path.name for path in loose.iterdir()] == ["llm.gguf"]
    strict = tmp_path / "strict"
    strict.mkdir()
    limit = worst(tried[0].by_language or {}).kl / 50
    kind, tried, shown = choose(bundle, strict, Bounds(kl=limit))
    assert kind == "q8_0" and [one.verdict for one in tried] == ["too far from F16", "too far from F16", "chosen"]
    # each type is a line with a figure for each language
    assert [line.split()[0] for line in shown] == ["type", "q4_0", "q5_0", "q8_0"]
    assert "KL sw" in shown[0] and "right" in shown[0]
    assert [path.name for path in strict.iterdir()] == ["llm.gguf"]
    wanted = tmp_path / "wanted"
    wanted.mkdir()
    assert (strict / "llm.gguf").read_bytes() == write("q8_0", wanted).read_bytes()
    report = auto_quant.report_of(tried, kind)
    assert json.loads(json.dumps(report))["candidates"][2]["by_language"]["es"]["positions"] > 1


def test_the_bound_is_for_every_language(bundle: Path, tmp_path: Path) -> None:
    """A type that is near enough on average and not in one language is not taken."""
    judge = judge_of(bundle)
    gguf = write("f16", tmp_path)
    judge.reference(gguf)
    other = tmp_path / "other"
    other.mkdir()
    found = judge.judge(write("q4_0", other))
    average, farthest = overall(found).kl, worst(found).kl
    assert average < farthest
    place = tmp_path / "place"
    place.mkdir()
    assert choose(bundle, place, Bounds(kl=(average + farthest) / 2))[0] != "q4_0"


def test_when_none_fits_the_table_is_shown_and_nothing_kept(bundle: Path, tmp_path: Path) -> None:
    talk = Kept()
    with pytest.raises(ParityError, match="--max-kl"):
        auto_quant.choose(judge_of(bundle), write, tmp_path, Bounds(1e-12, llm_bytes=100_000), talk, TYPES[:3])
    assert len(talk.text) == 4 and "too large" in talk.text[-1] and list(tmp_path.iterdir()) == []


def test_requests_that_make_no_sense() -> None:
    for options, match in (
        ({"llm_type": "auto"}, "needs a bound"),
        ({"llm_type": "q8_0", "max_kl": 0.1}, "--quant auto"),
        ({"llm_type": "auto", "max_kl": 0.1, "llm": "package"}, "package"),
        ({"llm_type": "q8_0", "llm_gguf": Path("x")}, "as it is"),
    ):
        with pytest.raises(InputError, match=match):
            Request("x", **options)  # type: ignore[arg-type]


def test_sizes_and_numbers() -> None:
    assert [bytes_of(text) for text in ("400MB", "1.5 GiB", "700mib", "123", "2k")] == [
        400_000_000, 1_610_612_736, 734_003_200, 123, 2000,
    ]  # fmt: skip
    for text in ("", "big", "-1MB", "0", "1TBB"):
        with pytest.raises(InputError, match="400MB"):
            bytes_of(text)
    assert same_number("42", "42.0") and same_number("1234", "1,234") and not same_number("41", "42")
    assert space.gigabytes(1_500_000_000) == "1.5 GB"


def test_questions_with_answers(tmp_path: Path) -> None:
    file = tmp_path / "q.tsv"
    file.write_text("language\tquestion\tanswer\n# a comment\nes\t¿Cuánto es 1 + 1?\t2\nsw\tSwali?\n", encoding="utf-8")
    assert read_questions(file) == [("es", "¿Cuánto es 1 + 1?", "2"), ("sw", "Swali?", None)]
