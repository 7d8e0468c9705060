"""The manifest of a bundle: what `manifest.json` may say, and nothing about where files lie or how they are read.

docs/bundle.md is the contract. Export builds a `Manifest` and writes `to_json()`; the runtime reads it with
`read_manifest()`. Both go through the same rules (manifest_rules.py), so a manifest that export can write, the runtime can
read.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mindmerger.digits import ascii_digits
from mindmerger.errors import BundleError
from mindmerger.i18n import _
from mindmerger.manifest_fields import Fields
from mindmerger.manifest_rules import FORMAT_VERSION, check, check_version
from mindmerger.manifest_seal import KEY, check_seal, seal

FORMAT = "mindmerger-bundle"
MANIFEST_NAME = "manifest.json"
UNKNOWN_LANGUAGE = "unknown"
# A manifest is a few kilobytes; one of many megabytes is not a manifest, and parsing it would only hide that.
_MAX_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True)
class FrameInfo:
    """The encoder's ids before and after a text in one language."""

    before_ids: tuple[int, ...]
    after_ids: tuple[int, ...]


@dataclass(frozen=True)
class EncoderInfo:
    """The frozen multilingual model that is inside the merger graph.

    `frames`, of an encoder that is told the language (NLLB, M2M100): by code, and under "" where it is not known, the frame
    that the tokenizer adds. All are of the same lengths. See frames.py.
    """

    name: str
    architecture: str
    width: int
    layers: tuple[int, ...]
    combine: str
    max_tokens: int
    parameters: int
    licence: str
    vocabulary: int
    frames: dict[str, FrameInfo] = field(default_factory=dict)


@dataclass(frozen=True)
class LLMInfo:
    """The frozen reasoning model."""

    name: str
    architecture: str
    width: int
    vocabulary: int
    context: int
    parameters: int
    licence: str


@dataclass(frozen=True)
class PromptInfo:
    """How the question is put to the LLM, and which tokens frame it.

    `before_ids` and `after_ids`, of a template with special tokens (chat): the ids around those of the question, which is then
    tokenised alone, so that a special token in a question stays text. None: the rendered template is tokenised as one text.
    `normaliser`: NFC where the LLM was trained on text in that form, into which llama.cpp does not bring it. `digits`: `ascii`
    where the LLM is given the digits of every script as 0–9 (digits.py), as in training.
    """

    template: str
    bos_id: int | None
    stop_ids: tuple[int, ...]
    before_ids: tuple[int, ...] | None = None
    after_ids: tuple[int, ...] | None = None
    normaliser: str | None = None
    digits: str | None = None

    def render(self, question: str) -> str:
        """The prompt for `question`. Plain replacement: no other braces, and none in the question, are special."""
        return self.template.replace("{question}", self._question(question))

    def ids(self, question: str, tokenise: Callable[[str], list[int]]) -> list[int]:
        """The ids of the prompt for `question`, without BOS; `tokenise` is the LLM's, with special tokens as text."""
        if self.before_ids is None or self.after_ids is None:
            return tokenise(self._normalised(self.render(question)))
        return [*self.before_ids, *tokenise(self._normalised(self._question(question))), *self.after_ids]

    def _question(self, text: str) -> str:
        return ascii_digits(text) if self.digits == "ascii" else text

    def _normalised(self, text: str) -> str:
        return unicodedata.normalize("NFC", text) if self.normaliser == "NFC" else text


