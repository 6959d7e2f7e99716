"""The verifier alone against a device that floods: what it does not take, what it tells, when it is over."""

from __future__ import annotations

import time

import pytest

from edge_verifier.engines.table_engine import TableEngine
from protocol import topics
from protocol.codec import decode
from protocol.link import Received, Subscription
from protocol.messages import Complaint, Refusal, Verdict
from tests.e2e.sled import wait_until
from tests.integration.live_device import LiveDevice, run_together
from tests.integration.test_verifier_service import connected, serving
from tests.live_fleet import WAIT_S, LiveFleet, Recorder
from tests.raw_mqtt import RawClient, packet, text
from tests.unit.edge_verifier.scripted_device import ScriptedDevice

N_MESSAGES = 12_000
COMPLAINTS = topics.COMPLAINT.topic("f", v="v1")


def send_flood(fleet: LiveFleet, device: LiveDevice, qos: int) -> None:
    """For about two seconds; then the device is gone."""
    topic = text(device.topic(topics.WINDOW))
    with RawClient(fleet.endpoint(device.script.name), device.script.name) as client:
        for first in range(0, N_MESSAGES, 60):
            names = (number.to_bytes(2, "big") if qos else b"" for number in range(first + 1, first + 61))
            client.send(
                b"".join(packet(0x30 | qos << 1, topic + name + b"\0" + b"x" * 100) for name in names)
            )
            time.sleep(0.01)


@pytest.mark.parametrize("qos", [0, 1])
def test_a_flood_is_shed_and_complained_of_and_the_device_is_heard_again_afterwards(
    live_fleet: LiveFleet, qos: int
) -> None:
    engine, name = TableEngine(), f"flood-{qos}"
    culprit = LiveDevice(live_fleet, ScriptedDevice(engine, name=name, limit=30))
    bystander = LiveDevice(live_fleet, ScriptedDevice(engine, name="bystander", limit=60))
    recorder = Recorder()
    with serving(live_fleet, engine) as service, live_fleet.link("fleet.ops", recorder) as operator:
        operator.subscribe([Subscription(COMPLAINTS)])
        operator.wait_subscribed(WAIT_S)
        send_flood(live_fleet, culprit, qos)
        received = recorder.next(Received, lambda event: event.topic == COMPLAINTS)
        complaint = decode(Complaint, received.payload)
        assert complaint.device == name
        assert complaint.refused_s > 500
        assert service.metrics.n_complaints(name) > 0
        wait_until(lambda: service.metrics.n_refused("rate_limited", name) > N_MESSAGES / 2)
        assert service._reception.admission.shedding == {name}
        run_together([bystander])
        time.sleep(3.0)
        with connected(live_fleet, culprit) as link:
            culprit.publish(link, culprit.script.opening_window())
            reply = culprit.reply()
            if isinstance(reply, Refusal):  # the first message after the pause ends it
                assert reply.reason == "rate_limited"
                culprit.script.needs_opening = True
                culprit.script.presumed.clear()
                culprit.publish(link, culprit.script.opening_window())
                reply = culprit.reply()
            assert isinstance(reply, Verdict)
        assert service._reception.admission.shedding == frozenset()
    assert bystander.script.finished is not None
