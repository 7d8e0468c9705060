"""The embedded default: what a new user gets, with the real models and no network."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import mindmerger

QUESTION = "¿Cuánto es 15 + 27?"
ARITHMETIC = Path(__file__).parent / "data" / "arithmetic.tsv"


@pytest.fixture(scope="module")
def model():
    with mindmerger.load() as loaded:
        yield loaded


def test_the_answer_is_right_and_reasoned(model):
    answer = model.answer(QUESTION)
    assert answer.answer == "42"
    assert "<<15+27=42>>" in answer.text
    assert answer.finish_reason == "stop"


def test_golden_questions_give_the_recorded_tokens(model):
    golden = model.manifest.golden
    assert golden
    same = 0
    for example in golden:
        ids = model.continuation_ids(example.question, len(example.token_ids))
        same += tuple(ids) == tuple(example.token_ids)
    # Other processors round otherwise; one near-tie may fall the other way.
    assert same >= len(golden) - 1


def test_some_hand_written_questions_of_every_language_are_right(model):
    """A floor under the recorded figures (README): far below them, far above chance."""
    with ARITHMETIC.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))
    assert len(rows) == 60
    assert len({row["language"] for row in rows}) == 10
    bare = [row for row in rows if row["kind"] == "bare"]
    right = sum(
        float(model.answer(row["question"], max_new_tokens=128).answer or -1) == float(row["answer"]) for row in bare
    )
    assert right >= 5


def test_the_soft_prompt_reaches_the_llm(model):
    """Without it the LLM answers from other logits: a merge that is not plugged in would pass every other test."""
    merged, alone = model.prefill(QUESTION), model.prefill(QUESTION, soft_prompt=False)
    assert abs(merged - alone).max() > 0.5
    other = model.prefill(QUESTION, question_in_prompt=False)
    assert abs(other - merged).max() > 0.5


def test_no_network_is_needed(tmp_path):
    """In a network namespace of its own, without even a loopback address."""
    unshare = shutil.which("unshare")
    command = [sys.executable, "-m", "mindmerger.cli.run", "--json", QUESTION]
    if unshare is None or subprocess.run([unshare, "-rn", "true"], capture_output=True).returncode:
        pytest.skip("no user namespaces here; tests/runtime blocks sockets instead")
    result = subprocess.run([unshare, "-rn", *command], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    with_network = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert json.loads(result.stdout)["text"] == json.loads(with_network.stdout)["text"]
    assert json.loads(result.stdout)["answer"] == "42"


def test_nothing_heavy_is_imported():
    code = f"""
import sys
import mindmerger
with mindmerger.load() as model:
    model.answer({QUESTION!r})
heavy = {{"torch", "transformers", "optimum", "accelerate", "peft", "onnx", "safetensors"}} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
