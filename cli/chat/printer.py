"""What a conversation prints: the answer to stdout, everything about it to stderr."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from cli import diagnostics, output
from cli.chat.tail import DIM, PLAIN, Tail

if TYPE_CHECKING:
    from device_agent.chat_events import ChatEvent, TurnStats


FULL = "the conversation is as long as the target can hold, which ended the answer; begin a new one: /reset"


class Printer:
    """Streams answers as they are committed.

    On a terminal what the draft model says alone stands dim behind them until it is settled; elsewhere stdout
    gets committed text only.
    """

    def __init__(self) -> None:
        self._tail = Tail() if sys.stdout.isatty() else None

    def show(self, event: ChatEvent) -> None:
        """Print one event of a turn."""
        from device_agent.actions import Notice, Settled
        from device_agent.chat_events import Failed, Finished, TextDelta, UnverifiedText

        match event:
            case TextDelta(text):
                self._commit(text)
            case UnverifiedText(text):
                self._draw(text)
            case Settled(n_confirmed, n_replaced):
                self.note(f"{n_confirmed} of {n_confirmed + n_replaced} unverified tokens confirmed")
            case Notice(_, text):
                self._interject(text)
            case Finished(reason, stats):
                self._commit("\n")
                self.note(summary(stats))
                if reason == "context":
                    self.note(FULL)
            case Failed(error):
                self._commit("\n")
                diagnostics.error(error)

    def _commit(self, text: str) -> None:
        text = diagnostics.printable(text)
        if self._tail is None:
            output.text(text)
        else:
            output.drawn(self._tail.erase() + self._tail.append(text))

    def _draw(self, text: str) -> None:
        if self._tail is not None:
            output.drawn(self._tail.replace(diagnostics.printable(text)))

    def _interject(self, text: str) -> None:
        """A note in the middle of an answer, which goes on below it."""
        tail = "" if self._tail is None else self._tail.text
        self.note(text)
        self._draw(tail)

    def note(self, text: str) -> None:
        """A line about the conversation; dim on a terminal. What is unverified is taken back."""
        if self._tail is not None:
            output.drawn(self._tail.erase())
            if sys.stderr.isatty():
                output.drawn("\n" if self._tail.is_mid_line else "")
                self._tail = Tail()
        diagnostics.say(text) if not sys.stderr.isatty() else self._dim(text)

    @staticmethod
    def _dim(text: str) -> None:
        dim, plain = ("", "") if os.environ.get("NO_COLOR") else (DIM, PLAIN)
        sys.stderr.write(f"{dim}{diagnostics.printable(text)}{plain}\n")
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
