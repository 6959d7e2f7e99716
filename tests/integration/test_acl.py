"""Who may write and read what, on a real Mosquitto, against a table written by hand.

The table says what is wanted; it is not derived from the topic table that the access list is generated from.
Everybody subscribes to everything, as an attacker would, and everybody writes to every topic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from protocol.errors import ProvisioningError
from protocol.link import Link, LinkEvent, Published, Received, Subscription
from protocol.topics import CHANNELS
from tests.live_fleet import WAIT_S, LiveFleet, Recorder

DEVICE, OTHER = "dev-a", "dev-b"
V1, V2, OPS, PROVISION, CLAIM = "verifier.v1", "verifier.v2", "fleet.ops", "provision.p1", "claim.x"
EVERYBODY = (DEVICE, OTHER, V1, V2, OPS, PROVISION, CLAIM)
NOBODY: set[str] = set()
ALL_BUT_CLAIMS = set(EVERYBODY) - {CLAIM}

# topic below sled/1/f/ ("claim:" for those of the claims' listener) -> (who may write, who gets it)
TABLE: dict[str, tuple[set[str], set[str]]] = {
    "verifier/v1/status": ({V1}, ALL_BUT_CLAIMS),
    "verifier/v2/status": ({V2}, ALL_BUT_CLAIMS),
    "verifier/v1/desired": ({OPS}, {V1}),
    "verifier/v1/complaint": ({V1}, {OPS}),
    "verifier/v2/complaint": ({V2}, {OPS}),
    "verifier/dev-a/complaint": (NOBODY, {OPS}),
    "verifier/v1/device/dev-a/session/0/window": ({DEVICE}, {V1}),
    "verifier/v2/device/dev-a/session/7/window": ({DEVICE}, {V2}),
    "verifier/v1/device/dev-a/session/8/window": (NOBODY, NOBODY),
    "verifier/v3/device/dev-a/session/0/window": (NOBODY, NOBODY),
    "verifier/v1/device/dev-b/session/0/window": ({OTHER}, {V1}),
    "verifier/v1/device/dev-a/session/0/verdict": ({V1}, {DEVICE}),
    "verifier/v2/device/dev-a/session/0/verdict": ({V2}, {DEVICE}),
    "verifier/v1/device/dev-a/session/0/state": ({V1, DEVICE}, {DEVICE}),
    "verifier/v1/device/dev-a/session/8/state": ({V1}, {DEVICE}),
    "device/dev-a/status": ({DEVICE}, {DEVICE, OPS}),
    "device/dev-b/status": ({OTHER}, {OTHER, OPS}),
    "device/dev-a/desired": ({OPS}, {DEVICE, OPS}),
    "device/dev-a/reported": ({DEVICE}, {OPS}),
    "device/dev-a/command/c1/request": ({OPS}, {DEVICE, OPS}),
    "device/dev-a/command/response": ({DEVICE}, {OPS}),
    "device/dev-a/command/c1/response": (NOBODY, NOBODY),
    "device/dev-a/telemetry": ({DEVICE}, {OPS}),
    "device/dev-a/log": ({DEVICE}, {OPS}),
    "device/dev-a/quota": ({OPS}, {V1, V2, OPS}),
    "device/dev-a/anything": (NOBODY, NOBODY),
    "group/hall/desired": ({OPS}, {DEVICE, OTHER, OPS}),
    "operator/marker/m1": ({OPS}, {OPS}),
    "rollout/r1": ({OPS}, {OPS}),
    "device/dev-a/model/offer": ({OPS}, {DEVICE, OPS}),
    "device/dev-a/model/request": ({DEVICE}, {OPS}),
    "device/dev-a/model/block": ({OPS}, {DEVICE}),
    "device/dev-a/model/status": ({DEVICE}, {OPS}),
    "device/dev-b/model/block": ({OPS}, {OTHER}),
    "anything": (NOBODY, NOBODY),
    # topics that a device of a backend's name would own
    "device/verifier.v1/status": (NOBODY, NOBODY),
    "device/fleet.ops/telemetry": (NOBODY, NOBODY),
    "verifier/v1/device/verifier.v1/session/0/window": (NOBODY, NOBODY),
    "claim:enroll/provision.p1/request": (NOBODY, NOBODY),
    # enrolment
    "claim:enroll/claim.x/request": ({CLAIM}, {PROVISION}),
    "claim:enroll/claim.x/response": ({PROVISION}, {CLAIM}),
    "claim:enroll/claim.y/request": (NOBODY, NOBODY),
    "claim:enroll/claim.y/response": ({PROVISION}, NOBODY),
    "claim:verifier/v1/status": (NOBODY, NOBODY),
    "claim:device/claim.x/status": (NOBODY, NOBODY),
    # a pattern cannot tell devices from claims: provisioning must look at the name
    "claim:enroll/dev-a/request": ({DEVICE}, {PROVISION}),
}


class Crowd:
    """One link of each role, all subscribed to `#`."""

    def __init__(self, fleet: LiveFleet, parts: ExitStack) -> None:
        self.answers = {identity: Recorder() for identity in EVERYBODY}
        self.messages = {identity: Recorder() for identity in EVERYBODY}
        self.links: dict[str, Link] = {}
        for identity in EVERYBODY:
            link = parts.enter_context(fleet.link(identity, self._sorter(identity)))
            link.subscribe([Subscription("#")])
            self.links[identity] = link
        for link in self.links.values():
            link.wait_subscribed(WAIT_S)

    def publish(self, identity: str, topic: str, payload: bytes, *, is_retained: bool = False) -> int:
        """The broker's reason code."""
        token = self.links[identity].publish(topic, payload, is_retained=is_retained)
        return self.answers[identity].next(Published, lambda event: event.token == token).reason_code

    def readers(self, payload: bytes) -> set[str]:
        """Who has got `payload`, once everything published so far has been delivered."""
        assert self.publish(V1, "sled/1/f/verifier/v1/status", b"mark " + payload) == 0
        assert self.publish(PROVISION, "claim/sled/1/f/enroll/claim.x/response", b"mark " + payload) == 0
        found = set()
        for identity, recorder in self.messages.items():
            recorder.next(Received, lambda event: event.payload == b"mark " + payload)
            if payload in {event.payload for event in recorder.events if isinstance(event, Received)}:
                found.add(identity)
        return found

    def _sorter(self, identity: str) -> Callable[[LinkEvent], None]:
        answers, messages = self.answers[identity], self.messages[identity]
        return lambda event: messages(event) if isinstance(event, Received) else answers(event)


