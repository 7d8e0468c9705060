"""Throughput of mm-serve against the runtime's batch: same bundle, questions and slots, greedy.

    python tests/bench/serve_speed.py                            16 clients × 20 questions of tests/data/arithmetic.tsv
    python tests/bench/serve_speed.py --clients 8 --each 5 --stream

Both sides alternate, `--repeats` times, each in a process of its own while the other is not there; the ratio is that of the
medians of tokens a second. Processor time a token says something on a busy machine too. Every answer is compared with the
batch's: none may be lost or mixed up. The document goes to stdout as JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter, process_time
from typing import Any

import mindmerger
from tests.bench.batch_speed import QUESTIONS, read_questions

CONTEXT = 1024  # of mm-serve's slots


def batch(questions: list[str], options: argparse.Namespace) -> tuple[list[str], int, float, float]:
    """Texts, tokens, seconds and processor seconds of the runtime's batch."""
    with mindmerger.load(options.bundle, threads=options.threads, context=CONTEXT) as model:
        model.answer(questions[0])
        began, worked = perf_counter(), process_time()
        items = sorted(model.generate_batch(questions, slots=options.slots), key=lambda item: item.index)
        seconds, worked = perf_counter() - began, process_time() - worked
    found = [item.generation for item in items]
    return [one.text for one in found if one], sum(len(one.token_ids) for one in found if one), seconds, worked


def ask(url: str, model: str, question: str, stream: bool) -> tuple[str, int]:
    """Text and tokens of one answer."""
    body: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": question}], "stream": stream}
    if stream:
        body["stream_options"] = {"include_usage": True}
    request = urllib.request.Request(
        f"{url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as answer:
        if not stream:
            whole = json.load(answer)
            return whole["choices"][0]["message"]["content"], whole["usage"]["completion_tokens"]
        events = [json.loads(line[6:]) for line in answer if line.startswith(b"data: {")]
    text = "".join(event["choices"][0]["delta"].get("content", "") for event in events if event["choices"])
    return text, events[-1]["usage"]["completion_tokens"]


def processor_seconds(url: str) -> float:
    """What the service has used of the processor, by its own /metrics."""
    with urllib.request.urlopen(f"{url}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("process_cpu_seconds_total"))


def served(questions: list[str], options: argparse.Namespace) -> tuple[list[str], int, float, float]:
    """The same of the service, asked by `--clients` at once."""
    command = [sys.executable, "-m", "mindmerger.cli.serve", "--port", "0", "--quiet", "--slots", str(options.slots)]
    command += ["--context", str(CONTEXT)]
    for name in ("bundle", "threads"):
        if (value := getattr(options, name)) is not None:
            command += [f"--{name}", str(value)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        with urllib.request.urlopen(f"{url}/v1/models") as answer:
            model = json.load(answer)["data"][0]["id"]
        ask(url, model, questions[0], False)
        with ThreadPoolExecutor(options.clients) as pool:
            began, worked = perf_counter(), processor_seconds(url)
            found = list(pool.map(lambda question: ask(url, model, question, options.stream), questions))
            seconds, worked = perf_counter() - began, processor_seconds(url) - worked
        process.terminate()
    return [text for text, _ in found], sum(tokens for _, tokens in found), seconds, worked


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--each", type=int, default=20, help="questions of each client")
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--stream", action="store_true")
    options = parser.parse_args()
    questions = read_questions(QUESTIONS, options.clients * options.each)
    speeds: dict[str, list[float]] = {"batch": [], "service": []}
    work: dict[str, list[float]] = {"batch": [], "service": []}
    different = 0
    for _ in range(options.repeats):
        expected, tokens, seconds, worked = batch(questions, options)
        speeds["batch"].append(tokens / seconds)
        work["batch"].append(worked / tokens)
        found, tokens, seconds, worked = served(questions, options)
        speeds["service"].append(tokens / seconds)
        work["service"].append(worked / tokens)
        assert len(found) == len(expected) == len(questions)
        different += sum(one != other for one, other in zip(found, expected, strict=True))
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    document = {
        "questions": len(questions),
        "clients": options.clients,
        "slots": options.slots,
        "stream": options.stream,
        "tokens_per_second": {name: [round(one, 1) for one in values] for name, values in speeds.items()},
        "processor_ms_per_token": {name: [round(one * 1e3, 2) for one in values] for name, values in work.items()},
        "ratio": round(medians["service"] / medians["batch"], 3),
        "different_answers": different,
    }
    print(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
