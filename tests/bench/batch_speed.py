"""Throughput of a batch against one question after another: same bundle, same questions, greedy, the same process.

    python tests/bench/batch_speed.py                              64 questions of tests/data/arithmetic.tsv
    python tests/bench/batch_speed.py --questions FILE --slots 8   a text file, one question a line

Both sides alternate, `--repeats` times, and the ratio is that of the medians. Answers are compared token by token. Where one
differs, the sequential run is gone through again up to the first different token, and the report has the difference of the
two logits there, of the sequential arithmetic: an answer that differs by rounding alone differs where it is about 0. The
document goes to stdout as JSON.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
from itertools import cycle, islice
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import mindmerger
from mindmerger.generation import Generation
from mindmerger.llama import default_threads
from mindmerger.model import MergedModel

QUESTIONS = Path(__file__).resolve().parents[1] / "data" / "arithmetic.tsv"


def read_questions(path: Path, count: int) -> list[str]:
    """`count` questions, evenly spread over the file, again from its beginning where it has fewer."""
    with path.open(encoding="utf-8", newline="") as stream:
        if path.suffix == ".tsv":
            found = [row["question"] for row in csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)]
        else:
            found = [line.strip() for line in stream if line.strip()]
    step = max(1, len(found) // count)
    return list(islice(cycle(found[::step]), count))


def margin(model: MergedModel, one: Generation, other: Generation) -> tuple[int, float]:
    """Where the tokens first differ, and there the sequential run's logit of its own token less that of the batch's."""
    place = next(
        (i for i, (a, b) in enumerate(zip(one.token_ids, other.token_ids, strict=False)) if a != b),
        min(len(one.token_ids), len(other.token_ids)),
    )

    def token(generation: Generation) -> int | None:
        return generation.token_ids[place] if place < len(generation.token_ids) else generation.stop_id

    mine, theirs = token(one), token(other)
    logits = model.prefill(one.question)
    for token_id in one.token_ids[:place]:
        model.llm.step(token_id)
    if place:
        logits = model.llm.logits()
    if mine is None or theirs is None:
        return place, float("nan")
    return place, float(logits[mine] - logits[theirs])


def measure(
    bundle: str | None, questions: Path, count: int, slots: int | None, tokens: int, repeats: int, threads: int
) -> dict[str, Any]:
    """The measurement as a document."""
    asked = read_questions(questions, count)
    with mindmerger.load(bundle, threads=threads) as model:

        def sequential() -> list[Generation]:
            return [model.answer(question, max_new_tokens=tokens, temperature=0.0) for question in asked]

        def batched() -> list[Generation]:
            items = model.generate_batch(asked, slots=slots, max_new_tokens=tokens, temperature=0.0)
            found = {item.index: item.generation for item in items}
            return [generation for i in range(len(asked)) if (generation := found[i]) is not None]

        model.answer(asked[0], max_new_tokens=4)  # warm
        times: dict[str, list[tuple[float, float]]] = {"sequential": [], "batch": []}
        answers: dict[str, list[Generation]] = {}
        for repeat in range(repeats):
            sides = [("sequential", sequential), ("batch", batched)]
            for name, side in sides if repeat % 2 == 0 else sides[::-1]:
                began, cpu = perf_counter(), process_time()
                answers[name] = side()
                times[name].append((perf_counter() - began, process_time() - cpu))
        pairs = list(zip(answers["sequential"], answers["batch"], strict=True))
        different = []
        for one, other in pairs:
            if (one.token_ids, one.stop_id) != (other.token_ids, other.stop_id):
                place, gap = margin(model, one, other)
                different.append(
                    {"question": one.question, "token": place, "logit_gap": round(gap, 4),
                     "answers": [one.answer, other.answer]}
                )  # fmt: skip
    made = {name: sum(len(generation.token_ids) for generation in found) for name, found in answers.items()}
    wall = {name: statistics.median(pair[0] for pair in found) for name, found in times.items()}
    cpu_time = {name: statistics.median(pair[1] for pair in found) for name, found in times.items()}
    return {
        "bundle": bundle or "default",
        "threads": threads,
        "slots": slots or "default",
        "questions": len(asked),
        "max_new_tokens": tokens,
        "repeats": repeats,
        "seconds": {name: round(value, 2) for name, value in wall.items()},
        "questions_per_second": {name: round(len(asked) / value, 3) for name, value in wall.items()},
        "tokens_per_second": {name: round(made[name] / value, 1) for name, value in wall.items()},
        "throughput_ratio": round(wall["sequential"] / wall["batch"], 2),
        "cpu_ratio": round(cpu_time["sequential"] / cpu_time["batch"], 2),
        "identical": round(1 - len(different) / len(asked), 4),
        "different": different,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", help="folder or name (default: the default bundle)")
    parser.add_argument("--questions", type=Path, default=QUESTIONS, help="a .tsv with a column question, or lines")
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--slots", type=int, help="default: the runtime's")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=default_threads())
    print(json.dumps(measure(**vars(parser.parse_args())), indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main()