@dataclass(frozen=True)
class GenerationInfo:
    """What `generate` does where the caller says nothing."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    calculator: bool = False


@dataclass(frozen=True)
class GateInfo:
    """ST-Merge's gate inside the merger graph. `languages` are its rows after row 0, which is "unknown".

    `granularity`: one weight a source (`scalar`), a dimension (`vector`) or a row (`token`). `language_input`: the gate
    asks its language head (`soft`), takes what it is given, else "unknown" (`forced`), or has no language (`none`).
    """

    languages: tuple[str, ...]
    granularity: str = "scalar"
    language_input: str = "soft"

    @property
    def names(self) -> tuple[str, ...]:
        """All rows of the language distribution, in order."""
        return (UNKNOWN_LANGUAGE, *self.languages)


@dataclass(frozen=True)
class FileInfo:
    """One file of the bundle, in its folder or (`package`) shipped by an installed Python distribution."""

    role: str
    path: str
    bytes: int
    sha256: str
    package: str | None = None


@dataclass(frozen=True)
class BakeInfo:
    """How the LLM is made out of `llm-base` and `adapter`."""

    type: str


@dataclass(frozen=True)
class GoldenInfo:
    """A question and the first greedy token ids that the exporting machine saw for it."""

    question: str
    language: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True)
class Manifest:
    """A validated manifest. Building one with wrong values raises BundleError."""

    name: str
    method: str
    languages: tuple[str, ...]
    encoder: EncoderInfo
    llm: LLMInfo
    prompt: PromptInfo
    files: tuple[FileInfo, ...]
    injection_scale: float = 1.0
    generation: GenerationInfo = field(default_factory=GenerationInfo)
    filter_threshold: float = 0.1
    gate: GateInfo | None = None
    bake: BakeInfo | None = None
    golden: tuple[GoldenInfo, ...] = ()
    tools: dict[str, str] = field(default_factory=dict)
    parity: dict[str, Any] = field(default_factory=dict)
    format_version: str = FORMAT_VERSION

    def __post_init__(self) -> None:
        check(self)

    def file(self, role: str) -> FileInfo:
        """The one file with `role`; BundleError when there is none (validation has excluded two)."""
        for entry in self.files:
            if entry.role == role:
                return entry
        raise BundleError(
            _("bundle {name} names no file of role {role}: export it again with mm-export").format(
                name=repr(self.name), role=repr(role)
            )
        )

    def to_json(self) -> str:
        """The text of manifest.json. The order of keys is fixed, so equal manifests are equal files."""
        files = []
        for entry in self.files:
            document: dict[str, Any] = {"role": entry.role}
            if entry.package is not None:
                document["package"] = entry.package
            files.append({**document, "path": entry.path, "bytes": entry.bytes, "sha256": entry.sha256})
        document = {
            "format": FORMAT,
            "format_version": self.format_version,
            "name": self.name,
            "method": self.method,
            "languages": list(self.languages),
            "encoder": {key: value for key, value in asdict(self.encoder).items() if key != "frames" or value},
            "llm": asdict(self.llm),
            "prompt": {
                key: value for key, value in asdict(self.prompt).items() if value is not None or key == "bos_id"
            },
            "injection_scale": self.injection_scale,
            "generation": asdict(self.generation),
            "filter_threshold": self.filter_threshold,
            "gate": None if self.gate is None else asdict(self.gate),
            "files": files,
            "bake": None if self.bake is None else asdict(self.bake),
            "golden": [asdict(golden) for golden in self.golden],
            "tools": {key: self.tools[key] for key in sorted(self.tools)},
            "parity": self.parity,
        }
        document[KEY] = seal(document)
        return json.dumps(document, ensure_ascii=False, indent=2, allow_nan=False) + "\n"


def read_manifest(folder: str | Path) -> Manifest:
    """Read and validate `folder`/manifest.json. Every fault is a BundleError that names the field."""
    path = Path(folder) / MANIFEST_NAME
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise BundleError(
                _("{path} is too large to be a manifest: export the bundle again with mm-export").format(path=path)
            )
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        raise BundleError(
            _("{path} is not UTF-8 text: the bundle is damaged, copy or export it again").format(path=path)
        ) from None
    except FileNotFoundError:
        raise BundleError(
            _("{folder} is not a bundle, it has no {name}: check the path").format(
                folder=path.parent, name=MANIFEST_NAME
            )
        ) from None
    except OSError as error:
        raise BundleError(
            _("{path} cannot be read ({reason}): check the path and its permissions").format(
                path=path, reason=error.strerror
            )
        ) from None
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        raise BundleError(
            _("{path} is not valid JSON: the bundle is damaged, copy or export it again").format(path=path)
        ) from None
    try:
        manifest = _parse(document)
        check_seal(document)
        return manifest
    except BundleError as error:
        raise BundleError(f"{path}: {error}") from None


# ---------------------------------------------------------------------------------------------------- reading


def _parse(document: Any) -> Manifest:
    top = Fields(document, "")
    if top.text("format") != FORMAT:
        raise BundleError(
            _("this is not a manifest of a MindMerger bundle (format must be {format})").format(format=repr(FORMAT))
        )
    version = top.text("format_version")
    # The version comes before everything else: of a newer major version, no other field is known to mean the same.
    check_version(version)
    languages = top.get("languages", list, "a list of language codes")
    encoder, llm, prompt = top.object("encoder"), top.object("llm"), top.object("prompt")
    generation = top.object("generation")
    gate, bake = top.optional("gate"), top.optional("bake")
    tools = top.get("tools", dict, "an object", {})
    return Manifest(
        format_version=version,
        name=top.text("name"),
        method=top.text("method"),
        languages=tuple(languages),
        encoder=EncoderInfo(
            name=encoder.text("name"),
            architecture=encoder.text("architecture"),
            width=encoder.integer("width"),
            layers=encoder.integers("layers"),
            combine=encoder.text("combine"),
            max_tokens=encoder.integer("max_tokens"),
            parameters=encoder.integer("parameters"),
            licence=encoder.text("licence"),
            vocabulary=encoder.integer("vocabulary"),
            frames={
                language: FrameInfo(frame.integers("before_ids"), frame.integers("after_ids"))
                for language, frame in encoder.table("frames").items()
            },
        ),
        llm=LLMInfo(
            name=llm.text("name"),
            architecture=llm.text("architecture"),
            width=llm.integer("width"),
            vocabulary=llm.integer("vocabulary"),
            context=llm.integer("context"),
            parameters=llm.integer("parameters"),
            licence=llm.text("licence"),
        ),
        prompt=PromptInfo(
            template=prompt.text("template"),
            bos_id=prompt.get("bos_id", (int, type(None)), "a whole number or null"),
            stop_ids=prompt.integers("stop_ids"),
            before_ids=prompt.integers("before_ids") if "before_ids" in prompt.value else None,
            after_ids=prompt.integers("after_ids") if "after_ids" in prompt.value else None,
            normaliser=prompt.text("normaliser") if "normaliser" in prompt.value else None,
            digits=prompt.text("digits") if "digits" in prompt.value else None,
        ),
        injection_scale=top.number("injection_scale"),
        generation=GenerationInfo(
            max_new_tokens=generation.integer("max_new_tokens"),
            temperature=generation.number("temperature", 0.0),
            calculator=bool(generation.get("calculator", bool, "true or false", False)),
        ),
        filter_threshold=top.number("filter_threshold", 0.1),
        files=tuple(
            FileInfo(
                role=entry.text("role"),
                path=entry.text("path"),
                bytes=entry.integer("bytes"),
                sha256=entry.text("sha256"),
                package=entry.get("package", (str, type(None)), "a string", None),
            )
            for entry in top.objects("files")
        ),
        gate=None
        if gate is None
        else GateInfo(
            languages=tuple(gate.get("languages", list, "a list of language codes")),
            granularity=gate.text("granularity"),
            language_input=gate.text("language_input"),
        ),
        bake=None if bake is None else BakeInfo(type=bake.text("type")),
        golden=tuple(
            GoldenInfo(golden.text("question"), golden.text("language"), golden.integers("token_ids"))
            for golden in top.objects("golden", [])
        ),
        tools={str(key): str(value) for key, value in tools.items()},
        parity=top.get("parity", dict, "an object", {}),
    )
