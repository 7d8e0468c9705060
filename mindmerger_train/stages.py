"""The stages: `reason` (the LLM's own adapter), `mapping` and `augmentation` (the merger). Encoder and LLM stay frozen.

* reason: question → English solution, LoRA on the LLM. With a merger at hand, part of the questions come with their soft
  prompt, so that the LLM learns what such rows are (English in, English out).
* mapping: soft prompt → the same text in English; the LLM as shipped, without its adapter.
* augmentation: soft prompt + original question → English solution; the LLM with its adapter.

In all of them `source_dropout` leaves out one source for a share of the examples (DESIGN, "Filtering").
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from tokenizers import Tokenizer
from torch import nn

from mindmerger.errors import CheckpointError
from mindmerger_train.adapter import Pair, read_adapter, write_adapter
from mindmerger_train.checkpoint import Checkpoint, copy_adapter, save_checkpoint
from mindmerger_train.data.sources import Example
from mindmerger_train.encoders import Encoder, pad_right
from mindmerger_train.layout import Row, assemble, response_loss
from mindmerger_train.llms import LLMTokenizer, PromptSpec

# Split with one group: odd parts are what stands between `<<…=` and the end of `>>`.
_CALCULATED = re.compile(r"(?<==)([^<>=]*>>)")

STAGES = ("reason", "mapping", "augmentation")


@dataclass(frozen=True)
class Sources:
    """Shares of examples that see both sources, the soft prompt alone, the question alone; they add up to 1."""

    both: float = 1.0
    soft_prompt: float = 0.0
    question: float = 0.0

    def draw(self, generator: random.Random) -> tuple[bool, bool]:
        """(with soft prompt, with question)."""
        value = generator.random() * (self.both + self.soft_prompt + self.question)
        if value < self.both:
            return True, True
        return (True, False) if value < self.both + self.soft_prompt else (False, True)


@dataclass(frozen=True)
class RowMaker:
    """Examples → rows of ids, for one stage."""

    stage: str
    tokenizer: LLMTokenizer
    prompt: PromptSpec
    encoder_tokenizer: Tokenizer | None
    sources: Sources
    calculator: bool = False

    def rows(self, examples: Iterator[Example], seed: int) -> Iterator[Row]:
        generator = random.Random(seed)
        for example in examples:
            if self.stage == "mapping":
                yield self._row(example.query, None, example.english)
            else:
                soft, question = self.sources.draw(generator)
                yield self._row(example.query if soft else None, example.query if question else None, example.response)

    def _row(self, encoded: str | None, question: str | None, label: str) -> Row:
        encoder_ids = None
        if encoded is not None:
            if self.encoder_tokenizer is None:
                raise CheckpointError(f"stage {self.stage}: rows with a soft prompt need an encoder")
            encoder_ids = self.encoder_tokenizer.encode(encoded.strip()).ids
        prompt_ids = self.tokenizer.encode(self.prompt.render(question.strip())) if question is not None else []
        label_ids, given = self._labels(label)
        return Row(encoder_ids, prompt_ids, [*label_ids, self.prompt.eos_id], given)

    def _labels(self, text: str) -> tuple[list[int], frozenset[int]]:
        """Ids of the response; with a calculator, the positions of what it writes (`42>>` of `<<15+27=42>>`).

        Cut and tokenised as the runtime does it: what is forced is tokenised on its own.
        """
        if not self.calculator:
            return self.tokenizer.encode(text), frozenset()
        ids: list[int] = []
        given: set[int] = set()
        for index, part in enumerate(_CALCULATED.split(text)):
            part_ids = self.tokenizer.encode(part) if part else []
            if index % 2:
                given.update(range(len(ids), len(ids) + len(part_ids)))
            ids += part_ids
        return ids, frozenset(given)


class MergedTask:
    """Loss of a merged model on rows; what is trained is decided by which parameters require gradients."""

    def __init__(self, llm: nn.Module, encoder: Encoder | None, checkpoint: Checkpoint) -> None:
        self.llm = llm
        self.encoder = encoder
        self.checkpoint = checkpoint
        self.trained: nn.Module = checkpoint.merger

    def soft_prompts(self, rows: list[Row]) -> list[torch.Tensor | None]:
        """The soft prompt (n_i + 1, d) of each row that has encoder ids, the boundary row last."""
        chosen = [(i, row.encoder_ids) for i, row in enumerate(rows) if row.encoder_ids is not None]
        prompts: list[torch.Tensor | None] = [None] * len(rows)
        if not chosen or self.encoder is None:
            return prompts
        ids, mask = pad_right([encoder_ids for _, encoder_ids in chosen])
        with torch.no_grad():
            states = self.encoder(ids, mask)
        soft = self.checkpoint.merger(states)
        for (index, encoder_ids), rows_of_one in zip(chosen, soft, strict=True):
            prompts[index] = torch.cat([rows_of_one[: len(encoder_ids)], rows_of_one[-1:]])
        return prompts

    def loss(self, rows: list[Row]) -> tuple[torch.Tensor, int]:
        """Sum of −log p over the response tokens, and their number."""
        llm = cast(Any, self.llm)
        soft = self.soft_prompts(rows)
        batch = assemble(rows, soft, llm.get_input_embeddings(), self.checkpoint.prompt.bos_id)
        return response_loss(self.llm, batch)

    def save(self, folder: Path, training: dict[str, object]) -> None:
        """Write the checkpoint, with the LLM's adapter beside it."""
        checkpoint = self.checkpoint
        adapter = checkpoint.adapter_path()
        llm = checkpoint.llm
        if adapter is not None:
            path, sha256 = copy_adapter(adapter, folder)
            llm = replace(llm, adapter=path, adapter_sha256=sha256)
        save_checkpoint(replace(checkpoint, llm=llm, training={**checkpoint.training, **training}), folder)


