"""The stages: `reason` (the LLM's own adapter), `mapping` and `augmentation` (the merger). Encoder and LLM stay frozen.

* reason: question → English solution, LoRA on the LLM. With a merger at hand, part of the questions come with their soft
  prompt, so that the LLM learns what such rows are (English in, English out).
* mapping: soft prompt → the same text in English; the LLM as shipped, without its adapter.
* augmentation: soft prompt + original question → English solution; the LLM with its adapter. Beside that, soft prompt → the
  same question in English, where the recipe wants it (`sources.retell`).
* steering: the same; what learns is ST-Merge's gate, and the mapping if wanted.

In all but mapping, `Sources` leaves out one source for a share of the examples (DESIGN, "Filtering").
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from mindmerger.errors import CheckpointError, InputError
from mindmerger_train.adapter import Pair, check_adaptable, read_adapter, write_adapter
from mindmerger_train.checkpoint import Checkpoint, copy_adapter, save_checkpoint
from mindmerger_train.data.sources import Example
from mindmerger_train.encoder_tokenizer import EncoderTokenizer
from mindmerger_train.encoders import Encoder
from mindmerger_train.gate import Gate, Weights
from mindmerger_train.layout import Row, assemble, response_loss
from mindmerger_train.llms import LLMTokenizer, PromptSpec
from mindmerger_train.merger import Merger
from mindmerger_train.steering import Steering, WeightLog, embed_prompts, language_loss, weigh
from mindmerger_train.tables import at_least
from mindmerger_train.transfer import device_of, index_rows, whole_numbers
from mindmerger_train.trunk import embedding_of
from mindmerger_train.veil import veiled

# Split with one group: odd parts are what stands between `<<…=` and the end of `>>`.
_CALCULATED = re.compile(r"(?<==)([^<>=]*>>)")

STAGES = ("reason", "mapping", "augmentation", "steering")


@dataclass(frozen=True)
class Sources:
    """Shares of examples that see both sources, the soft prompt alone, the question alone; they add up to 1.

    `retell`: the share of all examples that is taken out before, to be retold: the soft prompt alone, and what is asked for is
    the question in English. A text without a solution is always retold where this is above 0.
    `restate`: every response begins with the question in English, on its own line: all of it for a text without a solution.
    `veiled`: the share of the English rows with both sources whose prompt has the question behind a veil (veil.py).
    """

    both: float = 1.0
    soft_prompt: float = 0.0
    question: float = 0.0
    retell: float = 0.0
    restate: bool = False
    veiled: float = 0.0

    def __post_init__(self) -> None:
        at_least(0, "sources.", both=self.both, soft_prompt=self.soft_prompt, question=self.question)
        for name, share in (("retell", self.retell), ("veiled", self.veiled)):
            if not 0 <= share <= 1:
                raise InputError(f"sources.{name} is a share, at least 0 and at most 1, not {share!r}")
        if not self.both + self.soft_prompt + self.question > 0:
            raise InputError("sources: at least one of both, soft_prompt and question must be above 0")

    def draw(self, generator: random.Random) -> tuple[bool, bool]:
        """(with soft prompt, with question)."""
        value = generator.random() * (self.both + self.soft_prompt + self.question)
        if value < self.both:
            return True, True
        return (True, False) if value < self.both + self.soft_prompt else (False, True)

    def retells(self, example: Example, generator: random.Random) -> bool:
        """Whether this example is to be retold."""
        if not self.retell or not example.english:
            return False
        return not example.response or generator.random() < self.retell


@dataclass(frozen=True)
class RowMaker:
    """Examples → rows of ids, for one stage."""

    stage: str
    tokenizer: LLMTokenizer
    prompt: PromptSpec
    encoder_tokenizer: EncoderTokenizer | None
    sources: Sources
    calculator: bool = False
    steering: Steering = field(default_factory=Steering)

    def rows(self, examples: Iterator[Example], seed: int) -> Iterator[Row]:
        generator = random.Random(seed)
        for example in examples:
            if self.stage == "mapping":
                yield self._row(example.query, None, example.english, example.language)
                continue
            if self.sources.retells(example, generator):
                yield self._retold(example)
                continue
            soft, question = self.sources.draw(generator)
            query = asked = example.query
            if self._veils(soft and question, example, generator):
                asked = veiled(query, generator)
            row = self._row(
                query if soft else None,
                asked if question else None,
                self._label(example),
                example.language,
                ends=bool(example.response),
            )
            if self.stage == "steering":
                row = replace(row, language=example.language, told=self.steering.draw(example.language, generator))
            yield row

    def _veils(self, both: bool, example: Example, generator: random.Random) -> bool:
        # Nothing is drawn where nothing can be veiled: other recipes keep the rows that their seeds gave them.
        return (
            both and example.language == "en" and self.sources.veiled > 0 and generator.random() < self.sources.veiled
        )

    def _label(self, example: Example) -> str:
        """What is asked for. Restated, a text without a solution ends with its line, and not with the end of an answer."""
        if not self.sources.restate or not example.english:
            return example.response
        return f"{' '.join(example.english.split())}\n{example.response}"

    def _retold(self, example: Example) -> Row:
        """Soft prompt and the prompt's first words → the rest of the prompt, with the English question in it.

        The LLM has its adapter, which solves whatever it is given; the prompt's first words say that the question comes first.
        """
        prompt = self.tokenizer.prompt_ids(self.prompt, example.english.strip())
        other = self.tokenizer.prompt_ids(self.prompt, "")
        start = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(prompt, other, strict=False)))
        return Row(self._encoder_ids(example.query, example.language), prompt[:start], prompt[start:])

    def _encoder_ids(self, text: str, language: str) -> Sequence[int]:
        if self.encoder_tokenizer is None:
            raise CheckpointError(f"stage {self.stage}: rows with a soft prompt need an encoder")
        return self.encoder_tokenizer.encode(text.strip(), language).ids

    def _row(self, encoded: str | None, question: str | None, label: str, language: str, *, ends: bool = True) -> Row:
        encoder_ids = None if encoded is None else self._encoder_ids(encoded, language)
        prompt_ids = self.tokenizer.prompt_ids(self.prompt, question.strip()) if question is not None else []
        label_ids, given = self._labels(label)
        return Row(encoder_ids, prompt_ids, [*label_ids, self.prompt.eos_id] if ends else label_ids, given)

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

    def to(self, device: torch.device) -> None:
        """Move everything that a step needs to a device."""
        for part in (self.llm, self.encoder, self.checkpoint.merger, self.trained):
            if part is not None:
                part.to(device)

    def soft_prompts(self, rows: list[Row]) -> list[torch.Tensor | None]:
        """The soft prompt (n_i + 1, d) of each row that has encoder ids, weighted by the gate, the boundary row last."""
        return self._parts(rows)[0]

    def _parts(self, rows: list[Row]) -> tuple[list[torch.Tensor | None], list[torch.Tensor | None], torch.Tensor]:
        """Soft prompts, weighted prompts (None: as the tokens are), and the language head's share of the loss."""
        chosen = [i for i, row in enumerate(rows) if row.encoder_ids is not None]
        soft: list[torch.Tensor | None] = [None] * len(rows)
        prompts: list[torch.Tensor | None] = [None] * len(rows)
        extra = torch.zeros((), device=device_of(self.llm))
        if not chosen or self.encoder is None:
            return soft, prompts, extra
        with torch.no_grad():
            states, mask = self.encoder.states([rows[i].encoder_ids or [] for i in chosen])
        merged = self.checkpoint.merger(states)
        for place, index in enumerate(chosen):
            length = len(rows[index].encoder_ids or [])
            soft[index] = torch.cat([merged[place, :length], merged[place, -1:]])
        if self.checkpoint.merger.gate is not None:
            # Without a prompt there is nothing to weigh one source against.
            places = [place for place, index in enumerate(chosen) if rows[index].prompt_ids]
            if places:
                states, mask, merged = (index_rows(part, places) for part in (states, mask, merged))
                extra = self._weigh(rows, [chosen[p] for p in places], states, mask, merged, soft, prompts)
        return soft, prompts, extra

    def _weigh(
        self,
        rows: list[Row],
        chosen: list[int],
        states: torch.Tensor,
        mask: torch.Tensor,
        merged: torch.Tensor,
        soft: list[torch.Tensor | None],
        prompts: list[torch.Tensor | None],
    ) -> torch.Tensor:
        """Weigh the soft prompts and prompts of `chosen` in place; returns the language head's loss."""
        gate = cast(Gate, self.checkpoint.merger.gate)
        embedded, prompt_mask = embed_prompts(embedding_of(self.llm), [rows[index].prompt_ids for index in chosen])
        weights = weigh(gate, states, mask, merged, embedded, prompt_mask, [rows[i].told for i in chosen])
        for place, index in enumerate(chosen):
            own, prompt = cast(torch.Tensor, soft[index]), embedded[place, : len(rows[index].prompt_ids)]
            encoder, llm = weights.encoder[place][: len(own) - 1], weights.llm[place][: len(prompt)]
            soft[index] = torch.cat([own[:-1] * encoder.to(own.dtype), own[-1:]])
            prompts[index] = prompt * llm.to(prompt.dtype)
        return self._look_at(gate, weights, mask, prompt_mask, [rows[index] for index in chosen])

    def _look_at(
        self, gate: Gate, weights: Weights, mask: torch.Tensor, prompt_mask: torch.Tensor, rows: list[Row]
    ) -> torch.Tensor:
        """What a stage that trains the gate wants to know of its weights; a loss to add to the answer's."""
        return weights.language.new_zeros(())

    def loss(self, rows: list[Row]) -> tuple[torch.Tensor, int]:
        """Sum of −log p over the response tokens (with what a stage adds to it in training), and their number."""
        soft, prompts, extra = self._parts(rows)
        batch = assemble(rows, soft, embedding_of(self.llm), self.checkpoint.prompt.bos_id, prompts)
        loss, count = response_loss(self.llm, batch)
        return loss + extra, count

    def save(self, folder: Path, training: dict[str, object]) -> None:
        """Write the checkpoint, with the LLM's adapter beside it."""
        checkpoint = self.checkpoint
        adapter = checkpoint.adapter_path()
        llm = checkpoint.llm
        if adapter is not None:
            path, sha256 = copy_adapter(adapter, folder)
            llm = replace(llm, adapter=path, adapter_sha256=sha256)
        save_checkpoint(replace(checkpoint, llm=llm, training={**checkpoint.training, **training}), folder)


