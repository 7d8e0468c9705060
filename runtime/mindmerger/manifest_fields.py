"""Fields of a JSON document, handed out by name and type: what is missing or of another type is named with its place.

Knows nothing about which fields a manifest has.
"""

from __future__ import annotations

from typing import Any

from mindmerger.manifest_rules import fault


class Fields:
    """A JSON object being read, which remembers where it is. Every fault is a BundleError."""

    def __init__(self, value: Any, where: str) -> None:
        if not isinstance(value, dict):
            raise fault(where or "the document", "must be an object")
        self.value: dict[str, Any] = value
        self.where = where

    def name(self, key: str) -> str:
        return f"{self.where}.{key}" if self.where else key

    def get(self, key: str, kind: type | tuple[type, ...], described: str, default: Any = ...) -> Any:
        if key not in self.value:
            if default is not ...:
                return default
            raise fault(self.name(key), "is missing")
        value = self.value[key]
        # bool is an int to Python, not to anybody else
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise fault(self.name(key), f"must be {described}")
        return value

    def text(self, key: str) -> str:
        return str(self.get(key, str, "a string"))

    def integer(self, key: str, default: Any = ...) -> int:
        return int(self.get(key, int, "a whole number", default))

    def number(self, key: str, default: Any = ...) -> float:
        try:
            return float(self.get(key, (int, float), "a number", default))
        except OverflowError:
            raise fault(self.name(key), "is too large") from None

    def integers(self, key: str) -> tuple[int, ...]:
        values = self.get(key, list, "a list of whole numbers")
        if not all(isinstance(value, int) and not isinstance(value, bool) for value in values):
            raise fault(self.name(key), "must be a list of whole numbers")
        return tuple(values)

    def object(self, key: str) -> Fields:
        return Fields(self.get(key, dict, "an object"), self.name(key))

    def optional(self, key: str) -> Fields | None:
        value = self.get(key, (dict, type(None)), "an object or null", None)
        return None if value is None else Fields(value, self.name(key))

    def table(self, key: str) -> dict[str, Fields]:
        """Objects by name; none where the key is missing."""
        values = self.get(key, dict, "an object", {})
        return {name: Fields(value, f"{self.name(key)}.{name}") for name, value in values.items()}

    def objects(self, key: str, default: Any = ...) -> list[Fields]:
        values = self.get(key, list, "a list", default)
        return [Fields(value, f"{self.name(key)}[{i}]") for i, value in enumerate(values)]
