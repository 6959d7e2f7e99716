"""A command under way: only its own answer counts, and only once."""

from __future__ import annotations

import pytest

from fleet.commands import PendingCommand
from protocol.codec import encode
from protocol.fleet_messages import CommandResponse, CommandState


@pytest.fixture
def command() -> PendingCommand:
    return PendingCommand.new("pi-1", "ping", 10.0, deadline_s=5.0)


def document(*states: tuple[str, str]) -> bytes:
    commands = tuple(CommandState(id=command_id, state=state) for command_id, state in states)  # type: ignore[arg-type]
    return encode(CommandResponse(commands=commands))


def test_ids_are_never_the_same() -> None:
    ids = {PendingCommand.new("pi-1", "ping", 0.0, deadline_s=5.0).request.id for _ in range(100)}
    assert len(ids) == 100


def test_only_the_own_id_in_a_document_of_many_counts(command: PendingCommand) -> None:
    command.take(document(("other", "succeeded")), 11.0)
    assert command.state is None
    command.take(document(("other", "failed"), (command.request.id, "succeeded")), 12.5)
    assert command.is_final
    assert command.round_trip_s == 2.5


def test_progress_is_followed_until_the_final_state_which_stays(command: PendingCommand) -> None:
    command.take(document((command.request.id, "running")), 11.0)
    assert (command.is_final, command.state and command.state.state) == (False, "running")
    command.take(document((command.request.id, "failed")), 12.0)
    command.take(document((command.request.id, "succeeded")), 13.0)
    assert (command.is_final, command.state and command.state.state) == (True, "failed")


@pytest.mark.parametrize("payload", [b"", b"{", b'{"v":1}'])
def test_what_cannot_be_read_changes_nothing(command: PendingCommand, payload: bytes) -> None:
    command.take(payload, 11.0)
    assert command.state is None
