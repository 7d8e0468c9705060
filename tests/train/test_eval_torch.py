"""A checkpoint's answers in torch: equal to a plain loop, to the exported bundle's, and to what training was shown."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mindmerger_train import llms
from mindmerger_train.checkpoint import load_checkpoint, save_checkpoint
from mindmerger_train.encoders import load_encoder, load_tokenizer
from mindmerger_train.evaluation.backends import Reply
from mindmerger_train.evaluation.decoding import Answer, Rules, decode
from mindmerger_train.evaluation.modes import ALONE, ENCODER_ONLY, GATE_OFF, MERGE, NO_LANGUAGE
from mindmerger_train.evaluation.torch_backend import TorchBackend
from mindmerger_train.gate import GateSpec
from mindmerger_train.layout import Row, assemble
from mindmerger_train.stages import MergedTask
from tests import tiny_torch

QUESTIONS = [
    "¿Cuánto es 15 + 27?",
    "Lucía tenía 34 cromos y su primo le regaló 18 más. ¿Cuántos cromos tiene ahora?",
    "2 + 2",
    "Maria ana vitabu 12. Anapata 5. Ana vitabu vingapi?",
    "15 と 27 を足すと?",
]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    return tiny_torch.checkpoint(tmp_path_factory.mktemp("plain"), adapter=True)


@pytest.fixture(scope="module")
def gated(tmp_path_factory) -> Path:
    spec = GateSpec(languages=("es", "sw"), heads=2, granularity="token")
    folder = tiny_torch.checkpoint(tmp_path_factory.mktemp("gated"), method="st-merge", gate=spec)
    checkpoint = load_checkpoint(folder)
    with torch.no_grad():
        checkpoint.merger.gate.output.weight *= 0.1  # no weight so small that it filters: training does not
    save_checkpoint(checkpoint, folder)
    return folder


def answers(backend, mode, tokens: int = 24) -> list[Reply]:
    replies = backend.generate(QUESTIONS, max_tokens=tokens, calculator=None, options=mode.options)
    return sorted(replies, key=lambda reply: reply.index)


def test_batches_are_a_plain_loop(plain):
    """No cache, no padding, one sequence at a time: the definition of greedy decoding."""
    backend = TorchBackend(str(plain), slots=3)
    checkpoint = load_checkpoint(plain)
    llm = llms.load_llm(checkpoint.llm, torch.float32, checkpoint.adapter_path())
    encoder, words = load_encoder(checkpoint.encoder), load_tokenizer(checkpoint.encoder)
    tokenizer = llms.load_llm_tokenizer(checkpoint.llm)
    embed = llm.get_input_embeddings()
    replies = answers(backend, MERGE)
    for question, reply in zip(QUESTIONS, replies, strict=True):
        ids = torch.tensor([words.encode(question).ids])
        with torch.no_grad():
            soft = checkpoint.merger(encoder(ids, torch.ones_like(ids)))[0]
            prompt = tokenizer.encode(f"Question: {question}\nAnswer:\n")
            rows = torch.cat([embed(torch.tensor([1])), soft, embed(torch.tensor(prompt))])
            said: list[int] = []
            while len(said) < 24:
                token = int(llm(inputs_embeds=rows[None]).logits[0, -1].argmax())
                if token in (2, 0):
                    break
                said.append(token)
                rows = torch.cat([rows, embed(torch.tensor([token]))])
        assert reply.text == tokenizer.decode(said)
        assert (reply.tokens, reply.finish) == (len(said), "length" if len(said) == 24 else "stop")


@pytest.mark.parametrize("mode", [MERGE, ALONE, ENCODER_ONLY], ids=lambda mode: mode.name)
def test_the_bundle_says_the_same(plain, mode):
    """Exported without quantisation, the runtime and torch go apart only where two tokens are equally likely."""
    import mindmerger
    from mindmerger_export.bundle_writer import Request, export_bundle

    out = plain.parent / "exact"
    if not out.exists():
        export_bundle(Request(str(plain), out, precision="fp32", llm_type="f32"))
    backend = TorchBackend(str(plain))
    rules = Rules((2, 0), 24, True)
    starts = prefixes(backend, mode)
    found = {answer.place: answer.ids for answer in decode(backend._llm, starts, backend._tokenizer, rules)}
    equal = 0
    with mindmerger.load(out, threads=1) as model:
        for place, question in enumerate(QUESTIONS):
            ids = model.continuation_ids(question, 24, calculator=True, **mode.options)
            pairs = zip(found[place], ids, strict=False)
            differ = next((i for i, (ours, theirs) in enumerate(pairs) if ours != theirs), None)
            if differ is None:
                equal += 1
                continue
            said = backend._llm.get_input_embeddings()(torch.tensor(found[place][:differ], dtype=torch.int64))
            logits = backend._llm(inputs_embeds=torch.cat([starts[place], said])[None]).logits[0, -1]
            assert logits[found[place][differ]] - logits[ids[differ]] < 0.02
    assert equal >= 2


def prefixes(backend: TorchBackend, mode) -> list[torch.Tensor]:
    wish, sources = backend._wishes(**mode.options)
    asked = [backend._prepare(i, question, sources, 1, wish.language) for i, question in enumerate(QUESTIONS)]
    return backend._prefixes(asked, wish, sources)


def test_the_gate_weighs_as_in_training(gated):
    backend = TorchBackend(str(gated))
    checkpoint = load_checkpoint(gated)
    llm = llms.load_llm(checkpoint.llm)
    task = MergedTask(llm, load_encoder(checkpoint.encoder), checkpoint)
    words, tokenizer = load_tokenizer(checkpoint.encoder), llms.load_llm_tokenizer(checkpoint.llm)
    rows = [
        Row(words.encode(question).ids, tokenizer.encode(checkpoint.prompt.render(question)), [])
        for question in QUESTIONS
    ]
    for told, mode in ((None, MERGE), ("unknown", NO_LANGUAGE)):
        with torch.no_grad():
            soft, prompts, _ = task._parts([replace(row, told=told) for row in rows])
            batch = assemble(rows, soft, llm.get_input_embeddings(), 1, prompts)
        for embeddings, mask, prefix in zip(batch.embeddings, batch.mask, prefixes(backend, mode), strict=True):
            torch.testing.assert_close(prefix, embeddings[mask.bool()], atol=1e-5, rtol=1e-4)


def test_gate_off_is_the_plain_merge(gated):
    """Weights of 1: mapped rows and prompt as they are; and neither the gate's own rows nor those without a language."""
    backend = TorchBackend(str(gated))
    off, merged, unknown = (prefixes(backend, mode) for mode in (GATE_OFF, MERGE, NO_LANGUAGE))
    embed = backend._llm.get_input_embeddings()
    for question, prefix, other, third in zip(QUESTIONS, off, merged, unknown, strict=True):
        prompt = embed(torch.tensor(backend._tokenizer.encode(backend._checkpoint.prompt.render(question))))
        assert torch.equal(prefix[-len(prompt) :], prompt)
        assert not torch.equal(prefix, other)
        assert not torch.equal(other, third)


