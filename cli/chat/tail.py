"""Text at the end of a terminal's output that can be taken back: what is shown, but not yet verified."""

from __future__ import annotations

import shutil
from collections.abc import Callable

from rich.cells import cell_len

DIM, PLAIN = "\x1b[2m", "\x1b[0m"


def terminal_width() -> int:
    """Columns of the terminal."""
    return max(2, shutil.get_terminal_size().columns)


class Tail:
    """Knows where the cursor is, and gives what to write. Pure but for the width.

    A tail longer than the screen is high is taken back only as far as the screen goes: what has scrolled away
    stays in the terminal's memory, dim.
    """

    def __init__(self, width: Callable[[], int] = terminal_width) -> None:
        self._width = width
        self._cells = 0
        self._tail = ""

    @property
    def text(self) -> str:
        """What is shown as unverified now."""
        return self._tail

    @property
    def is_mid_line(self) -> bool:
        """Whether the text that stands for good ends within a line."""
        return self._cells > 0

    def append(self, text: str) -> str:
        """What to write for text that stands for good; the tail must have been taken back."""
        _, newline, last = text.rpartition("\n")
        self._cells = cell_len(last) if newline else self._cells + cell_len(last)
        return text

    def replace(self, text: str) -> str:
        """What to write to have `text` as the tail, in place of the present one."""
        if self._tail and text.startswith(self._tail):
            more, self._tail = text[len(self._tail) :], text
            return f"{DIM}{more}{PLAIN}" if more else ""
        erased = self.erase()
        self._tail = text
        return f"{erased}{DIM}{text}{PLAIN}" if text else erased

    def erase(self) -> str:
        """What to write to take the tail back; the cursor is then where the tail began."""
        if not self._tail:
            return ""
        width = self._width()
        first, *others = self._tail.split("\n")
        rows = [_last_row(self._cells + cell_len(first), width)]
        rows += [_last_row(cell_len(line), width) for line in others]
        row, column = divmod(self._cells, width)
        n_up = sum(rows) + len(others) - row
        self._tail = ""
        up = f"\x1b[{n_up}A" if n_up > 0 else ""
        right = f"\x1b[{column}C" if column else ""
        return f"{up}\r{right}\x1b[J"


def _last_row(n_cells: int, width: int) -> int:
    """The row in which a line of so many cells ends; a full row keeps the cursor until the next character."""
    return max(0, n_cells - 1) // width
