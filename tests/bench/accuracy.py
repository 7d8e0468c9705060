"""Accuracy of a bundle: the merge, and the LLM alone (same adapter, same calculator, no soft prompt) beside it, per language.

    python tests/bench/accuracy.py tests/data/arithmetic.tsv --out runs/arithmetic.jsonl
    python tests/bench/accuracy.py DATA/dev/msvamp --limit 200 --out runs/msvamp.jsonl

Questions come from a TSV with the columns language, question, answer, or from a folder in MSVAMP's published layout
(`test_LANGUAGE.jsonl`). Decoding is greedy. An answer counts if it equals the right one as a number (docs/method.md); no number
counts as 0, as in the papers. Every generation is kept in the output file, and a run that was interrupted goes on from it. The
table goes to stdout.
"""

from __future__ import annotations

import argparse
import csv
import json
import multiprocessing
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

MODES = ("merge", "alone")
MSVAMP_LANGUAGES = {
    "Bengali": "bn", "Chinese": "zh", "English": "en", "French": "fr", "German": "de",
    "Japanese": "ja", "Russian": "ru", "Spanish": "es", "Swahili": "sw", "Thai": "th",
}  # fmt: skip


@dataclass(frozen=True)
class Item:
    """One question to be asked in one mode."""

    language: str
    index: int
    question: str
    expected: float
    mode: str

    @property
    def key(self) -> str:
        return f"{self.language}/{self.index}/{self.mode}"


def read_items(path: Path, limit: int | None) -> list[Item]:
    """All questions × modes; `limit` takes that many of each language, evenly spread over its file."""
    rows: dict[str, list[tuple[str, float]]] = {}
    if path.is_dir():
        for name, language in MSVAMP_LANGUAGES.items():
            lines = (path / f"test_{name}.jsonl").read_text(encoding="utf-8").splitlines()
            parsed = [json.loads(line) for line in lines]
            rows[language] = [(row["m_query"], float(row["response"])) for row in parsed]
    else:
        with path.open(encoding="utf-8", newline="") as stream:
            for row in csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE):
                rows.setdefault(row["language"], []).append((row["question"], float(row["answer"])))
    items = []
    for language, questions in rows.items():
        count = min(limit or len(questions), len(questions))
        for number in range(count):
            index = number * len(questions) // count
            question, expected = questions[index]
            items += [Item(language, index, question, expected, mode) for mode in MODES]
    return items


def ask(bundle: str | None, threads: int, tokens: int, items: list[Item], results: multiprocessing.Queue) -> None:
    """One worker: a model of its own, its share of the questions."""
    import mindmerger

    with mindmerger.load(bundle, threads=threads) as model:
        for item in items:
            answer = model.answer(
                item.question, max_new_tokens=tokens, temperature=0.0, soft_prompt=item.mode == "merge"
            )
            results.put(
                {
                    "key": item.key,
                    "language": item.language,
                    "mode": item.mode,
                    "question": item.question,
                    "expected": item.expected,
                    "answer": answer.answer,
                    "right": float(answer.answer or 0) == item.expected,
                    "finish_reason": answer.finish_reason,
                    "text": answer.text,
                }
            )


def table(rows: list[dict[str, object]]) -> str:
    """Markdown: per language, right answers in both modes."""
    asked, right = Counter(), Counter()
    for row in rows:
        for language in (row["language"], "all"):
            asked[language, row["mode"]] += 1
            right[language, row["mode"]] += bool(row["right"])
    languages = [*sorted({language for language, _ in asked} - {"all"}), "all"]
    lines = ["| language | questions | merge | LLM alone |", "|---|---:|---:|---:|"]
    for language in languages:
        cells = []
        for mode in MODES:
            n, k = asked[language, mode], right[language, mode]
            cells.append(f"{k} ({100 * k / n:.1f} %)" if n else "–")
        lines.append(f"| {language} | {asked[language, MODES[0]]} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("questions", type=Path)
    parser.add_argument("--bundle", help="folder or name (default: the embedded one)")
    parser.add_argument("--out", type=Path, required=True, help="every generation, as JSON lines")
    parser.add_argument("--limit", type=int, help="questions per language (default: all)")
    parser.add_argument("--max-tokens", type=int, default=192)
    parser.add_argument("--jobs", type=int, default=multiprocessing.cpu_count(), help="processes, one thread each")
    options = parser.parse_args()

    items = read_items(options.questions, options.limit)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in options.out.open(encoding="utf-8")] if options.out.exists() else []
    done = {row["key"] for row in rows}
    # In turns over the languages, so that an unfinished run is a smaller sample and not half of the languages.
    left = sorted((item for item in items if item.key not in done), key=lambda item: (item.index, item.language))
    # The cost of a question depends on its language: deal them out in turn.
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    workers = [
        context.Process(
            target=ask, args=(options.bundle, 1, options.max_tokens, left[job :: options.jobs], results), daemon=True
        )
        for job in range(min(options.jobs, len(left)))
    ]
    for worker in workers:
        worker.start()
    with options.out.open("a", encoding="utf-8") as stream:
        for number in range(1, len(left) + 1):
            while True:
                try:
                    row = results.get(timeout=5)
                    break
                except Exception:
                    if any(worker.exitcode not in (None, 0) for worker in workers):
                        sys.exit("accuracy: a worker died; run again to go on")
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")
            stream.flush()
            rows.append(row)
            if number % 20 == 0 or number == len(left):
                print(f"\r{number}/{len(left)}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    wanted = {item.key for item in items}
    print(table([row for row in rows if row["key"] in wanted]))


if __name__ == "__main__":
    main()
