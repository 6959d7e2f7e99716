"""A removed conversation stays removed when the broker is killed before it has saved that."""

from __future__ import annotations

import time
from pathlib import Path

from device_agent.chat import ChatOptions
from device_agent.kept import Kept
from device_agent.shelf import Shelf
from edge_verifier.service import VerifierService
from protocol.topics import STATE
from tests.integration.live_chat import last, serving, wait_for
from tests.live_fleet import WAIT_S, LiveFleet
from tests.table_device import TableDrafter, table_agent, table_engine

SHORT = ChatOptions(seed=4, temperature=0.9, max_tokens=40)
TOPIC = STATE.topic("f", v="v1", d="dev-a", n=0).encode()
SPREAD_S = 1.0
"""Within which a verifier repeats itself after a reconnect."""


def talk(fleet: LiveFleet, home: Path) -> Shelf:
    """One conversation, left open, and what lists it."""
    with table_agent(fleet, "dev-a", home, TableDrafter(table_engine())) as agent:
        agent.wait_ready(WAIT_S)
        last(agent.chat(SHORT).send("secret"))
        return Shelf(agent.config, WAIT_S)


def at_broker(shelf: Shelf) -> list[str]:
    """The conversations that the broker keeps."""
    return [each.uid for each in shelf.sessions() if each.verifiers]


def saved(fleet: LiveFleet, tmp_path: Path) -> bytes:
    """What the broker has on disk, once it is stopped or killed."""
    assert fleet.broker.pid is None
    return (next(tmp_path.glob("broker")) / "mosquitto.db").read_bytes()


def kept_on_disk(fleet: LiveFleet, tmp_path: Path, shelf: Shelf, service: VerifierService) -> str:
    """Have the broker save the one conversation that it has; its uid."""
    [uid] = at_broker(shelf)
    n_connects = service.traffic.n_connects
    fleet.broker.stop()
    assert TOPIC in saved(fleet, tmp_path)
    fleet.broker.restart()
    wait_for(lambda: service.traffic.n_connects > n_connects)
    service.wait_ready(WAIT_S)
    assert at_broker(shelf) == [uid]
    return uid


def kill_and_restart(fleet: LiveFleet, tmp_path: Path) -> None:
    """With the checkpoint still, or again, in what it has saved."""
    fleet.broker.kill()
    assert TOPIC in saved(fleet, tmp_path)
    fleet.broker.restart()


def test_p15_a_conversation_removed_just_before_the_broker_is_killed_does_not_come_back(
    own_fleet: LiveFleet, tmp_path: Path
) -> None:
    """Killed twice, since an old memory can come back more than once."""
    with serving(own_fleet, table_engine()) as service:
        shelf = talk(own_fleet, tmp_path)
        uid = kept_on_disk(own_fleet, tmp_path, shelf, service)
        assert shelf.remove([uid]) == ()
        wait_for(lambda: service.n_sessions == 0)
        for _ in range(2):
            kill_and_restart(own_fleet, tmp_path)
            wait_for(lambda: at_broker(shelf) == [])


def test_p15_without_its_verifier_it_would_come_back(own_fleet: LiveFleet, tmp_path: Path) -> None:
    """What the other tests guard against does happen."""
    with serving(own_fleet, table_engine()) as service:
        shelf = talk(own_fleet, tmp_path)
        uid = kept_on_disk(own_fleet, tmp_path, shelf, service)
    assert shelf.remove([uid]) == ("v1",)
    assert at_broker(shelf) == []
    kill_and_restart(own_fleet, tmp_path)
    assert at_broker(shelf) == [uid]


def test_p15_the_next_conversation_of_that_slot_is_not_removed_with_it(
    own_fleet: LiveFleet, tmp_path: Path
) -> None:
    with serving(own_fleet, table_engine()) as service:
        shelf = talk(own_fleet, tmp_path)
        uid = kept_on_disk(own_fleet, tmp_path, shelf, service)
        shelf.remove([uid])
        wait_for(lambda: service.n_sessions == 0)
        shelf = talk(own_fleet, tmp_path)
        [newer] = at_broker(shelf)
        assert newer != uid
        n_connects = service.traffic.n_connects
        kill_and_restart(own_fleet, tmp_path)
        wait_for(lambda: service.traffic.n_connects > n_connects)
        time.sleep(2 * SPREAD_S)
        assert at_broker(shelf) == [newer]
        [kept] = read(shelf)
        assert (kept.verifier, kept.slot) == ("v1", 0)


def read(shelf: Shelf) -> tuple[Kept, ...]:
    """The broker's copies."""
    with shelf._connection() as connection:
        return connection.read()
