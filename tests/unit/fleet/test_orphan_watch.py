"""What is cleared, and when: requests past their time, topics of devices that are gone."""

from __future__ import annotations

from fleet.orphan_watch import GRACE_S, OrphanWatch
from protocol.codec import encode
from protocol.fleet_messages import CommandRequest, Desired
from protocol.topics import COMMAND_REQUEST, DESIRED

REQUEST = COMMAND_REQUEST.topic("f", d="pi-1", id="c1")
WISH = DESIRED.topic("f", d="pi-1")
RETAINED = {
    REQUEST: encode(CommandRequest(id="c1", name="ping", deadline_s=30.0)),
    WISH: encode(Desired(revision=1, config={})),
}


def test_a_request_is_cleared_when_its_deadline_has_passed_for_a_while() -> None:
    watch = OrphanWatch()
    assert watch.look(RETAINED, {"pi-1"}, 0.0) == ()
    assert watch.look(RETAINED, {"pi-1"}, 30.0 + GRACE_S) == ()
    assert watch.look(RETAINED, {"pi-1"}, 30.1 + GRACE_S) == (REQUEST,)


def test_a_request_that_went_and_came_again_starts_anew() -> None:
    watch = OrphanWatch()
    watch.look(RETAINED, {"pi-1"}, 0.0)
    watch.look({}, {"pi-1"}, 50.0)
    assert watch.look(RETAINED, {"pi-1"}, 100.0) == ()


def test_everything_of_a_device_without_identity_goes() -> None:
    watch = OrphanWatch()
    watch.look(RETAINED, {}, 0.0)
    assert watch.look(RETAINED, {}, GRACE_S + 1) == tuple(sorted(RETAINED))


def test_a_wish_for_a_device_that_is_away_stays() -> None:
    watch = OrphanWatch()
    watch.look({WISH: RETAINED[WISH]}, {"pi-1"}, 0.0)
    assert watch.look({WISH: RETAINED[WISH]}, {"pi-1"}, 1e9) == ()


def test_an_unreadable_request_goes_and_a_foreign_topic_stays() -> None:
    watch, retained = OrphanWatch(), {REQUEST: b"\x00", "sled/1/f/group/g/desired": b"{}"}
    watch.look(retained, {"pi-1"}, 0.0)
    assert watch.look(retained, {"pi-1"}, GRACE_S + 1) == (REQUEST,)
