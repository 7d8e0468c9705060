"""Peak resident memory of a bundle against what it should be: files + KV cache + 120 MB.

    python tests/bench/peak_memory.py [--bundle DIR_OR_NAME] [--threads N]

A process of its own for each kind of question (short, and as long as fits), so that neither sees what the other took.
Files are counted in full, as mapped. RSS counts mapped files that are in memory; RssAnon does not. Exit code 1 when a peak is
above the bound.
"""

from __future__ import annotations

import argparse
import sys

from mindmerger.bundle import open_bundle
from mindmerger.child import Child
from mindmerger.llama import default_threads
from mindmerger.memory import estimate

ALLOWED = 120_000_000
SHORT = "¿Cuánto es 15 + 27?"


def peak(bundle: str | None, question: str, threads: int, tokens: int) -> tuple[int, int, int]:
    """(positions before the answer, peak RSS, RssAnon) after loading and one answer."""
    with Child("mindmerger.contestants", what="the runtime") as child:
        facts = child.ask(do="load", kind="runtime", bundle=bundle, question=question, threads=threads)
        held = child.ask(do="run", tokens=tokens)["memory"]
        return len(facts["prompt"]), held["peak"], held["anonymous"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", help="folder or name (default: the embedded one)")
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--tokens", type=int, default=64)
    options = parser.parse_args()

    opened = open_bundle(options.bundle)
    opened.llm()  # prepares it, where that has to be done, in this process
    need = estimate(opened)
    bound = need.files + need.cache + ALLOWED
    # digits are a token each in any encoder: as long as it gets
    long = " ".join(["7"] * (opened.manifest.encoder.max_tokens // 2 - 8))
    print(
        "| question | positions | files, MB | KV, MB | peak RSS, MB | difference, MB (≤ 120) | RssAnon, MB | estimate, MB |"
    )
    print("|---|" + "---:|" * 7)
    over = False
    for name, question in (("short", SHORT), ("60 tokens", " ".join(["7"] * 29)), ("longest", long)):
        positions, rss, anonymous = peak(options.bundle, question, options.threads, options.tokens)
        over = over or rss > bound
        figures = (need.files, need.cache, rss, rss - need.files - need.cache, anonymous, need.total)
        print(f"| {name} | {positions} | " + " | ".join(f"{figure / 1e6:.0f}" for figure in figures) + " |", flush=True)
    sys.exit(over)


if __name__ == "__main__":
    main()
