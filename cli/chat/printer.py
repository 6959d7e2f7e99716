"""What a conversation prints: the answer to stdout, everything about it to stderr."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from cli import diagnostics, output

if TYPE_CHECKING:
    from device_agent.chat_events import ChatEvent, TurnStats

DIM, PLAIN = "\x1b[2m", "\x1b[0m"


class Printer:
    """Streams answers as they are committed."""

    def show(self, event: ChatEvent) -> None:
        """Print one event of a turn."""
        from device_agent.actions import Notice
        from device_agent.chat_events import Failed, Finished, TextDelta

        match event:
            case TextDelta(text):
                output.text(text)
            case Notice(_, text):
                self.note(text)
            case Finished(_, stats):
                output.line()
                self.note(summary(stats))
            case Failed(error):
                output.line()
                diagnostics.error(error)

    def note(self, text: str) -> None:
        """A line about the conversation; dim on a terminal."""
        diagnostics.say(text) if not sys.stderr.isatty() else self._dim(text)

    @staticmethod
    def _dim(text: str) -> None:
        sys.stderr.write(f"{DIM}{diagnostics.printable(text)}{PLAIN}\n")
        sys.stderr.flush()


def summary(stats: TurnStats) -> str:
    """One line of figures about an answer."""
    drafts = f"{stats.accepted} of {stats.drafted} drafts accepted" if stats.drafted else "no drafts"
    first = f"{stats.time_to_first_token_s:.2f} s to the first, " if stats.time_to_first_token_s else ""
    return (
        f"{stats.tokens} tokens in {stats.rounds} rounds, {drafts}, {first}{stats.tokens_per_s:.1f} tokens/s,"
        f" {stats.uplink_bytes + stats.downlink_bytes} bytes, temperature {stats.temperature:g},"
        f" seed {stats.seed}"
    )
