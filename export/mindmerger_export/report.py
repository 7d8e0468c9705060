"""The report of an export as a document: `report.json`, and `report.html` for people.

What is the same on every machine (figures of parity, sizes, memory) is in the manifest too; measured times are here alone, so
that a bundle that is exported twice has the same manifest and hashes. Neither file is among the manifest's. What this module
does not know: how figures came to be, how a page looks.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mindmerger.errors import BundleError
from mindmerger.manifest import Manifest

JSON_FILE, HTML_FILE = "report.json", "report.html"
FORMAT = "mindmerger-report"
VERSION = "1.0"


def document_of(manifest: Manifest, memory: dict[str, int] | None, measured: dict[str, Any] | None) -> dict[str, Any]:
    """The report as JSON; `memory` and `measured` are those of shares.py, None where the bundle did not run."""
    encoder, llm = manifest.encoder, manifest.llm
    return {
        "format": FORMAT,
        "version": VERSION,
        "bundle": {
            "name": manifest.name,
            "method": manifest.method,
            "languages": list(manifest.languages),
            "format_version": manifest.format_version,
            "encoder": {
                key: getattr(encoder, key)
                for key in ("name", "architecture", "parameters", "width", "vocabulary", "licence")
            },
            "llm": {
                key: getattr(llm, key)
                for key in ("name", "architecture", "parameters", "width", "vocabulary", "licence")
            },
        },
        "sizes": {
            entry.path: {"bytes": entry.bytes, "role": entry.role, "package": entry.package} for entry in manifest.files
        },
        "parity": manifest.parity,
        "memory": memory,
        "measured": measured,
        "golden": [
            {"language": golden.language, "question": golden.question, "tokens": len(golden.token_ids)}
            for golden in manifest.golden
        ],
        "tools": manifest.tools,
    }


def write_report(document: dict[str, Any], folder: Path) -> None:
    """Write both files into `folder`."""
    from mindmerger_export.report_html import page

    text = json.dumps(document, ensure_ascii=False, indent=2, allow_nan=False) + "\n"
    (folder / JSON_FILE).write_text(text, encoding="utf-8")
    (folder / HTML_FILE).write_text(page(document), encoding="utf-8")


def read_report(folder: Path) -> dict[str, Any] | None:
    """The report beside a manifest, None where there is none. Raises BundleError when it is damaged."""
    try:
        document = json.loads((folder / JSON_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise BundleError(f"{folder / JSON_FILE} cannot be read ({error}): export the bundle again") from None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise BundleError(f"{folder / JSON_FILE} is no report of a bundle: export the bundle again")
    return document
