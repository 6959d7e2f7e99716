"""How long a verifier keeps what it knows of a conversation, in its own memory and at the broker."""

from __future__ import annotations

import pytest

from edge_verifier.checkpoints import expiry_s
from edge_verifier.engines.table_engine import TableEngine
from protocol.identifiers import ANY_UID, LAST_GENERATION
from protocol.messages import Opening, Refusal
from protocol.sampler import SAMPLER_VERSION
from tests.unit.edge_verifier.desk import Desk
from tests.unit.edge_verifier.scripted_device import ScriptedDevice

RETENTION_S = 600


@pytest.fixture
def desk() -> Desk:
    return Desk(TableEngine(is_held=True, max_sessions=4))


def opened(desk: Desk, **options: object) -> ScriptedDevice:
    """A device whose opening, with a retention of ten minutes, has been answered."""
    device = ScriptedDevice(desk.engine, **options)  # type: ignore[arg-type]  # test options by name
    opening = Opening(
        settings=device.settings,
        target=desk.engine.info.target,
        sampler_version=SAMPLER_VERSION,
        keep_checkpoint=device.keep_checkpoint,
        retention_s=RETENTION_S,
    )
    for reply in desk.ask(device, device.opening_window(opening=opening)):
        device.on_reply(reply)
    device.presumed.clear()
    return device


@pytest.mark.parametrize(
    ("idle_s", "left_s"), [(0.0, 600), (0.5, 600), (599.2, 1), (600.0, 1), (9000.0, 1), (-5.0, 605)]
)
def test_the_retention_counts_from_the_last_change(idle_s: float, left_s: int) -> None:
    assert expiry_s(RETENTION_S, idle_s) == left_s


def test_a_checkpoint_that_is_written_again_stays_no_longer_for_it(desk: Desk) -> None:
    """Each time that the verifier comes back to its broker."""
    device = opened(desk, keep_checkpoint=True)
    assert (desk.n_checkpoint_writes, desk.expiry_s) == (1, RETENTION_S)
    (session,) = desk.table
    for _ in range(2):
        desk.clock.now_s += 200.0
        desk.conductor.perform(desk.table.checkpoint_again(session.sid, desk.clock()))
    assert (desk.n_checkpoint_writes, desk.expiry_s) == (3, 200)
    device.on_reply(desk.ask(device, device.window())[0])
    desk.conductor.perform(desk.table.checkpoint_again(session.sid, desk.clock()))
    assert desk.expiry_s == RETENTION_S, "the conversation has gone on"
    desk.clock.now_s += RETENTION_S
    assert desk.table.checkpoint_again(session.sid, desk.clock()) == []


@pytest.mark.parametrize("keep_checkpoint", [True, False])
def test_the_verifier_forgets_a_conversation_when_its_time_is_over(
    desk: Desk, *, keep_checkpoint: bool
) -> None:
    """Its device may be gone for good; one that comes back brings the text along."""
    gone = opened(desk, name="gone", keep_checkpoint=keep_checkpoint)
    desk.clock.now_s += RETENTION_S - 1.0
    opened(desk, name="here", seed=1)
    desk.conductor.perform(desk.table.drop_expired(desk.clock()))
    assert len(desk.table) == 2
    desk.clock.now_s += 1.0
    desk.conductor.perform(desk.table.drop_expired(desk.clock()))
    assert [session.device for session in desk.table] == ["here"]
    assert list(desk.engine._ledger._lengths.values()) != []
    (refusal,) = desk.ask(gone, gone.window())
    assert isinstance(refusal, Refusal)
    assert refusal.reason == "unknown_session"


def test_a_conversation_in_the_middle_of_a_step_is_not_forgotten(desk: Desk) -> None:
    device = opened(desk)
    desk.send(device, device.window())
    desk.clock.now_s += 2 * RETENTION_S
    assert desk.table.drop_expired(desk.clock()) == []
    assert desk.run()


@pytest.mark.parametrize(("generation", "n_kept"), [(2, 64), (LAST_GENERATION, 0)])
def test_of_a_conversation_that_was_removed_not_even_its_beginning_stays(
    desk: Desk, generation: int, n_kept: int
) -> None:
    """`sled session rm` ends it in the last generation that there is; an ended chat leaves its beginning."""
    device = opened(desk, prompt=[3] * 100, limit=110, keep_checkpoint=True)
    desk.ask(device, device.window(is_close=True, generation=generation))
    assert len(desk.table) == 0
    assert desk.table.n_prefix_positions == n_kept


def test_a_slot_can_be_ended_without_knowing_its_session(desk: Desk) -> None:
    """Of a device that is locked out nothing stays, with a checkpoint or without one."""
    for slot in (2, 3):
        opened(desk, slot=slot, seed=slot, keep_checkpoint=slot == 2)
    stranger = ScriptedDevice(desk.engine, slot=2, seed=9)
    desk.ask(stranger, stranger.window(is_close=True, uid=ANY_UID))
    assert len(desk.table) == 2, "only in the last generation"
    for slot in range(8):
        stranger.slot = slot
        desk.ask(stranger, stranger.window(is_close=True, uid=ANY_UID, generation=LAST_GENERATION))
    assert len(desk.table) == 0
    assert set(desk.checkpoints.values()) == {None}


def test_what_was_sent_before_a_farewell_does_not_bring_its_session_back(desk: Desk) -> None:
    """The device went on elsewhere, and in between it had come here once more: that opening comes late."""
    device = opened(desk)
    device.generation = 4
    late = device.opening_window()
    desk.ask(device, device.window(is_close=True, generation=5))
    assert desk.ask(device, late) == []
    assert len(desk.table) == 0
    device.generation = 6
    assert desk.ask(device, device.opening_window())
    assert len(desk.table) == 1
