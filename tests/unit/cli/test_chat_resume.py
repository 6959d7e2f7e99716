"""What a resumed chat prints: the text so far, the rest of an answer that was cut off, the next one."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import cast

import pytest
import typer

from cli.commands.chat import talk
from device_agent.chat import ChatSession
from device_agent.chat_events import ChatEvent
from protocol.errors import SessionError
from tests.unit.cli.test_chat_loop import ANSWER


class Resumed:
    """A conversation that has a text; `ANSWER` is what it says next."""

    seed = 42
    tokens = (1, 2)

    def __init__(self, text: str, *, is_interrupted: bool) -> None:
        self.text = text
        self.is_interrupted = is_interrupted

    def continue_answer(self) -> Iterator[ChatEvent]:
        return iter(ANSWER)

    def send(self, _message: str) -> Iterator[ChatEvent]:
        return iter(ANSWER)

    def stop(self) -> None:
        """Nothing to stop."""


def printed(resumed: Resumed, capsys: pytest.CaptureFixture[str], *, as_json: bool = False) -> str:
    talk(cast("ChatSession", resumed), "and now?", as_json=as_json)
    return capsys.readouterr().out


def test_an_answer_that_was_cut_off_goes_on_where_it_ended(capsys: pytest.CaptureFixture[str]) -> None:
    out = printed(Resumed("hello\n\ntonight ", is_interrupted=True), capsys)
    assert out == "hello\n\ntonight the lamp is on\nthe lamp is on\n"


def test_the_next_answer_is_a_paragraph_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    out = printed(Resumed("hello\n\ngood evening\n\n", is_interrupted=False), capsys)
    assert out == "hello\n\ngood evening\n\nthe lamp is on\n"


def test_json_has_nothing_but_answers(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(Resumed("hello", is_interrupted=True), capsys, as_json=True).splitlines()
    assert [json.loads(line)["text"] for line in lines] == ["the lamp is on", "the lamp is on"]


@pytest.mark.parametrize(("lines", "code"), [("hi\n", None), ("hi\n\nso long\n", 5)])
def test_lines_of_a_pipe_are_answered_in_json_and_one_without_answer_shows_in_the_exit_code(
    lines: str, code: int | None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Choosy(Resumed):
        def send(self, message: str) -> Iterator[ChatEvent]:
            if message != "hi":
                raise SessionError("the message is too long")
            return iter(ANSWER)

    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    conversation = cast("ChatSession", Choosy("", is_interrupted=False))
    if code is None:
        talk(conversation, None, as_json=True)
    else:
        with pytest.raises(typer.Exit) as end:
            talk(conversation, None, as_json=True)
        assert end.value.exit_code == code
    assert [json.loads(line)["text"] for line in capsys.readouterr().out.splitlines()] == ["the lamp is on"]
