"""The generated access list as text; what it does on a real broker is in tests/integration/test_acl.py."""

from __future__ import annotations

import pytest

from broker_config.acl import render_acl
from protocol.errors import BrokerError
from protocol.topics import CHANNELS, Role

BACKENDS = ("verifier.v1", "verifier.v2", "fleet.ops", "provision.p1")


def _section(text: str, user: str) -> list[str]:
    return text.partition(f"user {user}\n")[2].partition("\n\n")[0].splitlines()


def _patterns(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("pattern ")]


def test_what_a_device_may_write_is_a_finite_set_of_topics() -> None:
    """A wildcard there would let one device make the broker retain without end."""
    writable = [line for line in _patterns(render_acl("f", BACKENDS)) if line.startswith("pattern write")]
    assert len(writable) == 2 * 2 * 8 + 8  # windows, states; seven channels; one enrolment
    assert not [line for line in writable if "+" in line or "#" in line]


def test_every_pattern_is_bound_to_the_user_or_meant_for_all() -> None:
    broadcasts = {"verifier/+/status", "group/+/desired"}
    unbound = [line for line in _patterns(render_acl("f", BACKENDS)) if "%u" not in line]
    assert {line.removeprefix("pattern read sled/1/f/") for line in unbound} == broadcasts


def test_a_verifier_writes_below_its_own_name_only() -> None:
    lines = _section(render_acl("f", BACKENDS), "verifier.v2")
    granted = [line for line in lines if not line.startswith("topic deny")]
    assert granted
    others = {line for line in granted if "/verifier/v2/" not in line}
    assert others == {"topic read sled/1/f/device/+/quota"}


@pytest.mark.parametrize("identity", BACKENDS)
def test_each_backend_is_denied_what_a_device_of_its_name_could(identity: str) -> None:
    lines = _section(render_acl("f", BACKENDS), identity)
    assert f"topic deny sled/1/f/device/{identity}/#" in lines
    assert f"topic deny sled/1/f/verifier/+/device/{identity}/#" in lines
    assert f"topic deny claim/sled/1/f/enroll/{identity}/#" in lines


def test_claims_are_below_the_mount_point_only() -> None:
    text = render_acl("f", BACKENDS)
    enrolment = [line for line in text.splitlines() if "enroll" in line]
    assert len(enrolment) == 2 + 2 + len(BACKENDS)
    assert all(" claim/sled/1/f/enroll/" in line for line in enrolment)


def test_every_channel_has_its_writer_and_readers() -> None:
    """No row of the topic table is forgotten, whatever it is."""
    text = render_acl("f", BACKENDS)
    for channel in CHANNELS:
        last = channel.pattern.rpartition("/")[2]
        tail = "+" if last.startswith("{") else last
        for role in {channel.writer, *channel.readers}:
            section = _patterns(text) if role in (Role.DEVICE, Role.CLAIM) else []
            section += [
                line for name in BACKENDS if name.startswith(role.value) for line in _section(text, name)
            ]
            assert [line for line in section if line.endswith(f"/{tail}")], (channel.name, role)


@pytest.mark.parametrize(
    "identity",
    ["verifier", "device.x", "claim.x", "verifier.V1", "verifier.v1\ntopic readwrite #", "verifier.", "a b"],
)
def test_what_is_no_backend_identity_gets_no_section(identity: str) -> None:
    with pytest.raises(BrokerError):
        render_acl("f", [identity])


def test_a_fleet_name_cannot_bring_rules_along() -> None:
    with pytest.raises(BrokerError, match="not a legal name"):
        render_acl("f\ntopic readwrite #", BACKENDS)


def test_order_and_repetition_of_backends_do_not_matter() -> None:
    assert render_acl("f", BACKENDS) == render_acl("f", (*reversed(BACKENDS), BACKENDS[0]))


def test_a_revoked_device_is_denied_everything() -> None:
    assert _section(render_acl("f", BACKENDS, ["dev-b"]), "dev-b") == ["topic deny #"]


def test_a_revoked_name_cannot_bring_rules_along() -> None:
    with pytest.raises(BrokerError, match="legal name"):
        render_acl("f", BACKENDS, ["dev\ntopic readwrite #"])
