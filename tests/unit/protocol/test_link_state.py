"""What is reported of an outage, and who may stop waiting."""

from __future__ import annotations

import contextlib
import selectors
import threading

import pytest

from protocol.errors import LinkError
from protocol.link_state import LinkState
from protocol.link_types import Disconnected, Endpoint
from protocol.waker import Waker

GONE = LinkError("nothing listens")
REFUSED = LinkError("certificate refused", is_retryable=False)


def _state() -> LinkState:
    return LinkState(Endpoint("h", 1))


def test_an_outage_is_news_once_for_each_reason_and_again_after_a_connection() -> None:
    state = _state()
    assert state.lost(GONE) == Disconnected("nothing listens", is_retryable=True)
    assert state.lost(LinkError("nothing listens")) is None
    assert state.lost(REFUSED) == Disconnected("certificate refused", is_retryable=False)
    state.connected()
    assert state.lost(REFUSED) is not None


def test_waiting_ends_at_once_when_there_is_no_hope() -> None:
    state = _state()
    threading.Timer(0.05, lambda: state.lost(REFUSED)).start()
    with pytest.raises(LinkError) as failure:
        state.wait_connected(30)
    assert failure.value is REFUSED


def test_waiting_goes_on_while_there_is_hope_and_then_gives_the_last_reason() -> None:
    state = _state()
    with pytest.raises(LinkError, match=r"h:1 did not answer within 0.01 s"):
        state.wait_connected(0.01)
    state.lost(GONE)
    with pytest.raises(LinkError) as failure:
        state.wait_connected(0.01)
    assert failure.value is GONE
    threading.Timer(0.05, state.connected).start()
    state.wait_connected(30)
    assert state.is_connected


def test_a_waker_is_readable_until_drained_and_survives_any_number_of_wakes() -> None:
    waker = Waker()
    with selectors.DefaultSelector() as selector:
        selector.register(waker.receiver, selectors.EVENT_READ)
        assert selector.select(0) == []
        for _ in range(100_000):  # far more than the socket holds
            waker.wake()
        assert selector.select(0)
        while selector.select(0):
            waker.drain()
        waker.close()
    waker.wake()


def test_wakes_that_are_held_come_at_the_end_once() -> None:
    waker = Waker()
    with selectors.DefaultSelector() as selector:
        selector.register(waker.receiver, selectors.EVENT_READ)
        with waker.held():
            waker.wake()
            waker.wake()
            assert not selector.select(0.0)
        assert waker.receiver.recv(16) == b"\0"
        waker.drain()
        with waker.held():
            pass
        assert not selector.select(0.0), "nobody has called"
        with contextlib.suppress(ValueError), waker.held():
            waker.wake()
            raise ValueError
        assert selector.select(0.0), "a fault silences no wake"
    waker.close()
