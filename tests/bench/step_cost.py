"""Step time and peak memory of training, beside a straightforward loop in the published style. Real models, same examples.

    python tests/bench/step_cost.py --repeats 3 --steps 3 [--data DATA]

The published style (docs of MindMerger's code): micro-batches in the order they are drawn, the encoder inside the step, each
part padded and the padding squeezed out afterwards, logits of the whole vocabulary at every position, transformers' own loss.
Ours: the engine as `mm-train` runs it, encoder states kept, batches cut by length. Both: multilingual-e5-small and
SmolLM2-135M, bfloat16 autocast, AdamW on the mapping, one optimiser step for all `--examples`. Each side runs in a process of
its own, in turn; peak memory is what the process has at its highest over what it had when the models were loaded.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SIDES = ("published", "ours")
LANGUAGES = ("bn", "de", "en", "es", "fr", "ja", "ru", "sw", "th", "zh")


def status(field: str) -> float:
    """`VmRSS` or `VmHWM` of this process, in MB."""
    text = Path("/proc/self/status").read_text(encoding="ascii")
    return float(text.split(field + ":")[1].split()[0]) / 1000


def forget_peak() -> None:
    """Let the peak start anew from what is used now (Linux)."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def build(arguments: argparse.Namespace) -> tuple[Any, list[Any]]:
    """The augmentation task as mm-train builds it, and the examples of one step as rows of ids."""
    from mindmerger_train.build import build_task, row_maker
    from mindmerger_train.data.mixture import Source, draw
    from mindmerger_train.data.sources import Example, gsm8k
    from mindmerger_train.engine import Schedule
    from mindmerger_train.recipe import Recipe

    problems = [
        Example(language, problem.query, problem.english, problem.response)
        for language in LANGUAGES
        for problem in generate(language)
    ]
    sources = [Source("generator", problems, 0.5)]
    if arguments.data:
        known = [language for language in LANGUAGES if (arguments.data / "gsm8k" / f"{language}.jsonl").is_file()]
        sources.append(Source("gsm8k", gsm8k(arguments.data / "gsm8k", known), 0.5))
    recipe = Recipe("augmentation", Schedule(tokens=1, lr=1e-4, batch_tokens=arguments.batch_tokens), {}, longest=400)
    task = build_task(recipe, sources, None, None)
    rows = row_maker(recipe, task.checkpoint).rows(draw(sources, 1), 1)
    return task, list(itertools.islice((row for row in rows if row.length() <= 400), arguments.examples))


def generate(language: str) -> list[Any]:
    from mindmerger_train.data.generator import generate as make

    return list(make(language, 100, 7))


