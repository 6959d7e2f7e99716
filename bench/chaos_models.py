# ruff: noqa: PLC0415 - each process imports only the libraries of the models that it runs
"""The models of a chaos run, for its device and verifier processes: the bundled pair, or random tables.

Tables make a short run possible: processes are there at once and cost next to nothing. They are the tests'.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from protocol.messages import SamplerSettings

if TYPE_CHECKING:
    from device_agent.agent import DeviceAgent
    from edge_verifier.engine import Engine

Pair = Literal["bundled", "table"]
PAIRS: tuple[Pair, ...] = ("bundled", "table")
TABLE_CONTEXT = 512
MAX_SESSIONS = 64
KV_BYTES = 128 << 20
"""Some 20,000 tokens of the bundled target in fp32, more than all sessions need: nobody waits for room.

It is stated, and so taken at the start.
"""


@dataclass(frozen=True)
class TablePace:
    """How slow tables are: seconds of a verifier's step, and of a drafted token."""

    step_s: float = 0.01
    draft_s: float = 0.0


def new_agent(pair: Pair, home: Path, pace: TablePace) -> DeviceAgent:
    """The agent of the device in `home`, not started."""
    from device_agent.agent import DeviceAgent

    if pair == "bundled":
        from cli.agents import agent_of

        return agent_of(home)
    from device_agent.config import DeviceConfig
    from device_agent.tokenizer import ChatTokenizer
    from tests.table_device import TableDrafter, TableVocabulary, table_engine

    config = DeviceConfig.load(home)

    class PacedDrafter(TableDrafter):
        def draft(self, settings: SamplerSettings, n: int, *, min_probability: float = 0.0) -> list[int]:
            time.sleep(pace.draft_s * n)
            return super().draft(settings, n, min_probability=min_probability)

    drafter = PacedDrafter(table_engine(max_context=TABLE_CONTEXT), error_rate=0.3)
    return DeviceAgent(config, drafter, ChatTokenizer(TableVocabulary()))


def new_engine(pair: Pair, n_threads: int | None, pace: TablePace) -> Engine:
    """The target in fp32."""
    if pair == "bundled":
        from edge_verifier.engines import load_engine
        from provisioning.catalogue import bundled_pair

        target = bundled_pair().target
        return load_engine(
            target, dtype="float32", n_threads=n_threads, max_sessions=MAX_SESSIONS, kv_bytes=KV_BYTES
        )
    from tests.integration.live_device import PacedEngine
    from tests.table_device import PIECES, STOP_ID

    stop_ids = frozenset({STOP_ID})
    return PacedEngine(
        pace.step_s,
        vocab_size=len(PIECES),
        stop_ids=stop_ids,
        max_context=TABLE_CONTEXT,
        max_sessions=MAX_SESSIONS,
    )


def check_engine(pair: Pair) -> Engine:
    """A target of one's own in fp32, to check answers with."""
    return new_engine(pair, None, TablePace(step_s=0.0))
