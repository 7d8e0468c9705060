"""A Hugging Face folder of an LLM → a GGUF in a type that `gguf` itself writes, streamed tensor by tensor.

Configuration, tokenizer and weights have modules of their own; here they become one file. Families: Llama, Mistral, Qwen 2
and 3, Gemma 1 to 3. What this module does not know: K-quants, bundles.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mindmerger.errors import CheckpointError
from mindmerger_export.llm_config import LLMConfig, read_config
from mindmerger_export.llm_tokenizer import Vocabulary, read_vocabulary
from mindmerger_export.llm_weights import Stored, is_half, plan_tensors, stored_tensors
from mindmerger_export.requantise import FILE_TYPES
from mindmerger_export.streaming import Floats, Plan, apply_adapter, write
from mindmerger_export.tokenizer_proof import Proof, choose
from mindmerger_train.llms import LLMSpec, load_llm_tokenizer


@dataclass(frozen=True)
class About:
    """What a GGUF says of itself, beside what it computes."""

    name: str
    licence: str = ""
    base_models: Sequence[str] = ()
    languages: Sequence[str] = ()

    def add_to(self, writer: Any, parameters: int) -> None:
        """Write the general keys."""
        writer.add_type("model")
        writer.add_name(self.name)
        writer.add_size_label(_size_label(parameters))
        writer.add_license(self.licence)
        if self.base_models:
            writer.add_base_model_count(len(self.base_models))
            for index, name in enumerate(self.base_models):
                writer.add_base_model_name(index, name)
        if self.languages:
            writer.add_languages(list(self.languages))


def about(folder: Path, name: str, licence: str = "", languages: Sequence[str] = ()) -> About:
    """What is known of the LLM in `folder`: what the caller says, else the head of its README.md."""
    from gguf import Metadata

    try:
        card = Metadata.load_model_card(folder)
    except Exception:  # a card is written by hand, in YAML
        card = {}

    def listed(key: str) -> tuple[str, ...]:
        value = card.get(key) or ()
        return tuple(str(item) for item in ([value] if isinstance(value, str) else value))

    return About(
        name,
        licence or str(card.get("license") or ""),
        (*listed("base_model"), name) if name not in listed("base_model") else listed("base_model"),
        listed("language") or tuple(languages),
    )


def _size_label(parameters: int) -> str:
    for unit, size in (("B", 10**9), ("M", 10**6)):
        if parameters >= size:
            return f"{parameters / size:.2g}{unit}"
    return f"{max(parameters, 1) / 1000:.2g}K"


@dataclass(frozen=True)
class HFModel:
    """An LLM in a Hugging Face folder, opened and checked, nothing of its weights read yet."""

    folder: Path
    config: LLMConfig
    vocabulary: Vocabulary
    tensors: list[Stored] = field(repr=False)

    @property
    def parameters(self) -> int:
        """Weights that the GGUF will have."""
        return sum(_count(plan.shape) for plan in self.plans("f16"))

    @property
    def half(self) -> str:
        """The 16-bit type that loses least."""
        return "bf16" if is_half(self.tensors) else "f16"

    def plans(self, type: str) -> list[Plan]:
        """The tensors to write, matrices in `type`."""
        from gguf import GGMLQuantizationType

        return plan_tensors(self.config, self.tensors, GGMLQuantizationType[type.upper()])

    def prove_tokenizer(self, folder: Path, strict: bool = True) -> Proof:
        """Compare llama.cpp's ids with transformers'; scratch goes to `folder`. See tokenizer_proof.choose."""
        from gguf import GGUFWriter

        def write_vocabulary(path: Path, pre: str) -> None:
            writer = GGUFWriter(path, self.config.architecture)
            try:
                self.config.add_to(writer)
                self.vocabulary.add_to(writer, pre, self.config.stop_ids)
                write(writer, [])
            finally:
                writer.close()

        encode = load_llm_tokenizer(LLMSpec(str(self.folder), "", "", 0)).encode
        return choose(self.vocabulary, write_vocabulary, encode, folder, strict)


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for length in shape:
        count *= length
    return count


def open_hf(folder: Path) -> HFModel:
    """Read everything of the LLM but its weights. Raises CheckpointError when something is missing or not supported."""
    config = read_config(folder)
    tensors = stored_tensors(folder)
    model = HFModel(folder, config, read_vocabulary(folder, config.vocabulary), tensors)
    model.plans("f16")  # raises for weights that do not fit the configuration
    return model


def write_gguf(
    model: HFModel,
    out: Path,
    type: str,
    about: About,
    pre: str,
    adapter: tuple[Path, dict[str, tuple[Floats, Floats]]] | None = None,
    advance: Callable[[int], None] = lambda _bytes: None,
) -> None:
    """Write `model` to `out` with its matrices in `type`, an adapter's updates added before rounding.

    `advance` is told bytes as they are written. Raises CheckpointError for weights that are not finite, do not fit the type,
    or an adapter of another LLM.
    """
    from gguf import GGUFWriter

    if type not in FILE_TYPES:
        raise ValueError(f"gguf does not write {type}")
    plans = model.plans(type)
    if adapter is not None:
        plans = apply_adapter(plans, adapter[1], adapter[0])
    writer = GGUFWriter(out, model.config.architecture)
    try:
        about.add_to(writer, model.parameters)
        model.config.add_to(writer)
        writer.add_file_type(FILE_TYPES[type])
        writer.add_quantization_version(2)
        model.vocabulary.add_to(writer, pre, model.config.stop_ids)
        write(writer, plans, advance)
    except (ValueError, AssertionError) as error:  # a damaged file may end in numpy's or gguf's words
        raise CheckpointError(f"the LLM in {model.folder} cannot be written as GGUF ({error})") from None
    finally:
        writer.close()
