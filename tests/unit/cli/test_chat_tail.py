"""What the terminal shows while unverified text comes and goes, on a small terminal of our own."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from cli.chat.tail import Tail

_SEQUENCE = re.compile(r"\x1b\[(\d*)([A-Za-z])|(.)", re.DOTALL)


class Terminal:
    """Rows of characters, endlessly high; a full row keeps the cursor until the next character (as xterm)."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.rows: list[str] = [""]
        self._row = self._column = 0

    def write(self, text: str) -> None:
        for match in _SEQUENCE.finditer(text):
            number, kind, char = match.groups()
            if char is None:
                self._control(int(number or 1), kind)
            elif char == "\n":
                self._to(self._row + 1, 0)
            elif char == "\r":
                self._column = 0
            else:
                self._put(char)

    def _control(self, number: int, kind: str) -> None:
        if kind == "A":
            self._row = max(0, self._row - number)
        elif kind == "C":
            self._column = min(self.width - 1, self._column + number)
        elif kind == "J":
            self.rows[self._row] = self.rows[self._row][: self._column]
            del self.rows[self._row + 1 :]

    def _put(self, char: str) -> None:
        if self._column == self.width:
            self._to(self._row + 1, 0)
        row = self.rows[self._row].ljust(self._column)
        self.rows[self._row] = row[: self._column] + char + row[self._column + 1 :]
        self._column += 1

    def _to(self, row: int, column: int) -> None:
        self._row, self._column = row, column
        while len(self.rows) <= row:
            self.rows.append("")


def plain(width: int, text: str) -> list[str]:
    """The screen with `text` printed in one go."""
    terminal = Terminal(width)
    terminal.write(text)
    return terminal.rows


_TEXT = st.text("ab \n", max_size=30)


@given(width=st.integers(2, 12), steps=st.lists(st.tuples(_TEXT, _TEXT), max_size=6))
def test_the_screen_is_the_committed_text_and_the_present_tail(
    width: int, steps: list[tuple[str, str]]
) -> None:
    """Whatever is committed after whatever tail: nothing of an older tail stays, nothing else is lost."""
    terminal, tail, committed = Terminal(width), Tail(lambda: width), ""
    for text, unverified in steps:
        # A line break after an exactly full row may leave an empty row, which is no loss.
        letters = text.lstrip("\n")
        terminal.write(tail.erase() + tail.append(letters))
        committed += letters
        terminal.write(tail.replace(unverified))
        assert _squeezed(terminal.rows) == _squeezed(plain(width, committed + unverified))
    terminal.write(tail.erase())
    assert _squeezed(terminal.rows) == _squeezed(plain(width, committed))


def test_more_of_the_same_tail_is_only_appended() -> None:
    tail = Tail(lambda: 20)
    tail.replace("one")
    assert tail.replace("one two") == "\x1b[2m two\x1b[0m"
    assert tail.replace("one two") == ""


def test_another_tail_replaces_it_visibly() -> None:
    terminal, tail = Terminal(8), Tail(lambda: 8)
    terminal.write(tail.append("It is "))
    terminal.write(tail.replace("warm and sunny"))
    terminal.write(tail.erase() + tail.append("cold"))
    assert terminal.rows == ["It is co", "ld"]


def test_wide_characters_take_two_cells() -> None:
    tail = Tail(lambda: 4)
    tail.append("a")
    tail.replace("日本")
    assert tail.erase() == "\x1b[1A\r\x1b[1C\x1b[J"


def _squeezed(rows: list[str]) -> list[str]:
    """Rows without those that are empty: see the comment above."""
    return [row.rstrip() for row in rows if row.rstrip()]
