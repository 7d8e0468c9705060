"""A manifest's own sha256: over everything else that it says, so that a figure which a disk altered is not believed.

It protects from accidents and is no signature. Whoever edits a manifest by hand removes the key "sha256". Manifests before
format 1.2 have none. Knows nothing about what the keys mean.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from mindmerger.errors import BundleError
from mindmerger.i18n import _

KEY = "sha256"


def seal(document: dict[str, Any]) -> str:
    """The sha256 of the document without its seal, whatever the order of its keys and its white space."""
    rest = {key: value for key, value in document.items() if key != KEY}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"))  # ASCII: a lone surrogate has no bytes
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def check_seal(document: dict[str, Any]) -> None:
    """Raise BundleError where the document has a seal and it is not its own."""
    if KEY in document and document[KEY] != seal(document):
        raise BundleError(
            _(
                'the manifest does not have its own sha256, it is damaged: copy or export the bundle again (or remove "sha256" '
                "from it, if it was edited on purpose)"
            )
        )
