"""What a conversation prints for a script: one JSON object per answer to stdout, all else to stderr."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cli import diagnostics, output
from cli.chat.answer import Gathering

if TYPE_CHECKING:
    from device_agent.chat_events import ChatEvent


class JsonLines:
    """Prints an answer when it is whole."""

    def __init__(self) -> None:
        self._gathering = Gathering()

    def show(self, event: ChatEvent) -> None:
        """Take one event of a turn."""
        from device_agent.actions import Notice
        from device_agent.chat_events import Failed

        answer = self._gathering.take(event)
        if answer is not None:
            output.as_json(answer.to_json())
            self._gathering = Gathering()
        match event:
            case Failed(error):
                self._gathering = Gathering()
                diagnostics.error(error)
            case Notice(_, text):
                diagnostics.say(text)
            case _:
                pass

    def note(self, text: str) -> None:
        """A line about the conversation between two answers; one that was stopped has no object."""
        self._gathering = Gathering()
        diagnostics.say(text)