@pytest.fixture(scope="module")
def crowd(live_fleet: LiveFleet) -> Iterator[Crowd]:
    with ExitStack() as parts:
        yield Crowd(live_fleet, parts)


def _full(row: str, identity: str) -> str:
    """The topic as `identity` must name it: on the claims' listener the broker adds the mount point."""
    if row.startswith("claim:"):
        prefix = "" if identity == CLAIM else "claim/"
        return f"{prefix}sled/1/f/{row.removeprefix('claim:')}"
    return f"sled/1/f/{row}"


@pytest.mark.parametrize("row", TABLE)
def test_only_the_writers_of_the_table_may_write(crowd: Crowd, row: str) -> None:
    """Everybody else is told so: 0x87."""
    codes = {who: crowd.publish(who, _full(row, who), b"w " + who.encode()) for who in EVERYBODY}
    assert {who for who, code in codes.items() if code in (0x00, 0x10)} == TABLE[row][0]
    assert {who for who, code in codes.items() if code == 0x87} == set(EVERYBODY) - TABLE[row][0]


@pytest.mark.parametrize("row", [row for row, (writers, _) in TABLE.items() if writers])
def test_only_the_readers_of_the_table_get_it(crowd: Crowd, row: str) -> None:
    """`#` is granted to everybody and delivers what the table says, live and retained alike."""
    writers, readers = TABLE[row]
    for writer in writers:
        payload = f"r {row} {writer}".encode()
        assert crowd.publish(writer, _full(row, writer), payload) in (0x00, 0x10)
        assert crowd.readers(payload) == readers


def test_the_table_has_a_row_for_every_channel() -> None:
    topics = [f"sled/1/f/{row.removeprefix('claim:')}" for row in TABLE]
    assert [channel.name for channel in CHANNELS if not any(map(channel.parse, topics))] == []


def test_what_is_retained_is_filtered_too(live_fleet: LiveFleet, crowd: Crowd) -> None:
    """A device that comes later and subscribes to everything gets its own and the broadcasts."""
    for row in ("device/dev-a/status", "device/dev-b/status"):
        writer = DEVICE if "dev-a" in row else OTHER
        assert crowd.publish(writer, _full(row, writer), b"retained " + row.encode(), is_retained=True) == 0
    assert crowd.publish(V1, "sled/1/f/verifier/v1/status", b"retained advert", is_retained=True) == 0
    late = Recorder()
    with live_fleet.link("dev-c", late) as link:
        link.subscribe([Subscription("#"), Subscription("sled/1/f/device/dev-a/#")])
        link.wait_subscribed(WAIT_S)
        link.publish("sled/1/f/device/dev-c/status", b"end")
        late.next(Received, lambda event: event.payload == b"end")
    got = {event.payload for event in late.events if isinstance(event, Received)}
    assert got == {b"retained advert", b"end"}


def test_no_device_can_be_named_like_a_backend(live_fleet: LiveFleet) -> None:
    """The access list sees nothing but the name."""
    with pytest.raises(ProvisioningError, match="legal name"):
        live_fleet.directory.authority("device").issue(V1)
