"""A change of configuration: its revision, and what a report says about it."""

from __future__ import annotations

from typing import Any

import pytest

from fleet.desired import ConfigChange, ConfigOutcome
from protocol.errors import ConfigError
from protocol.fleet_messages import Desired, Reported, SettingRefusal


def judged(
    wanted: dict[str, Any], revision: int, config: dict[str, Any], *refused: str
) -> ConfigOutcome | None:
    before = Desired(revision=4, config=dict.fromkeys(wanted, 0))
    change = ConfigChange.over("pi-1", wanted, before, None)
    assert change.desired.revision == 5
    refusals = tuple(SettingRefusal(key=key, reason="no") for key in refused)
    return change.judge(Reported(revision=revision, config=config, refusals=refusals))


def test_a_change_keeps_earlier_wishes_and_takes_back_what_is_none() -> None:
    before = Desired(revision=4, config={"a": 1, "b": 2})
    change = ConfigChange.over("pi-1", {"b": None, "c": 3}, before, None)
    assert change.desired == Desired(revision=5, config={"a": 1, "c": 3})


@pytest.mark.parametrize(
    ("desired", "reported", "revision"), [(None, None, 1), (3, 7, 8), (7, 3, 8), (None, 2, 3)]
)
def test_the_revision_is_above_what_is_desired_and_what_is_reported(
    desired: int | None, reported: int | None, revision: int
) -> None:
    change = ConfigChange.over(
        "pi-1",
        {"a": 1},
        None if desired is None else Desired(revision=desired, config={}),
        None if reported is None else Reported(revision=reported, config={}),
    )
    assert change.desired.revision == revision


def test_an_older_report_says_nothing_yet() -> None:
    assert judged({"a": 1}, 4, {"a": 1}) is None


@pytest.mark.parametrize(
    ("wanted", "revision", "config", "refused", "state"),
    [
        ({"a": 1}, 5, {"a": 1, "z": 9}, (), "applied"),
        ({"a": 0}, 5, {"a": 0.0}, (), "applied"),
        ({"a": 1, "b": 2}, 5, {"a": 1, "b": 9}, ("b",), "partly_refused"),
        ({"a": 1}, 5, {"a": 9}, ("a",), "refused"),
        ({"a": 1}, 5, {"a": 1}, ("other",), "applied"),
        ({"a": 1}, 5, {"a": 2}, (), "superseded"),
        ({"a": 1}, 6, {"a": 1}, (), "superseded"),
        ({"a": None}, 5, {"a": 7}, (), "applied"),
    ],
)
def test_a_report_decides_the_outcome(
    wanted: dict[str, Any], revision: int, config: dict[str, Any], refused: tuple[str, ...], state: str
) -> None:
    outcome = judged(wanted, revision, config, *refused)
    assert outcome is not None
    assert outcome.state == state
    assert outcome.config == {key: config[key] for key in wanted if key in config}
    assert {refusal["key"] for refusal in outcome.to_json()["refusals"]} == set(refused) & set(wanted)


def test_a_wish_that_is_none_cannot_be_taken_back() -> None:
    with pytest.raises(ConfigError, match="wants no 'b' of device pi-1"):
        ConfigChange.over("pi-1", {"a": None, "b": None}, Desired(revision=4, config={"a": 1}), None)


@pytest.mark.parametrize("wanted", [{}, {"a": float("nan")}, {"a": object()}])
def test_nothing_and_what_json_cannot_hold_is_refused(wanted: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        ConfigChange.over("pi-1", wanted, None, None)
