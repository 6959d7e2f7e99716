"""A verifier with a table model on a real broker, and what its chats must say."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from device_agent.chat_events import ChatEvent, Finished, TurnStats
from edge_verifier.config import VerifierConfig
from edge_verifier.engines.table_engine import TableEngine
from edge_verifier.service import VerifierService
from protocol.coupling import Ends, decode_alone
from protocol.link import Endpoint
from protocol.messages import SamplerSettings
from tests.live_fleet import WAIT_S, LiveFleet
from tests.table_device import STOP_ID, table_engine


@contextmanager
def serving(
    fleet: LiveFleet, engine: TableEngine, name: str = "v1", endpoint: Endpoint | None = None
) -> Iterator[VerifierService]:
    """A verifier on the broker."""
    service = VerifierService(
        engine, endpoint or fleet.endpoint(f"verifier.{name}"), "f", name, VerifierConfig()
    )
    service.start()
    try:
        service.wait_ready(WAIT_S)
        yield service
    finally:
        service.stop(0.2)
        engine.shutdown()


def last(events: Iterator[ChatEvent]) -> TurnStats:
    """The stats at the end of a turn that must finish."""
    end = list(events)[-1]
    assert isinstance(end, Finished), end
    return end.stats


def alone(stats: TurnStats, max_tokens: int, engine: TableEngine | None = None) -> list[int]:
    """What the target alone answers, computed from what the stats print."""
    settings = SamplerSettings(
        temperature=stats.temperature,
        top_k=stats.top_k,
        top_p=stats.top_p,
        seed=stats.seed,
        attempt=stats.attempt,
    )
    ends = Ends(frozenset({STOP_ID}), len(stats.prompt_ids) + max_tokens, 512)
    return decode_alone((engine or table_engine()).next_logits, stats.prompt_ids, settings, ends)[0]


def wait_for(condition: Callable[[], bool]) -> None:
    """Poll until `condition` holds."""
    waiting = threading.Event()
    for _ in range(int(WAIT_S / 0.01)):
        if condition():
            return
        waiting.wait(0.01)
    raise AssertionError("never came true")
