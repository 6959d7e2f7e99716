"""When the advert is written: it goes to every device, so seldom."""

from __future__ import annotations

from edge_verifier.advert import Advert
from edge_verifier.engines.table_engine import TableEngine
from protocol.messages import VerifierStatus


def advert() -> Advert:
    return Advert(TableEngine().info, "life-1")


def ask(
    advert: Advert, now_s: float, *, price: float = 1.0, n_free: int = 4, is_draining: bool = False
) -> VerifierStatus | None:
    return advert.due(now_s, price=price, n_free_sessions=n_free, is_draining=is_draining)


def test_the_first_is_written_at_once_and_the_same_never_again() -> None:
    one = advert()
    first = ask(one, 0.0)
    assert first is not None
    assert (first.is_alive, first.n_free_sessions, first.engine) == (True, 4, "table")
    assert ask(one, 1000.0) is None
    assert one.next_s is None


def test_p20_a_price_that_moves_a_little_waits_and_one_that_doubles_does_not() -> None:
    one = advert()
    ask(one, 0.0)
    assert ask(one, 5.0, price=1.9) is None
    assert one.next_s == 30.0
    assert ask(one, 5.0, price=2.0) is not None
    assert ask(one, 34.0, price=1.5) is None
    assert ask(one, 35.0, price=1.5) is not None


def test_free_sessions_are_written_at_most_once_a_second() -> None:
    one = advert()
    ask(one, 0.0)
    assert ask(one, 0.5, n_free=3) is None
    assert one.next_s == 1.0
    assert ask(one, 1.0, n_free=3) is not None


def test_draining_is_written_at_once() -> None:
    one = advert()
    ask(one, 0.0)
    status = ask(one, 0.1, is_draining=True)
    assert status is not None
    assert status.is_draining
    assert not status.is_drained
    assert ask(one, 0.2, is_draining=True) is None
    drained = one.due(0.3, price=1.0, n_free_sessions=4, is_draining=True, is_drained=True)
    assert drained is not None
    assert drained.is_drained


def test_the_farewell_names_this_life() -> None:
    assert advert().farewell == VerifierStatus(is_alive=False, incarnation="life-1")
