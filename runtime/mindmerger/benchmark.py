"""What mm-bench measures: repetitions in alternation, and figures made of them.

Every contestant is a process of its own and in the process group of the caller; one works at a time, the others wait on
a pipe. The order changes from repetition to repetition, so that a machine that warms up or is disturbed does not favour
one. Knows nothing about how figures are shown.
"""

from __future__ import annotations

import importlib.util
import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mindmerger.child import Child, Document
from mindmerger.errors import MindMergerError, ModelError
from mindmerger.i18n import _

RUNTIME, BARE = "mindmerger", "bare llama.cpp"
OTHER_ATTENTION = "bare, own attention"
"""The bare loop with the attention that llama.cpp chooses by itself, where the runtime chooses the other."""
SHARE_TOKENS = 60
DEFAULT_QUESTION = "María tiene 15 manzanas y compra 27 más. ¿Cuántas manzanas tiene ahora?"
# Long enough for 60 tokens of any encoder; cut to length by the contestant.
_SHARE_TEXT = (
    "María tiene 15 manzanas y compra 27 más en el mercado. Después regala 8 a su hermana, 6 a su hermano y 4 a su vecino "
    "Juan. Por la tarde encuentra otras 12 manzanas en la cocina de su abuela. ¿Cuántas manzanas tiene ahora y cuántas más "
    "necesita para llenar 5 cajas de 9 manzanas cada una? Explica cada paso y escribe el resultado al final, por favor."
)
_LOADS = 3
# torch is a tenth as fast: with the repetitions and tokens of the others it would take most of the time.
_SLOW = ("torch float32", "torch bfloat16")
_SLOW_REPEATS, _SLOW_TOKENS = 3, 32


@dataclass(frozen=True)
class Figure:
    """One measured quantity of one contestant: mean, standard deviation (of the sample) and number of repetitions.

    For a ratio, `mean` is the median of the ratios of repetitions that ran one after the other. `target`: what the
    project wants it to be, with its sign, for the reader.
    """

    contestant: str
    metric: str
    unit: str
    mean: float
    sd: float | None
    n: int
    target: str = ""


@dataclass(frozen=True)
class Result:
    """Everything a report says. `settings` are facts of the run, `notes` what a reader must know."""

    settings: dict[str, Any]
    figures: list[Figure]
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Options:
    """What to measure. `compare`: beside the bare loop and the others. `checkpoint`: for torch (None: the bundle's name)."""

    bundle: str | None
    question: str
    tokens: int
    repeats: int
    threads: int
    compare: bool
    context: int | None = None
    checkpoint: str | None = None


Report = Callable[[str], None]


