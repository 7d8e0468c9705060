"""The programs that people have: the official Python client, the `llm` command, curl."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import openai
import pytest

import mindmerger
from tests.serve.conftest import Served, environment

TEXT = "<<48/2=24>>#### 7"
MESSAGES: Any = [{"role": "user", "content": "¿Cuánto es 48 / 2?"}]


def client(served: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0, timeout=60)


def test_chat(served: Served) -> None:
    answer = client(served).chat.completions.create(model="tiny", messages=MESSAGES)
    choice = answer.choices[0]
    assert (choice.message.content, choice.finish_reason, choice.message.role) == (TEXT, "stop", "assistant")
    assert answer.usage is not None and answer.usage.completion_tokens == 12
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 12
    extension = answer.model_extra["mindmerger"]  # type: ignore[index]
    assert extension["answer"] == "7" and extension["forced_tokens"] == 3 and extension["encoder_weight"] == 1
    assert answer.usage.prompt_tokens == 1 + extension["soft_prompt_rows"] + extension["prompt_tokens"]
    assert extension["timings"]["total_ms"] > 0


def test_chat_in_a_stream(served: Served) -> None:
    chunks = list(
        client(served).chat.completions.create(
            model="tiny", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
        )
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == TEXT
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].choices == [] and chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 12
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].model_extra["mindmerger"]["soft_prompt_rows"] > 0  # type: ignore[index]
    assert chunks[-2].model_extra["mindmerger"]["answer"] == "7"  # type: ignore[index]


def test_completions(served: Served) -> None:
    answer = client(served).completions.create(model="tiny", prompt="hola")
    assert answer.choices[0].text == TEXT and answer.usage is not None and answer.usage.completion_tokens == 12
    parts = list(client(served).completions.create(model="tiny", prompt="hola", stream=True))
    assert "".join(part.choices[0].text for part in parts) == TEXT
    assert parts[-1].choices[0].finish_reason == "stop" and parts[-1].usage is None


def test_models(served: Served) -> None:
    listed = client(served).models.list().data
    assert [model.id for model in listed] == ["tiny"]
    assert client(served).models.retrieve("tiny").model_extra["mindmerger"]["gate"] is False  # type: ignore[index]
    with pytest.raises(openai.NotFoundError) as caught:
        client(served).models.retrieve("gpt-9")
    assert caught.value.code == "model_not_found"


def test_options_reach_the_model(served: Served) -> None:
    create = client(served).chat.completions.create
    assert create(model="tiny", messages=MESSAGES, stop=">>").choices[0].message.content == "<<48/2=24"
    cut = create(model="tiny", messages=MESSAGES, max_completion_tokens=3)
    assert (cut.choices[0].message.content, cut.choices[0].finish_reason) == ("<<48", "length")
    assert create(model="tiny", messages=MESSAGES, max_tokens=3).choices[0].message.content == "<<48"
    plain = create(model="tiny", messages=MESSAGES, extra_body={"mindmerger": {"calculator": False}})
    assert plain.choices[0].message.content == "<<48/2=9>>#### 7"
    alone = create(model="tiny", messages=MESSAGES, extra_body={"mindmerger": {"encoder_weight": 0}})
    assert alone.model_extra["mindmerger"]["soft_prompt_rows"] == 0  # type: ignore[index]


def test_a_limit_beyond_the_context_is_the_context(served: Served) -> None:
    assert served.chat("hola", max_tokens=10**9).json["choices"][0]["message"]["content"] == TEXT


def test_answers_are_those_of_the_runtime(talking: Served, random: Path) -> None:
    with mindmerger.load(random, threads=1) as model:
        for options in (
            {},
            {"temperature": 0.9, "seed": 7, "top_p": 0.9},
            {"temperature": 0.7, "seed": -1},
            {"temperature": 0.0, "top_p": 0.3},  # nothing to filter: OpenAI's clients may send both
        ):
            expected = dict(options)
            if expected.get("seed") == -1:
                expected["seed"] = 2**32 - 2
            if expected.get("temperature") == 0.0:
                del expected["top_p"]
            ours = model.answer("¿Cuánto es 15 + 27?", **expected)  # type: ignore[arg-type]
            theirs = talking.chat("¿Cuánto es 15 + 27?", **options).json
            assert theirs["choices"][0]["message"]["content"] == ours.text
            assert theirs["usage"]["completion_tokens"] == len(ours.token_ids)


def test_only_the_last_message_is_read(talking: Served) -> None:
    alone = talking.chat("hola").json
    history = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
        {"role": "assistant", "content": None, "tool_calls": []},
        {"role": "user", "content": [{"type": "text", "text": "hola"}]},
    ]
    found = talking.ask("/v1/chat/completions", {"model": "tiny", "messages": history}).json
    assert found["choices"] == alone["choices"]
    assert (found["mindmerger"]["ignored_messages"], alone["mindmerger"]["ignored_messages"]) == (3, 0)


@pytest.mark.parametrize("streams", [True, False])
def test_llm_command(served: Served, tmp_path: Path, streams: bool) -> None:
    (tmp_path / "extra-openai-models.yaml").write_text(
        f"- model_id: mm\n  model_name: tiny\n  api_base: {served.url}/v1\n", encoding="utf-8"
    )
    code = "from llm.cli import cli\ncli(['-m', 'mm', 'hola', '--key', 'none'" + (
        "])" if streams else ", '--no-stream'])"
    )
    found = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(LLM_USER_PATH=str(tmp_path)),
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=60,
        check=False,
    )
    assert found.stdout.strip() == TEXT, found.stderr


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl(served: Served) -> None:
    body = '{"model": "tiny", "messages": [{"role": "user", "content": "hola"}], "stream": true}'
    found = subprocess.run(
        ["curl", "-sN", f"{served.url}/v1/chat/completions", "-H", "Content-Type: application/json", "-d", body],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    events = found.stdout.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""] and all(event.startswith("data: ") for event in events[:-1])


def test_explain(served: Served) -> None:
    found = served.ask("/v1/explain", {"question": "hola"})
    assert found.status == 200 and found.json["language"] is None and found.json["encoder_weight"] == 1
    refused = served.ask("/v1/explain", {"question": "hola", "language": "sw"})
    assert refused.status == 400 and "no gate" in refused.json["error"]["message"]


def test_metrics_and_health(served: Served) -> None:
    served.chat("hola")
    lines = served.ask("/metrics").data.decode().splitlines()
    counted = [line for line in lines if line.startswith('mindmerger_answers_total{finish="stop"}')]
    assert len(counted) == 1 and float(counted[0].split()[1]) >= 1
    health = served.until(lambda found: found["busy"] == 0)
    assert health == {"status": "ok", "model": "tiny", "slots": 16, "busy": 0, "waiting": 0}
