"""Hugging Face folder → GGUF → llama.cpp: each family computes what torch computes, and cuts text as its tokenizer does."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mindmerger.llama import LLM
from mindmerger_export import parity, streaming
from mindmerger_export.hf_gguf import About, HFModel, about, open_hf, write_gguf
from mindmerger_export.requantise import read_gguf
from mindmerger_export.tokenizer_proof import probes
from mindmerger_train import llms
from mindmerger_train.llms import LLMSpec
from tests import tiny_llms

TEXT = "Question: What is 15+27? Anna hat 8 Bücher und kauft 5 dazu.\nAnswer:"
STEPS = 16
# How far torch's token is ahead of its second, in logits, and how many starts are looked at for that.
LEAD, TRIES = 0.02, 40
# `mistral-nemo` has a splitting that llama.cpp does not reproduce: see test_llm_tokenizer.py.
FAMILIES = [family for family in tiny_llms.FAMILIES if family != "mistral-nemo"]


class Case:
    """An LLM in torch and its F16 GGUF."""

    def __init__(self, folder: Path, family: str, type: str = "f16", **changes: Any) -> None:
        self.folder = tiny_llms.llm_folder(folder / family, family, **changes)
        self.model: HFModel = open_hf(self.folder)
        self.spec = LLMSpec(str(self.folder), family, family, tiny_llms.WIDTH)
        self.torch: Any = llms.load_llm(self.spec)
        self.encode = llms.load_llm_tokenizer(self.spec).encode
        self.gguf = folder / f"{family}.gguf"
        pre = self.model.prove_tokenizer(folder, strict=False).pre
        write_gguf(self.model, self.gguf, type, About(family), pre)

    @torch.no_grad()
    def logits(self, **inputs: Any) -> Any:
        return self.torch(**inputs).logits[0, -1].numpy()

    @torch.no_grad()
    def greedy(self, start: torch.Tensor) -> tuple[list[int], float]:
        """`STEPS` tokens after embedding rows (1, n, d), computed anew for each; the least lead of one over the second."""
        tokens: list[int] = []
        lead = float("inf")
        for _ in range(STEPS):
            top = torch.from_numpy(self.logits(inputs_embeds=start)).topk(2)
            tokens.append(int(top.indices[0]))
            lead = min(lead, float(top.values[0] - top.values[1]))
            start = torch.cat([start, self.torch.get_input_embeddings()(torch.tensor([tokens[-1:]]))], dim=1)
        return tokens, lead

    def clear(self, starts: Iterable[Start]) -> tuple[Start, list[int]]:
        """The first of `starts` after which torch is never in doubt, and what it says.

        A random model's logits are noise, and llama.cpp keeps keys and values in 16 bits: tokens that torch itself hardly
        tells apart would be a test of rounding. So none is met here, by torch's word alone, and every token must be the same.
        """
        for start in starts:
            tokens, lead = self.greedy(start.embeddings)
            if lead > LEAD:
                return start, tokens
        raise AssertionError("every start leads to tokens that torch hardly tells apart")


@dataclass(frozen=True)
class Start:
    """What torch begins with (1, n, d), and its parts: rows that are no token's (None: none), and ids."""

    embeddings: torch.Tensor
    ids: list[int]
    rows: torch.Tensor | None = None


def continued(llm: LLM) -> list[int]:
    """What llama.cpp goes on with, greedily."""
    tokens = []
    for _ in range(STEPS):
        tokens.append(int(llm.logits().argmax()))
        llm.step(tokens[-1])
    return tokens


def near(case: Case, ids: list[int], bound: float = 1e-4) -> None:
    """llama.cpp's logits of a token sequence are torch's."""
    with LLM(case.gguf, context=128, threads=1) as llm:
        llm.decode_tokens(ids)
        assert parity.kl(case.logits(input_ids=torch.tensor([ids])), llm.logits()) < bound


@pytest.fixture(scope="module", params=FAMILIES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp(request.param), request.param)


def test_token_path(case: Case) -> None:
    near(case, case.encode(TEXT))
    embed = case.torch.get_input_embeddings()
    with torch.no_grad():
        texts = ([*case.encode(TEXT), *case.encode(f" {number}")] for number in range(TRIES))
        start, wanted = case.clear(Start(embed(torch.tensor([ids])), ids) for ids in texts)
    with LLM(case.gguf, context=128, threads=1) as llm:
        llm.decode_tokens(start.ids)
        assert continued(llm) == wanted


def test_injected_rows(case: Case) -> None:
    """BOS, rows that are no token's, then a prompt: as training hands them to torch, as the runtime hands them to llama.cpp."""
    found = parity.find_injection_scale(case.gguf, TEXT, 1, threads=1)
    gemma = case.model.config.shifted_norms
    # What torch's embedding layer multiplies by; rows of a bundle are without it.
    inside = 8.0 if gemma else 1.0
    assert found["identical"] and found["scale"] == (8.0 if case.model.config.architecture == "gemma3" else 1.0)
    embed, ids = case.torch.get_input_embeddings(), case.encode(TEXT)

    def starts() -> Iterator[Start]:
        for seed in range(TRIES):
            torch.manual_seed(seed)
            rows = torch.randn(1, 9, tiny_llms.WIDTH) * float(embed.weight.std())
            whole = torch.cat([embed(torch.tensor([[1]])), rows * inside, embed(torch.tensor([ids]))], dim=1)
            yield Start(whole, ids, rows)

    with torch.no_grad():
        start, wanted = case.clear(starts())
    assert start.rows is not None
    with LLM(case.gguf, context=128, threads=1) as llm:
        llm.decode_tokens([1], logits=False)
        llm.decode_rows(start.rows[0].numpy() * np.float32(found["scale"]))
        llm.decode_tokens(ids)
        assert parity.kl(case.logits(inputs_embeds=start.embeddings), llm.logits()) < 1e-4
        assert continued(llm) == wanted