class ReasonTask(MergedTask):
    """Trains a LoRA adapter on the LLM; the merger, if there is one, is frozen."""

    def __init__(
        self, llm: nn.Module, encoder: Encoder | None, checkpoint: Checkpoint, rank: int, start: Path | None = None
    ) -> None:
        super().__init__(llm, encoder, checkpoint)
        from peft import LoraConfig, get_peft_model
        from peft.tuners.tuners_utils import BaseTunerLayer

        checkpoint.merger.requires_grad_(False)
        self.alpha = float(rank)
        config = LoraConfig(r=rank, lora_alpha=rank, target_modules="all-linear", lora_dropout=0.0, bias="none")
        model = get_peft_model(cast(Any, llm), config, autocast_adapter_dtype=True)
        self.trained = cast(nn.Module, model)
        self.layers = {
            name.removeprefix("base_model.model.model."): module
            for name, module in model.named_modules()
            if isinstance(module, BaseTunerLayer)
        }
        for module in self.layers.values():
            cast(Any, module).lora_A["default"].float()
            cast(Any, module).lora_B["default"].float()
        if start is not None:
            self._start_from(start)

    def _start_from(self, path: Path) -> None:
        pairs, alpha = read_adapter(path, cast(Any, self.llm).config)
        with torch.no_grad():
            for name, module in self.layers.items():
                layer, pair = cast(Any, module), pairs[name]
                if layer.lora_A["default"].weight.shape != pair.a.shape:
                    raise CheckpointError(f"{path} has rank {pair.a.shape[0]}, this stage is set to {self.alpha:.0f}")
                layer.lora_A["default"].weight.copy_(torch.from_numpy(pair.a))
                layer.lora_B["default"].weight.copy_(torch.from_numpy(pair.b) * (alpha / self.alpha))

    def save(self, folder: Path, training: dict[str, object]) -> None:
        """Write `adapter.gguf`, and the merger's checkpoint if it was trained before."""
        pairs = {
            name: Pair(
                cast(Any, module).lora_A["default"].weight.detach().float().numpy(),
                cast(Any, module).lora_B["default"].weight.detach().float().numpy(),
            )
            for name, module in self.layers.items()
        }
        write_adapter(
            folder / "adapter.gguf", pairs, self.alpha, cast(Any, self.llm).config, f"{self.checkpoint.name} reason"
        )
        if self.encoder is not None:
            path, sha256 = copy_adapter(folder / "adapter.gguf", folder)
            llm = replace(self.checkpoint.llm, adapter=path, adapter_sha256=sha256)
            save_checkpoint(replace(self.checkpoint, llm=llm, folder=folder), folder)
