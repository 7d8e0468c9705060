"""The README's table of right answers, out of what `mm-eval` wrote, so that no figure there is typed by hand.

    python tests/bench/readme_table.py runs/msvamp runs/arithmetic

Both are folders of `mm-eval --out`; of the first come shares with intervals, of the second counts. The rows of the model that
was asked first are taken.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from mindmerger_train.data.languages import NAMES
from mindmerger_train.evaluation.results import percent

Row = dict[str, str]


def read(folder: str) -> dict[str, dict[str, Row]]:
    """`results.csv` of an evaluation: mode → language → its row."""
    with (Path(folder) / "results.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    found: dict[str, dict[str, Row]] = {}
    for row in rows:
        if row["model"] == rows[0]["model"] or row["mode"] == "alone":
            found.setdefault(row["mode"], {}).setdefault(row["language"], row)
    return found


def share(row: Row) -> str:
    """`23.0 % [18.1, 28.1]`."""
    return f"{percent(float(row['share']))} % [{percent(float(row['low']))}, {percent(float(row['high']))}]"


def difference(row: Row) -> str:
    """`+10.5 (p < 0.001)`."""
    p = float(row["minus_alone_p"])
    return f"{percent(float(row['minus_alone']), '+')} ({'p < 0.001' if p < 0.001 else f'p = {p:.3f}'})"


def main() -> None:
    shares, counts = read(sys.argv[1]), read(sys.argv[2])
    names = {code: name for name, code in NAMES.items() if name != "Flemish"}
    print("| language | MSVAMP: merge | LLM alone | difference | one-step sums: merge | LLM alone |")
    print("|---|---:|---:|---:|---:|---:|")
    for code, row in shares["merge"].items():
        alone = shares["alone"][code]
        sums = [f"{table[code]['right']} of {table[code]['questions']}" for table in (counts["merge"], counts["alone"])]
        name = "**average**" if code == "average" else names.get(code, code)
        cells = [name, share(row), share(alone) if code == "average" else share(alone).split(" [")[0]]
        print("| " + " | ".join([*cells, difference(row), *sums]) + " |")


if __name__ == "__main__":
    main()
