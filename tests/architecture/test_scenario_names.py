"""Each scenario that a session must survive has a test that says so in its name."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
N_SCENARIOS = 25
"""P1 to P25 of the design's review; `docs/conversations.md` says in a line what each is."""

MESSAGES = "duplicate window", "duplicate verdict", "lost window", "lost verdict"
"""Cases of one test."""

FAULTS = {
    "verdict for an older epoch": "a_verdict_for_an_older_generation_changes_nothing",
    "broker restart without, with and with an old memory": "a_broker_that_is_killed_and_comes_back",
    "device and broker lost together": "p16_device_and_broker_lost_together",
    "verifier's host lost half-open": "a_verifiers_host_lost_half_open_is_left_for_another",
    "verifier back after 40 s": "p3_a_verifier_that_is_back_after_40_s_harms_nothing",
    "a former board in an old memory": "p15_a_foreign_life_in_an_old_memory_halts_nobody",
    "cloned identity": "p17_a_cloned_identity_is_said_and_one_of_the_two_leaves",
    "clock says 1970": "p18_a_board_whose_clock_says_1970_gets_through_the_broker_s_handshake",
    "verifier killed between receiving and publishing": "a_verifier_killed_between_receiving_and_publishing",
    "device killed while drafting": "a_device_killed_while_drafting",
    "black hole for 30 s": "p7_a_black_hole_of_30_s_is_waited_out_and_ends_in_no_burst",
    "clock jump on either side": "a_clock_that_jumps_on_either_side_changes_nothing",
    "2,000 queued messages": "2000_queued_messages_on_reconnect_do_not_hide_the_answer",
}
"""Faults that are tested alone, each on a real broker."""


@cache
def names_of_tests() -> frozenset[str]:
    files = (file.read_text(encoding="utf-8") for file in TESTS.rglob("test_*.py"))
    return frozenset(name for text in files for name in re.findall(r"^ *def test_(\w+)", text, re.MULTILINE))


@pytest.mark.parametrize("number", range(1, N_SCENARIOS + 1))
def test_every_scenario_of_the_review_is_a_named_test(number: int) -> None:
    assert [name for name in names_of_tests() if name.startswith(f"p{number}_")]


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_alone_is_a_named_test(fault: str) -> None:
    assert FAULTS[fault] in names_of_tests()


@pytest.mark.parametrize("case", MESSAGES)
def test_every_message_that_comes_twice_or_never_is_a_named_case(case: str) -> None:
    text = (TESTS / "integration" / "test_faults.py").read_text(encoding="utf-8")
    assert f'id="{case}"' in text
