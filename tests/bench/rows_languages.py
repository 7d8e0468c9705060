"""Rows of the real encoder in 50 languages, precision by precision, and what pruning to ten languages saves.

    python tests/bench/rows_languages.py TEXTS [--checkpoint NAME|DIR] [--sentences 4] [--precisions w8,w4]
                                         [--prune-to bn,de,en,es,fr,ja,ru,sw,th,zh]

TEXTS is a folder with a file of sentences for each language (`sw.txt`). Asked of w8: cosine 0.999 on average, 0.995 at worst;
of pruning: at most half the size, and the same rows for texts in these languages. Figures go to stdout, progress to stderr.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / part) for part in ("runtime", "export", ".")]

import numpy as np  # noqa: E402

# As the parity check of an export allows it, and fp32 as it is.
ASKED = {"fp32": (0.999999, 0.99999), "w8": (0.999, 0.995), "w4": (0.95, 0.85)}


def say(message: str) -> None:
    print(f"rows_languages: {message}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", type=Path)
    parser.add_argument("--checkpoint", default="mindmerger")
    parser.add_argument("--sentences", type=int, default=4)
    parser.add_argument("--precisions", default="w8,w4")
    parser.add_argument("--prune-to", default="bn,de,en,es,fr,ja,ru,sw,th,zh")
    parser.add_argument("--lines", type=int, default=2000, help="lines a language whose ids are compared")
    options = parser.parse_args()

    import torch

    from mindmerger.graph import GraphInput, MergerGraph
    from mindmerger.tokenizer import QuestionTokenizer
    from mindmerger_export.bundle_writer import table_like
    from mindmerger_export.graph import embedding_table, export_graph, merger_module, save_graph
    from mindmerger_export.quantise import quantise
    from mindmerger_export.request import Request
    from mindmerger_export.rows import compare, torch_merge
    from mindmerger_export.talk import Talk
    from mindmerger_export.vocabulary import TOKENIZER_FILE, write_tokenizer
    from mindmerger_train import encoders
    from mindmerger_train.checkpoint import load_checkpoint, resolve_checkpoint

    checkpoint = load_checkpoint(resolve_checkpoint(options.checkpoint))
    if checkpoint.merger.gate is not None:
        sys.exit("a checkpoint without a gate, please: it is the encoder and the mapping that are measured here")
    module = merger_module(encoders.load_encoder(checkpoint.encoder), checkpoint.merger)
    rows = embedding_table(module.encoder).num_embeddings
    tokenizer = QuestionTokenizer(encoders.tokenizer_path(checkpoint.encoder), checkpoint.encoder.max_tokens, rows)
    asked = {
        path.stem: [
            tokenizer.encode(line) for line in path.read_text(encoding="utf-8").splitlines()[: options.sentences]
        ]
        for path in sorted(options.texts.glob("*.txt"))
    }
    say(f"{len(asked)} languages; torch answers")
    wanted = {code: [torch_merge(module, GraphInput(ids)) for ids in lines] for code, lines in asked.items()}
    with tempfile.TemporaryDirectory() as place:
        for precision in filter(None, options.precisions.split(",")):
            folder = Path(place) / precision
            folder.mkdir()
            say(f"exporting {precision}")
            model = export_graph(module, {})
            quantised = quantise(model, precision)
            size = sum(path.stat().st_size for path in save_graph(model, folder))
            graph = MergerGraph(
                folder / "merger.onnx", width=module.width, vocabulary=rows, threads=torch.get_num_threads()
            )
            found = {
                code: [
                    compare(a, graph.merge([GraphInput(ids)])[0]) for a, ids in zip(wanted[code], lines, strict=True)
                ]
                for code, lines in asked.items()
            }
            everything = [row for lines in found.values() for row in lines]
            total = sum(row.rows for row in everything)
            mean = sum(row.cosine_mean * row.rows for row in everything) / total
            worst = {code: min(row.cosine_min for row in lines) for code, lines in found.items()}
            last = min(worst, key=lambda code: worst[code])
            held = mean >= ASKED[precision][0] and worst[last] >= ASKED[precision][1]
            print(
                f"{precision}: {size / 1e6:.1f} MB, {quantised.to_json()}; {total} rows in {len(found)} languages: cosine "
                f"{mean:.6f} on average, {worst[last]:.6f} at worst ({last}), largest difference "
                f"{max(row.max_abs for row in everything):.4g}: {'held' if held else 'NOT HELD'}",
                flush=True,
            )
        codes = tuple(options.prune_to.split(","))
        whole_folder = Path(place) / "whole"
        whole_folder.mkdir()
        model = export_graph(module, {})
        quantise(model, "w8")
        whole_size = sum(path.stat().st_size for path in save_graph(model, whole_folder))
        whole = MergerGraph(whole_folder / "merger.onnx", width=module.width, vocabulary=rows, threads=1)
        for way, texts in (("text", (options.texts,)), ("letters", ())):
            say(f"pruning to {', '.join(codes)} by {way}")
            folder = Path(place) / way
            folder.mkdir()
            request = Request("x", languages=codes, prune_texts=texts)
            vocabulary = write_tokenizer(request, checkpoint.encoder, rows, folder, Talk())
            assert vocabulary.keep is not None
            encoder: Any = module.encoder.model
            table = embedding_table(module.encoder)
            encoder.set_input_embeddings(table_like(table, table.weight.detach()[torch.from_numpy(vocabulary.keep)]))
            model = export_graph(module, {})
            encoder.set_input_embeddings(table)
            quantise(model, "w8")
            size = sum(path.stat().st_size for path in save_graph(model, folder))
            graph = MergerGraph(folder / "merger.onnx", width=module.width, vocabulary=vocabulary.rows, threads=1)
            cut = QuestionTokenizer(folder / TOKENIZER_FILE, checkpoint.encoder.max_tokens, vocabulary.rows)
            same = count = equal = compared = 0
            for code in codes:
                for line in (options.texts / f"{code}.txt").read_text(encoding="utf-8").splitlines()[: options.lines]:
                    count += 1
                    new, old = cut.encode(line), tokenizer.encode(line)
                    if not np.array_equal(vocabulary.keep[new], old):
                        continue
                    same += 1
                    if same % 20 == 1:
                        compared += 1
                        found_rows = [one.merge([GraphInput(ids)])[0].rows for one, ids in ((whole, old), (graph, new))]
                        equal += np.array_equal(*found_rows)
            width = checkpoint.encoder.width
            parameters = sum(parameter.numel() for parameter in encoder.parameters())
            left = parameters - (rows - vocabulary.rows) * width
            print(
                f"pruned to {len(codes)} languages by {way}: {vocabulary.rows} of {rows} pieces; {same} of {count} lines with "
                f"the same ids, of which {equal} of {compared} compared have the same rows to the bit; weights of the encoder "
                f"{left / 1e6:.1f} M of {parameters / 1e6:.1f} M ({100 * left / parameters:.0f} %), w8 graph "
                f"{size / 1e6:.1f} MB of {whole_size / 1e6:.1f} MB ({100 * size / whole_size:.0f} %)",
                flush=True,
            )


if __name__ == "__main__":
    main()
