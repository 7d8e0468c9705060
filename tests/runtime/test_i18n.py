"""Sentences in five languages: catalogues complete and compiled, the language chosen as documented, nothing slow."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
import unicodedata
from pathlib import Path

import pytest
from babel.messages.catalog import Catalog
from babel.messages.mofile import read_mo

from mindmerger import i18n
from tests import catalogues
from tests.runtime.conftest import ROOT, Run

LANGUAGES = pytest.mark.parametrize("language", i18n.LANGUAGES)
EMPTY = {
    "en": "the question is empty",
    "es": "la pregunta está vacía",
    "fr": "la question est vide",
    "hi": "प्रश्न खाली है",
    "sw": "swali ni tupu",
}


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in (i18n.OVERRIDE, "LANGUAGE", "LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.mark.parametrize(
    ("environment", "language"),
    [
        ({}, "en"),
        ({"LANG": "es_MX.UTF-8"}, "es"),
        ({"LANG": "de_DE.UTF-8"}, "en"),
        ({"LANG": "fr_FR@euro", "LC_MESSAGES": "hi_IN"}, "hi"),
        ({"LANG": "fr_FR", "LC_MESSAGES": "hi_IN", "LC_ALL": "sw_KE.UTF-8"}, "sw"),
        ({"LANG": "fr_FR", "LANGUAGE": "de:sw:es"}, "sw"),
        ({"LANG": "fr_FR", "LANGUAGE": "en:es"}, "en"),
        ({"LANGUAGE": "es"}, "es"),
        ({"LC_ALL": "C", "LANGUAGE": "es"}, "en"),
        ({"LC_ALL": "C.UTF-8", "LANGUAGE": "es"}, "es"),
        ({"LC_ALL": "C", "LANGUAGE": "es", i18n.OVERRIDE: "fr"}, "fr"),
        ({"LANG": "es_ES", i18n.OVERRIDE: "en"}, "en"),
        ({"LANG": "es_ES", i18n.OVERRIDE: "Hi-IN"}, "hi"),
        ({"LANG": "es_ES", i18n.OVERRIDE: "xx"}, "en"),
        ({"LANG": "español"}, "en"),
        ({"LANG": "", "LC_ALL": ":.@_-"}, "en"),
    ],
)
def test_choice(bare: pytest.MonkeyPatch, environment: dict[str, str], language: str) -> None:
    for name, value in environment.items():
        bare.setenv(name, value)
    assert i18n.language() == language


def test_every_sentence_is_in_every_catalogue() -> None:
    sentences = catalogues.in_code()
    assert len(sentences) > 100
    wanted = sentences | set(catalogues.CLICK)
    for language in i18n.LANGUAGES:
        catalogue = catalogues.read(language)
        there = {message.id for message in catalogue if message.id and not message.fuzzy}
        assert there == wanted, f"run: python -m tests.catalogues ({language})"


@LANGUAGES
def test_catalogues_are_translated_and_agree(language: str) -> None:
    for message in catalogues.read(language):
        if not message.id:
            continue
        for source, translation in catalogues.texts(message):
            assert translation.strip(), f"not translated: {source}"
            assert catalogues.placeholders(translation) == catalogues.placeholders(source), translation
            assert translation == unicodedata.normalize("NFC", translation)
            if "{" in source:  # it can be formatted
                names = {name.partition("!")[0]: "x" for name in catalogues.placeholders(source)}
                translation.format(**names)
            # what is typed is typed the same in every language
            for word in (
                "--input",
                "--output",
                "--field",
                "--max-tokens",
                "stdin",
                "stderr",
                "$MINDMERGER_BUNDLE",
                "/help",
            ):
                assert translation.count(word) == source.count(word), translation


@LANGUAGES
def test_compiled_catalogues_are_those_in_the_source(language: str) -> None:
    def plain(catalogue: Catalog) -> dict[object, object]:
        def forms(text: object) -> object:
            return tuple(text) if isinstance(text, (list, tuple)) else text

        return {forms(message.id): forms(message.string) for message in catalogue if message.id}

    with catalogues.mo_file(language).open("rb") as file:
        assert plain(read_mo(file)) == plain(catalogues.read(language))


def test_catalogues_are_packaged() -> None:
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["mindmerger"]
    folder = ROOT / "runtime" / "mindmerger"
    packaged = {path for pattern in data for path in folder.glob(pattern)}
    assert {catalogues.mo_file(language) for language in i18n.LANGUAGES} <= packaged


def test_no_sentence_is_formatted_before_it_is_looked_up() -> None:
    """`_(f"…")` would never be found, and a loop variable `_` would take the place of the function."""
    for path in sorted((ROOT / "runtime" / "mindmerger").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for function in ast.walk(tree):
            if isinstance(function, ast.FunctionDef):
                names = [node for node in ast.walk(function) if isinstance(node, ast.Name) and node.id == "_"]
                stored = any(isinstance(node.ctx, ast.Store) for node in names)
                called = any(isinstance(node.ctx, ast.Load) for node in names)
                assert not (stored and called), f"{path}: {function.name}"
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "_":
                (sentence,) = node.args
                assert isinstance(sentence, ast.Constant) and isinstance(sentence.value, str), f"{path}:{node.lineno}"


@pytest.mark.parametrize("language", EMPTY)
def test_errors_and_help_in_each_language(mm_run: Run, language: str) -> None:
    env = {i18n.OVERRIDE: "", "LANGUAGE": "", "LC_ALL": f"{language}_XX.UTF-8"}
    result = mm_run(" ", env=env)
    assert result.returncode == 3 and result.stderr.decode().startswith(f"mm-run: {EMPTY[language]}")
    words = {
        "en": ("Usage:", "No such option", "Exit codes:", "Options:", "Show this message"),
        "es": ("Uso:", "No existe la opción", "Códigos de salida:", "Opciones:", "Muestra este mensaje"),
        "fr": ("Utilisation :", "Il n'y a pas d'option", "Codes de sortie :", "Options:", "Afficher ce message"),
        "hi": ("उपयोग:", "कोई विकल्प नहीं है", "निकास कोड:", "विकल्प:", "यह संदेश दिखाएँ"),
        "sw": ("Matumizi:", "Hakuna chaguo", "Misimbo ya kutoka:", "Machaguo:", "Onyesha ujumbe huu"),
    }[language]
    result = mm_run("--help", env=env)
    text = result.stdout.decode()
    assert result.returncode == 0
    assert all(word in text for word in (words[0], *words[2:], "--max-tokens", "mm-run --json"))
    result = mm_run("--nonsense", env=env)
    assert result.returncode == 2
    assert words[0] in result.stderr.decode() and words[1] in result.stderr.decode()


@pytest.mark.parametrize("language", i18n.LANGUAGES)
def test_the_other_commands_in_each_language(language: str) -> None:
    """Their help has no English sentence left, and every option is there; what the doctor finds is said in it too."""
    env = {"PYTHONPATH": str(ROOT / "runtime"), "PATH": "/usr/bin", "PYTHONIOENCODING": "utf-8", "HOME": "/nowhere"}

    def said(command: str, *arguments: str, code: str) -> str:
        return subprocess.run(
            [sys.executable, "-m", f"mindmerger.cli.{command}", *arguments], capture_output=True, encoding="utf-8",
            env={**env, i18n.OVERRIDE: code}, check=False,
        ).stdout  # fmt: skip

    for command, options in (
        ("bench", ("--compare", "--startup")),
        ("doctor", ("--quick", "--context")),
        ("serve", ("--api-key-file", "--slots")),
    ):
        shown = said(command, "--help", code=language)
        assert all(option in shown for option in options)
        english = {line.strip() for line in said(command, "--help", code="en").splitlines() if len(line.split()) > 3}
        same = english & {line.strip() for line in shown.splitlines()}
        assert all(line.startswith((f"mm-{command} ", "curl ", "-d '{")) for line in same), same
    words = {"es": "problema", "fr": "problème", "hi": "समस्या", "sw": "tatizo"}
    assert words[language] in said("doctor", "--quick", "--bundle", "no-such-name", code=language)


def test_data_is_the_same_in_every_language(mm_run: Run, arithmetic_bundle: Path) -> None:
    shown = {
        language: mm_run("x", "--verbose", "--bundle", str(arithmetic_bundle), env={i18n.OVERRIDE: language})
        for language in ("en", "hi")
    }
    assert shown["en"].stdout == shown["hi"].stdout and shown["hi"].stdout.endswith(b"Answer: 7\n")


def test_a_sentence_in_the_library_follows_the_locale(bare: pytest.MonkeyPatch) -> None:
    from mindmerger.tokenizer import check_question

    bare.setenv("LANG", "sw_KE.UTF-8")
    with pytest.raises(Exception, match="swali ni tupu"):
        check_question(" ")
    bare.setenv("LANG", "es_ES.UTF-8")
    with pytest.raises(Exception, match="está vacía"):
        check_question(" ")


def test_gettext_waits_for_the_first_sentence() -> None:
    """An import of the library, in any language, does not bring gettext, and touches no environment."""
    program = (
        "import sys, os; before = dict(os.environ); import mindmerger.i18n as i; import mindmerger.errors; "
        "print('gettext' in sys.modules, dict(os.environ) == before, i._('the model is closed: load it again') != ''); "
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, check=True, cwd=ROOT / "runtime",
        env={"LANG": "es_ES.UTF-8", "PATH": "/usr/bin"},
    )  # fmt: skip
    assert result.stdout.split() == [b"False", b"True", b"True"]
