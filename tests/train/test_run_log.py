"""What a person sees of a run: the log, the table, the chart."""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ET

import pytest
from click.testing import CliRunner
from hypothesis import example, given
from hypothesis import strategies as st

from mindmerger.errors import InputError, ModelError
from mindmerger_train.charts import draw, ticks, write_chart
from mindmerger_train.cli import command
from mindmerger_train.engine import Schedule
from mindmerger_train.runlog import RunLog, duration, rate_of
from mindmerger_train.runstate import Progress, saving

SVG = "{http://www.w3.org/2000/svg}"


def training(step):
    return {
        "step": step,
        "tokens": step * 100,
        "loss": 3 / (1 + step / 50),
        "tokens_per_second": 400.0,
        "seconds": step,
    }


def evaluation(step, languages=("en", "sw")):
    weights = {language: {"encoder": [1 + step / 400, 0.1], "llm": [1 - step / 400, 0.1]} for language in languages}
    loss = 3 / (1 + step / 40)
    return {"step": step, "tokens": step * 100, "held_out_loss": loss, "perplexity": math.exp(loss), "weights": weights}


LINES = [training(step) for step in range(10, 210, 10)] + [evaluation(step) for step in (50, 100, 150, 200)]


def test_lines_after_the_state_are_cut_off(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in LINES) + '{"step": 100, "to')
    RunLog(tmp_path, 20_000, Progress(step=120))
    steps = [json.loads(line)["step"] for line in path.read_text().splitlines()]
    assert steps and max(steps) == 120 and len(steps) == 14
    RunLog(tmp_path, 20_000, Progress())
    assert not path.exists()


def test_a_silent_log_writes_and_removes_nothing(tmp_path, capsys):
    (tmp_path / "metrics.jsonl").write_text("kept")
    log = RunLog(tmp_path, 100, Progress(), silent=True)
    log.training(training(10), Progress(step=10))
    log.say("no")
    assert (tmp_path / "metrics.jsonl").read_text() == "kept"
    assert capsys.readouterr() == ("", "")


def test_the_table_marks_the_best_and_stays_short(tmp_path):
    lines = [evaluation(step) for step in range(1, 101)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    log = RunLog(tmp_path, 10_000, Progress(step=100, tokens=10_000, seconds=50.0, best_step=37))
    table = log.table(Progress(step=100, tokens=10_000, seconds=50.0, best_step=37)).splitlines()
    assert 10 < len(table) < 18
    (best,) = [line for line in table if line.endswith("best")]
    assert best.split()[0] == "37"
    assert table[-2].split()[0] == "100"
    assert table[-1] == "100 steps, 10,000 tokens in 50 s (200 tokens/s)"


def test_rates_and_durations():
    assert rate_of(LINES) == 400.0
    assert rate_of([]) is None
    assert [duration(seconds) for seconds in (5, 600, 7 * 3600)] == ["5 s", "10 min", "7 h 00 min"]


def test_the_chart_has_losses_and_both_weights_of_each_language(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    path = write_chart(tmp_path)
    root = ET.fromstring(path.read_text(encoding="utf-8"))
    texts = [element.text for element in root.iter(f"{SVG}text")]
    assert sum("loss per answer token" in text for text in texts) == 1
    assert sum(text.startswith("encoder weight by language") for text in texts) == 1
    assert sum(text.startswith("LLM weight by language") for text in texts) == 1
    assert {"held out 0.5", "en 1.5", "sw 1.5", "en 0.5", "sw 0.5"} <= set(texts)
    assert len(list(root.iter(f"{SVG}path"))) == 3 + 4
    assert not list(tmp_path.glob("*.part"))


def test_no_chart_without_points(tmp_path):
    assert write_chart(tmp_path) is None
    assert draw([training(10)], "x") is None


NUMBER = st.one_of(st.floats(), st.integers(-(10**9), 10**9), st.none(), st.text(max_size=3))


@given(
    st.lists(
        st.fixed_dictionaries(
            {"step": st.integers(0, 10**6), "tokens": st.integers(0, 10**9)},
            optional={"loss": NUMBER, "held_out_loss": NUMBER},
        ),
        max_size=12,
    ),
    st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=8),
)
@example([{"step": 0, "tokens": 0, "loss": 4503599627370498.0}] * 2, "")
def test_any_log_gives_a_drawing_that_is_xml_and_in_the_picture(lines, name):
    picture = draw(lines, name)
    if picture is None:
        return
    root = ET.fromstring(picture)
    _, _, width, height = (float(value) for value in root.get("viewBox").split())
    for element in root.iter(f"{SVG}path"):
        for part in element.get("d").split():
            assert -1 <= float(part.lstrip("ML")) <= max(width, height) + 1


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_are_within_and_few(low, span):
    marks = ticks(low, low + span)
    assert len(marks) <= 12
    assert all(low - 1e-3 * span <= mark <= low + span * 1.001 for mark in marks)


def test_other_errors_are_not_called_a_full_disk(tmp_path):
    with pytest.raises(RuntimeError, match="shape"), saving("the state", tmp_path):
        raise RuntimeError("shape mismatch")
    with pytest.raises(ModelError, match="No space left"), saving("the state", tmp_path):
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize("wrong", [{"accumulate": 0}, {"precision": "fp8"}, {"warmup": 1.0}, {"batch_tokens": 1.5}])
def test_wrong_schedules_are_refused(wrong):
    with pytest.raises(InputError, match=f"schedule.{next(iter(wrong))}"):
        Schedule(**({"tokens": 10, "lr": 1e-3} | wrong))


def test_a_run_is_not_thrown_away_by_accident(tmp_path):
    state = tmp_path / "out" / "state" / "state.pt"
    state.parent.mkdir(parents=True)
    state.write_bytes(b"x")
    recipe = "models/recipes/nano/1-reason.toml"
    options = ["--config", recipe, "--data", str(tmp_path), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(command, options)
    assert isinstance(result.exception, InputError)
    assert "--resume" in str(result.exception) and "--start-over" in str(result.exception)
    assert state.read_bytes() == b"x"
    both = CliRunner().invoke(command, [*options, "--resume", "--start-over"])
    assert both.exit_code == 2


def test_what_is_missing_is_named():
    for options, name in (([], "Usage"), (["--resume"], "--config"), (["--config", "x"], "--data")):
        result = CliRunner().invoke(command, options)
        assert result.exit_code == 2 if options else True
        assert name in result.output
