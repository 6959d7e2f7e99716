"""What the operator is told of boards that share an identity, and that it is told once."""

from __future__ import annotations

from fleet.clone_watch import FORGET_S, REMEMBERED, RETURNS, SharedIdentities
from protocol.codec import encode
from protocol.fleet_messages import DeviceStatus
from protocol.topics import DEVICE_STATUS


def said(
    lives: SharedIdentities, life: str, yields_to: str, *, device: str = "pi", now_s: float = 0.0
) -> str:
    status = DeviceStatus(is_online=False, incarnation=life, yields_to=yields_to, serial="board-2")
    return lives.take(DEVICE_STATUS.topic("f", d=device), encode(status), now_s)


def test_both_lives_the_device_and_the_way_out_are_named() -> None:
    text = said(SharedIdentities(), "bbb", "aaa")
    for word in ("identity pi", "life 'bbb'", "'board-2'", "yields to life 'aaa'", "sled fleet revoke pi"):
        assert word in text


def test_each_pair_of_lives_is_told_once_also_when_other_statuses_come_between() -> None:
    lives = SharedIdentities()
    assert said(lives, "bbb", "aaa")
    assert not said(lives, "aaa", "")
    assert not said(lives, "bbb", "aaa", now_s=2 * FORGET_S)
    assert said(lives, "ccc", "aaa")
    assert said(lives, "bbb", "ab0")
    assert said(lives, "bbb", "aaa", device="other")


def test_a_board_that_invents_lives_does_not_fill_the_log() -> None:
    lives = SharedIdentities()
    texts = [said(lives, f"life-{i}", "aaa", now_s=0.1 * i) for i in range(1000)]
    assert sum(map(bool, texts)) == REMEMBERED
    assert said(lives, "bbb", "aaa", device="other", now_s=100.0)
    assert said(lives, "one-more", "aaa", now_s=FORGET_S)


def test_a_life_cannot_forge_a_line_of_the_log() -> None:
    assert "\n" not in said(SharedIdentities(), "b\nWARNING all is lost", "a\na")


def test_what_is_no_status_says_nothing() -> None:
    lives = SharedIdentities()
    topic = DEVICE_STATUS.topic("f", d="pi")
    assert [lives.take(topic, payload, 0.0) for payload in (b"", b"{", b'{"v":1}')] == ["", "", ""]
    status = encode(DeviceStatus(is_online=False, incarnation="b", yields_to="a"))
    assert lives.take("sled/1/f/elsewhere", status, 0.0) == ""


def births(
    lives: SharedIdentities, *words: str, every_s: float = 1.0, is_retained: bool = False
) -> list[str]:
    """What is said of these births, one after the other; without what says nothing."""
    said = [
        lives.take(
            DEVICE_STATUS.topic("f", d="pi"),
            encode(DeviceStatus(is_online=True, incarnation=word)),
            number * every_s,
            is_retained=is_retained,
        )
        for number, word in enumerate(words)
    ]
    return [text for text in said if text]


def test_two_boards_that_throw_each_other_out_are_told_once() -> None:
    (text,) = births(SharedIdentities(), *["bbb", "aaa"] * 20)
    assert "identity pi: lives 'aaa' and 'bbb' throw each other out" in text
    assert "sled fleet revoke pi" in text


def test_a_device_that_starts_anew_again_and_again_is_one_board() -> None:
    assert births(SharedIdentities(), *[f"life-{i // 3}" for i in range(300)]) == []


def test_what_a_broker_remembers_is_not_spoken() -> None:
    assert births(SharedIdentities(), *["bbb", "aaa"] * 20, is_retained=True) == []


def test_an_old_status_that_comes_back_now_and_then_is_no_board() -> None:
    lives = SharedIdentities()
    words = ["old", *["new", "old"] * (RETURNS // 2), "new"][: RETURNS + 1]
    assert births(lives, *words) == []
    assert births(SharedIdentities(), *["new", "old"] * 20, every_s=FORGET_S / (RETURNS - 1)) == []
