"""Many devices that come back to a verifier at once: it takes a few at a time, and all texts are right."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack
from pathlib import Path

from device_agent.chat import ChatOptions, ChatSession
from device_agent.chat_events import Finished, Notice, TextDelta, TurnStats
from edge_verifier.config import VerifierConfig
from edge_verifier.service import VerifierService
from tests.integration.live_chat import alone
from tests.integration.live_device import PacedEngine
from tests.live_fleet import WAIT_S, LiveFleet
from tests.table_device import PIECES, STOP_ID, TableDrafter, table_agent, table_engine

N_DEVICES, N_CHATS = 3, 8
ROOM = 6
ANSWER = 40


def serve(fleet: LiveFleet) -> tuple[VerifierService, PacedEngine]:
    """A verifier that has room for a quarter of the sessions."""
    engine = PacedEngine(0.03, vocab_size=len(PIECES), stop_ids=frozenset({STOP_ID}), max_sessions=ROOM)
    service = VerifierService(engine, fleet.endpoint("verifier.v1"), "f", "v1", VerifierConfig())
    service.start()
    service.wait_ready(WAIT_S)
    return service, engine


class Talk(threading.Thread):
    """One chat that says one thing."""

    def __init__(self, chat: ChatSession, seed: int) -> None:
        super().__init__(daemon=True)
        self.n_shown = 0
        self.notices: list[str] = []
        self.stats: TurnStats | None = None
        self._chat = chat
        self._text = f"story {chr(97 + seed)}"

    def run(self) -> None:
        for event in self._chat.send(self._text):
            match event:
                case TextDelta(_, tokens):
                    self.n_shown += len(tokens)
                case Notice(kind):
                    self.notices.append(kind)
                case Finished(_, stats):
                    self.stats = stats
                case _:
                    pass


def n_refused(service: VerifierService) -> float:
    """Openings that were told to come back later."""
    samples = (sample for metric in service.metrics.registry.collect() for sample in metric.samples)
    busy = (each for each in samples if each.labels.get("reason") == "busy" and each.name.endswith("_total"))
    return sum(each.value for each in busy)


def test_p25_devices_that_come_back_at_once_are_taken_a_few_at_a_time(
    live_fleet: LiveFleet, tmp_path: Path
) -> None:
    """The verifier dies with sessions of 24 chats waiting or under way, and returns with room for 6."""
    options = ChatOptions(temperature=1.3, max_tokens=ANSWER)
    service, engine = serve(live_fleet)
    with ExitStack() as stack:
        talks = []
        for number in range(N_DEVICES):
            home = tmp_path / str(number)
            home.mkdir()
            drafter = TableDrafter(table_engine(), error_rate=0.5)
            agent = stack.enter_context(table_agent(live_fleet, f"dev-{'abc'[number]}", home, drafter))
            agent.wait_ready(WAIT_S)
            talks += [Talk(agent.chat(options), slot) for slot in range(N_CHATS)]
        for talk in talks:
            talk.start()
        while sum(talk.n_shown > 5 for talk in talks) < ROOM // 2:
            time.sleep(0.005)
        n_before = n_refused(service)
        service.stop(0.0)
        engine.shutdown()
        service, engine = serve(live_fleet)
        until_s = time.monotonic() + 6 * WAIT_S
        for talk in talks:
            talk.join(max(0.0, until_s - time.monotonic()))
        n_busy = n_before + n_refused(service)
        service.stop(0.0)
        engine.shutdown()
    for talk in talks:
        assert talk.stats is not None, talk.notices
        assert list(talk.stats.token_ids) == alone(talk.stats, ANSWER)
    assert any("verifier_busy" in talk.notices for talk in talks), "and their users are told"
    assert 0 < n_busy < 10 * len(talks), "each asks again only when it was told to"
