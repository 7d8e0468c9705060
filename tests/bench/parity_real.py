"""Parity and size of the real models: what the README and docs/log.md quote.

    python tests/bench/parity_real.py [--checkpoint NAME|DIR] [--bundle DIR] [--questions 40] [--precisions fp32,w8,w4]

Without --checkpoint, multilingual-e5-small with a random mapping and SmolLM2-135M. With --bundle, that bundle's own files
are compared with its checkpoint. Figures go to stdout, progress to stderr. Times are of this machine, now.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / part) for part in ("runtime", "export", ".")]

import numpy as np  # noqa: E402

# Written for this: 40 short questions, 10 languages.
QUESTIONS = [
    "What is 15 + 27?", "How many legs do three dogs have?", "Tom has 9 pens and loses 4. How many are left?",
    "A book costs 6 dollars. What do 5 books cost?", "¿Cuánto es 15 + 27?", "Ana tiene 8 libros y compra 5. ¿Cuántos tiene?",
    "Un pan cuesta 2 euros. ¿Cuánto cuestan 7 panes?", "Repartimos 20 dulces entre 4 niños. ¿Cuántos recibe cada uno?",
    "Wie viel ist 30 minus 12?", "Anna hat 8 Bücher und kauft 5 dazu. Wie viele hat sie?",
    "Ein Ei kostet 3 Euro. Was kosten 6 Eier?", "Wir teilen 18 Kekse durch 3 Kinder.", "Combien font 9 fois 7 ?",
    "Paul a 12 billes et en perd 5. Combien en reste-t-il ?", "Un kilo coûte 4 euros. Combien coûtent 8 kilos ?",
    "On partage 24 pommes entre 6 amis.", "Сколько будет 14 + 19?", "У Пети 10 яблок, он съел 3. Сколько осталось?",
    "Тетрадь стоит 5 рублей. Сколько стоят 9 тетрадей?", "Разделили 21 конфету на троих.",
    "15加27等于多少？", "小明有20元，买书花了13元，还剩多少元？", "一支笔3元，买8支多少元？", "把24个苹果分给6个人，每人几个？",
    "12たす30はいくつですか。", "りんごが10個あり、4個食べました。残りは何個ですか。", "1冊5ドルの本を6冊買うといくらですか。",
    "18個のあめを3人で分けると一人何個ですか。", "Juma ana mbuzi 9 na anauza 4. Amebaki na wangapi?", "Je, 7 mara 6 ni ngapi?",
    "Kitabu kimoja ni shilingi 5. Vitabu 4 ni bei gani?", "Gawanya machungwa 15 kwa watoto 3.",
    "রিনার ১২টি আম আছে, সে ৫টি দেয়। কয়টি রইল?", "৮ আর ১৩ যোগ করলে কত হয়?", "একটি কলম ৫ টাকা। ৬টি কলমের দাম কত?",
    "২০টি লিচু ৪ জনকে ভাগ করে দাও।", "15 บวก 27 เท่ากับเท่าไร", "มีส้ม 10 ผล กินไป 3 ผล เหลือกี่ผล", "หนังสือเล่มละ 5 บาท 6 เล่มกี่บาท",
    "แบ่งขนม 12 ชิ้นให้เด็ก 4 คน",
]  # fmt: skip


def say(message: str) -> None:
    print(f"parity_real: {message}", file=sys.stderr, flush=True)


def random_checkpoint(folder: Path) -> Path:
    import torch

    from mindmerger_train import encoders, llms
    from mindmerger_train.checkpoint import Checkpoint, save_checkpoint
    from mindmerger_train.merger import Merger

    torch.manual_seed(3)
    encoder, llm = encoders.default_spec(), llms.default_spec()
    merger = Merger(encoder.output_width, llm.width)
    save_checkpoint(Checkpoint(merger, encoder, llm, llms.default_prompt(), name="random"), folder)
    return folder


def milliseconds(session: Any, tokens: int, vocabulary: int, repeats: int = 40) -> tuple[float, float]:
    ids = np.random.default_rng(0).integers(5, vocabulary, (1, tokens))
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        session.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})
        times.append(1e3 * (time.perf_counter() - began))
    return float(np.median(times)), min(times)


def graph_line(name: str, graph: Path, report: dict[str, Any], vocabulary: int) -> None:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(str(graph), options)
    size = sum(path.stat().st_size for path in (graph, graph.with_name("merger.data"))) / 1e6
    times = [milliseconds(session, tokens, vocabulary) for tokens in (12, 60)]
    print(
        f"{name:6} {size:7.1f} MB   rows: max abs {report['max_abs']:.3g}, cosine mean {report['cosine_mean']:.6f}, worst "
        f"{report['cosine_min']:.6f}; padded worst {report['padded_batches']['cosine_min']:.6f}   12 tokens "
        f"{times[0][0]:.1f} ms (best {times[0][1]:.1f}), 60 tokens {times[1][0]:.1f} ms (best {times[1][1]:.1f})",
        flush=True,
    )


def graphs(checkpoint: Any, module: Any, precisions: list[str], folder: Path) -> None:
    from mindmerger.tokenizer import QuestionTokenizer
    from mindmerger_export.graph import embedding_table, export_graph, save_graph
    from mindmerger_export.quantise import quantise
    from mindmerger_export.rows import check_rows
    from mindmerger_export.samples import SENTENCES
    from mindmerger_train import encoders

    vocabulary = embedding_table(module.encoder).num_embeddings
    path = encoders.tokenizer_path(checkpoint.encoder)
    tokenizer = QuestionTokenizer(path, checkpoint.encoder.max_tokens, vocabulary)
    for precision in precisions:
        say(f"graph in {precision}")
        target = folder / precision
        target.mkdir()
        graph = export_graph(module, {})
        quantise(graph, precision)
        save_graph(graph, target)
        report = check_rows(module, target / "merger.onnx", tokenizer, None, SENTENCES, precision)
        graph_line(precision, target / "merger.onnx", report, vocabulary)


def answers(checkpoint: Any, module: Any, bundle: Path, questions: list[str]) -> None:
    import mindmerger
    from mindmerger_export import parity
    from mindmerger_train import encoders, llms

    say("the LLM in torch")
    llm = llms.load_llm(checkpoint.llm, adapter=checkpoint.adapter_path())
    reference = parity.TorchAnswers(checkpoint, module, llm, encoders.load_tokenizer(checkpoint.encoder))
    tokenizer = llms.load_llm_tokenizer(checkpoint.llm)
    found = []
    with mindmerger.load(bundle) as model:
        for number, question in enumerate(questions, 1):
            answer = parity.compare_answer(reference, model, tokenizer, question)
            found.append(answer)
            if answer.place is not None:
                print(f"  differs at token {answer.place}, torch's margin {answer.margin:.3g}: {question}", flush=True)
            if number % 10 == 0:
                say(f"{number} questions")
    same = sum(answer.place is None for answer in found)
    print(
        f"greedy, {parity.GREEDY_TOKENS} tokens: {same} of {len(found)} identical; first token: top-1 "
        f"{sum(answer.top1 for answer in found)} of {len(found)}, KL mean {np.mean([a.kl for a in found]):.3g} (LLM alone on "
        f"the same rows {np.mean([a.llm_kl for a in found]):.3g}), max {max(a.kl for a in found):.3g}"
    )


def tokenizer_line(path: Path) -> None:
    from tokenizers import Tokenizer

    times = []
    for _ in range(7):
        began = time.perf_counter()
        Tokenizer.from_file(str(path))
        times.append(1e3 * (time.perf_counter() - began))
    print(f"tokenizer {path.stat().st_size / 1e6:.1f} MB: loads in {np.median(times):.0f} ms (best {min(times):.0f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint")
    parser.add_argument("--bundle", type=Path, help="compare this bundle instead of exporting fp32 with an f16 LLM")
    parser.add_argument("--questions", type=int, default=len(QUESTIONS))
    parser.add_argument("--precisions", default="fp32,w8,w4")
    arguments = parser.parse_args()

    from mindmerger.manifest import read_manifest
    from mindmerger_export.bundle_writer import Request, export_bundle
    from mindmerger_export.graph import MergerModule
    from mindmerger_train import encoders
    from mindmerger_train.checkpoint import load_checkpoint, resolve_checkpoint

    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        folder = (
            resolve_checkpoint(arguments.checkpoint) if arguments.checkpoint else random_checkpoint(work / "random")
        )
        checkpoint = load_checkpoint(folder)
        module = MergerModule(encoders.load_encoder(checkpoint.encoder), checkpoint.merger)
        tokenizer_line(encoders.tokenizer_path(checkpoint.encoder))
        graphs(checkpoint, module, [p for p in arguments.precisions.split(",") if p], work)
        bundle = arguments.bundle
        if bundle is None:
            request = Request(
                str(folder), work / "bundle", precision="fp32", llm_type="f16", golden=(("en", "What is 15 + 27?"),)
            )
            bundle = export_bundle(request, say)
        manifest = read_manifest(bundle)
        tokenizer_line(bundle / manifest.file("tokenizer").path)
        print(f"bundle {manifest.name}: {sum(f.bytes for f in manifest.files if f.package is None) / 1e6:.1f} MB, "
              f"LLM {manifest.parity.get('llm')}, injection {manifest.parity.get('injection')}")  # fmt: skip
        if arguments.questions:
            answers(checkpoint, module, bundle, QUESTIONS[: arguments.questions])


if __name__ == "__main__":
    main()
