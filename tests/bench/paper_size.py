"""The papers' sizes on a small machine: mT5-xl's encoder and Llama-2-7B, exported, loaded, asked. Run by hand.

    python tests/bench/paper_size.py --folder DIR_WITH_60_GB        # the published shapes
    python tests/bench/paper_size.py --folder DIR --scale small     # the same path in a minute

Random weights are written shard by shard in the shapes and types that are published (the encoder in float32, the LLM in
bfloat16), a MindMerger merger between them, and then `mm-export` and a question run in processes of their own, whose
anonymous memory (RssAnon, children included) is sampled stage by stage. Prints tables in Markdown for docs/log.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / part) for part in ("runtime", "export", ".")]

from mindmerger.machine import resident  # noqa: E402
from mindmerger_train.checkpoint import Checkpoint, save_checkpoint  # noqa: E402
from mindmerger_train.encoders import EncoderSpec  # noqa: E402
from mindmerger_train.llms import LLMSpec, PromptSpec  # noqa: E402
from tests import tiny_llms, tiny_torch  # noqa: E402

QUESTION = "Ana compra 3 libros de 4 euros. ¿Cuánto paga?"
LIMIT = 10e9
INDEX = "model.safetensors.index.json"

Tensors = Iterator[tuple[str, tuple[int, ...]]]


@dataclass(frozen=True)
class Scale:
    """Sizes of both models."""

    encoder: dict[str, int]
    llm: dict[str, int]


SCALES = {
    "paper": Scale(
        {"d_model": 2048, "d_kv": 64, "d_ff": 5120, "num_layers": 24, "num_heads": 32, "vocab_size": 250112},
        {
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "vocab_size": 32000,
        },
    ),
    "small": Scale(
        {"d_model": 256, "d_kv": 32, "d_ff": 512, "num_layers": 4, "num_heads": 8, "vocab_size": 20000},
        {
            "hidden_size": 512,
            "intermediate_size": 1280,
            "num_hidden_layers": 6,
            "num_attention_heads": 8,
            "vocab_size": 8000,
        },
    ),
}


def encoder_tensors(sizes: dict[str, int]) -> Tensors:
    """mT5's encoder half."""
    width, inner, ffn = sizes["d_model"], sizes["d_kv"] * sizes["num_heads"], sizes["d_ff"]
    yield "shared.weight", (sizes["vocab_size"], width)
    for block in range(sizes["num_layers"]):
        at = f"encoder.block.{block}.layer"
        for name in "qkv":
            yield f"{at}.0.SelfAttention.{name}.weight", (inner, width)
        yield f"{at}.0.SelfAttention.o.weight", (width, inner)
        if block == 0:
            yield f"{at}.0.SelfAttention.relative_attention_bias.weight", (32, sizes["num_heads"])
        yield f"{at}.0.layer_norm.weight", (width,)
        yield f"{at}.1.DenseReluDense.wi_0.weight", (ffn, width)
        yield f"{at}.1.DenseReluDense.wi_1.weight", (ffn, width)
        yield f"{at}.1.DenseReluDense.wo.weight", (width, ffn)
        yield f"{at}.1.layer_norm.weight", (width,)
    yield "encoder.final_layer_norm.weight", (width,)


def llm_tensors(sizes: dict[str, int]) -> Tensors:
    """Llama 2."""
    width, ffn, tokens = sizes["hidden_size"], sizes["intermediate_size"], sizes["vocab_size"]
    yield "model.embed_tokens.weight", (tokens, width)
    for block in range(sizes["num_hidden_layers"]):
        at = f"model.layers.{block}"
        for name in "qkvo":
            yield f"{at}.self_attn.{name}_proj.weight", (width, width)
        yield f"{at}.mlp.gate_proj.weight", (ffn, width)
        yield f"{at}.mlp.up_proj.weight", (ffn, width)
        yield f"{at}.mlp.down_proj.weight", (width, ffn)
        yield f"{at}.input_layernorm.weight", (width,)
        yield f"{at}.post_attention_layernorm.weight", (width,)
    yield "model.norm.weight", (width,)
    yield "lm_head.weight", (tokens, width)


