"""A second verifier joins one that is busy: conversations spread at their next turns, and no text changes."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from device_agent.chat import ChatOptions, ChatSession
from device_agent.chat_events import TurnStats
from edge_verifier.engine import Row
from tests.integration.live_chat import alone, last, serving, wait_for
from tests.integration.live_device import PacedEngine
from tests.live_fleet import WAIT_S, LiveFleet
from tests.table_device import PIECES, STOP_ID, TableDrafter, table_agent, table_engine

N_CHATS = 6
ANSWER = 20
TOKEN_S = 0.002


class DearEngine(PacedEngine):
    """Each token costs time, so that a verifier which is shared has a price."""

    def __init__(self) -> None:
        super().__init__(0.002, vocab_size=len(PIECES), stop_ids=frozenset({STOP_ID}), max_context=4096)

    def _run(self, rows: tuple[Row, ...]) -> tuple[NDArray[np.float32], ...]:
        time.sleep(TOKEN_S * sum(len(row.tokens) for row in rows))
        return super()._run(rows)


def say(chats: list[ChatSession], text: str) -> list[TurnStats]:
    """All of them say it at once; their answers."""
    found: list[TurnStats] = []
    threads = [
        threading.Thread(target=lambda each=chat: found.append(last(each.send(text)))) for chat in chats
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(3 * WAIT_S)
    return found


def test_conversations_spread_when_a_verifier_joins(live_fleet: LiveFleet, tmp_path: Path) -> None:
    options = ChatOptions(temperature=1.3, max_tokens=ANSWER)
    drafter = TableDrafter(table_engine(), error_rate=0.5)
    with (
        serving(live_fleet, DearEngine(), "v1"),
        table_agent(live_fleet, "dev-a", tmp_path, drafter) as agent,
    ):
        agent.wait_ready(WAIT_S)
        chats = [agent.chat(options) for _ in range(N_CHATS)]
        for text in ("tell me", "go on"):
            assert {stats.verifier for stats in say(chats, text)} == {"v1"}
        with serving(live_fleet, DearEngine(), "v2"):
            wait_for(lambda: agent.call(lambda: agent._adverts.alive) == {"v1", "v2"})
            verifiers: list[str] = []
            for _ in range(8):
                answers = say(chats, "and on")
                assert len(answers) == N_CHATS
                for stats in answers:
                    assert list(stats.token_ids) == alone(stats, ANSWER, table_engine(max_context=4096))
                verifiers = [stats.verifier for stats in answers]
                if len(set(verifiers)) > 1:
                    break
            assert set(verifiers) == {"v1", "v2"}
            for chat in chats:
                chat.close()
