"""Make the packaged table of letters (`letters.xz`) out of text, and measure what it reaches on text that it has not seen.

    python tests/bench/letter_table.py DATA --write       # make it out of all text
    python tests/bench/letter_table.py DATA               # make it out of half, measure on the other half

DATA has `ntrex/LANGUAGE.txt` and, where there is, `tatoeba/LANGUAGE.tsv` (language TAB English). Languages in Latin and
Cyrillic script get a table; coverage is printed for all. The table holds how frequent three letters in a row are, no text.
"""

from __future__ import annotations

import argparse
import collections
import json
import lzma
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / part) for part in ("runtime", "export", ".")]

import numpy as np  # noqa: E402

from mindmerger_export import letters  # noqa: E402
from mindmerger_export.prune import prune  # noqa: E402

# Twice in a text of this size may be chance.
LEAST = 2
TEN = "bn,de,en,es,fr,ja,ru,sw,th,zh"


def levels(lines: list[str]) -> letters.Levels:
    counts = collections.Counter(
        three for line in lines for three in letters.threes(f" {letters.plain(line).strip()} ")
    )
    total = sum(counts.values())
    return {
        three: max(0, round(float(np.log2(1e6 * count / total))))
        for three, count in counts.items()
        if count > LEAST and three.strip()
    }


def texts(data: Path, code: str, half: bool) -> tuple[list[str], list[str]]:
    """Lines to make the table of, lines to measure on."""
    lines = (data / "ntrex" / f"{code}.txt").read_text(encoding="utf-8").splitlines()
    pairs = data / "tatoeba" / f"{code}.tsv"
    more = [line.split("\t")[0] for line in pairs.read_text(encoding="utf-8").splitlines()] if pairs.is_file() else []
    return (lines[0::2] if half else lines) + more, lines[1::2]


def made(data: Path, codes: list[str], half: bool) -> dict[str, letters.Levels]:
    return {
        code: levels(texts(data, code, half)[0]) for code in codes if set(letters.SCRIPTS[code]) <= set(letters.LARGE)
    }


def packed(table: dict[str, letters.Levels]) -> bytes:
    lines = []
    for code in sorted(table):
        by_level: dict[int, list[str]] = {}
        for three, level in table[code].items():
            by_level.setdefault(level, []).append(three)
        lines += [f"{code}\t{level}\t{''.join(sorted(threes))}" for level, threes in sorted(by_level.items())]
    return lzma.compress("\n".join(lines).encode("utf-8"), preset=9 | lzma.PRESET_EXTREME)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--tokenizer", type=Path, help="another tokenizer.json than multilingual-e5's")
    parser.add_argument("--together", default=TEN, help="languages to choose pieces for together")
    options = parser.parse_args()
    codes = sorted(path.stem for path in (options.data / "ntrex").glob("*.txt"))
    table = made(options.data, codes, half=not options.write)
    data = packed(table)
    print(f"{len(table)} languages, {sum(map(len, table.values()))} times three letters, {len(data)} bytes", flush=True)
    if options.write:
        letters.TABLE.write_bytes(data)
        return
    letters.table = lambda: table  # type: ignore[assignment]
    from tokenizers import Tokenizer

    from mindmerger_train import encoders

    path = options.tokenizer or encoders.tokenizer_path(encoders.default_spec())
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    rows = len(json.loads(path.read_text(encoding="utf-8"))["model"]["vocab"])

    def coverage(keep: np.ndarray, code: str) -> float:  # type: ignore[type-arg]
        found = tokenizer.encode_batch_fast(texts(options.data, code, True)[1], add_special_tokens=False)
        ids = np.concatenate([encoding.ids for encoding in found])
        return 100 * float(np.isin(ids, keep).mean())

    together = options.together.split(",")
    kept = prune(path, {}, rows, languages=together)
    print(f"together {options.together}: {len(kept.keep)} of {rows} pieces;", end=" ")
    print(", ".join(f"{code} {coverage(kept.keep, code):.1f}" for code in together), flush=True)
    for code in codes:
        kept = prune(path, {}, rows, languages=(code,))
        print(f"{code}: {len(kept.keep)} pieces, {coverage(kept.keep, code):.1f} %", flush=True)


if __name__ == "__main__":
    main()
