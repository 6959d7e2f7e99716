"""What is said of a key that nobody knows."""

from __future__ import annotations

from protocol.unknown_key import nearest_key, unknown_key

KNOWN = ("temperature", "top_k", "top_p")


def test_the_nearest_key_is_named() -> None:
    assert nearest_key("temprature", KNOWN) == "did you mean 'temperature'?"
    assert unknown_key("temprature", KNOWN) == "'temprature' is unknown; did you mean 'temperature'?"


def test_all_are_named_when_none_is_near() -> None:
    assert nearest_key("x", KNOWN) == "known are temperature, top_k, top_p"


def test_a_key_of_any_length_and_content_stays_a_short_line() -> None:
    sentence = unknown_key("top_k\n" * 1000, KNOWN)
    assert "\n" not in sentence
    assert len(sentence) < 200