def spread(key: str, shape: tuple[int, ...], blocks: int) -> float:
    """Standard deviation of a random matrix.

    T5's own, and what writes into the residual stream scaled down by its √(2 · blocks) terms, as for any deep network. With
    all alike instead (0.02), a random mT5-xl is chaotic: weights rounded to 8 bits leave rows at a cosine of 0.65.
    """
    inner = shape[-1]
    if key == "shared.weight":
        return 1.0
    if key.endswith("SelfAttention.q.weight"):
        return float((inner * 64) ** -0.5)
    if key.endswith(("SelfAttention.o.weight", "DenseReluDense.wo.weight")):
        return float((inner * 2 * blocks) ** -0.5)
    if key.startswith("encoder."):
        return float(inner**-0.5)
    return 0.02


def write_shards(folder: Path, tensors: Tensors, blocks: int, dtype: torch.dtype, limit: int = 2_000_000_000) -> None:
    """Random weights, never more than a shard of them in memory."""
    torch.manual_seed(0)
    where: dict[str, str] = {}
    shard: dict[str, torch.Tensor] = {}

    def flush() -> None:
        name = f"model-{len(set(where.values())):05d}.safetensors"
        save_file(shard, folder / name, metadata={"format": "pt"})
        where.update(dict.fromkeys(shard, name))
        shard.clear()

    for key, shape in tensors:
        norm = len(shape) == 1
        std = spread(key, shape, blocks)
        shard[key] = torch.ones(shape, dtype=dtype) if norm else torch.empty(shape, dtype=dtype).normal_(std=std)
        if sum(tensor.nbytes for tensor in shard.values()) > limit:
            flush()
    flush()
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))


def write_models(folder: Path, scale: Scale) -> Path:
    """Both models and a checkpoint between them; returns the checkpoint's folder."""
    from transformers import LlamaConfig, MT5Config

    encoder, llm = folder / "encoder", folder / "llm"
    if not (encoder / INDEX).is_file():
        encoder.mkdir(parents=True, exist_ok=True)
        tiny_torch.unigram_tokenizer(encoder / "tokenizer.json")
        MT5Config(**scale.encoder, architectures=["MT5EncoderModel"]).save_pretrained(encoder)
        write_shards(encoder, encoder_tensors(scale.encoder), scale.encoder["num_layers"], torch.float32)
    if not (llm / INDEX).is_file():
        llm.mkdir(exist_ok=True)
        tiny_llms.tokenizer(llm, "spm-llama")
        LlamaConfig(**scale.llm, max_position_embeddings=4096, architectures=["LlamaForCausalLM"]).save_pretrained(llm)
        write_shards(llm, llm_tensors(scale.llm), scale.llm["num_hidden_layers"], torch.bfloat16)
    width, target = scale.encoder["d_model"], scale.llm["hidden_size"]
    checkpoint = Checkpoint(
        tiny_torch.random_merger(width, target),
        EncoderSpec(str(encoder), "mt5-xl", "mt5", width, (), 128, "Apache-2.0"),
        LLMSpec(str(llm), "Llama-2-7b", "llama", target, "llama2"),
        PromptSpec("Question: {question}\nAnswer:", 1, 2, (2,)),
        name="paper-size",
        languages=("en", "es"),
    )
    save_checkpoint(checkpoint, folder / "checkpoint")
    return folder / "checkpoint"


def descendants(pid: int) -> Iterator[int]:
    """`pid` and all its children, by /proc."""
    yield pid
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = task.read_text().split()
        except OSError:
            continue
        for child in children:
            yield from descendants(int(child))


@dataclass
class Stage:
    """What a process took during one of its stages: seconds, and the peak of anonymous bytes, children included."""

    name: str
    began: float
    seconds: float = 0.0
    peak: int = 0


@dataclass
class Measured:
    """One command that ran to its end. `disk`: the most that lay in the hidden folder of its result, in bytes."""

    out: str
    seconds: float
    stages: list[Stage]
    disk: int
    said: list[str]

    @property
    def peak(self) -> int:
        return max(stage.peak for stage in self.stages)

    def table(self) -> list[str]:
        """Lines in Markdown."""
        return [f"| {one.name} | {one.seconds:.1f} s | {one.peak / 1e9:.2f} GB |" for one in self.stages]


