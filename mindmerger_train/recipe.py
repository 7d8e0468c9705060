"""A recipe: the TOML file that says what one stage trains, on what, and for how long."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mindmerger.errors import DataError, InputError
from mindmerger_train.data.mixture import Source
from mindmerger_train.data.readers import check_fit, read_source
from mindmerger_train.encoders import PACKAGE_SOURCE
from mindmerger_train.engine import Schedule
from mindmerger_train.gate import GateSpec
from mindmerger_train.merger import METHODS
from mindmerger_train.stages import STAGES, Sources
from mindmerger_train.states import Keeping
from mindmerger_train.steering import Steering
from mindmerger_train.tables import at_least, read_table, typed


@dataclass(frozen=True)
class Recipe:
    """One stage. `data` maps a source's name to its settings (`weight` and the reader's own).

    `method`: what a run without a checkpoint to start from trains (default `mindmerger`), and the method that `steering` makes
    out of its checkpoint (default and only choice `st-merge`). `gate`: options of `GateSpec`, for a new gate. `encoder`, `llm`,
    `prompt` and `calculator`: of a run without a checkpoint to start from (fresh.py); of `prompt`, template and digits change
    a checkpoint's. `epochs`, in place of `schedule.tokens`: as many draws as there are examples in all sources, so often.
    """

    stage: str
    schedule: Schedule
    data: dict[str, dict[str, Any]]
    method: str = ""
    gate: dict[str, Any] = field(default_factory=dict)
    encoder: dict[str, Any] = field(default_factory=dict)
    llm: dict[str, Any] = field(default_factory=dict)
    prompt: dict[str, Any] = field(default_factory=dict)
    calculator: bool = True
    steering: Steering = field(default_factory=Steering)
    sources: Sources = field(default_factory=Sources)
    states: Keeping = field(default_factory=Keeping)
    rank: int = 16
    longest: int = 512
    layers: tuple[int, ...] = (4, 8, 12)
    linear_start: bool = True
    held_out: int = 96
    languages: tuple[str, ...] = ()
    epochs: float = 0.0

    def __post_init__(self) -> None:
        at_least(0, "", held_out=self.held_out, epochs=self.epochs)
        at_least(1, "", rank=self.rank, longest=self.longest)


_PARTS: dict[str, type] = {"schedule": Schedule, "steering": Steering, "sources": Sources, "states": Keeping}


def _set(table: dict[str, Any], key: str, text: str) -> None:
    """`schedule.lr=1e-3`: walk to the key and set it to the value, read as TOML."""
    *path, last = key.split(".")
    for part in path:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise InputError(f"--set {key}: {part} is no table")
    try:
        table[last] = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        table[last] = text


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe; `overrides` are `key=value` with dots between levels.

    Raises InputError when the file or a key cannot be used.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"no recipe {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no TOML: {error}") from error
    for override in overrides:
        key, separator, value = override.partition("=")
        if not separator:
            raise InputError(f"--set takes KEY=VALUE, got {override!r}")
        _set(table, key.strip(), value.strip())
    if isinstance(table.get("schedule"), dict) and table.get("epochs"):
        if "tokens" in table["schedule"]:
            raise InputError(f"{path}: give schedule.tokens, or epochs above 0, not both")
        table["schedule"]["tokens"] = 1  # known once the data are: launch.py
    for key, kind in _PARTS.items():
        if key in table:
            table[key] = read_table(kind, table[key], str(path), f"{key}.")
    read_table(GateSpec, table.get("gate", {}), str(path), "gate.")
    recipe = read_table(Recipe, table, str(path))
    if table.get("layers") and recipe.encoder.get("source", PACKAGE_SOURCE) != PACKAGE_SOURCE:
        raise InputError(f"{path}: layers are those of the packaged encoder; for a folder's give encoder.layers")
    if not recipe.data:
        raise InputError(f"{path} names no data: give it a table such as [data.gsm8k]")
    if recipe.stage not in STAGES:
        raise InputError(f"{path}: stage {recipe.stage!r} is none of {', '.join(STAGES)}")
    if recipe.method not in ("", *METHODS):
        raise InputError(f"{path}: method {recipe.method!r} is none of {', '.join(METHODS)}")
    if recipe.stage == "steering" and recipe.method not in ("", "st-merge"):
        raise InputError(f"{path}: steering trains the gate of st-merge; the method {recipe.method!r} has none")
    if recipe.sources.retell and recipe.stage not in ("reason", "augmentation"):
        raise InputError(f"{path}: sources.retell belongs to reason and augmentation, this is {recipe.stage}")
    if (recipe.sources.restate or recipe.sources.veiled) and recipe.stage == "mapping":
        raise InputError(f"{path}: sources.restate and sources.veiled are of stages with solutions, this is mapping")
    if recipe.method == "mono" and recipe.stage != "reason":
        raise InputError(f"{path}: the method mono is the LLM alone; its only stage is reason")
    return recipe


def load_sources(recipe: Recipe, folder: Path) -> list[Source]:
    """Read the recipe's sources; their paths are relative to `folder` (docs/data.md).

    With `solutions = false` a source gives texts to retell only, whatever else it knows. With `steps` it gives those rows only
    whose solutions have at most so many annotated steps.
    Raises DataError when a source is unknown, missing, damaged, or lacks what the stage learns.
    """
    from tqdm import tqdm

    loaded = []
    # Some sources are made, not read (dictionaries, translations): minutes, told on a terminal.
    with tqdm(recipe.data.items(), unit="source", leave=False, disable=None, dynamic_ncols=True) as bar:
        for name, settings in bar:
            bar.set_description(f"data.{name}")
            options = dict(settings)
            weight = typed(float, options.pop("weight", 1.0), f"data.{name}.weight")
            solved = typed(bool, options.pop("solutions", True), f"data.{name}.solutions")
            steps = typed(int, options.pop("steps", 0), f"data.{name}.steps")
            examples = read_source(name, folder, options)
            if steps:
                examples = [example for example in examples if example.response.count("<<") <= steps]
                if not examples:
                    raise DataError(f"data.{name}: no solution has at most {steps} annotated steps (<<1+2=3>>)")
            if not solved:
                examples = [replace(example, response="") for example in examples]
            check_fit(name, examples, recipe.stage, recipe.sources.retell > 0 or recipe.sources.restate)
            loaded.append(Source(name, examples, weight))
    return loaded
