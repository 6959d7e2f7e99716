"""Verifiers that come back with another target under live conversations: a clear word, never mixed text."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest

from device_agent.chat import ChatOptions
from device_agent.chat_events import ChatEvent, Failed, TextDelta, TurnStats
from edge_verifier.engines.table_engine import TableEngine
from protocol.errors import SessionError
from tests.integration.live_chat import alone, last, serving, wait_for
from tests.integration.live_device import PacedEngine
from tests.live_fleet import WAIT_S, LiveFleet
from tests.table_device import PIECES, STOP_ID, TableDrafter, table_agent, table_engine

LONG = ChatOptions(temperature=1.3, seed=8, max_tokens=400)


def slow_engine() -> TableEngine:
    """The target of `table_engine`, too slow to end an answer while it is being stopped."""
    return PacedEngine(
        step_s=0.03, vocab_size=len(PIECES), seed=0, stop_ids=frozenset({STOP_ID}), max_context=512
    )


def failed(events: list[ChatEvent]) -> tuple[str, TurnStats]:
    """The error at the end of a turn, and its figures."""
    end = events[-1]
    assert isinstance(end, Failed), end
    return str(end.error), end.stats


def test_a_target_replaced_under_an_answer_ends_it_with_a_clear_word(
    live_fleet: LiveFleet, tmp_path: Path
) -> None:
    """What was shown is the old target's; the next turn says the same; a new conversation works."""
    drafter = TableDrafter(table_engine(), error_rate=1.0)
    with table_agent(live_fleet, "dev-a", tmp_path, drafter, max_draft=1) as agent:
        with serving(live_fleet, slow_engine()):
            agent.wait_ready(WAIT_S)
            chat = agent.chat(LONG)
            events = chat.send("hold on")
            begun = list(islice(events, 3))
        with serving(live_fleet, table_engine(seed=1)):
            everything = [*begun, *events]
            error, stats = failed(everything)
            assert "v1 serves another model now, and no verifier runs target" in error
            shown = [token for event in everything if isinstance(event, TextDelta) for token in event.tokens]
            assert shown
            assert shown == alone(stats, 400)[: len(shown)]
            error, stats = failed(list(chat.send("and now")))
            assert "serves another model now" in error
            assert stats.tokens == 0
            chat.reset()
            fresh = last(chat.send("hello"))
            assert list(fresh.token_ids) == alone(fresh, 400, table_engine(seed=1))
            chat.close()


def test_a_rolling_change_moves_conversations_to_who_still_runs_their_target(
    live_fleet: LiveFleet, tmp_path: Path
) -> None:
    drafter = TableDrafter(table_engine(), error_rate=1.0)
    with (
        table_agent(live_fleet, "dev-b", tmp_path, drafter, max_draft=1, verifier="v1") as agent,
        serving(live_fleet, table_engine(), "v2"),
    ):
        with serving(live_fleet, slow_engine(), "v1"):
            agent.wait_ready(WAIT_S)
            wait_for(lambda: agent.call(lambda: agent._adverts.alive) == {"v1", "v2"})
            chat = agent.chat(LONG)
            assert chat.verifier == "v1"
            events = chat.send("hold on")
            list(islice(events, 3))
        with serving(live_fleet, table_engine(seed=1), "v1"):
            stats = last(events)
            assert list(stats.token_ids) == alone(stats, 400)
            assert chat.verifier == "v2"
            more = last(chat.send("and more"))
            assert (more.verifier, list(more.token_ids)) == ("v2", alone(more, 400))
            chat.close()


def test_a_conversation_of_a_target_that_is_gone_is_not_resumed_with_another(
    live_fleet: LiveFleet, tmp_path: Path
) -> None:
    with (
        serving(live_fleet, table_engine()),
        table_agent(live_fleet, "dev-c", tmp_path, TableDrafter(table_engine())) as agent,
    ):
        agent.wait_ready(WAIT_S)
        last(agent.chat(ChatOptions(max_tokens=5)).send("remember"))
    with (
        serving(live_fleet, table_engine(seed=1)),
        table_agent(live_fleet, "dev-c", tmp_path, TableDrafter(table_engine())) as agent,
    ):
        agent.wait_ready(WAIT_S)
        with pytest.raises(SessionError, match="to which the last conversation is bound"):
            agent.chat(resume=True)
