"""Everything that `sled` writes to stdout: tables for people, JSON for scripts."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from cli.diagnostics import printable

NO_TERMINAL_WIDTH = 1_000
"""Columns of a table that goes to a file or a pipe: nothing is cut or wrapped there."""


def as_json(value: object) -> None:
    """One JSON document on one line."""
    sys.stdout.write(orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY).decode() + "\n")
    sys.stdout.flush()


def text(value: str) -> None:
    """A piece of text, as it is but for control characters; flushed, so that it streams."""
    sys.stdout.write(printable(value))
    sys.stdout.flush()


def drawn(value: str) -> None:
    """Text that was made here and holds escape sequences on purpose, for a terminal."""
    sys.stdout.write(value)
    sys.stdout.flush()


def line(value: str = "") -> None:
    """One line of text."""
    text(f"{value}\n")


def table(columns: Sequence[str], rows: Sequence[Mapping[str, Any]], *, empty: str) -> None:
    """A table of `rows` by column name; the sentence `empty` when there are none."""
    if not rows:
        line(empty)
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        grid.add_column(column.replace("_", " "), overflow="fold")
    for row in rows:
        grid.add_row(*(Text(printable(_cell(row.get(column)))) for column in columns))
    width = None if sys.stdout.isatty() else NO_TERMINAL_WIDTH
    Console(file=sys.stdout, width=width).print(grid)


def fields(values: Mapping[str, Any]) -> None:
    """One `name: value` line each, names aligned."""
    width = max((len(name) for name in values), default=0)
    for name, value in values.items():
        line(f"{name.replace('_', ' '):<{width}}  {_cell(value)}")


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_cell(item)}" for name, item in value.items()) or "-"
    if isinstance(value, list | tuple):
        separator = "; " if any(isinstance(item, Mapping) for item in value) else ", "
        return separator.join(_cell(item) for item in value) or "-"
    return str(value)
