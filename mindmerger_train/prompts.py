"""Prompt templates, and the ids around them: plain, Alpaca (the papers' for mathematics), the LLM's own chat template.

A chat template is rendered once, here, to a template with `{question}`: neither training nor the runtime runs Jinja. BOS and
EOS are found here and added by id everywhere else; tokenizers differ in whether they add them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mindmerger.errors import CheckpointError, InputError
from mindmerger_train.llms import LLMSpec, LLMTokenizer, PromptSpec, load_hf_tokenizer

PLAIN = "Question: {question}\nAnswer:\n"
ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{question}\n\n### Response: Let's think step by step."
)
"""The papers' prompt for mathematics (docs/method.md)."""
TWICE = "Question: {question}\nQuestion: {question}\nAnswer:\n"
"""The question twice: read from left to right, a number comes before what it counts; the second time that is known."""
QUESTION = "{question}"
"""For X-CSQA and XNLI, whose questions are the papers' whole prompts."""
TEMPLATES = {"plain": PLAIN, "twice": TWICE, "alpaca": ALPACA, "question": QUESTION}
CHAT = "chat"

_MARK = "QUESTION\u2402MARK"
_PROBE = "What is 2 + 3?"


def template_text(template: str) -> str:
    """The text of a template by its name, or itself. Raises InputError where it has not `{question}` in it, once or twice."""
    text = TEMPLATES.get(template, template)
    if text.count("{question}") not in (1, 2):
        raise InputError(
            f"the prompt template {template!r} is none of {', '.join((*TEMPLATES, CHAT))} and has not {{question}} in it "
            "once or twice"
        )
    return text


def reworded(prompt: PromptSpec, table: Mapping[str, Any]) -> PromptSpec:
    """A checkpoint's prompt with the template and the digits of a recipe's table, where it names them.

    The rest of the table, and a chat template, are of a run without a checkpoint. Raises InputError for a template without
    `{question}`, CheckpointError for `digits` that are not known or another template in place of a chat template.
    """
    template = str(table.get("template", CHAT))
    text = prompt.template if template == CHAT else template_text(template)
    if prompt.before_ids is not None and text != prompt.template:
        raise CheckpointError(
            "the checkpoint's prompt is a chat template with tokens of its own: its words cannot change"
        )
    return replace(prompt, template=text, digits=table.get("digits", prompt.digits))


def prompt_spec(
    llm: LLMSpec,
    template: str = "plain",
    *,
    bos: bool | None = None,
    system: str = "",
    chat_options: Mapping[str, Any] | None = None,
) -> PromptSpec:
    """The prompt of an LLM: `template` is `plain`, `twice`, `alpaca`, `question`, `chat`, or a text with `{question}`.

    `bos`: whether a BOS row comes first; by default where the LLM's tokenizer puts one before a text. `system` and
    `chat_options` (`enable_thinking = false`) go to the chat template.
    Raises InputError for a template without `{question}`, CheckpointError when the LLM lacks what is asked for.
    """
    tokenizer = load_hf_tokenizer(llm)
    if template == CHAT:
        return _chat(llm, tokenizer, bos, system, dict(chat_options or {}))
    text = template_text(template)
    eos = tokenizer.eos_token_id
    if eos is None:
        raise CheckpointError(f"the tokenizer of {llm.name} has no EOS token: nothing would end a response")
    return PromptSpec(text, _bos_id(llm, tokenizer, bos), int(eos), _stop_ids(llm, int(eos)))


def _bos_id(llm: LLMSpec, tokenizer: Any, wanted: bool | None) -> int | None:
    found = tokenizer.bos_token_id
    if wanted is None:
        wanted = found is not None and tokenizer("a")["input_ids"][:1] == [found]
    if not wanted:
        return None
    if found is None:
        raise CheckpointError(f"the tokenizer of {llm.name} has no BOS token: set prompt.bos = false")
    return int(found)


