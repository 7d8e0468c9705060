"""What a run tells: `metrics.jsonl`, a progress bar on a terminal (sparse lines elsewhere), and a table at the end.

What this module does not know: tensors, models, when something is worth a line.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mindmerger_train.files import whole
from mindmerger_train.runstate import Progress, saving

METRICS = "metrics.jsonl"
# Evaluations in the table at the end; a long run's are thinned out.
TABLE_ROWS = 12


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's log that are whole; empty when there is none."""
    try:
        text = (folder / METRICS).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    lines = []
    for line in text.splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            continue  # the line that a kill has torn
        if isinstance(value, dict) and isinstance(value.get("step"), int):
            lines.append(value)
    return lines


def rate_of(lines: Sequence[Mapping[str, Any]]) -> float | None:
    """Median tokens per second of the last lines of a log, or None."""
    rates = sorted(float(line["tokens_per_second"]) for line in lines[-50:] if line.get("tokens_per_second"))
    return rates[len(rates) // 2] if rates else None


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 20 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


class RunLog:
    """Writes the log of one run and shows how it goes. `silent`: for processes that only compute."""

    def __init__(self, folder: Path, tokens: int, progress: Progress, *, silent: bool = False) -> None:
        """Lines beyond `progress.step`, which a resumed run will write again, are cut off. `tokens`: the run's budget."""
        self.folder, self.tokens, self.silent = folder, tokens, silent
        self._bar: Any = None
        self._rate = 0.0
        if silent:
            return
        kept = [line for line in read_metrics(folder) if line["step"] <= progress.step] if progress.step else []
        path = folder / METRICS
        if kept:
            with saving("the log", folder), whole(path) as part:
                part.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        else:
            path.unlink(missing_ok=True)
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                total=tokens,
                initial=min(tokens, progress.tokens),
                unit="tok",
                unit_scale=True,
                smoothing=0.1,
                dynamic_ncols=True,
                file=sys.stderr,
            )

    def line(self, values: Mapping[str, object]) -> None:
        """Append to `metrics.jsonl`, with one write. Raises ModelError when the disk is full."""
        if self.silent:
            return
        data = (json.dumps(values) + "\n").encode()
        with saving("the log", self.folder), (self.folder / METRICS).open("ab", buffering=0) as stream:
            if stream.write(data) != len(data):
                raise OSError(28, os.strerror(28))

    def advance(self, progress: Progress, tokens: int, loss: float) -> None:
        """A step of `tokens` is done: move the bar."""
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {loss:.3f}, step {progress.step}", refresh=False)
            self._bar.update(min(tokens, max(0, self.tokens - self._bar.n)))

    def training(self, values: Mapping[str, Any], progress: Progress) -> None:
        """A line on the training loss; shown where there is no bar."""
        self.line(values)
        self._rate = float(values["tokens_per_second"])
        left = max(0, self.tokens - progress.tokens) / max(1.0, self._rate)
        if self._bar is None:
            self.say(
                f"step {progress.step}  {min(1.0, progress.tokens / self.tokens):6.1%}  loss {values['loss']:.3f}  "
                f"{self._rate:.0f} tokens/s  {duration(left)} left"
            )

    def say(self, text: str) -> None:
        """A line for the person, above the bar if there is one."""
        if self.silent:
            return
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        else:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Take the bar off the screen."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def table(self, progress: Progress) -> str:
        """The run at a glance: one line an evaluation, the best one marked."""
        lines = read_metrics(self.folder)
        losses = [(line["step"], float(line["loss"])) for line in lines if "loss" in line]
        evaluations = [line for line in lines if "held_out_loss" in line]
        thin = max(1, math.ceil(len(evaluations) / TABLE_ROWS))
        shown = [
            line
            for index, line in enumerate(evaluations)
            if (len(evaluations) - 1 - index) % thin == 0 or line["step"] == progress.best_step
        ]
        head = f"{'step':>8} {'tokens':>12} {'train loss':>11} {'held-out':>9} {'perplexity':>11}"
        rows = [head]
        for line in shown:
            before = [loss for step, loss in losses if step <= line["step"]]
            train = f"{sum(before[-5:]) / len(before[-5:]):11.4f}" if before else f"{'':>11}"
            mark = "  best" if line["step"] == progress.best_step else ""
            rows.append(
                f"{line['step']:8d} {line['tokens']:12,} {train} {line['held_out_loss']:9.4f} "
                f"{line.get('perplexity', math.nan):11.3f}{mark}"
            )
        rate = progress.tokens / progress.seconds if progress.seconds else 0.0
        rows.append(
            f"{progress.step} steps, {progress.tokens:,} tokens in {duration(progress.seconds)} ({rate:.0f} tokens/s)"
        )
        return "\n".join(rows if shown else rows[-1:])
