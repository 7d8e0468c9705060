"""`report.html`: the report of an export as one page that needs nothing else: no network, no script, no font.

Drawn from report.json's document alone. Light and dark as the reader's system says; tables scroll where a screen is narrow.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from html import escape
from typing import Any

from mindmerger_export.report_charts import Bar, bars, log_bars

_STYLE = """
:root{color-scheme:light dark;--b:#fff;--f:#1d2433;--m:#5b6475;--l:#d9dee8;--k:#f4f6fa;--c0:#0072b2;--c1:#d55e00;--c2:#009e73;
--c3:#cc79a7}
@media(prefers-color-scheme:dark){:root{--b:#14171d;--f:#e6e9ef;--m:#9aa3b2;--l:#323a48;--k:#1d222b;--c0:#56b4e9;--c1:#e69f00;
--c2:#2fc79a;--c3:#e0a3c6}}
*{box-sizing:border-box}body{margin:0 auto;max-width:52rem;padding:1rem;background:var(--b);color:var(--f);
font:16px/1.5 system-ui,sans-serif;overflow-wrap:anywhere}
h1{font-size:1.6rem;margin:.5rem 0}h2{font-size:1.15rem;margin:2rem 0 .5rem;border-top:1px solid var(--l);padding-top:1rem}
p{margin:.4rem 0}.m,figcaption{color:var(--m);font-size:.9rem}figure{margin:1rem 0}
.t{display:grid;grid-template-columns:repeat(auto-fit,minmax(9rem,1fr));gap:.6rem;margin:1rem 0}
.t div{background:var(--k);border-radius:.5rem;padding:.6rem .8rem}.t b{display:block;font-size:1.3rem}
.o{border-left:.25rem solid var(--c1);background:var(--k);padding:.5rem .8rem}
.g{display:grid;grid-template-columns:repeat(auto-fit,minmax(18rem,1fr));gap:0 2rem}summary{cursor:pointer}
.t span{color:var(--m);font-size:.85rem}.s{overflow-x:auto}
table{border-collapse:collapse;font-size:.9rem;min-width:60%}th,td{padding:.25rem .6rem;text-align:right;white-space:nowrap;
border-bottom:1px solid var(--l)}th{white-space:normal;overflow-wrap:normal;vertical-align:bottom}
@media(max-width:34rem){th,td{padding:.25rem .3rem;font-size:.8rem}}th:first-child,td:first-child{text-align:left}
svg text{font:12px system-ui,sans-serif;fill:var(--f)}svg .v{fill:var(--m)}
.c0{fill:var(--c0)}.c1{fill:var(--c1)}.c2{fill:var(--c2)}.c3{fill:var(--c3)}
i.c0,i.c1,i.c2,i.c3{display:inline-block;width:.8em;height:.8em;border-radius:.2em;margin:0 .3em 0 .8em}
i.c0{background:var(--c0)}i.c1{background:var(--c1)}i.c2{background:var(--c2)}i.c3{background:var(--c3)}
"""


def page(document: dict[str, Any]) -> str:
    """The whole page."""
    bundle, parity = document["bundle"], document["parity"]
    title = f"{bundle['name']}: report of the export"
    body = [
        f"<h1>{escape(bundle['name'])}</h1>",
        f"<p>{escape(_what_it_is(bundle))}</p>",
        _tiles(document),
        *_rows(parity.get("rows", {})),
        *_answers(parity.get("answers", {}), document.get("golden", [])),
        *_types(parity.get("llm_types")),
        *_sizes(document["sizes"], parity),
        *_cost(document.get("measured"), document.get("memory")),
        *_made(document),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body><main>\n"
        + "\n".join(body)
        + "\n</main></body></html>\n"
    )


def _what_it_is(bundle: dict[str, Any]) -> str:
    encoder, llm = bundle["encoder"], bundle["llm"]
    return (
        f"A bundle of method {bundle['method']}: the encoder {encoder['name']} ({_count(encoder['parameters'])} parameters) "
        f"and the LLM {llm['name']} ({_count(llm['parameters'])}), for "
        f"{', '.join(bundle['languages']) or 'any language'}. Every figure below compares it with torch, or its LLM with F16."
    )


def _tiles(document: dict[str, Any]) -> str:
    parity, measured = document["parity"], document.get("measured")
    rows, answers = parity.get("rows", {}), parity.get("answers", {})
    tiles = [(_bytes(sum(entry["bytes"] for entry in document["sizes"].values())), "all files")]
    if rows:
        tiles.append((f"{rows['cosine_min']:.6f}", f"worst cosine of a row, {rows['texts']} languages"))
    if "kl_mean" in answers:
        tiles.append((_percent(answers["top1_agreement"]), "same first token as torch"))
        tiles.append((f"{answers['kl_mean']:.3g}", "KL to torch, nats"))
    if measured:
        tiles.append((_percent(measured["encoder_share_of_answer"]), "of an answer's time is encoder and merger"))
    return (
        '<div class="t">'
        + "".join(f"<div><b>{escape(b)}</b><span>{escape(s)}</span></div>" for b, s in tiles)
        + "</div>"
    )


def _rows(rows: dict[str, Any]) -> Iterator[str]:
    if not rows:
        return
    yield "<h2>Rows of the soft prompt</h2>"
    yield (
        f"<p>The graph's rows beside torch's for a sentence in each of {rows['texts']} languages: cosine "
        f"{rows['cosine_mean']:.6f} on average and {rows['cosine_min']:.6f} at worst, largest difference "
        f"{rows['max_abs']:.3g}. In padded batches: {rows['padded_batches']['cosine_min']:.6f} at worst.</p>"
    )
    distance = {key: max(1.0 - value, 0.0) for key, value in rows["worst_by_text"].items()}
    order = sorted(distance, key=lambda key: -distance[key])
    half = (len(order) + 1) // 2
    halves = [
        log_bars(
            [(key, distance[key], f"{distance[key]:.1e}") for key in keys],
            "distance of the worst row by language",
            label=10,
            scale=list(distance.values()),
        )
        for keys in (order[:half], order[half:])
        if keys
    ]
    yield _figure(
        f'<div class="g">{"".join(halves)}</div>',
        "Worst row of each language: 1 − cosine; longer is farther, by orders of magnitude.",
    )
    largest = rows.get("max_abs_by_text", {})
    figures = [
        [key, f"{rows['worst_by_text'][key]:.6f}", f"{largest[key]:.3g}" if key in largest else ""]
        for key in sorted(distance)
    ]
    yield (
        "<details><summary>Figures of every language</summary>"
        f"{_table(['language', 'worst cosine', 'largest difference'], figures)}</details>"
    )
    if "gate" in rows:
        names = {"encoder_weight": "encoder weight", "llm_weight": "LLM weight", "language": "language"}
        lines = [[names.get(key, key), f"{v['mean']:.3g}", f"{v['max']:.3g}"] for key, v in rows["gate"].items()]
        yield _table(["the gate beside torch's", "mean difference", "largest"], lines)


def _answers(answers: dict[str, Any], golden: Sequence[dict[str, Any]]) -> Iterator[str]:
    if not answers:
        return
    yield "<h2>Answers to the golden questions</h2>"
    if "left_out" in answers:
        yield _left_out(answers["left_out"])
        tokens = sum(one["tokens"] for one in golden)
        yield f"<p>The bundle itself was loaded and answered {len(golden)} questions with {tokens} tokens.</p>"
        return
    yield (
        f"<p>{answers['questions']} questions, torch in float32 beside the bundle. KL is of the first token's distribution, "
        f"end to end; “the LLM's part” is given the same rows. Greedy answers are compared for {answers['greedy_tokens']} "
        "tokens.</p>"
    )
    header = ["language", "KL", "the LLM's part", "same first token", "same answer", "questions"]
    everything = [("all", answers), *answers.get("by_language", {}).items()]
    yield _table(
        header,
        [
            [
                code,
                f"{one['kl_mean']:.3g}",
                f"{one['llm_kl_mean']:.3g}",
                _percent(one["top1_agreement"]),
                _percent(one["greedy_identical"]),
                str(one["questions"]),
            ]
            for code, one in everything
        ],
    )
    by_language = answers.get("by_language", {})
    yield _figure(
        log_bars(
            [(code, one["kl_mean"], f"{one['kl_mean']:.2g}") for code, one in by_language.items()],
            "KL by language",
            1,
            8,
        ),
        "KL to torch by language, by orders of magnitude.",
    )


def _types(types: dict[str, Any] | None) -> Iterator[str]:
    if not types:
        return
    yield "<h2>The LLM's type</h2>"
    if "left_out" in types:
        yield _left_out(types["left_out"])
        return
    yield (
        "<p>Each type beside F16: both are led along the answers that F16 gives to the same questions, and at every position "
        "their distributions are compared.</p>"
    )
    judged = [one for one in types["candidates"] if "by_language" in one]
    rows = []
    for one in types["candidates"]:
        seen = "by_language" in one
        rows.append(
            [
                one["type"],
                _bytes(one["bytes"]),
                f"{one['kl_mean']:.3g}" if seen else "",
                f"{one['kl_worst']:.3g}" if seen else "",
                _percent(one["top1_agreement"]) if seen else "",
                f"{one['right']} of {one['of']}" if "right" in one else "",
                one["verdict"],
            ]
        )
    yield _table(["type", "size", "KL", "worst language", "same top token", "right answers", "verdict"], rows)
    for one in judged:
        if one["type"] == types["reference"]:
            continue
        drawn = [
            (
                code,
                figures["kl"],
                f"{figures['kl']:.2g}" + (f" · {figures['right']}/{figures['of']}" if "right" in figures else ""),
            )
            for code, figures in one["by_language"].items()
        ]
        yield _figure(
            log_bars(drawn, f"KL of {one['type']} by language", 2, 8),
            f"{one['type']}: KL to F16 by language (orders of magnitude), right answers.",
        )


def _sizes(sizes: dict[str, Any], parity: dict[str, Any]) -> Iterator[str]:
    yield "<h2>Sizes</h2>"
    drawn = [
        Bar(
            _shortened(path.rsplit("/", 1)[-1]),
            [(entry["bytes"], 1 if entry["role"].startswith(("llm", "adapter")) else 0)],
            _bytes(entry["bytes"]),
        )
        for path, entry in sorted(sizes.items(), key=lambda item: -item[1]["bytes"])
    ]
    yield _legend("encoder and merger", "LLM")
    yield _figure(bars(drawn, "sizes of the files", 38), "Files; those of a Python package are not in the folder.")
    if vocabulary := parity.get("vocabulary"):
        by_letters = vocabulary.get("chosen_by") == "letters"
        of = "a sentence in each language" if by_letters else "the text that it was pruned by"
        yield (
            f"<p>The encoder's vocabulary is pruned to {vocabulary['pieces']:,} of {vocabulary['of']:,} pieces"
            f"{', chosen by the letters of the languages' if by_letters else ''}, which cover "
            f"{_percent(vocabulary['token_coverage'], 2)} of the tokens of {of}; "
            f"{vocabulary['texts_with_same_segmentation']:,} of {vocabulary['texts']:,} texts keep their ids.</p>"
        )


def _cost(measured: dict[str, Any] | None, memory: dict[str, int] | None) -> Iterator[str]:
    if not measured and not memory:
        return
    yield "<h2>What merging costs</h2>"
    if measured:
        both, alone = measured["merged"], measured["llm_alone"]
        yield (
            f"<p>Encoder and merger take {_time(both['encode_ms'])} a question: "
            f"{_percent(measured['encoder_share_of_first_token'])} of the time to the first token, "
            f"{_percent(measured['encoder_share_of_answer'])} of an answer of {measured['tokens']} tokens. "
            f"The first token comes after {_time(both['first_token_ms'])}, by the LLM alone after "
            f"{_time(alone['first_token_ms'])}.</p>"
        )
        yield _legend("encoder and merger", "reading the prompt", "answering")
        yield _figure(
            bars(
                [
                    Bar(
                        name,
                        [(one["encode_ms"], 0), (one["prefill_ms"], 1), (one["decode_ms"], 2)],
                        _time(one["total_ms"]),
                    )
                    for name, one in (("merged", both), ("LLM alone", alone))
                ],
                "time of an answer",
            ),
            f"Medians over {measured['questions']} questions, {measured['threads']} threads, {measured['processor']}. Measured "
            "while exporting; mm-bench measures with care.",
        )
    if memory:
        share = memory["encoder_and_merger"] / memory["merged"]
        yield _legend("encoder and merger", "LLM")
        yield _figure(
            bars(
                [
                    Bar(
                        "merged",
                        [(memory["encoder_and_merger"], 0), (memory["llm_alone"], 1)],
                        _bytes(memory["merged"]),
                    ),
                    Bar("LLM alone", [(memory["llm_alone"], 1)], _bytes(memory["llm_alone"])),
                ],
                "memory",
            ),
            f"Memory with everything loaded, estimated: {_percent(share)} is encoder and merger.",
        )


def _made(document: dict[str, Any]) -> Iterator[str]:
    injection = document["parity"].get("injection", {})
    yield "<h2>How it was made</h2>"
    if injection:
        same = "to the last bit" if injection.get("identical") else f"within a KL of {injection.get('kl')}"
        yield f"<p>Injected rows (scale {injection.get('scale'):g}) reproduce the LLM's token path {same}.</p>"
    yield (
        '<p class="m">' + escape(", ".join(f"{name} {version}" for name, version in document["tools"].items())) + "</p>"
    )


def _legend(*names: str) -> str:
    """What the colours stand for, from the first on."""
    return '<p class="m">' + "".join(f'<i class="c{i}"></i>{escape(name)}' for i, name in enumerate(names)) + "</p>"


def _shortened(name: str, most: int = 15) -> str:
    """A file's name with its beginning and its end."""
    return name if len(name) <= most else f"{name[: most - 7]}…{name[-6:]}"


def _left_out(reason: str) -> str:
    return f'<p class="o">{escape(reason[:1].upper() + reason[1:])}.</p>'


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    # What scrolls can be reached by the keyboard.
    return f'<div class="s" tabindex="0"><table><tr>{head}</tr>{body}</table></div>'


def _figure(picture: str, caption: str) -> str:
    return f"<figure>{picture}<figcaption>{escape(caption)}</figcaption></figure>"


def _bytes(size: float) -> str:
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size:.0f} B"


def _time(milliseconds: float) -> str:
    return f"{milliseconds:.4g} ms" if milliseconds < 1e4 else f"{milliseconds / 1e3:.3g} s"


def _count(number: float) -> str:
    return f"{number / 1e9:.2f} B" if number >= 1e9 else f"{number / 1e6:.1f} M"


def _percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f} %"
