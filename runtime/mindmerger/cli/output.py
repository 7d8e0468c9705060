"""How an answer is shown: as text while it is generated, as the answer alone, or as one JSON object.

stdout is data and the same in every language; notes for people go to stderr. Colours only on a terminal, and not where
NO_COLOR is set. Knows nothing about where questions come from.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO

import click

from mindmerger.cli.clusters import ClusterBuffer
from mindmerger.i18n import _

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mindmerger.generation import Generation
    from mindmerger.model import MergedModel

Form = Literal["text", "answer", "json"]


def colours(stream: TextIO) -> bool:
    """Whether `stream` is a terminal that may be given colours (https://no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def paint(text: str, stream: TextIO, **style: Any) -> str:
    """`text` in a click style, or as it is where `stream` takes no colours."""
    return click.style(text, **style) if colours(stream) else text


def note(text: str, *, name: str = "mm-run") -> None:
    """A sentence for people, on stderr."""
    click.echo(f"{name}: {text}", file=sys.stderr)


@dataclasses.dataclass
class Printer:
    """Shows answers in the form that was asked for."""

    form: Form = "text"
    quiet: bool = False
    verbose: bool = False

    def stream(self, chunks: Iterable[str]) -> None:
        """Show the reasoning as it arrives, in whole characters, as people count them; ends on a new line."""
        buffer = ClusterBuffer()
        last = ""
        try:
            for chunk in chunks:
                last = chunk
                if self.form == "text" and (ready := buffer.feed(chunk)):
                    _write(ready)
        finally:
            if self.form == "text":
                # The answer has a line of its own, whatever the text ended in.
                _write(buffer.rest() + ("" if not last or last.endswith("\n") else "\n"))

    def finish(self, model: MergedModel, result: Generation, *, merged: bool, load_ms: float) -> None:
        """Show what is known when the answer is complete."""
        if self.form == "json":
            print(json.dumps(document(model, result, merged=merged, load_ms=load_ms), ensure_ascii=False))
        elif self.form == "answer":
            print(result.answer or "none")
        else:
            print(paint(f"Answer: {result.answer or 'none'}", sys.stdout, bold=True))
        sys.stdout.flush()
        if result.finish_reason == "length" and not self.quiet:
            note(_("stopped after {count} tokens; --max-tokens allows more").format(count=len(result.token_ids)))
        if result.finish_reason == "timeout" and not self.quiet:
            note(_("stopped by --timeout after {count} tokens").format(count=len(result.token_ids)))
        if self.verbose:
            click.echo(report(model, result, load_ms), file=sys.stderr)


def _write(text: str) -> None:
    if text:
        sys.stdout.write(text)
        sys.stdout.flush()


def document(model: MergedModel, result: Generation, *, merged: bool, load_ms: float) -> dict[str, Any]:
    """What --json prints."""
    return {
        "question": result.question,
        "text": result.text,
        "answer": result.answer,
        "finish_reason": result.finish_reason,
        "merged": merged,
        "steering": {
            "language": result.language,
            "encoder_weight": result.encoder_weight,
            "llm_weight": result.llm_weight,
        },
        "counts": {
            "soft_prompt_rows": result.soft_prompt_rows,
            "prompt_tokens": result.prompt_tokens,
            "generated_tokens": len(result.token_ids),
            "forced_tokens": result.forced_tokens,
        },
        "timings": {
            "load_ms": round(load_ms, 2),
            **{
                key: None if value is None else round(value, 2)
                for key, value in dataclasses.asdict(result.timings).items()
            },
        },
        "bundle": {
            "name": model.manifest.name,
            "method": model.manifest.method,
            "folder": str(Path(model.bundle.folder).absolute()),
        },
    }


def report(model: MergedModel, result: Generation, load_ms: float) -> str:
    """What --verbose prints. The words are those of the documentation, in every language."""
    times = result.timings
    speed = "" if times.tokens_per_second is None else f", {times.tokens_per_second:.0f} tokens/s"
    first = "" if times.first_token_ms is None else f", first token after {times.first_token_ms:.0f} ms"
    weights = "".join(
        f", {name} weight {weight:.2f}"
        for name, weight in (("encoder", result.encoder_weight), ("LLM", result.llm_weight))
        if weight is not None
    )
    return (
        f"bundle   {model.manifest.name} ({model.manifest.method}), {model.bundle.folder}\n"
        f"load     {load_ms:.0f} ms\n"
        f"tokenise {times.tokenise_ms:.1f} ms, encode {times.encode_ms:.1f} ms{first}\n"
        f"prefill  {times.prefill_ms:.1f} ms: {result.soft_prompt_rows} rows + {result.prompt_tokens} tokens\n"
        f"decode   {times.decode_ms:.1f} ms: {len(result.token_ids)} tokens"
        f" ({result.forced_tokens} by the calculator){speed}\n"
        f"finish   {result.finish_reason}{weights}"
    )
