"""After a power cut the device finishes an answer by itself."""

from __future__ import annotations

import dataclasses
import shutil
import threading
from itertools import islice
from pathlib import Path

import pytest

from device_agent.chat import ChatOptions
from device_agent.unattended import finish_cut_off, finishing
from protocol.errors import SessionError
from tests.integration.live_chat import alone, last, serving, wait_for
from tests.integration.live_device import PacedEngine
from tests.live_fleet import WAIT_S, LiveFleet
from tests.table_device import PIECES, STOP_ID, TableDrafter, table_agent, table_engine

OPTIONS = ChatOptions(temperature=1.3, seed=8, max_tokens=120)


def paced_engine(step_s: float = 0.01) -> PacedEngine:
    return PacedEngine(step_s, vocab_size=len(PIECES), stop_ids=frozenset({STOP_ID}))


def cut_off(fleet: LiveFleet, path: Path) -> Path:
    """A device's home as a power cut in the middle of an answer leaves it."""
    first, second = path / "first", path / "second"
    for home in (first, second):
        home.mkdir()
    with table_agent(fleet, "dev-a", first, TableDrafter(table_engine(), error_rate=1.0)) as agent:
        agent.wait_ready(WAIT_S)
        list(islice(agent.chat(OPTIONS).send("hold on"), 3))
        shutil.copytree(first / "journal", second / "journal")
    return second


def test_it_is_complete_when_somebody_asks_for_it(live_fleet: LiveFleet, tmp_path: Path) -> None:
    with serving(live_fleet, paced_engine()):
        home = cut_off(live_fleet, tmp_path)
        with table_agent(live_fleet, "dev-a", home, TableDrafter(table_engine())) as agent:
            assert finish_cut_off(agent, threading.Event()) == 1
            assert finish_cut_off(agent, threading.Event()) == 0
            with agent.chat(resume=True) as chat:
                assert not chat.is_interrupted
                text = chat.tokens
                again = last(chat.send("and on"))
    start = text.index(2) + 1
    assert again.prompt_ids[: len(text)] == text
    whole = dataclasses.replace(again, prompt_ids=text[:start], temperature=1.3)
    assert list(text[start:]) == alone(whole, 120)


def test_p16_without_its_journal_it_is_complete_all_the_same(live_fleet: LiveFleet, tmp_path: Path) -> None:
    """A new SD card with the old identity: the agent goes on from what the broker kept."""
    first, second = tmp_path / "first", tmp_path / "second"
    for home in (first, second):
        home.mkdir()
    with serving(live_fleet, paced_engine()):
        drafter = TableDrafter(table_engine(), error_rate=1.0)
        with table_agent(live_fleet, "dev-c", first, drafter) as agent:
            agent.wait_ready(WAIT_S)
            list(islice(agent.chat(OPTIONS).send("hold on"), 3))
        with table_agent(live_fleet, "dev-c", second, TableDrafter(table_engine())) as agent:
            assert finish_cut_off(agent, threading.Event()) == 1
            with agent.chat(resume=True) as chat:
                assert not chat.is_interrupted
                text = chat.tokens
                again = last(chat.send("and on"))
    start = text.index(2) + 1
    whole = dataclasses.replace(again, prompt_ids=text[:start], temperature=1.3)
    assert list(text[start:]) == alone(whole, 120)


def test_it_waits_for_its_verifier_and_a_stop_leaves_it_cut_off(
    live_fleet: LiveFleet, tmp_path: Path
) -> None:
    """Stopped while nobody serves its target, then in the middle of the answer, then not."""
    with serving(live_fleet, paced_engine()):
        home = cut_off(live_fleet, tmp_path)
    with table_agent(live_fleet, "dev-a", home, TableDrafter(table_engine())) as agent:
        with finishing(agent):
            assert agent.call(lambda: agent.desk.has_cut_off)
        assert agent.call(lambda: agent.desk.has_cut_off)
        with serving(live_fleet, paced_engine(step_s=0.1)):
            with finishing(agent):
                wait_for(lambda: agent.call(lambda: agent.desk.is_answering))
            assert agent.call(lambda: agent.desk.has_cut_off)
            assert not agent.call(lambda: agent.desk.is_answering)
        with serving(live_fleet, paced_engine()):
            assert finish_cut_off(agent, threading.Event()) == 1


def test_without_any_conversation_there_is_nothing_to_do(live_fleet: LiveFleet, tmp_path: Path) -> None:
    with (
        serving(live_fleet, table_engine()),
        table_agent(live_fleet, "dev-b", tmp_path, TableDrafter(table_engine())) as agent,
    ):
        assert finish_cut_off(agent, threading.Event()) == 0
        with pytest.raises(SessionError, match="no conversation"):
            agent.chat(resume=True)
