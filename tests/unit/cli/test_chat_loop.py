"""The chat loop with a scripted conversation: what is typed, what is asked, what is shown."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest

from cli.chat.answer import collect
from cli.chat.json_lines import JsonLines
from cli.chat.loop import converse
from cli.chat.printer import Printer, summary
from device_agent.actions import Notice
from device_agent.chat_events import ChatEvent, Failed, Finished, TextDelta, TurnStats
from protocol.errors import SessionError

STATS = TurnStats(
    verifier="v1",
    tokens=5,
    rounds=2,
    drafted=4,
    accepted=3,
    uplink_bytes=400,
    downlink_bytes=300,
    max_uplink_bytes_per_round=180,
    max_downlink_bytes_per_round=170,
    duration_s=0.5,
    time_to_first_token_s=0.1,
    tokens_per_s=10.0,
    temperature=0.7,
    top_k=0,
    top_p=0.95,
    seed=42,
    attempt=0,
    prompt_ids=(1, 2),
    token_ids=(3, 4, 5, 6, 7),
    samples=(),
)
ANSWER: list[ChatEvent] = [
    TextDelta("the lamp ", (3, 4)),
    TextDelta("is on", (5, 6, 7)),
    Finished("stop", STATS),
]


class ScriptedConversation:
    """Answers every message with `events`; remembers what was asked of it."""

    seed = 42

    def __init__(self, events: list[ChatEvent | BaseException]) -> None:
        self.events = events
        self.calls: list[str] = []

    def send(self, message: str) -> Iterator[ChatEvent]:
        self.calls.append(message)
        for event in self.events:
            if isinstance(event, BaseException):
                raise event
            yield event

    def retry(self) -> Iterator[ChatEvent]:
        return self.send("<retry>")

    def stop(self) -> None:
        self.calls.append("<stop>")

    def reset(self) -> None:
        self.calls.append("<reset>")


def typing(*lines: str | type[BaseException]) -> Callable[[], str]:
    """A user who types `lines` and then leaves with Ctrl-D."""
    left = iter((*lines, EOFError))

    def read_line() -> str:
        line = next(left)
        if isinstance(line, str):
            return line
        raise line

    return read_line


def test_messages_are_answered_and_figures_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    conversation = ScriptedConversation([*ANSWER])
    assert converse(conversation, typing("hi", "   ", "again"), Printer()) == 0
    shown = capsys.readouterr()
    assert conversation.calls == ["hi", "again"]
    assert shown.out == "the lamp is on\n" * 2
    assert shown.err.count("5 tokens in 2 rounds, 3 of 4 drafts accepted") == 2


def test_json_is_one_object_a_message_and_nothing_of_one_that_failed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    screen = JsonLines()
    assert converse(ScriptedConversation([*ANSWER]), typing("hi", "again"), screen) == 0
    failed = Failed(SessionError("the target is gone", hint="/reset"), STATS)
    assert converse(ScriptedConversation([TextDelta("half", (3,)), failed]), typing("hi"), screen) == 1
    shown = capsys.readouterr()
    assert [json.loads(line)["text"] for line in shown.out.splitlines()] == ["the lamp is on"] * 2
    assert "the target is gone" in shown.err


def test_nothing_of_a_stopped_answer_is_in_the_next_object(capsys: pytest.CaptureFixture[str]) -> None:
    screen = JsonLines()
    stopped = ScriptedConversation([TextDelta("the la", (3,)), KeyboardInterrupt()])
    assert converse(stopped, typing("hi"), screen) == 0
    assert converse(ScriptedConversation([*ANSWER]), typing("again"), screen) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["text"] == "the lamp is on"


def test_commands_are_not_messages(capsys: pytest.CaptureFixture[str]) -> None:
    conversation = ScriptedConversation([*ANSWER])
    converse(
        conversation, typing("/retry", "/reset", "/seed", "/help", "/nonsense", "/exit", "never"), Printer()
    )
    assert conversation.calls == ["<retry>", "<reset>"]
    shown = capsys.readouterr().err
    assert "seed 42" in shown
    assert "/nonsense is no command" in shown
    assert shown.count("/retry") == 2


def test_ctrl_c_stops_an_answer_and_the_conversation_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    conversation = ScriptedConversation([TextDelta("the la", (3,)), KeyboardInterrupt()])
    converse(conversation, typing("hi", "more"), Printer())
    assert conversation.calls == ["hi", "<stop>", "more", "<stop>"]
    assert "stopped" in capsys.readouterr().err


def test_ctrl_c_at_the_prompt_leaves() -> None:
    conversation = ScriptedConversation([*ANSWER])
    converse(conversation, typing(KeyboardInterrupt, "never"), Printer())
    assert conversation.calls == []


def test_a_refused_message_is_explained_and_the_conversation_goes_on(
    capsys: pytest.CaptureFixture[str],
) -> None:
    refusal = SessionError("the message is too long", hint="send a shorter one")
    conversation = ScriptedConversation([refusal])
    assert converse(conversation, typing("x" * 9, "y"), Printer()) == 2
    assert len(conversation.calls) == 2
    assert capsys.readouterr().err.count("the message is too long; send a shorter one") == 2


def test_a_failed_turn_prints_its_error_with_the_way_out(capsys: pytest.CaptureFixture[str]) -> None:
    failed = Failed(SessionError("the target is gone", hint="/reset"), STATS)
    assert converse(ScriptedConversation([TextDelta("half", (3,)), failed]), typing("hi"), Printer()) == 1
    shown = capsys.readouterr()
    assert shown.out == "half\n"
    assert "the target is gone" in shown.err
    assert "try: /reset" in shown.err


def test_model_output_cannot_control_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    events: list[ChatEvent] = [TextDelta("\x1b[2Jboo\r", (3,)), Finished("stop", STATS)]
    converse(ScriptedConversation([*events]), typing("hi"), Printer())
    assert "\x1b" not in capsys.readouterr().out


def test_collect_gives_text_and_figures_and_raises_what_failed() -> None:
    answer = collect(iter([Notice("link_lost", "the link is down"), *ANSWER]))
    assert (answer.text, answer.reason, answer.stats) == ("the lamp is on", "stop", STATS)
    assert answer.to_json()["token_ids"] == (3, 4, 5, 6, 7)
    with pytest.raises(SessionError, match="gone"):
        collect(iter([Failed(SessionError("gone"), STATS)]))


def test_a_failure_that_is_raised_is_told_once_on_a_line_of_its_own(
    capsys: pytest.CaptureFixture[str],
) -> None:
    failed = Failed(SessionError("the target is gone"), STATS)
    with pytest.raises(SessionError, match="gone"):
        collect(iter([TextDelta("half", (3,)), failed]), Printer().show)
    shown = capsys.readouterr()
    assert shown.out == "half\n"
    assert shown.err == ""


def test_the_summary_of_an_answer_without_drafts_says_so() -> None:
    stats = TurnStats(**{name: getattr(STATS, name) for name in STATS.__dataclass_fields__} | {"drafted": 0})
    assert "no drafts" in summary(stats)
