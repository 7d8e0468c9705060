"""Any question, any options: thousands of them, and nothing but an answer or a MindMergerError.

    python tests/bench/soak.py --count 10000                     the tiny random bundle of the tests
    python tests/bench/soak.py --minutes 3 --bundle default      the embedded default
    python tests/bench/soak.py --crowd 8 --bundle default        8 threads × 50 questions on one model against one thread

Questions and options come from hypothesis: any Unicode (lone surrogates and NUL among it), 0 to 20,000 characters, options
in and around their ranges; one in ten is a batch. The report says how many were answered and refused, by which error, the
longest that one took, and how anonymous resident memory grew over the last 5,000, or the second half of fewer. Exit code 1
when something other than a MindMergerError came out, memory grew by more than --growth MB, or (--crowd) an answer differs; a
question that takes longer than --hang seconds ends the process with all stacks on stderr.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import json
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

import mindmerger
from mindmerger.errors import MindMergerError
from mindmerger.model import MergedModel
from mindmerger.reclaim import give_memory_back

MAX_CHARACTERS = 20_000
MAX_NEW_TOKENS = 24
_CHUNK = 100  # questions that one run of hypothesis makes: it remembers them all, which is not our memory

_VALID = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
_CHARACTERS = st.one_of(
    _VALID,  # all of Unicode, unassigned too
    st.characters(categories=["Cc", "Cf", "Mn", "Zs", "Co", "Cn"], exclude_characters="\0"),
    st.sampled_from("\u200d\u202e\ufeff\ufffd <|>#=+0123456789"),
)
_PIECES = st.one_of(
    st.text(_CHARACTERS, max_size=40),
    st.sampled_from(
        ["<|im_end|>", "<s>", "</s>", "{question}", "####", "<<48/2=", "¿Cuánto es 15 + 27?", "15 और 27 का योग", "e\u0301" * 9,
         "👨‍👩‍👧‍👦", "العربية", "\n" * 30, "a" * 300, "ก็" * 20]
    ),
)  # fmt: skip


def rarely(rare: st.SearchStrategy[Any], usual: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """`rare` once in twenty times, so that most questions with a dozen options are still answered."""
    return st.integers(0, 19).flatmap(lambda n: rare if n == 0 else usual)


@st.composite
def questions(draw: st.DrawFn) -> str:
    """A text of 0 to 20,000 characters: short ones mostly, long ones by repetition."""
    text = draw(st.one_of(st.text(_CHARACTERS, max_size=40), st.lists(_PIECES, max_size=3).map("".join)))
    text += draw(rarely(st.sampled_from(["\0", "\ud800", "\udfff\ud800", " \0 "]), st.just("")))
    repeat = draw(rarely(st.sampled_from([10, 1000, 20_000]), st.sampled_from([1, 1, 1, 2])))
    return (text * repeat)[:MAX_CHARACTERS]


def options() -> st.SearchStrategy[dict[str, Any]]:
    """Options in their ranges mostly, and the neighbours of their ends."""
    wild = st.one_of(st.floats(), st.integers(-(2**33), 2**33), st.none(), st.text(max_size=3), st.booleans())
    grammars = ["root ::= [0-9]+", 'root ::= "a" | "b" root', "root ::= x", "root ::= [z-a]", "", "root ::= .*"]
    sampling = st.one_of(
        st.fixed_dictionaries({}, optional={"temperature": rarely(wild, st.just(0.0))}),
        st.fixed_dictionaries(
            {"temperature": rarely(wild, st.floats(0.01, 10))},
            optional={
                "top_k": rarely(wild, st.integers(0, 400)),
                "top_p": rarely(wild, st.floats(0, 1)),
                "min_p": rarely(wild, st.floats(0, 1)),
            },
        ),
    )
    others = st.fixed_dictionaries(
        {"max_new_tokens": rarely(wild, st.integers(1, MAX_NEW_TOKENS))},
        optional={
            "repeat_penalty": rarely(wild, st.floats(0.1, 10)),
            "seed": rarely(wild, st.integers(0, 2**32 - 2)),
            "stop": rarely(wild, st.lists(st.text(min_size=1, max_size=5), max_size=4)),
            "timeout": rarely(wild, st.sampled_from([None, 5.0, 0.001])),
            "language": rarely(st.one_of(wild, st.sampled_from(["sw", "xx"])), st.none()),
            "encoder_weight": rarely(wild, st.floats(0, 2)),
            "llm_weight": rarely(wild, st.floats(0, 2)),
        },
    )
    more = st.one_of(
        st.just({}),
        st.fixed_dictionaries({"calculator": rarely(wild, st.booleans())}),
        st.fixed_dictionaries(
            {"grammar": st.one_of(st.sampled_from(grammars), st.text('rot:= "[]()|*+?ab\n', max_size=30))}
        ),
        st.fixed_dictionaries({"soft_prompt": st.booleans()}),
        st.fixed_dictionaries({"question_in_prompt": st.booleans()}),
    )
    return st.tuples(sampling, others, more).map(lambda parts: {**parts[0], **parts[1], **parts[2]})


@dataclass
class Tally:
    """What came out so far."""

    outcomes: Counter[str] = field(default_factory=Counter)
    asked: int = 0
    longest_seconds: float = 0.0
    longest_question: str = ""


def ask(model: MergedModel, question: str, given: dict[str, Any], way: int, tally: Tally) -> None:
    """One question by one of the ways to ask it; whatever is no MindMergerError goes up."""
    began = perf_counter()
    try:
        if way == 0:
            for item in model.generate_batch([question, "hola", question[::-1]], slots=2, **given):
                assert (item.generation is None) != (item.error is None)
            outcome = "batch"
        elif way == 1:
            stream = model.generate(question, **given)
            for _chunk in stream:
                break
            stream.close()
            outcome = "closed"
        else:
            result = model.answer(question, **given)
            result.text.encode("utf-8")
            assert given["max_new_tokens"] is None or len(result.token_ids) <= given["max_new_tokens"]
            outcome = result.finish_reason
    except MindMergerError as error:
        assert str(error) and "\n" not in str(error)
        outcome = type(error).__name__
    seconds = perf_counter() - began
    tally.asked += 1
    tally.outcomes[outcome] += 1
    if seconds > tally.longest_seconds:
        tally.longest_seconds, tally.longest_question = seconds, f"{question[:60]!r} {given!r:.300}"


def soak(
    model: MergedModel, count: int, tally: Tally, hang: float = 0.0, each: Any = None, seconds: float = float("inf")
) -> None:
    """Ask `count` generated questions, or for so many seconds; `each()` after every chunk. With `hang`, a question of more
    seconds than that ends the process."""
    began = perf_counter()
    for chunk in range(-(-count // _CHUNK)):
        if perf_counter() - began > seconds:
            return

        @seed(chunk)
        @settings(
            max_examples=min(_CHUNK, count - chunk * _CHUNK),
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(questions(), options(), st.integers(0, 9))
        def run(question: str, given: dict[str, Any], way: int) -> None:
            if perf_counter() - began > seconds:
                return
            if hang:
                faulthandler.dump_traceback_later(hang, exit=True)
            ask(model, question, given, way, tally)
            if hang:
                faulthandler.cancel_dump_traceback_later()

        run()
        if each is not None:
            each()


def resident() -> int:
    """Resident anonymous memory of this process in bytes, what was freed given back before."""
    gc.collect()
    give_memory_back()
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    return 0


def crowd(model: MergedModel, threads: int, each: int = 50) -> dict[str, Any]:
    """`each` questions by every one of so many threads at once, against the same by one thread."""
    asked = [f"¿Cuánto es {number} + {3 * number % 17}?" for number in range(each)]

    def answers(_thread: int = 0) -> list[tuple[str, tuple[int, ...]]]:
        return [(it.text, it.token_ids) for it in (model.answer(one, max_new_tokens=MAX_NEW_TOKENS) for one in asked)]

    alone = answers()
    with ThreadPoolExecutor(threads) as pool:
        together = list(pool.map(answers, range(threads)))
    different = sum(one != two for own in together for one, two in zip(alone, own, strict=True))
    return {"threads": threads, "questions": each, "different": different}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--count", "--questions", type=int, help="questions (default: 10,000, or as many as fit --minutes)"
    )
    parser.add_argument("--minutes", type=float, help="stop after so many")
    parser.add_argument("--crowd", type=int, metavar="THREADS", help="so many threads × 50 questions, and no soak")
    parser.add_argument("--bundle", help="folder, name, or 'default' (without: the tests' tiny random bundle)")
    parser.add_argument("--hang", type=float, default=120.0, help="seconds after which a question counts as hanging")
    parser.add_argument("--growth", type=float, default=8.0, help="MB that memory may grow by in the second half")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle = None if arguments.bundle == "default" else arguments.bundle
        if arguments.bundle is None:
            sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
            from tests import tiny

            bundle = str(tiny.bundle(Path(folder) / "tiny"))
        with mindmerger.load(bundle, threads=1) as model:
            if arguments.crowd:
                report = crowd(model, arguments.crowd)
                failed = report["different"] > 0
            else:
                report = _soak(model, arguments)
                failed = report["growth_mb"] > arguments.growth
    print(json.dumps(report, indent=2, ensure_ascii=True))
    sys.exit(failed)


def _soak(model: MergedModel, arguments: argparse.Namespace) -> dict[str, Any]:
    tally = Tally()
    memory: list[tuple[int, int]] = []
    count = arguments.count or (10_000 if arguments.minutes is None else 10**9)

    def each() -> None:
        memory.append((tally.asked, resident()))
        print(f"\r{tally.asked} questions, {memory[-1][1] / 2**20:.1f} MB", end="", file=sys.stderr, flush=True)

    began = perf_counter()
    soak(
        model, count, tally, arguments.hang, each, float("inf") if arguments.minutes is None else 60 * arguments.minutes
    )
    seconds = perf_counter() - began
    print(file=sys.stderr)
    last = min(5_000, tally.asked // 2)
    before = [held for asked, held in memory if asked <= tally.asked - last]
    return {
        "questions": tally.asked,
        "outcomes": dict(tally.outcomes.most_common()),
        "seconds": round(seconds, 1),
        "longest_seconds": round(tally.longest_seconds, 2),
        "longest_question": tally.longest_question,
        "anonymous_memory_mb": [round(held / 2**20, 1) for _asked, held in memory],
        "growth_over_the_last": last,
        "growth_mb": round((memory[-1][1] - before[-1]) / 2**20, 2) if before else 0.0,
    }


if __name__ == "__main__":
    main()
