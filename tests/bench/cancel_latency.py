"""Milliseconds from `cancel()` in another thread to the end of the answer: in the prefill of a long question, and in decoding.

    python tests/bench/cancel_latency.py                           the default bundle, 10 times each
    python tests/bench/cancel_latency.py --threads 1 --repeats 3

The moments are spread over the phase: prefill is cancelled at 10 to 90 % of what it took before, decoding after a few tokens
more each time. The aim is 200 ms. The document goes to stdout as JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import threading
from collections.abc import Callable
from time import perf_counter, sleep
from typing import Any

import mindmerger
from mindmerger.generation import Generation
from mindmerger.llama import default_threads
from mindmerger.model import MergedModel

AIM_MS = 200
_SENTENCE = "María tiene 15 manzanas y compra 27 más en el mercado. "


def long_question(model: MergedModel, positions: int) -> str:
    """As many sentences as stay below so many positions of the LLM."""
    count = 1
    while model._read(_SENTENCE * (count + 1)).positions < positions:
        count += 1
    return _SENTENCE * count


def latency(
    answer: Callable[[], Generation], begun: threading.Event, delay: float, cancel: Callable[[], None]
) -> float:
    """Seconds from the call of `cancel`, `delay` after `begun`, to the end of `answer`."""
    results: list[tuple[Generation, float]] = []

    def work() -> None:
        generation = answer()
        results.append((generation, perf_counter()))

    begun.clear()
    thread = threading.Thread(target=work)
    thread.start()
    if not begun.wait(600):
        raise RuntimeError("the answer did not begin within ten minutes")
    sleep(delay)
    called = perf_counter()
    cancel()
    thread.join()
    generation, ended = results[0]
    if generation.finish_reason != "cancelled":
        raise RuntimeError(f"the answer ended before it was cancelled ({generation.finish_reason}): take a longer one")
    return ended - called


def measure(bundle: str | None, threads: int, repeats: int, positions: int) -> dict[str, Any]:
    """The measurement as a document."""
    begun = threading.Event()
    with mindmerger.load(bundle, threads=threads) as model:
        question = long_question(model, min(positions, model.llm.context - 16))
        room = model.llm.context - model._read("hola").positions - 1
        plain = model._prefill
        spent: list[float] = []

        def prefill(ready: Any) -> float:
            begun.set()
            milliseconds = plain(ready)
            spent.append(milliseconds / 1e3)
            return milliseconds

        model._prefill = prefill  # type: ignore[method-assign]
        model.prefill(question)
        whole = spent[-1]

        def decode() -> Generation:
            stream = model.generate("hola", max_new_tokens=room, temperature=0.0)
            for number, _chunk in enumerate(stream):
                if number == 1:
                    begun.set()
            return stream.result

        found: dict[str, list[float]] = {"prefill": [], "decode": []}
        # an answer of its own would end; this one goes on until it is told not to
        model._stop_ids = frozenset()
        for repeat in range(repeats):
            part = 0.1 + 0.8 * repeat / max(1, repeats - 1)
            found["prefill"].append(latency(lambda: model.answer(question), begun, part * whole, model.cancel))
            model._prefill = plain  # type: ignore[method-assign]
            found["decode"].append(latency(decode, begun, 0.01 * repeat, model.cancel))
            model._prefill = prefill  # type: ignore[method-assign]
    return {
        "bundle": bundle or "default",
        "threads": threads,
        "repeats": repeats,
        "prefill_ms": round(whole * 1e3),
        "latency_ms": {
            name: {"median": round(statistics.median(values) * 1e3, 1), "worst": round(max(values) * 1e3, 1)}
            for name, values in found.items()
        },
        "aim_ms": AIM_MS,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", help="folder or name (default: the default bundle)")
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--positions", type=int, default=1000, help="length of the question that is prefilled")
    print(json.dumps(measure(**vars(parser.parse_args())), indent=2))


if __name__ == "__main__":
    main()
