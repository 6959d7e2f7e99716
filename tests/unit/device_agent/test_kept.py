"""What a device without its journal makes of the broker's copies of its conversations."""

from __future__ import annotations

import itertools

import pytest

from device_agent.kept import Kept, recovery
from protocol.codec import encode
from protocol.link import Received
from protocol.messages import Checkpoint, Opening, SamplerSettings
from protocol.sampler import SAMPLER_VERSION
from protocol.topics import STATE, VERDICT

TARGET = "00000000000000aa"
UID_A, UID_B = "a" * 16, "b" * 16
OPENING = Opening(settings=SamplerSettings(seed=7), target=TARGET, sampler_version=SAMPLER_VERSION)


def kept(
    verifier: str = "v1",
    slot: int = 0,
    *,
    uid: str = UID_A,
    generation: int = 1,
    n_tokens: int = 5,
    age_s: float = 0.0,
    limit: int = 50,
    finished: str | None = None,
) -> Kept:
    tokens = tuple(range(1, n_tokens + 1))
    checkpoint = Checkpoint.model_validate(
        {
            "uid": uid,
            "generation": generation,
            "opening": OPENING,
            "tokens": tokens,
            "limit": limit,
            "finished": finished,
        }
    )
    return Kept(verifier, slot, checkpoint, age_s)


def fresh_uids() -> itertools.count[int]:
    return itertools.count(1)


def recovered(*found: Kept) -> tuple[list[tuple[int, str, int]], list[tuple[str, int]]]:
    """Slot, verifier and length of each session gone on with, in order; and the places to be cleared."""
    numbers = fresh_uids()
    plan = recovery(found, lambda: f"{next(numbers):016x}")
    return [(each.slot, each.verifier, len(each.tokens)) for each in plan.sessions], list(plan.outdated)


def test_the_highest_generation_wins_then_the_longest_text_and_the_others_are_cleared() -> None:
    sessions, outdated = recovered(
        kept("v1", generation=2, n_tokens=9),
        kept("v2", generation=3, n_tokens=6),
        kept("v3", generation=3, n_tokens=7),
    )
    assert sessions == [(0, "v3", 7)]
    assert outdated == [("v1", 0), ("v2", 0)]


def test_the_uid_is_new_and_settings_and_text_are_those_of_the_checkpoint() -> None:
    (saved,) = recovery([kept(n_tokens=4)], lambda: UID_B).sessions
    assert (saved.uid, saved.generation) == (UID_B, 0)
    assert saved.settings == OPENING.settings
    assert (saved.target, saved.tokens) == (TARGET, (1, 2, 3, 4))


def test_an_answer_cut_off_goes_on_from_where_the_checkpoint_ends() -> None:
    (saved,) = recovery([kept(n_tokens=4, limit=50)], lambda: UID_B).sessions
    assert (saved.answer_start, saved.limit, saved.finished) == (4, 50, None)


@pytest.mark.parametrize(("finished", "limit"), [("stop", 50), (None, 4)])
def test_an_answer_that_has_ended_is_not_gone_on_with(finished: str | None, limit: int) -> None:
    (saved,) = recovery([kept(n_tokens=4, limit=limit, finished=finished)], lambda: UID_B).sessions
    assert saved.finished is not None
    assert saved.answer_start == 0


def test_conversations_keep_their_slots_and_the_one_written_last_comes_last() -> None:
    sessions, outdated = recovered(
        kept(slot=3, uid=UID_A, age_s=5.0, n_tokens=3), kept(slot=1, uid=UID_B, age_s=90.0, n_tokens=8)
    )
    assert sessions == [(1, "v1", 8), (3, "v1", 3)]
    assert outdated == []


def test_two_conversations_of_one_slot_get_two() -> None:
    """A slot that was used again while its older copy could not be cleared."""
    sessions, outdated = recovered(
        kept("v1", uid=UID_A, age_s=90.0, n_tokens=3), kept("v2", uid=UID_B, age_s=5.0, n_tokens=8)
    )
    assert sessions == [(1, "v1", 3), (0, "v2", 8)]
    assert outdated == [("v1", 0)], "the older one is in the journal now, and its place belongs to the other"


def test_a_checkpoint_is_read_with_its_age() -> None:
    topic = STATE.topic("f", v="v1", d="dev-a", n=2)
    payload = encode(kept().checkpoint)
    found = Kept.of(Received(topic, payload, is_retained=True, at_s=0.0, expires_in_s=86_000))
    assert found == kept(slot=2, age_s=400.0)


@pytest.mark.parametrize(
    "message",
    [
        Received(STATE.topic("f", v="v1", d="dev-a", n=0), b"", is_retained=False, at_s=0.0),
        Received(STATE.topic("f", v="v1", d="dev-a", n=0), b"{}", is_retained=True, at_s=0.0),
        Received(VERDICT.topic("f", v="v1", d="dev-a", n=0), b"x", is_retained=True, at_s=0.0),
        Received(
            STATE.topic("f", v="v1", d="dev-a", n=0), encode(kept().checkpoint), is_retained=False, at_s=0.0
        ),
    ],
    ids=["cleared", "broken", "another topic", "just written"],
)
def test_what_is_no_retained_checkpoint_is_passed_over(message: Received) -> None:
    assert Kept.of(message) is None
