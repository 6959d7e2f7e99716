"""Which verifier a device chooses, and what it says when there is none."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

from device_agent.actions import Binding
from device_agent.adverts import Adverts
from protocol.errors import LinkError, VocabularyMismatchError
from protocol.messages import MAX_DRAFT, VerifierStatus
from protocol.sampler import SAMPLER_VERSION

OURS, OTHERS = "00000000000000bb", "00000000000000b0"
TARGET, OTHER_TARGET = "00000000000000aa", "00000000000000a0"


def status(
    *,
    vocabulary: str = OURS,
    target: str = TARGET,
    is_alive: bool = True,
    is_draining: bool = False,
    price: float = 1.0,
    n_free: int = 4,
) -> VerifierStatus:
    return VerifierStatus(
        is_alive=is_alive,
        incarnation="1",
        target=target,
        vocabulary=vocabulary,
        model="big",
        max_context=512,
        is_draining=is_draining,
        price=price,
        n_free_sessions=n_free,
    )


def chosen(adverts: Adverts, n: int = 200, **wish: str) -> Counter[str]:
    """How often each verifier is chosen."""
    bindings = (adverts.choose(**wish) for _ in range(n))
    return Counter(binding.name for binding in bindings if binding is not None)


@pytest.fixture
def adverts() -> Adverts:
    return Adverts(OURS, random.Random(1))


def test_the_better_of_two_at_random(adverts: Adverts) -> None:
    """The cheapest most, the dearest never, and none alone, so that devices do not all run to one."""
    for name, price in (("a", 1.0), ("b", 2.0), ("c", 3.0), ("d", 4.0)):
        adverts.update(name, status(price=price))
    counts = chosen(adverts)
    assert counts["a"] > counts["b"] > counts["c"] > 0
    assert counts["d"] == 0


def test_a_full_verifier_is_chosen_only_when_all_are(adverts: Adverts) -> None:
    adverts.update("a", status(n_free=0, price=0.1))
    adverts.update("b", status())
    assert set(chosen(adverts)) == {"b"}


def test_the_preferred_one_while_it_is_there(adverts: Adverts) -> None:
    adverts.update("a", status(price=9.0))
    adverts.update("b", status())
    assert set(chosen(adverts, preferred="a")) == {"a"}
    adverts.update("a", status(is_alive=False))
    assert set(chosen(adverts, preferred="a")) == {"b"}


def test_one_to_avoid_is_taken_only_for_lack_of_others(adverts: Adverts) -> None:
    adverts.update("a", status(price=0.1))
    assert set(chosen(adverts, avoid="a")) == {"a"}
    adverts.update("b", status())
    assert set(chosen(adverts, avoid="a")) == {"b"}
    adverts.update("b", status(is_draining=True))
    assert set(chosen(adverts)) == {"a"}


def test_a_session_s_target_must_be_equal(adverts: Adverts) -> None:
    adverts.update("a", status(target=OTHER_TARGET))
    assert adverts.choose(target=TARGET) is None
    assert adverts.choose() is not None


def test_only_a_change_from_alive_is_a_death(adverts: Adverts) -> None:
    assert not adverts.update("a", status(is_alive=False))
    assert not adverts.update("a", status())
    assert adverts.update("a", status(is_alive=False))
    assert not adverts.update("a", None)
    adverts.update("a", status())
    assert adverts.update("a", None)
    assert adverts.alive == frozenset()


def test_a_vocabulary_mismatch_names_both(adverts: Adverts) -> None:
    adverts.update("a", status(vocabulary=OTHERS))
    assert adverts.choose() is None
    assert adverts.is_mismatched
    problem = adverts.problem("small")
    assert isinstance(problem, VocabularyMismatchError)
    assert (problem.draft, problem.target) == ("small", "big")
    adverts.update("b", status())
    assert not adverts.is_mismatched


def test_nobody_there_is_said(adverts: Adverts) -> None:
    assert not adverts.is_mismatched
    assert isinstance(adverts.problem("small"), LinkError)
    adverts.update("a", status(vocabulary=OTHERS, is_alive=False))
    assert isinstance(adverts.problem("small"), LinkError)


def test_a_verifier_that_connects_anew_is_told_from_one_that_changed(adverts: Adverts) -> None:
    """It says the same again, with another incarnation, or after its will; a new price is mere news."""
    assert not adverts.is_announced_anew("a", status())
    adverts.update("a", status())
    assert adverts.is_announced_anew("a", status())
    assert not adverts.is_announced_anew("a", status(price=3.0))
    assert not adverts.is_announced_anew("a", status(is_alive=False))
    assert not adverts.is_announced_anew("a", None)
    assert adverts.is_announced_anew("a", status(price=3.0).model_copy(update={"incarnation": "2"}))
    adverts.update("a", status(is_alive=False))
    assert adverts.is_announced_anew("a", status(price=3.0))


def moves(adverts: Adverts, *, preferred: str = "", n: int = 200) -> Counter[str]:
    """Where sessions at `a` go at a new turn."""
    here = Binding("a", TARGET, 512, 32)
    better = (adverts.better(here, preferred=preferred) for _ in range(n))
    return Counter("stays" if binding is None else binding.name for binding in better)


def test_about_half_of_the_sessions_move_to_a_much_cheaper_verifier(adverts: Adverts) -> None:
    adverts.update("a", status(price=5.0))
    adverts.update("b", status(price=1.0))
    assert 70 < moves(adverts)["b"] < 130


@pytest.mark.parametrize(
    ("here", "there"), [(1.9, 1.0), (0.4, 0.0), (1.0, 5.0)], ids=["hardly", "nearly idle", "dearer"]
)
def test_sessions_stay_where_moving_gains_little(adverts: Adverts, here: float, there: float) -> None:
    adverts.update("a", status(price=here))
    adverts.update("b", status(price=there))
    assert moves(adverts) == {"stays": 200}


def test_sessions_do_not_move_to_a_full_or_draining_verifier_or_another_target(adverts: Adverts) -> None:
    adverts.update("a", status(price=9.0))
    adverts.update("b", status(price=1.0, n_free=0))
    assert moves(adverts) == {"stays": 200}
    adverts.update("b", status(price=1.0, is_draining=True))
    assert moves(adverts) == {"stays": 200}
    adverts.update("b", status(price=1.0, target=OTHER_TARGET))
    assert moves(adverts) == {"stays": 200}


@pytest.mark.parametrize(
    "change",
    [{"is_draining": True}, {"is_alive": False}, {"target": OTHER_TARGET}],
    ids=["draining", "gone", "another target"],
)
def test_all_sessions_leave_a_verifier_that_cannot_keep_them(
    adverts: Adverts, change: dict[str, Any]
) -> None:
    adverts.update("a", status(**change))
    assert moves(adverts) == {"stays": 200}, "there is no other"
    adverts.update("b", status(price=9.0))
    assert moves(adverts) == {"b": 200}


def test_the_preferred_verifier_is_kept_and_gone_back_to(adverts: Adverts) -> None:
    adverts.update("a", status(price=9.0))
    adverts.update("b", status(price=1.0))
    adverts.update("c", status(price=8.0))
    assert moves(adverts, preferred="a") == {"stays": 200}
    assert moves(adverts, preferred="c") == {"c": 200}


def test_a_verifier_with_another_sampler_is_not_chosen_and_said(adverts: Adverts) -> None:
    adverts.update("a", status().model_copy(update={"sampler_version": SAMPLER_VERSION + 1}))
    assert adverts.choose() is None
    problem = adverts.problem("small")
    assert "verifier a chooses tokens by version" in str(problem)
    assert problem.hint == "update the older side"
    adverts.update("b", status().model_copy(update={"sampler_version": SAMPLER_VERSION}))
    assert chosen(adverts) == {"b": 200}


def test_a_verifier_that_serves_another_target_now_is_told_from_one_that_is_gone(adverts: Adverts) -> None:
    assert not adverts.serves_another("a", TARGET)
    adverts.update("a", status())
    assert not adverts.serves_another("a", TARGET)
    adverts.update("a", status(is_alive=False, target=OTHER_TARGET))
    assert not adverts.serves_another("a", TARGET)
    adverts.update("a", status(target=OTHER_TARGET))
    assert adverts.serves_another("a", TARGET)


def test_verifiers_that_all_drain_have_no_room_and_are_named(adverts: Adverts) -> None:
    adverts.update("a", status(is_draining=True))
    adverts.update("b", status(is_draining=True))
    assert not adverts.has_room
    error = adverts.problem("tiny")
    assert isinstance(error, LinkError)
    assert "takes no new conversation: a, b" in str(error)
    assert "sled verifier drain NAME --off" in str(error.hint)
    assert adverts.choose() is not None, "for a session that one of them still has"
    adverts.update("b", status())
    assert adverts.has_room


def test_a_verifier_of_a_later_version_gets_no_longer_windows_than_this_one_can_write() -> None:
    adverts = Adverts(OURS)
    adverts.update("v1", status().model_copy(update={"max_draft": 4 * MAX_DRAFT}))
    binding = adverts.choose()
    assert binding is not None
    assert binding.max_draft == MAX_DRAFT
