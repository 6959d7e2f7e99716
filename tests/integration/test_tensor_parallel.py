"""A target held by two processes: the same tokens as the target alone, and a clear end when one is lost."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from protocol import topics
from protocol.codec import decode
from protocol.link import Received, Subscription
from protocol.messages import SamplerSettings, VerifierStatus
from tests.integration.live_device import LiveDevice, run_together
from tests.integration.parallel_verifier import KnownText, ParallelVerifier
from tests.live_fleet import LiveFleet, Recorder
from tests.tiny_models import TinyPair
from tests.unit.edge_verifier.scripted_device import ScriptedDevice

pytestmark = pytest.mark.timeout(400)

STATUS_TOPIC = topics.VERIFIER_STATUS.topic("f", v="v1")
GREEDY = SamplerSettings()
TURN_S = 300.0


def sampled(seed: int) -> SamplerSettings:
    return SamplerSettings(temperature=0.9, top_k=40 * (seed % 2), seed=seed)


class Target:
    """The tiny target as it is known without the processes under test."""

    def __init__(self, path: Path) -> None:
        from edge_verifier.engines import load_engine  # noqa: PLC0415 - brings in torch
        from edge_verifier.engines.hf_reference import TargetAlone  # noqa: PLC0415 - the same

        engine = load_engine(path, dtype="float32", device="cpu", n_threads=1)
        engine.shutdown()
        self.path = path
        self.info = engine.info
        self.expected: dict[str, list[int]] = {}
        self._alone = TargetAlone(path)

    def device(self, fleet: LiveFleet, name: str, settings: SamplerSettings, n_more: int) -> LiveDevice:
        """A device that is right most of the time; `expected` says what it must end up with."""
        seed = sum(name.encode())
        prompt = [(seed * 7 + i * 31) % 300 + 5 for i in range(3 + seed % 40)]
        expected = prompt + self._alone.generate(prompt, settings, len(prompt) + n_more)
        script = ScriptedDevice(
            KnownText(expected, self.info),  # type: ignore[arg-type]  # as much of an engine as it needs
            name=name,
            prompt=prompt,
            settings=settings,
            limit=len(prompt) + n_more,
            seed=seed,
        )
        self.expected[name] = expected
        return LiveDevice(fleet, script, turn_s=TURN_S)


@pytest.fixture(scope="module")
def target(tiny_pair: TinyPair) -> Target:
    return Target(tiny_pair.target)


@pytest.fixture(scope="module")
def status(live_fleet: LiveFleet) -> Iterator[Recorder]:
    recorder = Recorder()
    with live_fleet.link("fleet.ops", recorder) as link:
        link.subscribe([Subscription(STATUS_TOPIC)])
        yield recorder


def wait_status(recorder: Recorder, *, is_alive: bool) -> None:
    recorder.next(
        Received,
        lambda event: (
            event.topic == STATUS_TOPIC and decode(VerifierStatus, event.payload).is_alive == is_alive
        ),
        within_s=60.0,
    )


@pytest.mark.parametrize("n_processes", [2, pytest.param(1, marks=pytest.mark.slow)])
def test_eight_devices_get_what_the_target_alone_says(
    n_processes: int, live_fleet: LiveFleet, target: Target, tmp_path: Path
) -> None:
    settings = [GREEDY] * 4 + [sampled(seed) for seed in range(4)]
    devices = [target.device(live_fleet, f"dev-{i}", each, 150) for i, each in enumerate(settings)]
    with ParallelVerifier(live_fleet, target.path, tmp_path, n_processes) as verifier:
        verifier.wait_ready()
        run_together(devices)
        verifier.end()
        assert "sled: error" not in verifier.output
    for device in devices:
        assert device.script.committed == target.expected[device.script.name]
        assert not device.script.refusals


@pytest.mark.parametrize("victim", [1, 0])
def test_a_lost_process_ends_the_verifier_and_devices_wait_for_the_next(
    victim: int, live_fleet: LiveFleet, target: Target, status: Recorder, tmp_path: Path
) -> None:
    devices = [
        target.device(live_fleet, f"dev-{i}", each, 250) for i, each in enumerate((GREEDY, sampled(3)))
    ]
    with ParallelVerifier(live_fleet, target.path, tmp_path / "first", 2) as verifier:
        verifier.wait_ready()
        wait_status(status, is_alive=True)
        threads = [threading.Thread(target=device.run, daemon=True) for device in devices]
        for thread in threads:
            thread.start()
        while any(len(device.round_s) < 3 for device in devices):
            time.sleep(0.01)
        other = verifier.ranks()[1 - victim]
        verifier.signal_rank(victim, signal.SIGKILL)
        killed_s = time.monotonic()
        wait_status(status, is_alive=False)
        assert verifier.wait() != 0
        assert time.monotonic() - killed_s < 25.0
        assert f"sled: error: process {victim} of 2 has ended" in verifier.output
        assert not Path(f"/proc/{other}").exists()
    assert all(device.script.finished is None for device in devices)
    with ParallelVerifier(live_fleet, target.path, tmp_path / "second", 2) as verifier:
        for thread in threads:
            thread.join(TURN_S)
        verifier.end()
    for device in devices:
        assert device.error is None
        assert device.script.committed == target.expected[device.script.name]
