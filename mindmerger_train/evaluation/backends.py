"""What answers: a bundle through the runtime or a checkpoint in torch, behind one small interface.

`identify` looks at a model without loading it, so that a wrong output folder is refused before a minute is spent;
`open_backend` loads it. What this module does not know: benchmarks, scores, how torch decodes (torch_backend.py).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from mindmerger.bundle import bundle_names, resolve
from mindmerger.errors import CheckpointError
from mindmerger.manifest import MANIFEST_NAME, read_manifest
from mindmerger_train.evaluation.modes import Traits

Engine = Literal["bundle", "checkpoint"]


@dataclass(frozen=True)
class Model:
    """A model as a user named it. `path` None: the default bundle."""

    engine: Engine
    path: str | None


@dataclass(frozen=True)
class Identity:
    """What a model is, by content: generations belong to a `fingerprint`, those of the LLM alone to `llm`."""

    engine: Engine
    name: str
    fingerprint: str
    llm: str
    traits: Traits


@dataclass(frozen=True)
class Reply:
    """What became of one question: `index` is its place in the list. `error` stands where it could not be asked."""

    index: int
    text: str = ""
    finish: str = "error"
    tokens: int = 0
    forced: int = 0
    error: str | None = None


class Backend(Protocol):
    """A loaded model. Decoding is greedy."""

    def generate(
        self,
        questions: Sequence[str],
        *,
        max_tokens: int,
        calculator: bool | None,
        options: Mapping[str, Any],
        languages: Sequence[str | None] = (),
    ) -> Iterator[Reply]:
        """Answers as they end, in any order. `options` are a mode's; `calculator` None: as the model says.

        `languages`, where given: what the model is told each question is in, None for nothing.
        """

    def close(self) -> None:
        """Stop and free everything."""


def model_at(text: str) -> Model:
    """What `text` names: a folder with a manifest or a checkpoint, or the name of one that is installed.

    Raises CheckpointError where it is neither.
    """
    folder = Path(text)
    if (folder / MANIFEST_NAME).is_file() or text in bundle_names():
        return Model("bundle", text)
    if (folder / "config.json").is_file():
        return Model("checkpoint", text)
    raise CheckpointError(
        f"{text!r} is neither a bundle ({MANIFEST_NAME}) nor a checkpoint (config.json): give the folder of one, or the "
        f"name of an installed bundle ({', '.join(bundle_names()) or 'there are none'})"
    )


def identify(model: Model) -> Identity:
    """Read a model's manifest or configuration, and nothing large. Raises BundleError or CheckpointError."""
    return _identify_bundle(model.path) if model.engine == "bundle" else _identify_checkpoint(str(model.path))


def _identify_bundle(path: str | None) -> Identity:
    folder = resolve(path)
    manifest = read_manifest(folder)
    # The manifest names the sha256 of every other file, and loading checks them.
    whole = hashlib.sha256((folder / MANIFEST_NAME).read_bytes()).hexdigest()
    llm = [entry.sha256 for entry in manifest.files if entry.role in ("llm", "llm-base", "adapter")]
    gate = getattr(manifest, "gate", None)
    return Identity(
        "bundle",
        manifest.name,
        whole[:16],
        _digest("bundle", llm, asdict(manifest.prompt), manifest.bake and asdict(manifest.bake)),
        Traits(
            manifest.method,
            gate is not None,
            "none" if gate is None else gate.language_input,
            _tellable(manifest.encoder.frames, None if gate is None else gate.languages),
        ),
    )


def _identify_checkpoint(path: str) -> Identity:
    from mindmerger_train.checkpoint import CONFIG_FILE, WEIGHTS_FILE, file_sha256, resolve_checkpoint

    folder = resolve_checkpoint(path)
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        weights = file_sha256(folder / WEIGHTS_FILE)
        llm, prompt, method = config["llm"], config["prompt"], config.get("method", "mindmerger")
        gate = config.get("gate")
        language_input = gate.get("language_input", "soft") if gate else "none"
        frames = config["encoder"].get("frames", {})
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{folder} is no checkpoint that can be read ({error})") from error
    # How a run was trained says nothing about what it answers.
    content = {key: value for key, value in config.items() if key not in ("training", "name")}
    return Identity(
        "checkpoint",
        str(config.get("name", folder.name)),
        _digest("checkpoint", content, weights),
        _digest("checkpoint", {key: llm.get(key) for key in ("source", "adapter_sha256")}, prompt),
        Traits(method, gate is not None, language_input, _tellable(frames, gate["languages"] if gate else None)),
    )


def _tellable(frames: Iterable[str], gate_languages: Iterable[str] | None) -> frozenset[str]:
    """The languages that an encoder has tokens for and a gate, if there is one, a row: one option tells both."""
    known = frozenset(frames) - {""}
    return known if gate_languages is None else known & frozenset(gate_languages)


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def open_backend(model: Model, *, threads: int | None, slots: int | None) -> Backend:
    """Load a model. `slots`: questions side by side (None: as the engine thinks best)."""
    if model.engine == "bundle":
        return BundleBackend(model.path, threads, slots)
    from mindmerger_train.evaluation.torch_backend import TorchBackend

    return TorchBackend(str(model.path), threads, slots)


class BundleBackend:
    """A bundle, answered by the runtime's batches."""

    def __init__(self, path: str | None, threads: int | None, slots: int | None) -> None:
        from mindmerger.loading import load

        self._model = load(path, threads=threads)
        self._slots = slots

    def generate(
        self,
        questions: Sequence[str],
        *,
        max_tokens: int,
        calculator: bool | None,
        options: Mapping[str, Any],
        languages: Sequence[str | None] = (),
    ) -> Iterator[Reply]:
        # The runtime's batches are of one language.
        places: dict[str | None, list[int]] = {}
        for index, language in enumerate(languages or [None] * len(questions)):
            places.setdefault(language, []).append(index)
        for language, own in places.items():
            items = self._model.generate_batch(
                [questions[index] for index in own],
                slots=self._slots,
                max_new_tokens=max_tokens,
                temperature=0.0,
                calculator=calculator,
                **{**options, **({} if language is None else {"language": language})},
            )
            with closing(items):  # type: ignore[type-var]  # an iterator that is a generator: closing it frees the model
                for item in items:
                    index, result = own[item.index], item.generation
                    if result is None:
                        yield Reply(index, error=str(item.error))
                        continue
                    yield Reply(index, result.text, result.finish_reason, len(result.token_ids), result.forced_tokens)

    def close(self) -> None:
        self._model.close()
