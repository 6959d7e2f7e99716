"""How long a lone question waits for somebody to answer it; a conversation waits as long as its user."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from device_agent.actions import NoticeKind
    from device_agent.chat_events import ChatEvent

WAITS: frozenset[NoticeKind] = frozenset({"link_lost", "verifier_lost", "verifier_busy"})
"""Notices that say that nobody works on the answer."""


def begun_within(
    events: Iterator[ChatEvent], timeout_s: float, give_up: Callable[[], None]
) -> Iterator[ChatEvent]:
    """The events of a turn, given up when it waits for `timeout_s` before its first committed token.

    Only time for which the user was told that nobody works on it counts: a long prompt may take long.

    Args:
        give_up: ends the turn, such as `ChatSession.stop`; called on a thread of its own.

    Raises:
        LinkError: it was given up, with the last notice.
    """
    from device_agent.actions import Notice
    from device_agent.chat_events import Finished, TextDelta
    from protocol.errors import LinkError

    timer: threading.Timer | None = None
    has_begun, reason = False, ""
    is_given_up = threading.Event()

    def expire() -> None:
        is_given_up.set()
        give_up()

    try:
        for event in events:
            match event:
                case Notice(kind, text) if kind in WAITS and not has_begun:
                    reason = text
                    if timer is None:
                        timer = threading.Timer(timeout_s, expire)
                        timer.daemon = True
                        timer.start()
                case TextDelta() | Notice(kind=("link_back" | "verifier_back")):
                    has_begun |= isinstance(event, TextDelta)
                    if timer is not None:
                        timer.cancel()
                        timer = None
                case Finished(reason="stopped") if is_given_up.is_set() and not has_begun:
                    raise LinkError(
                        f"no answer began within {timeout_s:g} s: {reason}",
                        hint="look at the verifiers, or wait longer with --timeout",
                    )
                case _:
                    pass
            yield event
    finally:
        if timer is not None:
            timer.cancel()
