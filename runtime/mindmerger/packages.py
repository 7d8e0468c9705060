"""Find files that an installed Python package ships, without importing the package.

A package that carries model weights may pull in other libraries when imported, or may be built for another Python; all
that is wanted from it is the file.
"""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

from mindmerger.errors import BundleError
from mindmerger.i18n import _


def find_package_file(distribution: str, path: str) -> Path:
    """Return where the installed `distribution` keeps its file `path` (as its RECORD spells it, with `/`).

    Raises BundleError when the distribution is not installed or has no such file.
    """
    try:
        files = importlib.metadata.files(distribution)
    except importlib.metadata.PackageNotFoundError:
        files = None
    if files is None:
        raise BundleError(
            _("the Python package {distribution} is not installed: pip install {distribution}").format(
                distribution=distribution
            )
        )
    for file in files:
        if file.as_posix() == path:
            found = Path(str(file.locate()))
            if found.is_file():
                return found
            break
    raise BundleError(
        _("the installed Python package {distribution} has no file {path}: pip install -U {distribution}").format(
            distribution=distribution, path=repr(path)
        )
    )
