"""What was cleared is cleared again after a reconnect, for as long as a broker may have forgotten it."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from broker_config.configuration import AUTOSAVE_S
from edge_verifier.session import Key
from edge_verifier.tombstones import KEEP_S, Tombstones

A, B, C = ("dev-a", 0), ("dev-b", 3), ("dev-c", 7)


def up(**options: float) -> Tombstones:
    """On a link that is up since 0 s."""
    tombstones = Tombstones(rng=random.Random(5), **options)  # type: ignore[arg-type]  # test options by name
    tombstones.link_up(0.0)
    return tombstones


def reconnected(tombstones: Tombstones, lost_s: float, up_s: float) -> set[Key]:
    """What is cleared again after the link was down from `lost_s` to `up_s`; told as cleared."""
    tombstones.link_lost(lost_s)
    tombstones.link_up(up_s)
    found = set()
    now_s = up_s
    while (due_s := tombstones.next_s) is not None:
        assert up_s <= due_s <= up_s + 1.0
        now_s = due_s
        key = tombstones.take_due(now_s)
        if key is not None:
            found.add(key)
            tombstones.cleared(key, now_s)
    return found


def test_it_is_kept_for_longer_than_the_broker_takes_to_save() -> None:
    assert KEEP_S >= 2 * AUTOSAVE_S + 20.0


def test_what_the_broker_may_have_forgotten_is_cleared_again_and_nothing_else() -> None:
    tombstones = up()
    tombstones.cleared(A, 10.0)
    tombstones.cleared(B, 60.0)
    assert tombstones.next_s is None
    assert reconnected(tombstones, 10.0 + KEEP_S + 1.0, 200.0) == {B}
    assert reconnected(tombstones, 210.0, 211.0) == {B}


def test_while_the_link_is_down_nothing_is_saved_however_long_that_takes() -> None:
    tombstones = up()
    tombstones.cleared(A, 10.0)
    tombstones.link_lost(40.0)
    tombstones.cleared(B, 41.0)
    tombstones.link_lost(5000.0)  # said again, with another reason
    tombstones.cleared(C, 5001.0)
    assert reconnected(tombstones, 5002.0, 9000.0) == {A, B, C}
    assert reconnected(tombstones, 9000.0 + KEEP_S, 9500.0) == {A, B, C}
    assert reconnected(tombstones, 9500.0 + KEEP_S + 2.0, 9900.0) == set()


def test_a_new_checkpoint_is_never_cleared_even_when_its_clearing_was_due_already() -> None:
    tombstones = up()
    tombstones.cleared(A, 10.0)
    tombstones.cleared(B, 10.0)
    tombstones.written(A)
    tombstones.link_lost(20.0)
    tombstones.link_up(21.0)
    tombstones.written(B)
    assert tombstones.take_due(30.0) is None
    assert len(tombstones) == 0


def test_the_oldest_go_first_when_there_are_too_many() -> None:
    tombstones = up(most=2)
    for number, key in enumerate((A, B, A, C)):
        tombstones.cleared(key, 10.0 + number)
    assert reconnected(tombstones, 20.0, 21.0) == {A, C}


def test_what_has_been_saved_long_ago_takes_no_memory_while_others_are_cleared() -> None:
    tombstones = up()
    for number in range(100_000):
        tombstones.cleared((f"dev-{number}", 0), float(number))
    assert len(tombstones) <= KEEP_S + 1


@given(
    st.lists(
        st.tuples(st.sampled_from(["clear", "write", "lose", "up", "take"]), st.sampled_from([A, B, C])),
        max_size=60,
    ),
    st.floats(0.1, 50.0),
)
def test_nothing_is_cleared_again_that_was_written_last(steps: list[tuple[str, Key]], pace_s: float) -> None:
    tombstones, last, now_s = up(), dict[Key, str](), 0.0
    for what, key in steps:
        now_s += pace_s
        match what:
            case "clear":
                tombstones.cleared(key, now_s)
                last[key] = what
            case "write":
                tombstones.written(key)
                last[key] = what
            case "lose":
                tombstones.link_lost(now_s)
            case "up":
                tombstones.link_up(now_s)
            case _:
                due = tombstones.take_due(now_s)
                assert due is None or last[due] == "clear"
