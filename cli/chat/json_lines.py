"""What a conversation prints for a script: one JSON object per answer to stdout, all else to stderr."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cli import diagnostics, output
from cli.chat.answer import Answer

if TYPE_CHECKING:
    from device_agent.chat_events import ChatEvent


class JsonLines:
    """Prints an answer when it is whole."""

    def __init__(self) -> None:
        self._parts: list[str] = []

    def show(self, event: ChatEvent) -> None:
        """Take one event of a turn."""
        from device_agent.actions import Notice
        from device_agent.chat_events import Failed, Finished, TextDelta

        match event:
            case TextDelta(text):
                self._parts.append(text)
            case Finished(reason, stats):
                output.as_json(Answer("".join(self._parts), reason, stats).to_json())
                self._parts.clear()
            case Failed(error):
                self._parts.clear()
                diagnostics.error(error)
            case Notice(_, text):
                self.note(text)
            case _:
                pass

    def note(self, text: str) -> None:
        """A line about the conversation."""
        diagnostics.say(text)
