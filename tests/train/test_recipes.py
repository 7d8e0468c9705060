"""Recipes: the shipped ones load, and mistakes are named."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mindmerger.errors import DataError, InputError
from mindmerger_train.recipe import load_recipe, load_sources

FOLDER = Path(__file__).parents[2] / "models" / "recipes"
RECIPES = sorted((FOLDER / "nano").glob("*.toml"))


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*/*.toml")), ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_shipped_recipes_load(path):
    recipe = load_recipe(path)
    assert recipe.schedule.tokens > 0
    assert recipe.data


def test_overrides():
    recipe = load_recipe(RECIPES[0], ["schedule.lr=2e-3", "rank=4", "data.gsm8k.languages=['en']"])
    assert (recipe.schedule.lr, recipe.rank) == (2e-3, 4)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("schedule.speed=1", "unknown key 'schedule.speed'"),
        ("scedule.lr=1", "unknown key 'scedule'"),
        ("stage=dance", "none of reason"),
        ("rank", "KEY=VALUE"),
        ("rank=half", "rank must be a whole number, not 'half'"),
        ("rank=0", "rank must be at least 1"),
        ("longest='long'", "longest must be a whole number"),
        ("held_out=-1", "held_out must be at least 0"),
        ("languages=es", "languages must be a list, not 'es'"),
        ("layers=[4, 'last']", "layers must be a whole number, not 'last'"),
        ("calculator=1", "calculator must be true or false"),
        ("schedule=1", "schedule is a table, not 1"),
        ("schedule.lr=fast", "schedule.lr must be a number, not 'fast'"),
        ("schedule.lr=-1", "schedule.lr must be above 0"),
        ("schedule.lr=nan", "schedule.lr must be a number"),
        ("schedule.tokens=1.5", "schedule.tokens must be a whole number"),
        ("schedule.betas=[0.9]", "schedule.betas must be a list of 2"),
        ("schedule.betas=[0.9, 1]", "below 1"),
        ("schedule.clip=0", "schedule.clip must be above 0"),
        ("schedule.final_lr=-1", "schedule.final_lr must be at least 0"),
        ("sources.both=-1", "sources.both must be at least 0"),
        ("sources={both = 0}", "at least one of both"),
        ("sources.retell=2", "sources.retell is a share"),
        ("steering.told=0.99", "together at most 1"),
        ("steering.train_mapping=yes", "steering.train_mapping must be true or false, not 'yes'"),
        ("states.gigabytes=much", "states.gigabytes must be a number"),
        ("gate.heads=many", "gate.heads must be a whole number"),
        ("data.gsm8k=3", "data.gsm8k must be a table, not 3"),
        ("data={}", "names no data"),
        ("stage.name=reason", "stage is no table"),
    ],
)
def test_wrong_keys_and_values_are_named(override, message):
    with pytest.raises(InputError, match=message):
        load_recipe(RECIPES[0], [override])


@pytest.mark.parametrize(
    "table", ["", "[schedule]\nlr = 1e-3\ntokens = 5\n[data.x]\n", 'stage = "mapping"\n[schedule]\nlr = 1.0\n']
)
def test_what_a_recipe_lacks_is_named(tmp_path, table):
    (tmp_path / "r.toml").write_text(table)
    with pytest.raises(InputError, match=r"r\.toml: the key '\w+(\.\w+)?' is missing"):
        load_recipe(tmp_path / "r.toml")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"source": 3}, "encoder.source must be a text"),
        ({"source": "x", "layers": "all"}, "encoder.layers must be a list"),
        ({"source": "x", "max_tokens": "many"}, "encoder.max_tokens must be a whole number"),
        ({"sorce": "x"}, "unknown key 'sorce'"),
    ],
)
def test_what_is_wrong_with_an_encoders_table_is_named(table, message):
    from mindmerger_train.fresh import fresh_checkpoint

    with pytest.raises(InputError, match=message):
        fresh_checkpoint(table, {}, {}, (4,))


def test_layers_of_the_packaged_encoder_are_not_taken_for_anothers():
    with pytest.raises(InputError, match=r"give encoder\.layers"):
        load_recipe(RECIPES[0], ["encoder.source='models/mt5-xl'", "layers=[4]"])


def test_a_weight_is_a_number(tmp_path):
    recipe = load_recipe(RECIPES[0], ["data={gsm8k = {weight = 'much'}}"])
    with pytest.raises(InputError, match=r"data\.gsm8k\.weight must be a number"):
        load_sources(recipe, tmp_path)


@pytest.mark.parametrize("setting", ["restate = true", "veiled = 0.5"])
def test_mapping_neither_restates_nor_veils(tmp_path, setting):
    path = tmp_path / "recipe.toml"
    path.write_text(f'stage = "mapping"\n[schedule]\nlr = 1e-3\ntokens = 5\n[sources]\n{setting}\n[data.tatoeba]\n')
    with pytest.raises(InputError, match=r"sources\.restate and sources\.veiled"):
        load_recipe(path)


def test_only_two_stages_retell(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text('stage = "mapping"\n[schedule]\nlr = 1e-3\ntokens = 5\n[sources]\nretell = 0.5\n[data.tatoeba]\n')
    with pytest.raises(InputError, match="belongs to reason and augmentation, this is mapping"):
        load_recipe(path)


def test_a_source_without_its_solutions_is_there_to_be_retold(tmp_path):
    made = ['data={problems = {languages = ["sw"], count = 20, solutions = false}}', "sources.retell=0.1"]
    (source,) = load_sources(load_recipe(RECIPES[0], made), tmp_path)
    assert len(source.examples) == 20
    assert all(example.query and example.english and not example.response for example in source.examples)
    with pytest.raises(DataError, match="20 of 20"):  # nothing that reason could learn, where nothing is retold
        load_sources(load_recipe(RECIPES[0], made[:1]), tmp_path)
    with pytest.raises(InputError, match=r"data\.problems\.solutions must be true or false"):
        load_sources(load_recipe(RECIPES[0], [made[0].replace("false", "3"), made[1]]), tmp_path)


def test_the_papers_schedule_is_constant():
    schedule = load_recipe(FOLDER / "papers" / "1-mapping.toml").schedule
    assert {schedule.lr_at(round(share * schedule.tokens)) for share in (0, 0.3, 0.9, 1)} == {2e-5}


def test_epochs_become_tokens(tmp_path):
    """Three epochs over the rows that are not too long, counted in positions."""
    from mindmerger_train.data.mixture import Source
    from mindmerger_train.data.sources import Example
    from mindmerger_train.launch import count_epochs
    from mindmerger_train.layout import Row

    class Lengths:
        def rows(self, examples, _seed):
            return (Row(None, [], [1] * (len(example.query) - 1)) for example in examples)

    # 3 texts of 10 positions and 1 of 1000, which is left out
    source = Source("s", [Example("en", "x" * 10, "", "")] * 3 + [Example("en", "x" * 1000, "", "")], 1.0)
    recipe = load_recipe(FOLDER / "papers" / "1-mapping.toml")
    assert count_epochs(recipe, Lengths(), [source]).schedule.tokens == 3 * 3 * 10
    with pytest.raises(InputError, match="epochs"):
        load_recipe(FOLDER / "papers" / "1-mapping.toml", ["schedule.tokens=5"])
    with pytest.raises(InputError, match="epochs"):
        load_recipe(FOLDER / "papers" / "1-mapping.toml", ["epochs=-1"])
    with pytest.raises(InputError, match="tokens"):
        load_recipe(FOLDER / "papers" / "1-mapping.toml", ["epochs=0"])
    fixed = load_recipe(FOLDER / "papers" / "1-mapping.toml", ["epochs=0", "schedule.tokens=5"])
    assert fixed.schedule.tokens == 5


def test_missing_and_damaged_recipes(tmp_path):
    with pytest.raises(InputError, match="no recipe"):
        load_recipe(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("= 3")
    with pytest.raises(InputError, match="no TOML"):
        load_recipe(tmp_path / "bad.toml")


def test_unknown_source_and_missing_data(tmp_path):
    recipe = load_recipe(RECIPES[0])
    with pytest.raises(DataError, match="is missing"):
        load_sources(recipe, tmp_path)
    other = load_recipe(RECIPES[0], ["data={secret={weight=1}}"])
    with pytest.raises(DataError, match="unknown data source 'secret'"):
        load_sources(other, tmp_path)


def test_the_command_says_what_is_wrong(tmp_path):
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "mindmerger_train.cli",
            "--config",
            str(RECIPES[0]),
            "--data",
            str(tmp_path),
            "--out",
            "x",
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert result.returncode == 7
    assert result.stderr.strip().splitlines()[-1].startswith("mm-train: the data file")
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())


def test_sources_of_few_steps(tmp_path):
    (tmp_path / "mawps_asdiv").mkdir()
    (tmp_path / "mawps_asdiv" / "train.csv").write_text(
        "Question,Numbers,Equation\nTake number0 and number1 .,3 4,+ number0 number1\n"
        "Take number0 of number1 and number2 .,3 4 5,- + number0 number1 number2\n"
    )
    recipe = load_recipe(FOLDER / "nano" / "1-reason.toml", ["data={mawps_asdiv = {steps = 1}}"])
    (source,) = load_sources(recipe, tmp_path)
    assert [example.response for example in source.examples] == ["3 + 4 = <<3+4=7>>7\n#### 7"]
    recipe = load_recipe(FOLDER / "nano" / "1-reason.toml", ["data={mawps_asdiv = {steps = -1}}"])
    with pytest.raises(DataError, match="no solution has at most -1 annotated steps"):
        load_sources(recipe, tmp_path)
