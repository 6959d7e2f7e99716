"""The loop of an interactive conversation: lines in, turns out; knows nothing of terminals or models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Protocol

from protocol.errors import ModelError, SessionError

if TYPE_CHECKING:
    from device_agent.chat_events import ChatEvent

HELP = """/retry   another answer to the last message
/reset   forget the conversation
/seed    show the seed
/help    this list
/exit    leave (or Ctrl-D); Ctrl-C stops an answer"""


class Conversation(Protocol):
    """What the loop needs of `device_agent.chat.ChatSession`."""

    @property
    def seed(self) -> int: ...

    def send(self, message: str) -> Iterator[ChatEvent]: ...

    def retry(self) -> Iterator[ChatEvent]: ...

    def stop(self) -> None: ...

    def reset(self) -> None: ...


class Screen(Protocol):
    """What the loop needs of `cli.chat.printer.Printer`."""

    def show(self, event: ChatEvent) -> None: ...

    def note(self, text: str) -> None: ...


def converse(conversation: Conversation, read_line: Callable[[], str], screen: Screen) -> None:
    """Talk until the user leaves.

    Args:
        read_line: one line without its end; raises EOFError when there are no more, KeyboardInterrupt when
            the user wants to leave at the prompt.
    """
    while True:
        try:
            line = read_line().strip()
        except (EOFError, KeyboardInterrupt):
            return
        if line == "/exit":
            return
        if line:
            _react(conversation, line, screen)


def _react(conversation: Conversation, line: str, screen: Screen) -> None:
    match line:
        case "/retry":
            _turn(conversation, conversation.retry, screen)
        case "/reset":
            conversation.reset()
            screen.note(f"a new conversation, seed {conversation.seed}")
        case "/seed":
            screen.note(f"seed {conversation.seed}")
        case "/help":
            screen.note(HELP)
        case _ if line.startswith("/"):
            screen.note(f"{line.split(maxsplit=1)[0]} is no command\n{HELP}")
        case _:
            _turn(conversation, lambda: conversation.send(line), screen)


def _turn(conversation: Conversation, begin: Callable[[], Iterator[ChatEvent]], screen: Screen) -> None:
    try:
        for event in begin():
            screen.show(event)
    except KeyboardInterrupt:
        conversation.stop()
        screen.note("stopped")
    except (SessionError, ModelError) as refusal:
        screen.note(f"{refusal}; {refusal.hint}" if refusal.hint else str(refusal))
