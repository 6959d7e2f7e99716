"""The topic table: building, parsing and filtering are inverses; nothing escapes its level."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import topics

NAMES = st.from_regex(r"[a-z0-9-]{1,48}", fullmatch=True)


@pytest.mark.parametrize("channel", topics.CHANNELS, ids=lambda channel: channel.name)
@given(data=st.data())
def test_parse_is_the_inverse_of_topic(channel: topics.Channel, data: st.DataObject) -> None:
    names = {key: data.draw(NAMES) for key in channel.placeholders}
    topic = channel.topic("home", **names)
    assert channel.parse(topic) == {"fleet": "home", **names}
    others = [other.name for other in topics.CHANNELS if other is not channel and other.parse(topic)]
    assert others == []


def test_a_filter_has_a_wildcard_for_every_name_left_out() -> None:
    assert topics.WINDOW.filter("f", v="v1") == "sled/1/f/verifier/v1/device/+/session/+/window"


@pytest.mark.parametrize(
    "topic",
    [
        "sled/1/f/verifier/v1/device/d/session/0/window/more",
        "sled/2/f/verifier/v1/device/d/session/0/window",
        "sled/1/f/verifier/v1/device//session/0/window",
        "sled/1/f/verifier/v1/device/a/b/session/0/window",
        "sled/1/f/verifier/+/device/d/session/0/window",
        "",
    ],
)
def test_what_is_not_a_window_topic_is_not_parsed(topic: str) -> None:
    assert topics.WINDOW.parse(topic) is None


def test_the_table_is_the_documented_one() -> None:
    """Writers, retain flags and QoS decide permissions and durability: a change here must be meant."""
    rows = {
        channel.name: (channel.writer.value, channel.qos, channel.is_retained) for channel in topics.CHANNELS
    }
    assert rows == {
        "verifier_status": ("verifier", 1, True),
        "verifier_desired": ("fleet", 1, True),
        "complaint": ("verifier", 1, False),
        "window": ("device", 1, False),
        "verdict": ("verifier", 1, False),
        "state": ("verifier", 1, True),
        "device_status": ("device", 1, True),
        "desired": ("fleet", 1, True),
        "reported": ("device", 1, True),
        "command_request": ("fleet", 1, True),
        "command_response": ("device", 1, True),
        "telemetry": ("device", 0, False),
        "log": ("device", 0, False),
        "quota": ("fleet", 1, True),
        "group_desired": ("fleet", 1, True),
        "operator_marker": ("fleet", 0, False),
        "rollout": ("fleet", 1, True),
        "model_offer": ("fleet", 1, True),
        "model_request": ("device", 0, False),
        "model_block": ("fleet", 0, False),
        "model_status": ("device", 1, True),
        "enroll_request": ("claim", 1, False),
        "enroll_response": ("provision", 1, False),
    }