def test_a_question_that_cannot_be_asked_does_not_stop_the_others(plain):
    replies = list(
        TorchBackend(str(plain)).generate(["", "x " * 400, "2 + 2"], max_tokens=4, calculator=None, options={})
    )
    errors = {reply.index: reply.error for reply in replies}
    assert "empty" in errors[0] and "tokens" in errors[1] and errors[2] is None


# --------------------------------------------------------------------------------------------- the calculator


@pytest.fixture(scope="module")
def tokenizer(plain) -> llms.LLMTokenizer:
    return llms.load_llm_tokenizer(load_checkpoint(plain).llm)


def test_the_calculator_writes_what_follows(tokenizer):
    rules = Rules((2, 0), 50, True)
    answer = Answer(0)
    for token in tokenizer.encode("so <<48/2="):
        answer.take(token, tokenizer, rules)
    (nonsense,) = tokenizer.encode("x")
    while answer.waiting:
        answer.take(nonsense, tokenizer, rules)
    assert tokenizer.decode(answer.ids) == "so <<48/2=24>>"
    assert answer.forced == len(tokenizer.encode("24>>"))
    answer.take(2, tokenizer, rules)
    assert answer.finish == "stop"


@pytest.mark.parametrize("text", ["<<48/0=", "a=", "<<x+1=", "1+1="])
def test_the_calculator_is_silent_otherwise(tokenizer, text):
    answer = Answer(0)
    for token in tokenizer.encode(text):
        answer.take(token, tokenizer, Rules((2,), 50, True))
    assert not answer.waiting


def test_forced_tokens_count_and_end_at_the_limit(tokenizer):
    ids = tokenizer.encode("<<123456*1000=")
    rules = Rules((2,), len(ids) + 3, True)
    answer = Answer(0)
    for token in ids + [5] * 10:
        if answer.finish:
            break
        answer.take(token, tokenizer, rules)
    assert answer.finish == "length"
    assert tokenizer.decode(answer.ids) == "<<123456*1000=123"


def test_the_calculator_in_a_batch(plain):
    """An LLM that is a chain (its blocks add nothing) writes a wrong sum; beside it one that writes none."""
    spec = load_checkpoint(plain).llm
    llm, tokenizer = llms.load_llm(spec), llms.load_llm_tokenizer(spec)
    tokenizer._tokenizer.add_tokens(["<<"])
    llm.resize_token_embeddings(len(tokenizer._tokenizer), mean_resizing=False)
    torch.manual_seed(0)
    one = {text: tokenizer.encode(text)[-1] for text in ("a", "b", "<<", "c", "4", "+", "3", "=", "9", ">")}
    successors = {"a": "<<", "<<": "4", "4": "+", "+": "3", "3": "=", "=": "9", ">": "c", "b": "c"}
    with torch.no_grad():
        for name, parameter in llm.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.zero_()
        embeddings, head = llm.get_input_embeddings().weight, llm.get_output_embeddings().weight
        embeddings.normal_()
        embeddings[:, 0] = 8.0
        head.zero_()
        head[2, 0] = 8.0  # whatever has no successor ends the answer
        for before, after in successors.items():
            direction = embeddings[one[before]].clone()
            direction[0] = 0
            head[one[after]] += 4 * direction
        for after in {one[text] for text in successors.values()}:
            head[after, 0] = 0.0
        starts = [embeddings[torch.tensor([1, 1, 1, one["b"]])], embeddings[torch.tensor([1, one["a"]])]]

    def say(calculator: bool) -> dict[int, tuple[str, int]]:
        rules = Rules((2,), 12, calculator)
        answers = decode(llm, starts, tokenizer, rules)
        return {answer.place: (tokenizer.decode(answer.ids), answer.forced) for answer in answers}

    assert say(False) == {0: ("c", 0), 1: ("<<4+3=9", 0)}
    assert say(True) == {0: ("c", 0), 1: ("<<4+3=7>>c", len(tokenizer.encode("7>>")))}