def measured(command: list[str], folder: Path) -> Measured:
    """Run `command`; a stage is what it says it begins on stderr (`mm-export: …`), which is passed on."""
    began, over, said = time.monotonic(), threading.Event(), list[str]()
    stages = [Stage("starting the process", began)]
    disk = 0
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)

    def sample() -> None:
        nonlocal disk
        while not over.wait(0.1):
            found = [resident(pid) for pid in descendants(process.pid)]
            now = stages[-1]
            now.peak = max(now.peak, sum(one.anonymous for one in found if one is not None))
            disk = max(disk, sum(size_of(path) for path in folder.glob(".*.tmp/*")))

    def listen() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            print(line, end="", file=sys.stderr, flush=True)
            said.append(line.rstrip())
            name = line.rstrip().removeprefix("mm-export: ")
            # Of a long stage there is a line now and then: its name, a colon, how far it is.
            if line.startswith("mm-export: ") and not name.startswith(f"{stages[-1].name}: "):
                stages[-1].seconds = time.monotonic() - stages[-1].began
                stages.append(Stage(name, time.monotonic()))

    threads = [threading.Thread(target=work, daemon=True) for work in (sample, listen)]
    for thread in threads:
        thread.start()
    assert process.stdout is not None
    out = process.stdout.read()
    process.wait()
    over.set()
    for thread in threads:
        thread.join()
    stages[-1].seconds = time.monotonic() - stages[-1].began
    found = Measured(out, time.monotonic() - began, stages, disk, said)
    if process.returncode:
        print("\n".join(found.table()), flush=True)
        raise SystemExit(f"{command[:3]} ended with {process.returncode}")
    return found


def size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--folder", type=Path, required=True, help="where models and bundle go; models there are used again"
    )
    parser.add_argument("--scale", choices=SCALES, default="paper")
    parser.add_argument("--precision", default="w8")
    parser.add_argument("--llm-type", default="q4_k_m")
    parser.add_argument(
        "--no-compare", action="store_true", help="do not measure what the encoder costs beside the LLM"
    )
    options = parser.parse_args()
    checkpoint, bundle = write_models(options.folder, SCALES[options.scale]), options.folder / "bundle"
    golden = options.folder / "golden.tsv"
    golden.write_text(f"es\t{QUESTION}\n", encoding="utf-8")
    export = [
        sys.executable,
        "-m",
        "mindmerger_export.cli",
        "--checkpoint",
        str(checkpoint),
        "--out",
        str(bundle),
        "--force",
    ]
    export += ["--precision", options.precision, "--llm-type", options.llm_type, "--golden", str(golden)]
    exported = measured([*export, *(["--no-compare"] if options.no_compare else [])], options.folder)
    ask = (
        "import mindmerger, sys\n"
        "with mindmerger.load(sys.argv[1]) as model:\n"
        "    print(len(model.continuation_ids(sys.argv[2], 8)))"
    )
    asked = measured([sys.executable, "-c", ask, str(bundle), QUESTION], options.folder)
    report: dict[str, Any] = json.loads((bundle / "report.json").read_text(encoding="utf-8"))
    parity = report["parity"]
    print(
        f"| {options.scale} size, {options.precision} and {options.llm_type} | time | peak RssAnon |\n|---|---:|---:|"
    )
    print("\n".join(exported.table()))
    bound = "below" if exported.peak < LIMIT else "ABOVE"
    print(f"| **the whole export** | {exported.seconds:.0f} s | {exported.peak / 1e9:.2f} GB, {bound} 10 GB |")
    print(f"| loading and {asked.out.strip()} tokens | {asked.seconds:.1f} s | {asked.peak / 1e9:.2f} GB |\n")
    print(f"on the disk at most {exported.disk / 1e9:.2f} GB; estimated: {estimate(exported.said)}")
    for path in sorted(bundle.iterdir()):
        print(f"{path.name}: {path.stat().st_size / 1e6:,.1f} MB")
    for part in ("rows", "injection", "answers", "loaded"):
        found = parity.get(part, {})
        print(part, {key: value for key, value in found.items() if not key.endswith("_by_text")})
    print("memory", report.get("memory"))
    print("measured", report.get("measured"))


def estimate(said: list[str]) -> str:
    """What the export said that it would take."""
    return next((line.rpartition("; ")[2] for line in said if "; about " in line), "not said")


if __name__ == "__main__":
    main()
