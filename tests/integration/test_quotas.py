"""Quotas over a real broker: decided by the fleet, enforced by the verifier, remembered over its restart."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edge_verifier.config import VerifierConfig
from edge_verifier.engines.table_engine import TableEngine
from edge_verifier.service import VerifierService
from fleet.operator import Operator
from fleet.quotas import publish_quotas
from protocol import topics
from protocol.codec import encode
from protocol.link import Published
from protocol.messages import Quota, Refusal, Verdict
from tests.e2e.sled import wait_until
from tests.integration.live_device import LiveDevice, run_together
from tests.integration.test_verifier_service import connected
from tests.live_fleet import WAIT_S, LiveFleet, Recorder
from tests.unit.edge_verifier.scripted_device import ScriptedDevice


@contextmanager
def verifier(fleet: LiveFleet, usage_file: Path, **settings: int) -> Iterator[VerifierService]:
    service = VerifierService(
        TableEngine(),
        fleet.endpoint("verifier.v1"),
        "f",
        "v1",
        VerifierConfig(**settings),
        usage_file=usage_file,
    )
    service.start()
    try:
        service.wait_ready(WAIT_S)
        yield service
    finally:
        service.stop(drain_s=0.0)


def decide(fleet: LiveFleet, **quotas: Quota) -> None:
    with Operator(fleet.endpoint("fleet.ops"), identity="fleet.ops", fleet="f") as operator:
        publish_quotas(operator, "f", {name.replace("_", "-"): quota for name, quota in quotas.items()})


def first_refusal(fleet: LiveFleet, name: str, *, seed: int) -> Refusal:
    """A device asks for one token after the other until it is refused."""
    device = LiveDevice(fleet, ScriptedDevice(TableEngine(), name=name, limit=400, seed=seed))
    with connected(fleet, device) as link:
        while True:
            window = device.script.next_window(0)
            assert window is not None
            device.script.presumed.clear()
            device.publish(link, window)
            reply = device.reply()
            if isinstance(reply, Refusal):
                return reply
            assert isinstance(reply, Verdict)
            device.script.on_reply(reply)
            assert len(device.script.committed) < 300


def test_a_quota_holds_survives_a_restart_of_the_verifier_and_can_be_raised(
    live_fleet: LiveFleet, tmp_path: Path
) -> None:
    usage_file = tmp_path / "usage.json"
    decide(live_fleet, dev_a=Quota(tokens_day=40))
    with verifier(live_fleet, usage_file) as service:
        wait_until(lambda: service._quotas.of("dev-a").tokens_day == 40)
        refusal = first_refusal(live_fleet, "dev-a", seed=1)
        assert refusal.reason == "quota_tokens"
        assert refusal.detail == "this device's quota of 40 tokens a day is used up"
        assert 80_000 < refusal.retry_after_s < 90_000
        assert refusal.round is not None
        assert service.metrics.n_refused("quota_tokens", "dev-a") == 1
        run_together([LiveDevice(live_fleet, ScriptedDevice(TableEngine(), name="dev-b", limit=120))])
    with verifier(live_fleet, usage_file) as service:
        wait_until(lambda: service._quotas.of("dev-a").tokens_day == 40)
        assert first_refusal(live_fleet, "dev-a", seed=2).reason == "quota_tokens"
        decide(live_fleet, dev_a=Quota(tokens_day="unlimited"))
        wait_until(lambda: service._quotas.of("dev-a").tokens_day is None)
        run_together([LiveDevice(live_fleet, ScriptedDevice(TableEngine(), name="dev-a", limit=120, seed=3))])
        decide(live_fleet)
        wait_until(lambda: service._quotas.of("dev-a") == service._quotas.of("dev-b"))


def test_a_device_cannot_set_its_own_quota(live_fleet: LiveFleet, tmp_path: Path) -> None:
    recorder = Recorder()
    with (
        verifier(live_fleet, tmp_path / "usage.json", quota_tokens_day=20) as service,
        live_fleet.link("dev-a", recorder) as link,
    ):
        for device in ("dev-a", "dev-b"):
            topic = topics.QUOTA.topic("f", d=device)
            token = link.publish(topic, encode(Quota(tokens_day="unlimited")), is_retained=True)
            assert (
                recorder.next(Published, lambda event, token=token: event.token == token).reason_code == 0x87
            )
        time.sleep(0.2)
        assert service._quotas.of("dev-a").tokens_day == 20


def test_bytes_of_a_day_are_refused_with_the_reason(live_fleet: LiveFleet, tmp_path: Path) -> None:
    with verifier(live_fleet, tmp_path / "usage.json", quota_bytes_day=3_000) as service:
        refusal = first_refusal(live_fleet, "dev-c", seed=4)
        assert refusal.reason == "quota_bytes"
        assert refusal.detail == "this device's quota of 3,000 bytes a day is used up"
        assert service.metrics.n_refused("quota_bytes", "dev-c") == 1