class Runner:
    """Runs a benchmark. `step` is called after each piece of work, `at` before it with the contestant whose it is, `note`
    gets sentences for people."""

    def __init__(
        self, options: Options, *, step: Callable[[], None], note: Report, at: Report = lambda text: None
    ) -> None:
        self.options = options
        self._step = step
        self._note = note
        self._at = at
        self._stack = ExitStack()
        self._notes: list[str] = []
        self._children: dict[str, Child] = {}
        self._peak: dict[str, dict[str, int]] = {}
        self._loads: dict[str, list[float]] = {}

    @staticmethod
    def steps(options: Options) -> int:
        """How many times `step` is called, if nothing has to be left out."""
        quick = 3 if options.compare else 0
        slow = 0 if not options.compare or _missing() else len(_SLOW)
        laps = (1 + options.repeats) * (1 + quick) + slow * (1 + min(options.repeats, _SLOW_REPEATS))
        return 1 + _LOADS + quick + slow + laps + options.repeats

    def run(self) -> Result:
        """Measure everything. MindMergerError when the runtime itself cannot; others are left out with a note."""
        with self._stack:
            facts = self._start_runtime()
            if self.options.compare:
                self._start_others(facts)
            laps = self._laps()
            shares = self._shares()
            held = dict(self._peak)
        settings = {
            "bundle": facts["bundle"],
            "method": facts["method"],
            "llm": Path(facts["llm"]).name,
            "question": self.options.question,
            "threads": self.options.threads,
            "context": facts["context"],
            "gpu_layers": facts["gpu_layers"],
            "tokens": self.options.tokens,
            "positions_before": len(facts["prompt"]),
            "repeats": self.options.repeats,
        }
        figures = [figure for name, own in laps.items() for figure in self._figures(name, own, held.get(name))]
        figures += _ratios(laps)
        figures += _share_figures(shares)
        return Result(settings, figures, self._notes)

    # ----------------------------------------------------------------------------------------------- starting

    def _start(self, name: str, module: str, **request: Any) -> Document:
        self._at(name)
        child = Child(module, what=name)
        try:
            reply = child.ask(do="load", **request)
        except BaseException:
            child.close()
            raise
        self._stack.callback(child.close)
        self._children[name] = child
        self._hold(name, reply)
        self._loads.setdefault(name, []).append(reply["load_ms"])
        self._step()
        return reply

    def _start_runtime(self) -> Document:
        """The runtime once to warm up (the LLM may have to be prepared first), then as often as loads are measured."""
        options = self.options
        request = {
            "kind": "runtime", "bundle": options.bundle, "question": options.question, "threads": options.threads,
            "context": options.context,
        }  # fmt: skip
        facts: Document = {}
        for turn in range(_LOADS + 1):
            if self._children:
                self._children.pop(RUNTIME).close()
            facts = self._start(RUNTIME, "mindmerger.contestants", **request)
            if turn == 0:
                self._loads.clear()
        return facts

    def _start_others(self, facts: Document) -> None:
        options = self.options
        native = {
            "llm": facts["llm"], "context": facts["context"], "threads": options.threads, "prompt": facts["prompt"],
            "gpu_layers": facts["gpu_layers"],
        }  # fmt: skip
        # Without the limit there is nothing to compare with: its failure is an error.
        plain = facts["plain_attention"]
        self._start(BARE, "mindmerger.contestants", kind="bare", plain_attention=plain, **native)
        if plain:
            self._start(OTHER_ATTENTION, "mindmerger.contestants", kind="bare", plain_attention=False, **native)
        self._try("Llama class", "mindmerger.contestants", kind="llama", **native)
        if missing := _missing():
            self._say(
                _("torch + transformers are left out: {missing} is not installed (the extra [train])").format(
                    missing=", ".join(missing)
                )
            )
            return
        request = {
            "kind": "published", "checkpoint": options.checkpoint or facts["bundle"], "question": options.question,
            "threads": options.threads,
        }  # fmt: skip
        for name in _SLOW:
            if not self._try(name, "mindmerger_train.published", dtype=name.removeprefix("torch "), **request):
                return
        repeats, tokens = min(options.repeats, _SLOW_REPEATS), min(options.tokens, _SLOW_TOKENS)
        if (repeats, tokens) != (options.repeats, options.tokens):
            self._notes.append(
                _("torch, which is slow, makes {tokens} tokens in each of {repeats} repetitions").format(
                    tokens=tokens, repeats=repeats
                )
            )

    def _try(self, name: str, module: str, **request: Any) -> bool:
        try:
            self._start(name, module, **request)
        except MindMergerError as error:
            self._say(_("{name} is left out: {error}").format(name=name, error=error))
            return False
        return True

    def _say(self, text: str) -> None:
        self._notes.append(text)
        self._note(text)

    # ---------------------------------------------------------------------------------------------- measuring

    def _laps(self) -> dict[str, list[Document]]:
        names = list(self._children)
        laps: dict[str, list[Document]] = {name: [] for name in names}
        for turn in range(1 + self.options.repeats):
            for name in names if turn % 2 else reversed(names):
                if name in _SLOW and turn > _SLOW_REPEATS:
                    continue
                tokens = min(self.options.tokens, _SLOW_TOKENS) if name in _SLOW else self.options.tokens
                lap = self._ask(name, do="run", tokens=tokens)
                if lap["tokens"] != tokens:
                    raise ModelError(f"{name} made {lap['tokens']} tokens of {tokens}: report this")
                if turn:  # the first one warms up
                    laps[name].append(lap)
                self._step()
        return laps

    def _shares(self) -> list[Document]:
        shares = []
        for turn in range(1 + self.options.repeats):
            share = self._ask(RUNTIME, do="share", text=_SHARE_TEXT, encoder_tokens=SHARE_TOKENS)
            if turn:
                shares.append(share)
                self._step()
        return shares

    def _ask(self, name: str, **request: Any) -> Document:
        self._at(name)
        reply = self._children[name].ask(**request)
        self._hold(name, reply)
        return reply

    def _hold(self, name: str, reply: Document) -> None:
        memory = reply.pop("memory")
        if memory:
            peak = self._peak.setdefault(name, {"peak": 0, "anonymous": 0})
            for key in peak:
                peak[key] = max(peak[key], memory[key])

    def _figures(self, name: str, laps: list[Document], held: dict[str, int] | None) -> list[Figure]:
        tokens = laps[0]["tokens"]
        figures = [figure_of(name, "load", "ms", self._loads[name])]
        for metric, key in (("tokenise", "tokenise_ms"), ("encode + merge", "encode_ms")):
            if key in laps[0]:
                figures.append(figure_of(name, metric, "ms", [lap[key] for lap in laps]))
        figures.append(figure_of(name, "prefill", "rows/s", [lap["rows"] / lap["prefill_ms"] * 1e3 for lap in laps]))
        figures.append(figure_of(name, "time to first token", "ms", [lap["first_ms"] for lap in laps]))
        if tokens > 1:
            figures.append(
                figure_of(name, "decode", "tokens/s", [(tokens - 1) / lap["decode_ms"] * 1e3 for lap in laps])
            )
        if held:
            figures.append(Figure(name, "peak memory (RSS)", "MB", held["peak"] / 1e6, None, 1))
            figures.append(Figure(name, "own memory (RssAnon)", "MB", held["anonymous"] / 1e6, None, 1))
        return figures


