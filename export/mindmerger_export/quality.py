"""What a type of the LLM costs: distance from F16 and right answers, per language, through the bundle's own graph.

Each judged question is answered greedily by the LLM in F16; then another file of the same LLM is led along the same tokens,
and at every position its distribution is compared. All is the runtime at work: soft prompt, gate, injected rows. Figures are
rounded, so that equal bundles have equal reports. What this module does not know: how files of an LLM are made.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mindmerger.bundle import Bundle
from mindmerger.graph import MergerGraph
from mindmerger.llama import LLM, default_threads
from mindmerger.manifest import Manifest
from mindmerger.model import MergedModel
from mindmerger.tokenizer import QuestionTokenizer
from mindmerger_export.parity import asked_in, kl
from mindmerger_export.request import Judged
from mindmerger_export.rows import three
from mindmerger_export.talk import Talk

Floats = npt.NDArray[np.float32]

TOKENS = 24
# Questions a language whose distributions are compared (all that are given are asked for accuracy).
COMPARED = 8
ANSWER_TOKENS = 160


@dataclass(frozen=True)
class Path16:
    """What the LLM in F16 said: greedy tokens of a question and the logits that each was drawn from (tokens, vocabulary)."""

    tokens: tuple[int, ...]
    logits: Floats


@dataclass(frozen=True)
class Quality:
    """Of one language: KL(F16 ‖ this) in nats a token, share of positions with the same most likely token, right answers.

    `right` and `of` count judged questions whose answer is known; `right` is None where there is none.
    """

    kl: float
    top1: float
    positions: int
    right: int | None
    of: int

    def to_json(self) -> dict[str, Any]:
        return {
            "kl": three(self.kl),
            "top1_agreement": three(self.top1),
            "positions": self.positions,
            **({} if self.right is None else {"right": self.right, "of": self.of}),
        }


class Judge:
    """The bundle in `folder` with any file of its LLM in the place of its own."""

    def __init__(self, folder: Path, manifest: Manifest, questions: Sequence[Judged], talk: Talk) -> None:
        self._folder = folder
        self._manifest = manifest
        self._questions = questions
        self._talk = talk
        self._paths: list[Path16 | None] = []
        self._right: list[bool | None] = []

    @contextmanager
    def _model(self, gguf: Path) -> Iterator[MergedModel]:
        most = min(ANSWER_TOKENS, self._manifest.generation.max_new_tokens)
        # As the manifest's own default it is cut to the room that a long question leaves in a small context.
        manifest = replace(self._manifest, generation=replace(self._manifest.generation, max_new_tokens=most))
        paths = {role: self._folder / manifest.file(role).path for role in ("merger", "tokenizer")}
        graph = MergerGraph(
            paths["merger"],
            width=manifest.llm.width,
            vocabulary=manifest.encoder.vocabulary,
            threads=default_threads(),
            gate=manifest.gate,
        )
        tokenizer = QuestionTokenizer(paths["tokenizer"], manifest.encoder.max_tokens, manifest.encoder.vocabulary)
        # Room for a question and its answer, not for the longest: the cache of a large LLM is large.
        llm = LLM(gguf, context=min(manifest.llm.context, 1024), threads=default_threads())
        with MergedModel(Bundle(self._folder, manifest, {**paths, "llm": gguf}), tokenizer, graph, llm) as model:
            yield model

    def reference(self, f16: Path) -> dict[str, Quality]:
        """Ask the LLM in F16; every later call of `judge` is beside this one. Its own figures."""
        compared: dict[str, int] = {}
        self._paths = []
        with self._model(f16) as model:
            self._right = [self._answered(model, judged) for judged in self._talk.each(self._questions)]
            for judged in self._questions:
                number = compared[judged.language] = compared.get(judged.language, 0) + 1
                self._paths.append(self._walk(model, judged, None) if number <= COMPARED else None)
        return self._by_language([(0.0, 1.0, len(path.tokens)) if path else None for path in self._paths], self._right)

    def judge(self, gguf: Path) -> dict[str, Quality]:
        """The same questions to another file of the LLM, by language."""
        distances: list[tuple[float, float, int] | None] = []
        with self._model(gguf) as model:
            right = [self._answered(model, judged) for judged in self._talk.each(self._questions)]
            for judged, path in zip(self._questions, self._paths, strict=True):
                if path is None:
                    distances.append(None)
                    continue
                found = self._walk(model, judged, path.tokens).logits
                divergence = [max(kl(a, b), 0.0) for a, b in zip(path.logits, found, strict=True)]
                same = path.logits.argmax(axis=1) == found.argmax(axis=1)
                distances.append((float(np.mean(divergence)), float(same.mean()), len(path.tokens)))
        return self._by_language(distances, right)

    def _walk(self, model: MergedModel, judged: Judged, tokens: tuple[int, ...] | None) -> Path16:
        """Along `tokens`, or (None) along the most likely ones until a stop."""
        logits = [model.prefill(judged.question, **asked_in(self._manifest, judged.language)).copy()]
        taken: list[int] = []
        while True:
            taken.append(int(logits[-1].argmax()) if tokens is None else tokens[len(taken)])
            ended = len(taken) == len(tokens) if tokens is not None else len(taken) == TOKENS
            if ended or (tokens is None and taken[-1] in self._manifest.prompt.stop_ids):
                return Path16(tuple(taken), np.stack(logits))
            model.llm.step(taken[-1])
            logits.append(model.llm.logits().copy())

    def _answered(self, model: MergedModel, judged: Judged) -> bool | None:
        if judged.answer is None:
            return None
        options = asked_in(self._manifest, judged.language)
        found = model.answer(judged.question, temperature=0.0, **options).answer
        return found is not None and same_number(found, judged.answer)

    def _by_language(
        self, distances: Sequence[tuple[float, float, int] | None], right: Sequence[bool | None]
    ) -> dict[str, Quality]:
        found = {}
        for language in dict.fromkeys(judged.language for judged in self._questions):
            places = [i for i, judged in enumerate(self._questions) if judged.language == language]
            walked = [distance for i in places if (distance := distances[i]) is not None]
            known = [bool(right[i]) for i in places if right[i] is not None]
            positions = sum(count for *_, count in walked)
            found[language] = Quality(
                kl=sum(divergence * count for divergence, _, count in walked) / positions,
                top1=sum(same * count for _, same, count in walked) / positions,
                positions=positions,
                right=sum(known) if known else None,
                of=len(known),
            )
        return found


def same_number(found: str, wanted: str) -> bool:
    try:
        return float(found) == float(wanted.replace(",", ""))
    except ValueError:
        return found == wanted


def worst(by_language: dict[str, Quality]) -> Quality:
    """The language that a type treats worst."""
    return max(by_language.values(), key=lambda quality: quality.kl)


def overall(by_language: dict[str, Quality]) -> Quality:
    """All languages, each with its positions."""
    positions = sum(quality.positions for quality in by_language.values())
    rights = [quality.right for quality in by_language.values() if quality.right is not None]
    return replace(
        worst(by_language),
        kl=sum(quality.kl * quality.positions for quality in by_language.values()) / positions,
        top1=sum(quality.top1 * quality.positions for quality in by_language.values()) / positions,
        positions=positions,
        right=sum(rights) if rights else None,
        of=sum(quality.of for quality in by_language.values()),
    )
