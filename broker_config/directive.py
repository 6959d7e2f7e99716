"""One line of mosquitto.conf and the reason for it."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from protocol.errors import BrokerError

_COMMENT_WIDTH = 100


@dataclass(frozen=True)
class Directive:
    """A setting; `why` becomes the comment above it."""

    name: str
    value: str | int | Path
    why: str = ""

    def render(self) -> str:
        """The lines of the file.

        Raises:
            BrokerError: the value has a line break, which would begin a setting of its own.
        """
        value = str(self.value)
        if "\n" in value or "\r" in value:
            raise BrokerError(f"{self.name} {value!r} has a line break")
        line = f"{self.name} {value}"
        if not self.why:
            return line
        comment = textwrap.wrap(
            self.why, _COMMENT_WIDTH, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False
        )
        return "\n".join(["", *comment, line])


def render_all(directives: Iterable[Directive]) -> str:
    """The text of several directives, in order."""
    return "\n".join(directive.render() for directive in directives) + "\n"