def _stop_ids(llm: LLMSpec, eos: int) -> tuple[int, ...]:
    """EOS, then what else the LLM's own generation settings stop at."""
    ids = [eos]
    for name in ("generation_config.json", "config.json"):
        try:
            more = json.loads((Path(llm.source) / name).read_text(encoding="utf-8")).get("eos_token_id")
        except (OSError, ValueError, AttributeError):
            continue
        ids += [more] if isinstance(more, int) else [entry for entry in more or [] if isinstance(entry, int)]
    return tuple(dict.fromkeys(ids))


def _chat(llm: LLMSpec, tokenizer: Any, bos: bool | None, system: str, options: dict[str, Any]) -> PromptSpec:
    if not tokenizer.chat_template:
        raise CheckpointError(f"the tokenizer of {llm.name} has no chat template: choose another prompt template")
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": _MARK})
    asked = _rendered(llm, tokenizer, messages, add_generation_prompt=True, **options)
    if asked.count(_MARK) != 1:
        raise CheckpointError(f"the chat template of {llm.name} does not repeat the question exactly once")
    bos_text = tokenizer.bos_token or ""
    begins_with_bos = bool(bos_text) and asked.startswith(bos_text)
    if begins_with_bos:
        asked = asked.removeprefix(bos_text)
    bos_id = _bos_id(llm, tokenizer, begins_with_bos if bos is None else bos)
    eos = _end_of_answer(llm, tokenizer, messages, options)
    before, after = asked.split(_MARK)
    template = f"{before.replace('{question}', '')}{{question}}{after.replace('{question}', '')}"
    stops = _stop_ids(llm, eos)
    # As the template is meant to be read: with its special tokens, BOS among them.
    whole = _ids(tokenizer, (bos_text if begins_with_bos else "") + before + _PROBE + after)
    whole = whole[1:] if begins_with_bos else whole
    prompt = PromptSpec(template, bos_id, eos, stops)
    if LLMTokenizer(tokenizer).encode(prompt.render(_PROBE)) == whole:
        return prompt
    return PromptSpec(template, bos_id, eos, stops, *_ids_around(tokenizer, whole, before, after))


def _rendered(llm: LLMSpec, tokenizer: Any, messages: list[dict[str, str]], **options: Any) -> str:
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, **options))
    except Exception as error:  # Jinja's errors, and what a template raises itself
        raise CheckpointError(f"the chat template of {llm.name} cannot be rendered: {error}") from error


def _end_of_answer(llm: LLMSpec, tokenizer: Any, messages: list[dict[str, str]], options: dict[str, Any]) -> int:
    """The special token that the template puts after an answer (`<|im_end|>`, `<end_of_turn>`); EOS where there is none."""
    whole = _rendered(llm, tokenizer, [*messages, {"role": "assistant", "content": "\u2402ANSWER\u2402"}], **options)
    rest = whole.rpartition("\u2402ANSWER\u2402")[2].lstrip()
    for token, number in sorted(tokenizer.get_added_vocab().items(), key=lambda entry: -len(entry[0])):
        if token and rest.startswith(token):
            return int(number)
    if tokenizer.eos_token_id is None:
        raise CheckpointError(
            f"the chat template of {llm.name} ends an answer with no token, and there is no EOS token"
        )
    return int(tokenizer.eos_token_id)


def _ids(tokenizer: Any, text: str) -> list[int]:
    """Ids of a text in which special tokens are special."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []


def _ids_around(tokenizer: Any, whole: list[int], before: str, after: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Ids before and after a question that is tokenised alone; `whole` are those of the template with the probe in it.

    Where the probe's own ids are found in the whole, the rest is taken from there: a SentencePiece tokenizer puts a space
    before every text, so that one before the question would be there twice.
    """
    question = _ids(tokenizer, _PROBE)
    for start in range(len(whole) - len(question) + 1):
        if whole[start : start + len(question)] == question:
            return tuple(whole[:start]), tuple(whole[start + len(question) :])
    return tuple(_ids(tokenizer, before)), tuple(_ids(tokenizer, after))
