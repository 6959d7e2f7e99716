"""What a link remembers of its subscriptions."""

from __future__ import annotations

import pytest

from protocol.errors import ConfigError, LinkError
from protocol.link_subscriptions import SubscriptionBook
from protocol.link_types import Subscription

A, B = Subscription("a/+"), Subscription("b/#", qos=0, retain_handling=2)


def test_each_connect_asks_for_everything_once() -> None:
    book = SubscriptionBook()
    book.add([A, B])
    for session_present in (False, True):
        book.connected(session_present=session_present)
        assert book.take_unasked() == [A, B]
        assert book.take_unasked() == []


def test_an_equal_filter_replaces_the_earlier_one() -> None:
    book = SubscriptionBook()
    book.add([A])
    book.add([Subscription("a/+", qos=0)])
    assert book.take_unasked() == [Subscription("a/+", qos=0)]


def test_what_was_removed_while_away_is_removed_from_the_brokers_session_only() -> None:
    book = SubscriptionBook()
    book.add([A, B])
    book.remove("a/+")
    book.connected(session_present=True)
    assert (book.take_removed(), book.take_unasked()) == (["a/+"], [B])
    book.remove("b/#")
    book.connected(session_present=False)
    assert (book.take_removed(), book.take_unasked()) == ([], [])


def test_waiting_ends_when_all_are_confirmed() -> None:
    book = SubscriptionBook()
    book.add([A, B])
    book.asked(1, ["a/+"])
    book.asked(2, ["b/#"])
    book.answered(1, [0x01])
    with pytest.raises(LinkError, match="b/# not confirmed"):
        book.wait_confirmed(0)
    book.answered(2, [0x00])
    book.wait_confirmed(0)
    book.unconfirm()
    with pytest.raises(LinkError):
        book.wait_confirmed(0)


def test_a_refused_filter_is_named() -> None:
    book = SubscriptionBook()
    book.add([A])
    book.asked(1, ["a/+"])
    book.answered(1, [0x87])
    with pytest.raises(LinkError, match=r"a/\+ refused by the broker \(0x87\)") as refusal:
        book.wait_confirmed(0)
    assert not refusal.value.is_retryable


@pytest.mark.parametrize("text", ["", "a/#/b", "a#", "a/b+", "+a/b"])
def test_what_is_no_filter_is_refused_at_once(text: str) -> None:
    with pytest.raises(ConfigError, match="not a topic filter"):
        Subscription(text)


@pytest.mark.parametrize("text", ["#", "+", "a/+/#", "$SYS/#", "/"])
def test_filters(text: str) -> None:
    assert Subscription(text).filter == text