def test_ids(case: Case) -> None:
    """50 languages, emoji, digits, control characters, through the runtime."""
    normaliser = case.model.vocabulary.normaliser
    assert (normaliser == "NFC") == case.folder.name.startswith("qwen")
    import unicodedata

    with LLM(case.gguf, context=64, threads=1) as llm:
        for text in probes():
            text = unicodedata.normalize("NFC", text) if normaliser else text
            assert llm.tokenise(text) == case.encode(text)
            assert llm.detokenise(llm.tokenise(text)).decode("utf-8").removeprefix(" ") == text.removeprefix(" ")
        assert llm.vocabulary == case.model.config.vocabulary


YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama2", {"attention_bias": True, "mlp_bias": True}),
        ("llama2", {"rope_parameters": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 3.0}}),
        ("qwen2", {"rope_parameters": YARN}),
        ("qwen3", {"rope_parameters": YARN | {"attention_factor": 1.4}}),
        ("gemma3", {"query_pre_attn_scalar": 32, "layer_types": ["full_attention"] * 3}),
        ("gemma3", {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]}),
        # As many blocks as Gemma 2 27B, by which llama.cpp takes another attention scale.
        ("gemma2", {"num_hidden_layers": 46, "intermediate_size": 32, "initializer_range": 0.05}),
        ("qwen2", {"tie_word_embeddings": True}),
        ("llama3", {"tie_word_embeddings": False, "num_key_value_heads": 4}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value)[:30],
)
def test_variants(family: str, changes: dict[str, Any], tmp_path: Path) -> None:
    case = Case(tmp_path, family, **changes)
    near(case, case.encode(TEXT * 2)[:90])


def test_windows_that_llama_cpp_lacks_bound_the_context(tmp_path: Path) -> None:
    model = open_hf(tiny_llms.llm_folder(tmp_path / "mistral", "mistral", sliding_window=48))
    assert (model.config.context, model.config.window) == (48, None)


def test_bfloat16_shards(tmp_path: Path) -> None:
    case = Case(tmp_path, "llama2", "bf16", dtype=torch.bfloat16)
    assert len(list(case.folder.glob("*.safetensors"))) > 1
    assert case.model.half == "bf16"
    near(case, case.encode(TEXT), 5e-3)  # llama.cpp rounds what it multiplies with to 8 bits of precision too
    stored = {tensor.name: tensor for tensor in read_gguf(case.gguf).tensors}
    wanted = case.torch.get_output_embeddings().weight.to(torch.bfloat16).view(torch.int16).numpy()
    assert np.array_equal(np.asarray(stored["output.weight"].data).view(np.int16).reshape(wanted.shape), wanted)


def test_few_rows_at_a_time_and_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(tmp_path, "llama2", "q8_0")
    asked: list[int] = []
    real = streaming.encode

    def encode(values: Any, type: Any, name: str) -> Any:
        asked.append(values.size)
        return real(values, type, name)

    monkeypatch.setattr(streaming, "_BLOCK_WEIGHTS", 1024)
    monkeypatch.setattr(streaming, "encode", encode)
    again = tmp_path / "again.gguf"
    write_gguf(case.model, again, "q8_0", About("llama2"), "default")
    assert again.read_bytes() == case.gguf.read_bytes()
    assert max(asked) <= 1024 and sum(asked) == case.model.parameters


def test_what_the_file_says_of_itself(tmp_path: Path) -> None:
    folder = tiny_llms.llm_folder(tmp_path / "qwen3", "qwen3")
    (folder / "README.md").write_text(
        "---\nlicense: apache-2.0\nlanguage:\n- en\n- zh\nbase_model: Someone/Base-7B\n---\n# A card\n",
        encoding="utf-8",
    )
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 5, 7]}', encoding="utf-8")
    model = open_hf(folder)
    write_gguf(model, tmp_path / "x.gguf", "f16", about(folder, "Mine", "", ("sw",)), "qwen2")
    reader = read_gguf(tmp_path / "x.gguf")
    says = {
        "general.name": "Mine",
        "general.license": "apache-2.0",
        "general.base_model.0.name": "Someone/Base-7B",
        "general.base_model.1.name": "Mine",
        "general.languages": ["en", "zh"],
        "general.type": "model",
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.eot_token_id": 5,
        "tokenizer.ggml.eom_token_id": 7,
    }
    assert {key: reader.get_field(key).contents() for key in says} == says
    assert about(folder, "Mine", "MIT", ("sw",)).licence == "MIT"
    (folder / "README.md").write_text("---\n: no: yaml [\n---\n", encoding="utf-8")
    assert about(folder, "Mine", "MIT", ("sw",)).languages == ("sw",)
