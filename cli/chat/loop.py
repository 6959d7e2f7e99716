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


def converse(conversation: Conversation, read_line: Callable[[], str], screen: Screen) -> int:
    """Talk until the user leaves; how many messages had no answer.

    Args:
        read_line: one line without its end; raises EOFError when there are no more, KeyboardInterrupt when
            the user wants to leave at the prompt.
    """
    n_failed = 0
    while True:
        try:
            line = read_line().strip()
        except (EOFError, KeyboardInterrupt):
            return n_failed
        if line == "/exit":
            return n_failed
        if line and not _react(conversation, line, screen):
            n_failed += 1


def _react(conversation: Conversation, line: str, screen: Screen) -> bool:
    """Do what `line` says; False when it is a message that had no answer."""
    match line:
        case "/retry":
            return _turn(conversation, conversation.retry, screen)
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
            return _turn(conversation, lambda: conversation.send(line), screen)
    return True


def _turn(conversation: Conversation, begin: Callable[[], Iterator[ChatEvent]], screen: Screen) -> bool:
    from device_agent.chat_events import Failed

    is_answered = True
    try:
        for event in begin():
            screen.show(event)
            is_answered = not isinstance(event, Failed)
    except KeyboardInterrupt:
        conversation.stop()
        screen.note("stopped")
    except (SessionError, ModelError) as refusal:
        screen.note(f"{refusal}; {refusal.hint}" if refusal.hint else str(refusal))
        return False
    return is_answered
