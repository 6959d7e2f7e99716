"""Writes the few TOML documents that provisioning makes; the standard library only reads them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

Scalar = str | int | float | bool
TomlValue = Scalar | Sequence[str]


def toml_document(tables: Mapping[str, Mapping[str, TomlValue]]) -> str:
    """Tables by name; the name `""` stands for the keys before the first table."""
    parts = []
    for name, table in tables.items():
        lines = [f"[{name}]"] if name else []
        lines += [f"{key} = {toml_value(value)}" for key, value in table.items()]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def toml_value(value: TomlValue) -> str:
    """One value as TOML."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # JSON's escapes are a subset of TOML's; only DEL must be escaped in TOML and is not in JSON.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, int | float):
        return repr(value)
    return f"[{', '.join(toml_value(item) for item in value)}]"
