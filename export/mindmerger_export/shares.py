"""What merging costs beside the LLM alone: milliseconds and memory, which the papers never reported.

Times are measured on the exporting machine, now, so they are no part of the manifest. Memory is the runtime's own estimate
(`mm-doctor`), the same everywhere. What this module does not know: how either is shown.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from mindmerger.generation import Generation
from mindmerger.llama import default_threads
from mindmerger.machine import processor_name
from mindmerger.manifest import EncoderInfo
from mindmerger.memory import estimate
from mindmerger.model import MergedModel
from mindmerger_export.parity import asked_in

TOKENS = 32
_ROUNDS = 2
_ENCODER_ROLES = ("merger", "merger-data", "tokenizer")


def memory(model: MergedModel) -> dict[str, int]:
    """Bytes resident with the bundle loaded, and with its LLM alone."""
    bundle = model.bundle
    whole = estimate(bundle).total
    manifest = bundle.manifest
    # The same bundle with nothing of an encoder: no files, one piece, one token.
    nothing = EncoderInfo("none", "none", 1, (1,), "concat", 1, 1, "", 1)
    files = tuple(replace(f, bytes=0) if f.role in _ENCODER_ROLES else f for f in manifest.files)
    alone = estimate(replace(bundle, manifest=replace(manifest, encoder=nothing, files=files))).total
    files_of_both = {
        "encoder_files": sum(entry.bytes for entry in manifest.files if entry.role in _ENCODER_ROLES),
        "llm_file": bundle.llm().stat().st_size,
    }
    return {"merged": whole, "llm_alone": alone, "encoder_and_merger": whole - alone, **files_of_both}


def latency(model: MergedModel, questions: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Medians over the questions of `TOKENS` tokens each, in milliseconds, merged and by the LLM alone.

    The LLM alone reads the question in its prompt and no soft prompt. The first round warms up and does not count.
    """
    merged: list[Generation] = []
    alone: list[Generation] = []
    for number in range(1 + _ROUNDS):
        for language, question in questions:
            options = asked_in(model.manifest, language)
            both = model.answer(question, max_new_tokens=TOKENS, temperature=0.0, **options)
            only = model.answer(question, max_new_tokens=TOKENS, temperature=0.0, encoder_weight=0, llm_weight=1)
            if number:
                merged.append(both)
                alone.append(only)
    found = {"merged": _medians(merged), "llm_alone": _medians(alone)}
    first = found["merged"]["first_token_ms"]
    total = found["merged"]["total_ms"]
    return {
        **found,
        "encoder_share_of_first_token": _share(found["merged"]["encode_ms"], first),
        "encoder_share_of_answer": _share(found["merged"]["encode_ms"], total),
        "extra_until_first_token_ms": _rounded(first - found["llm_alone"]["first_token_ms"]),
        "tokens": TOKENS,
        "questions": len(questions),
        "rounds": _ROUNDS,
        "threads": default_threads(),
        "processor": processor_name(),
    }


def _medians(answers: Sequence[Generation]) -> dict[str, float]:
    timings = [answer.timings for answer in answers]
    return {
        "encode_ms": _median([one.encode_ms for one in timings]),
        "prefill_ms": _median([one.prefill_ms for one in timings]),
        "decode_ms": _median([one.decode_ms for one in timings]),
        "first_token_ms": _median([one.first_token_ms or 0.0 for one in timings]),
        "total_ms": _median([one.total_ms for one in timings]),
        "ms_per_token": _median(
            [
                one.decode_ms / len(answer.token_ids)
                for one, answer in zip(timings, answers, strict=True)
                if answer.token_ids
            ]
            or [0.0]
        ),
    }


def _median(values: Sequence[float]) -> float:
    return _rounded(statistics.median(values))


def _share(part: float, whole: float) -> float:
    return round(part / whole, 4) if whole else 0.0


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
