"""Throughput of a batch against one question after another: same bundle, same questions, greedy, the same process.

    python tests/bench/batch_speed.py                              64 questions of tests/data/arithmetic.tsv
    python tests/bench/batch_speed.py --questions FILE --slots 8   a text file, one question a line

Both sides alternate, `--repeats` times, and the ratio is that of the medians. Answers are compared token by token. Where one
differs, the sequential run is gone through again up to the first different token, and the report has the difference of the
two logits there, of the sequential arithmetic: an answer that differs by rounding alone differs where it is about 0.

`--limit` goes through the same work once more by llama.cpp alone, both ways: as many positions before each answer, the tokens
of the answers as they came out, no encoder, no sampling, no text, all slots as full as they can be. What it gains is what a
batch could gain on this machine. The document goes to stdout as JSON.
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
from mindmerger.batch import DEFAULT_SLOTS
from mindmerger.generation import Generation
from mindmerger.llama import default_threads
from mindmerger.model import MergedModel
from mindmerger.sequences import Sequences

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


def limits(model: MergedModel, answers: list[Generation], slots: int) -> dict[str, list[float]]:
    """[wall, processor] seconds of llama.cpp alone for these answers, one after another and `slots` at a time."""
    llm = model.llm
    # any tokens do: what is computed does not depend on which they are
    work = [(list(range(100, 101 + one.soft_prompt_rows + one.prompt_tokens)), list(one.token_ids)) for one in answers]
    found = {}
    began, cpu = perf_counter(), process_time()
    for before, after in work:
        llm.clear()
        llm.decode_tokens(before)
        for token in after:
            llm.step(token)
    found["sequential"] = [perf_counter() - began, process_time() - cpu]
    length = max(len(before) + len(after) for before, after in work)
    with Sequences(llm, slots, -(-length // 256) * 256) as sequences:
        waiting = sorted(work, key=lambda one: len(one[1]))  # the longest answers first: nobody could know
        busy: list[list[int]] = []  # what each sequence has still to take, the next last
        began, cpu = perf_counter(), process_time()
        while waiting or busy:
            for place in range(len(busy) - 1, -1, -1):
                if not busy[place]:
                    sequences.move(len(busy) - 1, place)
                    busy[place] = busy[-1]
                    busy.pop()
            while waiting and len(busy) < slots:
                before, after = waiting.pop()
                sequences.clear(len(busy))
                sequences.append_tokens(len(busy), before, True)
                busy.append(after[::-1] or [100])
            if busy:
                sequences.step([(place, one.pop(), True) for place, one in enumerate(busy)])
        found["batch"] = [perf_counter() - began, process_time() - cpu]
    return found


def measure(
    bundle: str | None,
    questions: Path,
    count: int,
    slots: int | None,
    tokens: int,
    repeats: int,
    threads: int,
    limit: bool,
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
        bare = limits(model, answers["sequential"], slots or DEFAULT_SLOTS) if limit else None
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
        "cpu_seconds": {name: round(value, 2) for name, value in cpu_time.items()},
        "questions_per_second": {name: round(len(asked) / value, 3) for name, value in wall.items()},
        "tokens_per_second": {name: round(made[name] / value, 1) for name, value in wall.items()},
        "throughput_ratio": round(wall["sequential"] / wall["batch"], 2),
        "cpu_ratio": round(cpu_time["sequential"] / cpu_time["batch"], 2),
        "limit": bare
        and {
            "seconds": {name: round(pair[0], 2) for name, pair in bare.items()},
            "cpu_seconds": {name: round(pair[1], 2) for name, pair in bare.items()},
            "throughput_ratio": round(bare["sequential"][0] / bare["batch"][0], 2),
            "cpu_ratio": round(bare["sequential"][1] / bare["batch"][1], 2),
        },
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
    parser.add_argument("--limit", action="store_true", help="llama.cpp alone too")
    parser.add_argument("--threads", type=int, default=default_threads())
    print(json.dumps(measure(**vars(parser.parse_args())), indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main()
