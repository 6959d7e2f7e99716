"""What the operator is told of boards that share an identity, and that it is told once."""

from __future__ import annotations

from fleet.clone_watch import FORGET_S, REMEMBERED, YieldedLives
from protocol.codec import encode
from protocol.fleet_messages import DeviceStatus
from protocol.topics import DEVICE_STATUS


def said(lives: YieldedLives, life: str, yields_to: str, *, device: str = "pi", now_s: float = 0.0) -> str:
    status = DeviceStatus(is_online=False, incarnation=life, yields_to=yields_to, serial="board-2")
    return lives.take(DEVICE_STATUS.topic("f", d=device), encode(status), now_s)


def test_both_lives_the_device_and_the_way_out_are_named() -> None:
    text = said(YieldedLives(), "bbb", "aaa")
    for word in ("identity pi", "life 'bbb'", "'board-2'", "yields to life 'aaa'", "sled fleet revoke pi"):
        assert word in text


def test_each_pair_of_lives_is_told_once_also_when_other_statuses_come_between() -> None:
    lives = YieldedLives()
    assert said(lives, "bbb", "aaa")
    assert not said(lives, "aaa", "")
    assert not said(lives, "bbb", "aaa", now_s=2 * FORGET_S)
    assert said(lives, "ccc", "aaa")
    assert said(lives, "bbb", "ab0")
    assert said(lives, "bbb", "aaa", device="other")


def test_a_board_that_invents_lives_does_not_fill_the_log() -> None:
    lives = YieldedLives()
    texts = [said(lives, f"life-{i}", "aaa", now_s=0.1 * i) for i in range(1000)]
    assert sum(map(bool, texts)) == REMEMBERED
    assert said(lives, "bbb", "aaa", device="other", now_s=100.0)
    assert said(lives, "one-more", "aaa", now_s=FORGET_S)


def test_a_life_cannot_forge_a_line_of_the_log() -> None:
    assert "\n" not in said(YieldedLives(), "b\nWARNING all is lost", "a\na")


def test_what_is_no_status_says_nothing() -> None:
    lives = YieldedLives()
    topic = DEVICE_STATUS.topic("f", d="pi")
    assert [lives.take(topic, payload, 0.0) for payload in (b"", b"{", b'{"v":1}')] == ["", "", ""]
    status = encode(DeviceStatus(is_online=False, incarnation="b", yields_to="a"))
    assert lives.take("sled/1/f/elsewhere", status, 0.0) == ""