def published(arguments: argparse.Namespace) -> dict[str, Any]:
    """The straightforward loop."""
    import torch

    task, rows = build(arguments)
    llm, encoder, merger = task.llm, task.encoder, task.checkpoint.merger
    llm.set_attn_implementation("sdpa")
    embed = llm.get_input_embeddings()
    optimiser = torch.optim.AdamW(merger.parameters(), lr=1e-4, betas=(0.8, 0.999), weight_decay=3e-7)
    micro = [rows[start : start + arguments.micro] for start in range(0, len(rows), arguments.micro)]
    count = sum(len(row.label_ids) - len(row.given) for row in rows)

    def padded(parts: list[list[int]], left: bool) -> tuple[torch.Tensor, torch.Tensor]:
        longest = max(len(part) for part in parts)
        fill = [[0] * (longest - len(part)) for part in parts]
        ids = [f + list(p) if left else list(p) + f for f, p in zip(fill, parts, strict=True)]
        mask = [
            [0] * len(f) + [1] * len(p) if left else [1] * len(p) + [0] * len(f)
            for f, p in zip(fill, parts, strict=True)
        ]
        return torch.tensor(ids), torch.tensor(mask)

    def micro_loss(batch: list[Any]) -> torch.Tensor:
        ids, soft_mask = padded([row.encoder_ids for row in batch], left=False)
        mapped = merger.mlp(encoder(ids, soft_mask))
        prompts, prompt_mask = padded([row.prompt_ids for row in batch], left=True)
        labels, label_mask = padded([row.label_ids for row in batch], left=True)
        asked = torch.tensor(
            [
                [-100] * (labels.shape[1] - len(row.label_ids))
                + [-100 if index in row.given else token for index, token in enumerate(row.label_ids)]
                for row in batch
            ]
        )
        one = torch.ones(len(batch), 1, dtype=torch.int64)
        bos = embed(one * task.checkpoint.prompt.bos_id)
        boundary = merger.end_boundary.expand(len(batch), 1, -1)
        sequence = torch.cat([bos, mapped.to(bos.dtype), boundary.to(bos.dtype), embed(prompts), embed(labels)], dim=1)
        mask = torch.cat([one, soft_mask, one, prompt_mask, label_mask], dim=1)
        target = torch.cat([torch.full((len(batch), sequence.shape[1] - labels.shape[1]), -100), asked], dim=1)
        order = torch.sort(mask, dim=1, stable=True).indices  # padding to the left, then columns of padding alone out
        keep = int(mask.sum(dim=1).max())
        order = order[:, -keep:]
        sequence = sequence.gather(1, order.unsqueeze(-1).expand(-1, -1, sequence.shape[-1]))
        mask, target = mask.gather(1, order), target.gather(1, order)
        loss = llm(inputs_embeds=sequence, attention_mask=mask, labels=target, use_cache=False).loss
        return loss * ((target[:, 1:] != -100).sum() / count)

    base = status("VmRSS")
    forget_peak()
    losses, times = [], []
    for _ in range(arguments.steps + 1):
        started, total = time.perf_counter(), 0.0
        for batch in micro:
            with torch.autocast("cpu", torch.bfloat16):
                loss = micro_loss(batch)
            loss.backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(merger.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        times.append(time.perf_counter() - started)
        losses.append(total)
    return {"seconds": times[1:], "peak": status("VmHWM") - base, "loss": losses[0], "base": base}


def ours(arguments: argparse.Namespace) -> dict[str, Any]:
    """The engine."""
    import torch

    from mindmerger_train import engine
    from mindmerger_train.data.mixture import cut_by_length
    from mindmerger_train.engine import Schedule, train
    from mindmerger_train.layout import Row
    from mindmerger_train.states import Keeping, keep_states

    task, rows = build(arguments)
    packs = cut_by_length(rows, Row.length, arguments.batch_tokens)
    times: list[float] = []
    seen: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        task.encoder = keep_states(task.encoder, Keeping(keep="on", folder=f"{folder}/states"), "bf16", visits=9.0)
        with torch.no_grad():  # the first epoch
            for row in rows:
                task.encoder.states([row.encoder_ids])

        def stream() -> Iterator[list[Any]]:
            seen["base"] = status("VmRSS")
            forget_peak()
            while True:
                times.append(time.perf_counter())
                seen["peak"] = status("VmHWM")  # before the result is saved, which is not part of a step
                yield from packs

        steps = arguments.steps + 2  # the first is a warm-up, the last ends the one before
        tokens = steps * sum(row.length() for row in rows)
        engine.LOG_STEPS = 1
        schedule = Schedule(tokens=tokens, lr=1e-4, accumulate=len(packs), eval_tokens=tokens, save_seconds=1e9)
        train(task, stream(), [], schedule, Path(folder) / "run")
        first = json.loads((Path(folder) / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[0])
    spans = [after - before for before, after in itertools.pairwise(times)]
    return {"seconds": spans[1:], "peak": seen["peak"] - seen["base"], "loss": first["loss"], "base": seen["base"]}


def run_side(side: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """One side in a process of its own."""
    command = [sys.executable, __file__, "--side", side]
    for name in ("steps", "examples", "micro", "batch_tokens"):
        command += [f"--{name.replace('_', '-')}", str(getattr(arguments, name))]
    if arguments.data:
        command += ["--data", str(arguments.data)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description="Training step: published style against the engine.")
    parser.add_argument("--repeats", type=int, default=3, help="processes of each side, in turn")
    parser.add_argument("--steps", type=int, default=3, help="timed optimiser steps a process, after one warm-up")
    parser.add_argument("--examples", type=int, default=32, help="examples of an optimiser step")
    parser.add_argument("--micro", type=int, default=8, help="micro-batch of the published style")
    parser.add_argument("--batch-tokens", type=int, default=1200, help="positions of one of our batches")
    parser.add_argument("--data", type=Path, help="folder with gsm8k/ to draw half of the examples from")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(published(arguments) if arguments.side == "published" else ours(arguments)))
        return
    results: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for repeat in range(arguments.repeats):
        for side in SIDES:
            results[side].append(run_side(side, arguments))
            print(f"{side} {repeat + 1}/{arguments.repeats}: {results[side][-1]}", file=sys.stderr, flush=True)
    seconds = {side: statistics.median(s for run in runs for s in run["seconds"]) for side, runs in results.items()}
    peak = {side: statistics.median(run["peak"] for run in runs) for side, runs in results.items()}
    print("| | step, s | peak over the weights, MB | loss of the first step |")
    print("|---|---:|---:|---:|")
    for side in SIDES:
        print(f"| {side} | {seconds[side]:.2f} | {peak[side]:.0f} | {results[side][0]['loss']:.4f} |")
    print(
        f"| published / ours | {seconds['published'] / seconds['ours']:.2f} | {peak['published'] / peak['ours']:.2f} | |"
    )


if __name__ == "__main__":
    main()
