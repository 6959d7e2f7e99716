"""Local answers while the link is down, on a real broker."""

from __future__ import annotations

from pathlib import Path

import pytest

from device_agent.actions import Notice, Settled
from device_agent.chat import ChatOptions
from device_agent.chat_events import ChatEvent, Finished, TextDelta, UnverifiedText
from tests.integration.live_chat import alone, last, serving
from tests.live_fleet import WAIT_S, LiveFleet
from tests.table_device import TableDrafter, table_agent, table_engine
from tests.tcp_proxy import TcpProxy

OPTIONS = ChatOptions(temperature=1.3, seed=8, max_tokens=60)


@pytest.mark.parametrize("error_rate", [0.0, 1.0])
def test_an_answer_goes_on_locally_and_is_settled_when_the_link_is_back(
    live_fleet: LiveFleet, tmp_path: Path, error_rate: float
) -> None:
    """The shown text, unverified parts replaced as told, ends as the target's own."""
    engine = table_engine()
    drafter = TableDrafter(engine, error_rate=error_rate)
    with (
        TcpProxy("127.0.0.1", live_fleet.broker.device_port) as proxy,
        serving(live_fleet, engine),
    ):
        agent = table_agent(live_fleet, "dev-a", tmp_path, drafter, port=proxy.port, offline="local")
        with agent:
            agent.wait_ready(WAIT_S)
            chat = agent.chat(OPTIONS)
            last(chat.send("hello"))
            proxy.cut()
            events: list[ChatEvent] = []
            shown: list[int] = []
            for event in chat.send("are you there"):
                events.append(event)
                if isinstance(event, TextDelta):
                    shown += event.tokens
                elif isinstance(event, UnverifiedText):
                    proxy.mend()
            end = events[-1]
            assert isinstance(end, Finished)
            assert tuple(shown) == end.stats.token_ids
            assert list(end.stats.token_ids) == alone(end.stats, 60)
            settled = [event for event in events if isinstance(event, Settled)]
            kinds = [event.kind for event in events if isinstance(event, Notice)]
            assert len(settled) == 1
            assert settled[0].n_confirmed + settled[0].n_replaced > 0
            assert (settled[0].n_replaced == 0) == (error_rate == 0.0)
            of_link = [kind for kind in kinds if not kind.startswith("verifier")]  # a busy one may be late
            assert of_link == ["link_lost", "drafting_alone", "link_back"]
            chat.close()
