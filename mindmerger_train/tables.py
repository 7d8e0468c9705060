"""TOML tables → dataclasses, every key known and every value of its field's type.

What this module does not know: what the fields mean; ranges are the dataclasses' own business.
"""

from __future__ import annotations

import math
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, TypeVar

from mindmerger.errors import InputError

T = TypeVar("T")

_NAMES = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", dict: "a table"}


def read_table(kind: type[T], table: object, where: str, prefix: str = "") -> T:
    """The dataclass `kind` out of a table; `prefix` is what its keys are called by (`schedule.`), `where` the file.

    Raises InputError for an unknown key, a missing one, and a value of another type.
    """
    if not isinstance(table, Mapping):
        raise InputError(f"{where}: {prefix.rstrip('.')} is a table, not {table!r}")
    hints = typing.get_type_hints(kind)
    known = {entry.name: entry for entry in fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(table) - set(known))
    if unknown:
        raise InputError(f"{where}: unknown key {prefix + unknown[0]!r}; known are {', '.join(sorted(known))}")
    missing = [
        name
        for name, entry in known.items()
        if entry.default is MISSING and entry.default_factory is MISSING and name not in table
    ]
    if missing:
        raise InputError(f"{where}: the key {prefix + missing[0]!r} is missing")
    return kind(**{key: typed(hints[key], value, f"{where}: {prefix}{key}") for key, value in table.items()})


def typed(hint: Any, value: Any, what: str) -> Any:
    """`value` as the type `hint`: lists become tuples, whole numbers floats. Raises InputError that begins with `what`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or (isinstance(hint, type) and origin is None and hint not in _NAMES and isinstance(value, hint)):
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            _refuse(what, "a list", value)
        if arguments[-1] is not Ellipsis and len(value) != len(arguments):
            _refuse(what, f"a list of {len(arguments)}", value)
        hints = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else arguments
        return tuple(typed(each, entry, what) for each, entry in zip(hints, value, strict=True))
    plain = dict if origin is dict else hint
    if not _fits(plain, value):
        _refuse(what, _NAMES.get(plain, "of another type"), value)
    if origin is dict:
        return {key: typed(arguments[1], entry, f"{what}.{key}") for key, entry in value.items()}
    return float(value) if plain is float else value


def _fits(kind: Any, value: Any) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)


def _refuse(what: str, wanted: str, value: Any) -> typing.NoReturn:
    raise InputError(f"{what} must be {wanted}, not {value!r}")


def at_least(low: float, what: str, **values: float) -> None:
    """Raises InputError for the first of `values` that is below `low`; `what` is what comes before its name."""
    for name, value in values.items():
        if value < low:
            raise InputError(f"{what}{name} must be at least {low:g}, not {value:g}")


def above_zero(what: str, **values: float) -> None:
    """Raises InputError for the first of `values` that is not above 0."""
    for name, value in values.items():
        if not value > 0:
            raise InputError(f"{what}{name} must be above 0, not {value:g}")
