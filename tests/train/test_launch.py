"""`mm-train` as a whole, on tiny models in folders: kept encoder states, resuming, the plan of the same recipe."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from safetensors.torch import load_file

from mindmerger_train.cli import command
from tests import tiny_torch

RECIPE = """
stage = "mapping"
longest = 250
linear_start = false
calculator = false
held_out = 8
languages = ["es", "sw"]
[encoder]
source = "{folder}/encoder"
[llm]
source = "{folder}/llm"
[states]
dtype = "float32"
folder = "{folder}/states"
[schedule]
tokens = 12_000
lr = 1e-3
batch_tokens = 1000
accumulate = 2
eval_tokens = 6_000
precision = "no"
[data.generator]
languages = ["es", "sw"]
count = 12
"""


def recipe_folder(folder):
    """Tiny encoder, LLM and recipe in `folder`, which is returned."""
    tiny_torch.encoder_folder(folder / "encoder", "bert")
    tiny_torch.llm_folder(folder / "llm")
    (folder / "recipe.toml").write_text(RECIPE.format(folder=folder))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return recipe_folder(tmp_path_factory.mktemp("launch"))


def mm_train(folder, out, *options):
    fixed = ["--config", str(folder / "recipe.toml"), "--data", str(folder), "--out", str(folder / out)]
    result = CliRunner().invoke(command, [*fixed, *options], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


def numbers(folder, out):
    lines = [json.loads(line) for line in (folder / out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "tokens_per_second")} for line in lines]


def test_kept_states_give_the_same_numbers_to_the_last_bit(folder):
    off = mm_train(folder, "off", "--set", "states.keep=off")
    assert "encoder states are kept" not in off.stderr
    assert off.stdout.strip() == str(folder / "off")
    assert "held-out" in off.stderr and "steps," in off.stderr
    for out in ("new", "read"):
        assert "encoder states are kept" in mm_train(folder, out).stderr  # `auto`: 24 texts, many rounds
        assert numbers(folder, out) == numbers(folder, "off")
        ours, theirs = (load_file(folder / name / "merger.safetensors") for name in (out, "off"))
        assert all(bool((ours[key] == theirs[key]).all()) for key in ours)
    assert len(list((folder / "states").glob("*/*.states"))) == 1  # the third run had nothing to add
    assert (folder / "off" / "training.svg").is_file()


def test_a_run_goes_on_and_its_plan_knows_its_speed(folder):
    mm_train(
        folder,
        "cut",
        "--set",
        "schedule.tokens=6_000",
        "--set",
        "schedule.warmup=0.0",
        "--set",
        "schedule.final_lr=1.0",
    )
    longer = ("--set", "schedule.warmup=0.0", "--set", "schedule.final_lr=1.0")
    mm_train(folder, "cut", "--resume", *longer)
    mm_train(folder, "whole", *longer)
    assert numbers(folder, "cut")[-1] == numbers(folder, "whole")[-1]
    plan = mm_train(folder, "cut", "--dry-run").stdout
    assert "tokens/s of the log in" in plan
    assert "each text is met" in plan and "measured on" in plan
    steps = int(next(line for line in plan.splitlines() if line.startswith("steps")).split()[1])
    assert steps == pytest.approx(numbers(folder, "whole")[-1]["step"], rel=0.35)


def test_reason_with_a_merger_keeps_what_the_merger_is(folder):
    """English alone is taught; the checkpoint still says which languages its merger reads, and how it was trained."""
    short = ("--set", "schedule.tokens=3_000")
    mm_train(folder, "mapped", *short)
    english = ("--set", "stage='reason'", "--set", "rank=4", "--set", "languages=['en']")
    english += ("--set", "data.generator.languages=['en']", "--set", "sources={both=0.5, question=0.5}")
    mm_train(folder, "reasoned", "--merger", str(folder / "mapped"), *english, *short)
    before, after = (json.loads((folder / name / "config.json").read_text()) for name in ("mapped", "reasoned"))
    assert after["languages"] == before["languages"] == ["es", "sw"]
    assert after["training"]["adapter"]["tokens"] > 0
    assert {k: v for k, v in after["training"].items() if k != "adapter"} == before["training"]
    old, new = (load_file(folder / name / "merger.safetensors") for name in ("mapped", "reasoned"))
    assert all(old[key].equal(new[key]) for key in old)
