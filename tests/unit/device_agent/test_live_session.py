"""One open session: a fault while something is shown ends the turn, and the journal stays whole."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from queue import SimpleQueue

import pytest

from device_agent.actions import Binding, FindVerifier, Left, NeedDraft
from device_agent.chat_events import ChatEvent, Failed
from device_agent.controller import Controller
from device_agent.journal import JournalDirectory
from device_agent.live_session import LiveSession
from device_agent.saved import Saved
from device_agent.session import DeviceSession
from device_agent.tokenizer import TextStream
from device_agent.turns import SessionOptions
from protocol.messages import SamplerSettings, Verdict, Window

TARGET = "00000000000000aa"
FRESH = Saved("00000000000000cc", 0, "v1", TARGET, SamplerSettings(), 0, (), 0, 0, None)
BAD_TOKEN = 13


class Desk:
    """A shell that notes what is published and answers nothing."""

    def __init__(self) -> None:
        self.published: list[Window] = []
        self.unsent: list[Window] = []

    def publish_window(self, live: LiveSession, verifier: str, window: Window) -> None:
        del live, verifier
        self.published.append(window)

    def not_sent(self, live: LiveSession, window: Window) -> None:
        del live
        self.unsent.append(window)

    def turn_begins(self, live: LiveSession) -> None: ...
    def request_drafts(self, slot: int, need: NeedDraft, settings: SamplerSettings) -> None: ...
    def find_verifier(self, live: LiveSession, wanted: FindVerifier) -> None: ...
    def verifier_left(self, live: LiveSession, left: Left) -> None: ...
    def turn_ended(self, live: LiveSession) -> None: ...
    def session_closed(self, live: LiveSession) -> None: ...
    def now_s(self) -> float:
        return 0.0


class BrittleStream(TextStream):
    """Cannot show one token."""

    def __init__(self) -> None: ...

    def feed(self, tokens: Iterable[int]) -> str:
        if BAD_TOKEN in tokens:
            raise ValueError("no text for this one")
        return ""

    def finish(self) -> str:
        return ""


def verdict(window: Window, *tokens: int) -> Verdict:
    return Verdict(
        uid=window.uid,
        generation=window.generation,
        round=window.round,
        start=window.ack,
        tokens=tokens,
        n_accepted=0,
    )


def test_a_token_that_cannot_be_shown_ends_the_turn_and_hides_nothing_on_disk(tmp_path: Path) -> None:
    directory, desk = JournalDirectory(tmp_path), Desk()
    machine = DeviceSession(FRESH, Binding("v1", TARGET, 200, 8), Controller(), SessionOptions())
    live = LiveSession(machine, directory.create(FRESH), desk, BrittleStream)
    events: SimpleQueue[ChatEvent] = SimpleQueue()
    live.begin(lambda now_s: machine.start_turn((1, 2), 10, now_s), events)
    (opening,) = desk.published
    live.perform(machine.published(opening.generation, opening.round, 0, 0.0))
    live.perform(machine.verdict(verdict(opening, BAD_TOKEN), 0.0))
    event = events.get_nowait()
    assert isinstance(event, Failed)
    assert "ValueError" in str(event.error)
    live.begin(lambda now_s: machine.start_turn((3,), 10, now_s), SimpleQueue())
    assert machine.is_active
    live.detach()
    (saved,) = directory.load()
    assert saved.tokens == machine.tokens == (1, 2, BAD_TOKEN, 3)


def test_a_fault_of_the_timer_ends_this_turn_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = DeviceSession(FRESH, Binding("v1", TARGET, 200, 8), Controller(), SessionOptions())
    live = LiveSession(machine, JournalDirectory(tmp_path).create(FRESH), Desk(), BrittleStream)
    events: SimpleQueue[ChatEvent] = SimpleQueue()
    live.begin(lambda now_s: machine.start_turn((1, 2), 10, now_s), events)
    with monkeypatch.context() as patch:
        patch.setattr(machine, "tick", lambda _: 1 // 0)
        live.tick(1.0)
    event = events.get_nowait()
    assert isinstance(event, Failed)
    assert "ZeroDivisionError" in str(event.error)
    assert not machine.is_active
    live.detach()
