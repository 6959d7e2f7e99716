"""What a conversation prints, with and without a terminal."""

from __future__ import annotations

import pytest

from cli.chat.printer import Printer
from device_agent.actions import Committed, Finished, Notice, Settled, TurnEnd
from device_agent.chat_events import TextDelta, UnverifiedText
from device_agent.tokenizer import ChatTokenizer
from device_agent.turn_record import TurnRecord, TurnStart
from protocol.messages import SamplerSettings
from tests.table_device import TableVocabulary

EVENTS = [
    TextDelta("Hello", (1,)),
    Notice("drafting_alone", "alone now"),
    UnverifiedText(" wrold\x1b[2J", (2, 3)),
    TextDelta(" w", (2,)),
    UnverifiedText("rold", (3,)),
    TextDelta("orld", (4,)),
    Settled(1, 1),
]


def printed(events: list[object]) -> None:
    printer = Printer()
    for event in events:
        printer.show(event)  # type: ignore[arg-type]  # a mixed list


def test_without_a_terminal_stdout_has_committed_text_only(capsys: pytest.CaptureFixture[str]) -> None:
    printed([*EVENTS])
    out, err = capsys.readouterr()
    assert out == "Hello world"
    assert err.splitlines() == ["alone now", "1 of 2 unverified tokens confirmed"]


@pytest.mark.parametrize(("reason", "is_told"), [("context", True), ("stop", False), ("limit", False)])
def test_p14_an_answer_that_a_full_context_ended_says_so(
    capsys: pytest.CaptureFixture[str], reason: TurnEnd, *, is_told: bool
) -> None:
    record = TurnRecord(TurnStart(0.0, SamplerSettings(), (1, 2)), ChatTokenizer(TableVocabulary()).stream())
    record.events(Committed(2, (7, 8)), "v1", 0.5)
    printed([*record.events(Finished(reason), "v1", 1.0)])
    assert ("begin a new one: /reset" in capsys.readouterr().err) == is_told


def test_on_a_terminal_unverified_text_is_dim_and_replaced(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    printed([*EVENTS])
    out, _ = capsys.readouterr()
    assert "\x1b[2m wrold\N{REPLACEMENT CHARACTER}[2J\x1b[0m" in out, "dim and harmless"
    assert out.endswith("\x1b[2mrold\x1b[0m\r\x1b[7C\x1b[Jorld")


def test_a_note_takes_back_what_is_unverified(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as "stopped" after Ctrl-C, when the rest of the turn's events is not shown."""
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    printer = Printer()
    printer.show(TextDelta("Hi", (1,)))
    printer.show(UnverifiedText(" there", (2,)))
    printer.note("stopped")
    printer.show(UnverifiedText("next", (2,)))
    printer.note("stopped")
    assert capsys.readouterr().out == "Hi\x1b[2m there\x1b[0m\r\x1b[2C\x1b[J\n\x1b[2mnext\x1b[0m\r\x1b[J"


@pytest.mark.parametrize(("setting", "shown"), [("", "\x1b[2mnext\x1b[0m\n"), ("1", "next\n")])
def test_notes_are_plain_for_those_who_want_no_colour(
    setting: str, shown: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", setting)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    Printer().note("next")
    assert capsys.readouterr().err == shown
