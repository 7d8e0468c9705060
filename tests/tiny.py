"""Tiny real models, written in milliseconds: a GGUF that llama.cpp runs, an ONNX merger graph, a tokenizer, a bundle.

Two kinds of LLM. `random_llm` has random weights in every tensor, so each input moves every logit. `scripted_llm` is a
Markov chain: its blocks add nothing and its output matrix sends each token to the successor that the script names, so
what it will say is known in advance.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mindmerger.manifest import (
    BakeInfo,
    EncoderInfo,
    FileInfo,
    GenerationInfo,
    GoldenInfo,
    LLMInfo,
    Manifest,
    PromptInfo,
)

Array = npt.NDArray[np.float32]

SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MERGES = ("< <", "> >", "# #", "## ##")
BOS, STOP = 1, 2
WIDTH = 64
ENCODER_VOCABULARY = 2 + 256
ENCODER_MAX_TOKENS = 64
CONTEXT = 256


def byte_characters() -> list[str]:
    """GPT-2's printable stand-in for each byte, in byte order."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table, extra = [], 0
    for byte in range(256):
        if byte in printable:
            table.append(chr(byte))
        else:
            table.append(chr(256 + extra))
            extra += 1
    return table


def vocabulary() -> list[str]:
    """The tiny LLM's tokens: three specials, 256 bytes, and what the merges make."""
    return [*SPECIALS, *byte_characters(), *(merge.replace(" ", "") for merge in MERGES)]


def token_id(text: str) -> int:
    """The id of a token by its text (ASCII)."""
    return vocabulary().index(text.replace(" ", "Ġ").replace("\n", "Ċ"))


