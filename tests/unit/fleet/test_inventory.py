"""The inventory: rows folded from whatever the broker retains."""

from __future__ import annotations

import pytest

from fleet.inventory import Inventory
from protocol.codec import encode
from protocol.fleet_messages import Desired, DeviceStatus, Reported, SessionHealth

ROOT = "sled/1/home/device"


def status(*, is_online: bool = True, is_lost: bool = False, **fields: object) -> bytes:
    return encode(DeviceStatus(is_online=is_online, is_lost=is_lost, incarnation="i", **fields))


@pytest.mark.parametrize(
    ("payload", "presence"),
    [
        (status(), "online"),
        (status(is_online=False), "offline"),
        (status(is_online=False, is_lost=True), "lost"),
        (None, "never"),
        (b"", "never"),
    ],
)
def test_presence_tells_a_stop_from_a_death(payload: bytes | None, presence: str) -> None:
    inventory = Inventory(["pi-1"])
    if payload is not None:
        inventory.take(f"{ROOT}/pi-1/status", payload)
    assert [(row.device, row.presence) for row in inventory.rows()] == [("pi-1", presence)]


def test_rows_add_up_the_open_sessions() -> None:
    sessions = (
        SessionHealth(slot=0, verifier="v1", n_tokens=10, n_rounds=2, n_drafted=8, n_accepted=6),
        SessionHealth(slot=1, verifier="v2", n_tokens=5, n_rounds=1, n_drafted=2, n_accepted=1),
    )
    inventory = Inventory()
    inventory.take(f"{ROOT}/pi-1/status", status(sessions=sessions, model="tiny"))
    (row,) = inventory.rows()
    assert row.to_json() == {
        "device": "pi-1",
        "presence": "online",
        "sessions": 2,
        "acceptance": 0.7,
        "tokens": 15,
        "rounds": 3,
        "model": "tiny",
        "verifier": "v1, v2",
        "agent_version": "",
        "problem": "",
    }


def test_without_drafts_there_is_no_acceptance() -> None:
    inventory = Inventory()
    inventory.take(f"{ROOT}/pi-1/status", status(sessions=(SessionHealth(slot=0, verifier="v1"),)))
    assert inventory.rows()[0].acceptance is None


def test_known_and_seen_devices_are_listed_once_by_id() -> None:
    inventory = Inventory(["b", "a"])
    for device in ("c", "a"):
        inventory.take(f"{ROOT}/{device}/status", status())
    assert [row.device for row in inventory.rows()] == ["a", "b", "c"]
    assert inventory.has("b")
    assert not inventory.has("d")


def test_a_clear_takes_a_device_that_has_no_identity_out() -> None:
    inventory = Inventory()
    inventory.take(f"{ROOT}/pi-1/status", status())
    inventory.take(f"{ROOT}/pi-1/status", b"")
    assert inventory.rows() == ()


@pytest.mark.parametrize(
    ("topic", "payload"),
    [
        (f"{ROOT}/pi-1/status", b"garbage"),
        (f"{ROOT}/pi-1/status", b'{"v":9,"is_online":true,"incarnation":"i"}'),
        (f"{ROOT}/pi-1/telemetry", status()),
        ("x/pi-1/status", status()),
    ],
)
def test_what_cannot_be_read_changes_nothing(topic: str, payload: bytes) -> None:
    inventory = Inventory()
    inventory.take(f"{ROOT}/pi-1/status", status(model="tiny"))
    inventory.take(topic, payload)
    assert [row.model for row in inventory.rows()] == ["tiny"]


def test_details_say_whether_the_newest_wish_is_answered() -> None:
    inventory = Inventory(["pi-1"])
    assert not inventory.details("pi-1").is_pending
    inventory.take(f"{ROOT}/pi-1/desired", encode(Desired(revision=2, config={"max_tokens": 5})))
    assert inventory.details("pi-1").is_pending
    inventory.take(f"{ROOT}/pi-1/reported", encode(Reported(revision=1, config={})))
    assert inventory.details("pi-1").is_pending
    inventory.take(f"{ROOT}/pi-1/reported", encode(Reported(revision=2, config={"max_tokens": 5})))
    details = inventory.details("pi-1").to_json()
    assert (details["is_pending"], details["reported"], details["presence"]) == (
        False,
        {"max_tokens": 5},
        "never",
    )
