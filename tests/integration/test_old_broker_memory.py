"""A broker that comes back with an old persistence file: what stands in it is nobody's word any more."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from protocol.codec import decode, encode
from protocol.fleet_messages import DeviceStatus
from protocol.link import Published, Received, Subscription
from protocol.topics import DEVICE_STATUS
from tests.integration.live_chat import alone, last, serving, wait_for
from tests.live_fleet import WAIT_S, LiveFleet, Recorder
from tests.table_device import TableDrafter, table_agent, table_engine

STATUS = DEVICE_STATUS.topic("f", d="dev-a")


def retained_status(fleet: LiveFleet) -> DeviceStatus:
    """The presence of `dev-a` at the broker."""
    with fleet.link("fleet.ops", recorder := Recorder()) as link:
        link.subscribe([Subscription(STATUS)])
        return decode(DeviceStatus, recorder.next(Received).payload)


def remember(fleet: LiveFleet, status: DeviceStatus, file: Path) -> Path:
    """The persistence file of a broker that retains `status`."""
    with fleet.link("dev-a", recorder := Recorder()) as link:
        link.publish(STATUS, encode(status), is_retained=True)
        recorder.next(Published)
    fleet.broker.stop()
    shutil.copy(next(file.parent.glob("broker")) / "mosquitto.db", file)
    fleet.broker.restart(keep_persistence=False)
    return file


@pytest.mark.parametrize(
    "leftover",
    [
        DeviceStatus(is_online=True, incarnation="0", serial="a board that is no more"),
        DeviceStatus(is_online=False, is_lost=True, incarnation="0"),
        DeviceStatus(is_online=False, incarnation="g", yields_to="0", others=("0",)),
    ],
    ids=["online", "lost", "left"],
)
def test_p15_a_foreign_life_in_an_old_memory_halts_nobody(
    own_fleet: LiveFleet, tmp_path: Path, leftover: DeviceStatus
) -> None:
    """A former board of that name, or a copy found and removed since, whose life ranks first.

    The device has heard its own birth when the broker comes back, and it comes back so twice, as it does when
    it is killed before it saves.
    """
    database = next(tmp_path.glob("broker")) / "mosquitto.db"
    old = remember(own_fleet, leftover, tmp_path / "old.db")
    engine = table_engine()
    drafter = TableDrafter(engine)
    with serving(own_fleet, engine), table_agent(own_fleet, "dev-a", tmp_path, drafter) as agent:
        agent.wait_ready(WAIT_S)
        chat = agent.chat()
        for _ in range(2):
            wait_for(lambda: STATUS not in agent._link._subscriptions._wanted)  # the birth was heard
            own_fleet.broker.kill()
            wait_for(lambda: not agent._link.is_connected)
            shutil.copy(old, database)
            own_fleet.broker.restart()
            stats = last(chat.send("still here"))
            assert list(stats.token_ids) == alone(stats, 40)
            wait_for(lambda: retained_status(own_fleet).incarnation != leftover.incarnation)
            assert not agent.halt_reason
            said = retained_status(own_fleet)
            assert (said.is_online, said.problem) == (True, "")
