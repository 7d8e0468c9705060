"""Examples → rows of ids: what each stage sees, and what the calculator takes off the LLM's hands."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mindmerger.errors import CheckpointError, InputError
from mindmerger_train import llms
from mindmerger_train.build import row_maker
from mindmerger_train.checkpoint import load_checkpoint, resolve_checkpoint
from mindmerger_train.data.sources import Example
from mindmerger_train.layout import Row, assemble
from mindmerger_train.merger import Merger
from mindmerger_train.recipe import load_recipe
from mindmerger_train.stages import RowMaker, Sources

NANO = Path(__file__).parents[2] / "models" / "recipes" / "nano"
EXAMPLE = Example("es", "¿Cuánto es 2 + 3?", "What is 2 + 3?", "2+3 = <<2+3=5>>5 and <<5*2=10>>10\n#### 10")


class Encoding:
    ids = (0, 7, 2)


class EncoderTokenizer:
    def encode(self, text, language=""):
        return Encoding()


@pytest.fixture(scope="module")
def tokenizer():
    return llms.load_llm_tokenizer(llms.default_spec())


def make(tokenizer, stage, sources=None, calculator=True, encoder=True):
    prompt = llms.default_prompt()
    sources = sources or Sources()
    return RowMaker(stage, tokenizer, prompt, EncoderTokenizer() if encoder else None, sources, calculator)


def test_mapping_rows_have_no_prompt_and_say_the_text_in_english(tokenizer):
    row = next(make(tokenizer, "mapping", calculator=False).rows(iter([EXAMPLE]), 0))
    assert (row.encoder_ids, row.prompt_ids) == ((0, 7, 2), [])
    assert tokenizer.decode(list(row.label_ids[:-1])) == EXAMPLE.english
    assert row.label_ids[-1] == 2


def test_augmentation_rows_hold_the_original_question(tokenizer):
    row = next(make(tokenizer, "augmentation").rows(iter([EXAMPLE]), 0))
    assert tokenizer.decode(list(row.prompt_ids)) == f"Question: {EXAMPLE.query}\nAnswer:\n"
    assert tokenizer.decode(list(row.label_ids[:-1])) == EXAMPLE.response


def test_the_llm_is_given_digits_that_it_knows_and_the_encoder_the_question_as_it_is(tokenizer):
    heard = []

    class Listening(EncoderTokenizer):
        def encode(self, text, language=""):
            heard.append(text)
            return super().encode(text, language)

    maker = RowMaker("augmentation", tokenizer, llms.default_prompt(), Listening(), Sources())
    row = next(maker.rows(iter([Example("bn", "৪ + ৫?", "4 + 5?", "#### 9")]), 0))
    assert tokenizer.decode(list(row.prompt_ids)) == "Question: 4 + 5?\nAnswer:\n" and heard == ["৪ + ৫?"]
    old = llms.PromptSpec.from_json({**llms.default_prompt().to_json(), "digits": None})
    assert old.render("৪").startswith("Question: ৪") and "digits" not in old.to_json()
    assert llms.PromptSpec.from_json(llms.default_prompt().to_json()) == llms.default_prompt()
    with pytest.raises(CheckpointError, match=r"prompt\.digits"):
        llms.PromptSpec("{question}", None, 2, (2,), digits="roman")


def test_what_the_calculator_writes_is_given(tokenizer):
    row = next(make(tokenizer, "augmentation").rows(iter([EXAMPLE]), 0))
    given = tokenizer.decode([row.label_ids[index] for index in sorted(row.given)])
    assert given == "5>>10>>"
    # The same ids as in one piece: cutting must not change what the LLM reads.
    assert list(row.label_ids[:-1]) == tokenizer.encode(EXAMPLE.response)
    embed = torch.nn.Embedding(49152, 4)
    batch = assemble([row], [torch.zeros(4, 4)], embed, 1)
    asked = [label for index, label in enumerate(row.label_ids) if index not in row.given]
    assert batch.targets.tolist() == asked
    positions = [index for index in range(len(row.label_ids)) if index not in row.given]
    before = row.length() - len(row.label_ids)
    assert batch.places.tolist() == [before + position - 1 for position in positions]
    assert row.length() == batch.embeddings.shape[1]


def test_without_a_calculator_all_is_asked_for(tokenizer):
    row = next(make(tokenizer, "augmentation", calculator=False).rows(iter([EXAMPLE]), 0))
    assert not row.given


def test_source_dropout_has_the_given_shares(tokenizer):
    maker = make(tokenizer, "augmentation", Sources(both=0.5, soft_prompt=0.3, question=0.2))
    rows = list(maker.rows(itertools.repeat(EXAMPLE, 1000), 0))
    both = sum(row.encoder_ids is not None and bool(row.prompt_ids) for row in rows)
    soft = sum(not row.prompt_ids for row in rows)
    assert 430 < both < 570
    assert 240 < soft < 360
    assert all(row.encoder_ids is not None or row.prompt_ids for row in rows)


def test_a_retold_question_follows_the_first_words_of_the_prompt(tokenizer):
    maker = make(tokenizer, "augmentation", Sources(retell=0.25))
    rows = list(maker.rows(itertools.repeat(EXAMPLE, 1000), 0))
    retold = [row for row in rows if tokenizer.decode(list(row.prompt_ids)) == "Question:"]
    assert 190 < len(retold) < 310
    assert tokenizer.decode(list(retold[0].label_ids)) == f" {EXAMPLE.english}\nAnswer:\n"
    assert retold[0].encoder_ids == (0, 7, 2) and not retold[0].given
    whole = [*retold[0].prompt_ids, *retold[0].label_ids]
    assert whole == tokenizer.prompt_ids(maker.prompt, EXAMPLE.english)
    others = [row for row in rows if len(row.prompt_ids) > 4]
    assert len(others) + len(retold) == 1000
    assert others[0].label_ids[-1] == maker.prompt.eos_id


def test_a_text_without_a_solution_is_retold_and_one_without_english_solved(tokenizer):
    maker = make(tokenizer, "augmentation", Sources(retell=0.01))
    text, question = Example("sw", "Habari?", "How are you?"), Example("sw", "2 + 3?", "", "#### 5")
    for row in itertools.islice(maker.rows(itertools.repeat(text), 0), 20):
        assert tokenizer.decode(list(row.label_ids)) == " How are you?\nAnswer:\n"
    for row in itertools.islice(maker.rows(itertools.repeat(question), 0), 20):
        assert tokenizer.decode(list(row.label_ids)) == "#### 5"


def test_without_retelling_no_row_changes(tokenizer):
    """The n-th row follows from the seed: recipes of before draw what they drew."""
    drawn = [Sources(both=0.5, soft_prompt=0.5).draw(random.Random(seed)) for seed in range(20)]
    maker = make(tokenizer, "augmentation", Sources(both=0.5, soft_prompt=0.5))
    for seed, (_, question) in enumerate(drawn):
        assert bool(next(maker.rows(iter([EXAMPLE]), seed)).prompt_ids) == question


def test_a_restated_response_begins_with_the_question_in_english(tokenizer):
    maker = make(tokenizer, "augmentation", Sources(both=0.5, soft_prompt=0.3, question=0.2, restate=True))
    wide = Example("es", EXAMPLE.query, "What is\n 2 + 3?", EXAMPLE.response)
    for row in itertools.islice(maker.rows(itertools.repeat(wide), 0), 20):
        assert tokenizer.decode(list(row.label_ids[:-1])) == f"What is 2 + 3?\n{EXAMPLE.response}"
        assert row.label_ids[-1] == maker.prompt.eos_id
        given = tokenizer.decode([row.label_ids[index] for index in sorted(row.given)])
        assert given == "5>>10>>"


def test_a_restated_text_without_a_solution_ends_with_its_line_and_one_without_english_is_solved(tokenizer):
    maker = make(tokenizer, "augmentation", Sources(restate=True))
    text, question = Example("sw", "Habari?", "How are you?"), Example("sw", "2 + 3?", "", "#### 5")
    rows = list(maker.rows(iter([text, question]), 0))
    assert [tokenizer.decode(list(row.label_ids)) for row in rows] == ["How are you?\n", "#### 5"]
    assert maker.prompt.eos_id not in rows[0].label_ids and rows[1].label_ids[-1] == maker.prompt.eos_id


def test_english_rows_with_both_sources_are_veiled_for_the_llm_and_not_for_the_encoder(tokenizer):
    heard = []

    class Listening(EncoderTokenizer):
        def encode(self, text, language=""):
            heard.append(text)
            return super().encode(text, language)

    sources = Sources(both=0.6, soft_prompt=0.2, question=0.2, veiled=0.5)
    maker = RowMaker("reason", tokenizer, llms.default_prompt(), Listening(), sources)
    plain = "Question: Ann has 12 red apples, and 3 pears.\nAnswer:\n"
    english = Example("en", "Ann has 12 red apples, and 3 pears.", "Ann has 12 red apples, and 3 pears.", "#### 15")
    rows = list(maker.rows(itertools.repeat(english, 400), 0))
    prompts = [(row.encoder_ids, tokenizer.decode(list(row.prompt_ids))) for row in rows if row.prompt_ids]
    both = [prompt for soft, prompt in prompts if soft is not None]
    assert 0.4 < sum(prompt != plain for prompt in both) / len(both) < 0.6
    assert all(prompt == plain for soft, prompt in prompts if soft is None)
    assert set(heard) == {english.query}
    spanish = [tokenizer.decode(list(row.prompt_ids)) for row in maker.rows(itertools.repeat(EXAMPLE, 60), 0)]
    assert set(spanish) <= {"", f"Question: {EXAMPLE.query}\nAnswer:\n"}


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
@pytest.mark.parametrize("name", ["retell", "veiled"])
def test_a_share_that_is_none_is_refused(name, share):
    with pytest.raises(InputError, match=rf"sources\.{name}"):
        Sources(**{name: share})


def test_soft_prompts_need_an_encoder(tokenizer):
    with pytest.raises(CheckpointError, match="need an encoder"):
        next(make(tokenizer, "augmentation", encoder=False).rows(iter([EXAMPLE]), 0))


def test_row_length_counts_bos_and_boundary():
    assert Row([1, 2], [3], [4, 5]).length() == 1 + 3 + 1 + 2
    assert Row(None, [3], [4]).length() == 3


def maker_of(method, **sources):
    """Rows of a shipped recipe with other sources, for the packaged models with a merger of the method."""
    recipe = replace(load_recipe(NANO / "1-reason.toml"), sources=Sources(**sources))
    checkpoint = load_checkpoint(resolve_checkpoint("mindmerger"))
    return row_maker(recipe, replace(checkpoint, merger=Merger(1152, 576, method)))


@pytest.mark.parametrize(("method", "has"), [("langbridge", (True, False)), ("mono", (False, True))])
def test_a_method_with_one_source_sees_it_alone_and_restates(method, has):
    maker = maker_of(method, restate=True)
    for row in maker.rows(itertools.repeat(EXAMPLE, 20), 0):
        assert (row.encoder_ids is not None, bool(row.prompt_ids)) == has
        assert maker.tokenizer.decode(list(row.label_ids[:-1])) == f"{EXAMPLE.english}\n{EXAMPLE.response}"


def test_langbridge_retells_and_the_llm_alone_cannot():
    text = Example("sw", "Habari?", "How are you?")
    maker = maker_of("langbridge", retell=0.5)
    row = next(maker.rows(iter([text]), 0))
    assert maker.tokenizer.decode(list(row.label_ids)) == " How are you?\nAnswer:\n"
    with pytest.raises(InputError, match="mono is the LLM alone"):
        maker_of("mono", retell=0.5)