class SteeringTask(MergedTask):
    """Trains ST-Merge's gate, and the mapping at a rate of its own if wanted."""

    def __init__(self, llm: nn.Module, encoder: Encoder, checkpoint: Checkpoint, steering: Steering) -> None:
        super().__init__(llm, encoder, checkpoint)
        self.steering = steering
        self.log = WeightLog()
        merger = checkpoint.merger
        merger.requires_grad_(steering.train_mapping)
        if merger.gate is None:
            raise CheckpointError("the stage steering needs a merger with a gate")
        merger.gate.requires_grad_(True)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """For the optimiser: parameters, and their `rate` as a multiple of the schedule's."""
        merger = self.checkpoint.merger
        gate = list(cast(Gate, merger.gate).parameters())
        known = {id(parameter) for parameter in gate}
        rest = [p for p in merger.parameters() if p.requires_grad and id(p) not in known]
        groups = [{"params": gate, "rate": 1.0}]
        return groups + ([{"params": rest, "rate": self.steering.mapping_rate}] if rest else [])

    def _look_at(
        self, gate: Gate, weights: Weights, mask: torch.Tensor, prompt_mask: torch.Tensor, rows: list[Row]
    ) -> torch.Tensor:
        languages = [row.language for row in rows]
        if not torch.is_grad_enabled():  # evaluation: the answer's loss alone, and a look at the weights
            self.log.add(gate, weights, mask, prompt_mask, languages)
            return weights.language.new_zeros(())
        tokens = whole_numbers([len(row.label_ids) for row in rows], mask.device)
        return self.steering.language_loss * (language_loss(gate, weights, languages) * tokens).sum()

    def report(self) -> dict[str, object]:
        """Mean and spread of both weights per language over the rows evaluated since the last report."""
        return self.log.take()


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
        check_adaptable(cast(Any, llm).config, self.layers)
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

    def loss(self, rows: list[Row]) -> tuple[torch.Tensor, int]:
        """As for every stage. Under autocast peft need not cast each layer's input up to float32, which costs 5 % of a step."""
        casting = not torch.is_autocast_enabled(device_of(self.llm).type)
        for module in self.layers.values():
            cast(Any, module).cast_input_dtype_enabled = casting
        return super().loss(rows)

    def save(self, folder: Path, training: dict[str, object]) -> None:
        """Write `adapter.gguf` and a checkpoint: of the merger that was there, else of the LLM alone (method `mono`)."""
        pairs = {
            name: Pair(
                cast(Any, module).lora_A["default"].weight.detach().float().cpu().numpy(),
                cast(Any, module).lora_B["default"].weight.detach().float().cpu().numpy(),
            )
            for name, module in self.layers.items()
        }
        write_adapter(
            folder / "adapter.gguf", pairs, self.alpha, cast(Any, self.llm).config, f"{self.checkpoint.name} reason"
        )
        path, sha256 = copy_adapter(folder / "adapter.gguf", folder)
        llm = replace(self.checkpoint.llm, adapter=path, adapter_sha256=sha256)
        checkpoint = self.checkpoint
        if self.encoder is None:
            merger = Merger(checkpoint.encoder.output_width, checkpoint.llm.width, "mono")
            checkpoint = replace(checkpoint, merger=merger, training={**checkpoint.training, **training})
        else:  # the merger's own training stays on record
            checkpoint = replace(checkpoint, training={**checkpoint.training, "adapter": training})
        save_checkpoint(replace(checkpoint, llm=llm, folder=folder), folder)