def _write_llm(path: Path, tensors: dict[str, Array], blocks: int, quantised: str | None = None) -> Path:
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(blocks)
    writer.add_feed_forward_length(2 * WIDTH)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_dimension_count(WIDTH // 4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_file_type(0)
    writer.add_vocab_size(len(vocabulary()))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(vocabulary())
    writer.add_token_types([3] * len(SPECIALS) + [1] * (len(vocabulary()) - len(SPECIALS)))
    writer.add_token_merges(list(MERGES))
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(STOP)
    writer.add_add_bos_token(False)
    for name, tensor in tensors.items():
        if quantised is not None and tensor.ndim == 2:
            kind = gguf.GGMLQuantizationType[quantised.upper()]
            writer.add_tensor(name, gguf.quants.quantize(tensor, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _block_tensors(draw: Any, blocks: int, silent: bool) -> dict[str, Array]:
    tensors: dict[str, Array] = {}
    for i in range(blocks):
        shapes = {
            "attn_q": (WIDTH, WIDTH),
            "attn_k": (WIDTH // 2, WIDTH),
            "attn_v": (WIDTH // 2, WIDTH),
            "attn_output": (WIDTH, WIDTH),
            "ffn_gate": (2 * WIDTH, WIDTH),
            "ffn_up": (2 * WIDTH, WIDTH),
            "ffn_down": (WIDTH, 2 * WIDTH),
        }
        for name in ("attn_norm", "ffn_norm"):
            tensors[f"blk.{i}.{name}.weight"] = np.ones(WIDTH, dtype=np.float32)
        for name, shape in shapes.items():
            value = draw(shape)
            if silent and name in ("attn_output", "ffn_down"):
                value = np.zeros_like(value)
            tensors[f"blk.{i}.{name}.weight"] = value
    return tensors


def random_llm(path: Path, *, seed: int = 0, blocks: int = 2, quantised: str | None = None) -> Path:
    """A Llama of two blocks with random weights."""
    rng = np.random.default_rng(seed)

    def draw(shape: tuple[int, ...]) -> Array:
        return rng.standard_normal(shape).astype(np.float32) * np.float32(0.3)

    tensors = {"token_embd.weight": draw((len(vocabulary()), WIDTH)), "output_norm.weight": np.ones(WIDTH, np.float32)}
    tensors |= _block_tensors(draw, blocks, silent=False)
    tensors["output.weight"] = draw((len(vocabulary()), WIDTH))
    return _write_llm(path, tensors, blocks, quantised=quantised)


def scripted_llm(path: Path, successors: dict[str, str | int]) -> Path:
    """An LLM that says after each token the one that `successors` names (STOP where it names none)."""
    rng = np.random.default_rng(0)
    embeddings = rng.standard_normal((len(vocabulary()), WIDTH)).astype(np.float32)
    named = {
        token_id(token): next_ if isinstance(next_, int) else token_id(next_) for token, next_ in successors.items()
    }
    tensors = {"token_embd.weight": embeddings, "output_norm.weight": np.ones(WIDTH, np.float32)}
    tensors |= _block_tensors(lambda shape: np.zeros(shape, np.float32), 1, silent=True)
    # 300 random directions in 64 dimensions: only what a token was made for may score
    tensors["output.weight"] = _exact_successors(embeddings, named)
    return _write_llm(path, tensors, 1)


def _exact_successors(embeddings: Array, named: dict[int, int]) -> Array:
    """Output rows under which each token's best successor is the wanted one.

    The successor's row holds the embeddings of its predecessors; STOP, which follows almost all, would be the sum of
    everything, so it wins by a constant direction instead: every embedding is given the same first component.
    """
    embeddings[:, 0] = 8.0
    output = np.zeros_like(embeddings)
    output[STOP, 0] = 8.0
    for token, successor in named.items():
        if successor != STOP:
            direction = embeddings[token].copy()
            direction[0] = 0.0
            output[successor] += 4.0 * direction
            # a little below STOP, unless the token is the one it was made for
            output[successor, 0] -= 8.0
    return output


def adapter(path: Path, *, seed: int = 1, rank: int = 4, alpha: float = 8.0, names: Sequence[str] = ()) -> Path:
    """A LoRA adapter in GGUF form for `random_llm`, on attention and feed-forward tensors of the first block."""
    import gguf

    rng = np.random.default_rng(seed)
    shapes = {
        "blk.0.attn_q.weight": (WIDTH, WIDTH),
        "blk.0.attn_v.weight": (WIDTH // 2, WIDTH),
        "blk.0.ffn_down.weight": (WIDTH, 2 * WIDTH),
    }
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", alpha)
    for name in names or shapes:
        rows, columns = shapes.get(name, (WIDTH, WIDTH))
        writer.add_tensor(f"{name}.lora_a", rng.standard_normal((rank, columns)).astype(np.float32) * np.float32(0.1))
        writer.add_tensor(f"{name}.lora_b", rng.standard_normal((rows, rank)).astype(np.float32) * np.float32(0.1))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def merger_graph(path: Path, *, width: int = WIDTH, seed: int = 0, nan: bool = False) -> Path:
    """A merger graph: a table lookup for each id, then a boundary row."""
    from onnx import TensorProto, helper, numpy_helper, save

    rng = np.random.default_rng(seed)
    table = rng.standard_normal((ENCODER_VOCABULARY, width)).astype(np.float32) * np.float32(0.3)
    if nan:
        table[:] = np.nan
    boundary = rng.standard_normal((1, 1, width)).astype(np.float32) * np.float32(0.3)
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["looked_up"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["mask_column"]),
        helper.make_node("Mul", ["looked_up", "mask_column"], ["mapped"]),
        helper.make_node("Shape", ["input_ids"], ["batch"], start=0, end=1),
        helper.make_node("Concat", ["batch", "one", "one"], ["repeats"], axis=0),
        helper.make_node("Tile", ["boundary", "repeats"], ["boundaries"]),
        helper.make_node("Concat", ["mapped", "boundaries"], ["soft_prompt"], axis=1),
    ]
    constants = {
        "table": table,
        "boundary": boundary,
        "last": np.array([-1], dtype=np.int64),
        "one": np.array([1], dtype=np.int64),
    }
    graph = helper.make_graph(
        nodes,
        "merger",
        [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "length"])
         for name in ("input_ids", "attention_mask")],
        [helper.make_tensor_value_info("soft_prompt", TensorProto.FLOAT, ["batch", "rows", width])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )  # fmt: skip
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), str(path))
    return path


def tokenizer(path: Path) -> Path:
    """A byte-level tokenizer with a start and an end token; 258 ids."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    tokens = {token: i for i, token in enumerate(["<s>", "</s>", *byte_characters()])}
    built = Tokenizer(models.BPE(tokens, []))
    built.add_special_tokens(["<s>", "</s>"])
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    built.save(str(path))
    return path


def file_info(role: str, path: Path, package: str | None = None, name: str | None = None) -> FileInfo:
    """The manifest entry of a file that exists."""
    data = path.read_bytes()
    return FileInfo(role, name or path.name, len(data), hashlib.sha256(data).hexdigest(), package)


@dataclass(frozen=True)
class Recipe:
    """What may differ between tiny manifests."""

    name: str = "tiny"
    method: str = "mindmerger"
    template: str = "Question: {question}\nAnswer:\n"
    width: int = WIDTH
    max_new_tokens: int = 32
    calculator: bool = True
    injection_scale: float = 1.0
    bake: str | None = None
    golden: tuple[GoldenInfo, ...] = ()
    stop_ids: tuple[int, ...] = (STOP, 0)
    bos_id: int | None = BOS
    tools: dict[str, str] = field(default_factory=lambda: {"mindmerger": "0.1.0"})


def manifest(files: Iterable[FileInfo], recipe: Recipe | None = None) -> Manifest:
    """A manifest for tiny models."""
    recipe = recipe or Recipe()
    return Manifest(
        name=recipe.name,
        method=recipe.method,
        languages=("en", "es", "sw"),
        encoder=EncoderInfo(
            name="tiny-encoder", architecture="table", width=WIDTH, layers=(1,), combine="concat",
            max_tokens=ENCODER_MAX_TOKENS, parameters=ENCODER_VOCABULARY * WIDTH, licence="MIT",
            vocabulary=ENCODER_VOCABULARY,
        ),
        llm=LLMInfo(
            name="tiny-llm", architecture="llama", width=recipe.width, vocabulary=len(vocabulary()), context=CONTEXT,
            parameters=100_000, licence="MIT",
        ),
        prompt=PromptInfo(recipe.template, recipe.bos_id, recipe.stop_ids),
        files=tuple(files),
        injection_scale=recipe.injection_scale,
        generation=GenerationInfo(recipe.max_new_tokens, 0.0, recipe.calculator),
        bake=None if recipe.bake is None else BakeInfo(recipe.bake),
        golden=recipe.golden,
        tools=recipe.tools,
    )  # fmt: skip


# After "Answer:\n" this LLM writes an annotation with a wrong sum, then the answer; the calculator corrects the sum.
ARITHMETIC = {
    "\n": "<<", "<<": "4", "4": "8", "8": "/", "/": "2", "2": "=", "=": "9", "9": ">>", ">>": "####", "####": " ",
    " ": "7", "7": STOP,
}  # fmt: skip


def bundle(folder: Path, *, llm: str = "random", recipe: Recipe | None = None) -> Path:
    """A whole bundle in `folder`: `llm` is "random", "arithmetic" (scripted), or "bake" (a base and an adapter)."""
    folder.mkdir(parents=True)
    files = [
        file_info("merger", merger_graph(folder / "merger.onnx")),
        file_info("tokenizer", tokenizer(folder / "tokenizer.json")),
    ]
    if llm == "bake":
        recipe = recipe or Recipe(bake="q8_0")
        files.append(file_info("llm-base", random_llm(folder / "base.gguf", quantised="q8_0")))
        files.append(file_info("adapter", adapter(folder / "adapter.gguf")))
    elif llm == "arithmetic":
        files.append(file_info("llm", scripted_llm(folder / "llm.gguf", ARITHMETIC)))
    else:
        files.append(file_info("llm", random_llm(folder / "llm.gguf")))
    (folder / "manifest.json").write_text(manifest(files, recipe).to_json(), encoding="utf-8")
    return folder
