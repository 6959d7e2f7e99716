"""`sled verifier drain`: a verifier goes out of service and back, and no conversation notices."""

from __future__ import annotations

import threading
from itertools import islice
from pathlib import Path

import pytest

from cli.chat.patience import begun_within
from cli.main import run
from device_agent.chat import ChatOptions
from device_agent.chat_events import Finished, Notice
from fleet.maintenance import Maintenance
from protocol.errors import LinkError, SessionError
from protocol.messages import VerifierStatus
from tests.integration.live_chat import alone, last, serving, wait_for
from tests.integration.live_device import PacedEngine
from tests.live_fleet import WAIT_S, LiveFleet
from tests.table_device import PIECES, STOP_ID, TableDrafter, table_agent, table_engine

LONG = ChatOptions(temperature=1.3, seed=8, max_tokens=200)


def maintenance(fleet: LiveFleet, verifier: str, timeout_s: float = WAIT_S) -> Maintenance:
    return Maintenance(
        fleet.endpoint("fleet.ops"), identity="fleet.ops", fleet="f", verifier=verifier, timeout_s=timeout_s
    )


def paced_engine() -> PacedEngine:
    """The same target as `table_engine`, at 10 ms a step."""
    return PacedEngine(
        step_s=0.01, vocab_size=len(PIECES), seed=0, stop_ids=frozenset({STOP_ID}), max_context=512
    )


def test_a_turn_under_way_ends_where_it_began_and_the_next_is_elsewhere(
    live_fleet: LiveFleet, tmp_path: Path
) -> None:
    drafter = TableDrafter(table_engine(), error_rate=1.0)
    outcome: list[VerifierStatus] = []
    with (
        serving(live_fleet, paced_engine(), "v1") as first,
        serving(live_fleet, table_engine(), "v2"),
        table_agent(live_fleet, "dev-a", tmp_path, drafter, max_draft=1) as agent,
    ):
        agent.wait_ready(WAIT_S)
        wait_for(lambda: agent.call(lambda: agent._adverts.alive) == {"v1", "v2"})
        maintenance(live_fleet, "v2").set(is_draining=True)
        wait_for(lambda: "v1" in str(agent.call(agent._adverts.choose)))
        chat = agent.chat(LONG)
        maintenance(live_fleet, "v2").set(is_draining=False)
        events = chat.send("hold on")
        begun = list(islice(events, 3))
        drain = threading.Thread(
            target=lambda: outcome.append(maintenance(live_fleet, "v1").set(is_draining=True))
        )
        drain.start()
        wait_for(lambda: first._conductor.table.is_draining)
        assert not outcome, "the turn is under way"
        everything = [*begun, *events]
        end = everything[-1]
        assert isinstance(end, Finished)
        assert end.stats.verifier == "v1"
        drain.join(WAIT_S)
        assert outcome[0].is_drained
        moved = last(chat.send("and on"))
        assert moved.verifier == "v2"
        assert list(moved.token_ids) == alone(moved, 200)
        wait_for(lambda: first.n_sessions == 0)
        assert not [event for event in everything if isinstance(event, Notice)]
        chat.close()


def test_a_verifier_that_is_started_again_serves_again(live_fleet: LiveFleet) -> None:
    """The wish was for its former life; no operator has to remember to take it back."""
    with serving(live_fleet, table_engine()) as service:
        maintenance(live_fleet, "v1").set(is_draining=True)
        assert service._conductor.table.is_draining
    with serving(live_fleet, table_engine()) as service:
        status = maintenance(live_fleet, "v1").set(is_draining=False)
        assert not status.is_draining
        assert not service._conductor.table.is_draining


def test_a_verifier_that_reconnects_still_drains(own_fleet: LiveFleet) -> None:
    with serving(own_fleet, table_engine()) as service:
        maintenance(own_fleet, "v1").set(is_draining=True)
        own_fleet.broker.restart(keep_persistence=True)
        service._link.wait_connected(WAIT_S)
        service._link.wait_subscribed(WAIT_S)
        assert maintenance(own_fleet, "v1").set(is_draining=True).is_drained
        assert not maintenance(own_fleet, "v1").set(is_draining=False).is_draining


def test_the_command_says_when_the_verifier_can_be_stopped(
    live_fleet: LiveFleet, capsys: pytest.CaptureFixture[str]
) -> None:
    broker = f"{live_fleet.broker.host}:{live_fleet.broker.backend_port}"
    where = ["--fleet", str(live_fleet.directory.path), "--broker", broker]
    with serving(live_fleet, table_engine()) as service:
        assert run(["verifier", "drain", "v1", *where]) == 0
        assert "it can be stopped" in capsys.readouterr().err
        assert service._conductor.table.is_draining
        assert run(["verifier", "drain", "v1", "--off", *where]) == 0
        assert "takes sessions again" in capsys.readouterr().err
        assert not service._conductor.table.is_draining
    assert run(["verifier", "drain", "v1", *where]) == 5
    assert "verifier v1 is not there" in capsys.readouterr().err


def test_with_every_verifier_draining_a_device_says_so_and_a_lone_question_ends(
    live_fleet: LiveFleet, tmp_path: Path
) -> None:
    drafter = TableDrafter(table_engine())
    with (
        serving(live_fleet, table_engine(), "v1"),
        serving(live_fleet, table_engine(), "v2"),
        table_agent(live_fleet, "dev-a", tmp_path, drafter) as agent,
    ):
        agent.wait_ready(WAIT_S)
        wait_for(lambda: agent.call(lambda: agent._adverts.alive) == {"v1", "v2"})
        chat = agent.chat(LONG)
        for name in ("v1", "v2"):
            maintenance(live_fleet, name).set(is_draining=True)
        wait_for(lambda: not agent.call(lambda: agent._adverts.has_room))
        with pytest.raises(LinkError, match="takes no new conversation: v1, v2"):
            agent.wait_ready(0.2)
        with pytest.raises(LinkError, match=r"no answer began within 0\.5 s"):
            list(begun_within(chat.send("anybody"), 0.5, chat.stop))
        maintenance(live_fleet, "v2").set(is_draining=False)
        agent.wait_ready(WAIT_S)
        stats = last(begun_within(chat.send("and now"), WAIT_S, chat.stop))
        assert list(stats.token_ids) == alone(stats, 200)
        chat.close()


def test_a_verifier_that_was_never_there_is_said(live_fleet: LiveFleet) -> None:
    with pytest.raises(SessionError, match="v2 is not there"):
        maintenance(live_fleet, "v2", 0.5).set(is_draining=True)