def figure_of(contestant: str, metric: str, unit: str, values: Sequence[float], target: str = "") -> Figure:
    """Mean and standard deviation of repeated values."""
    sd = statistics.stdev(values) if len(values) > 1 else None
    return Figure(contestant, metric, unit, statistics.fmean(values), sd, len(values), target)


def _ratios(laps: dict[str, list[Document]]) -> list[Figure]:
    """Each contestant over the bare loop: above 1 is faster. Median over repetitions that ran side by side."""
    if BARE not in laps:
        return []
    figures = []
    kinds = (
        ("prefill ÷ bare", "prefill_ms", "≥ 0.95"),
        ("decode ÷ bare", "decode_ms", "≥ 0.98"),
        ("decode ÷ bare (processor time)", "cpu_ms", ""),
    )
    for name, own in laps.items():
        if name == BARE:
            continue
        for metric, key, target in kinds:
            # Time for a row or token, so that contestants whose rows differ in number are compared fairly.
            per = "rows" if key == "prefill_ms" else "tokens"
            pairs = zip(own, laps[BARE], strict=False)  # who is slow ran in the first repetitions only
            ratios = [(bare[key] / bare[per]) / (lap[key] / lap[per]) for lap, bare in pairs if lap[key] and bare[key]]
            if ratios:
                sd = statistics.stdev(ratios) if len(ratios) > 1 else None
                target = target if name == RUNTIME else ""
                figures.append(Figure(name, metric, "×", statistics.median(ratios), sd, len(ratios), target))
    return figures


def _share_figures(shares: list[Document]) -> list[Figure]:
    tokens = max(share["encoder_tokens"] for share in shares)
    values = [100 * (1 - share["llama_ms"] / share["first_ms"]) for share in shares]
    name = f"not llama.cpp, of the time to first token of a {tokens}-token question"
    return [figure_of(RUNTIME, name, "%", values, "≤ 10 %")]


def _missing() -> list[str]:
    """What torch + transformers would need and is not installed."""
    return [name for name in ("torch", "transformers", "mindmerger_train") if not _installed(name)]


def _installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False
