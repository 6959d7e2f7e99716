"""From nothing to a connected device: fleet directory, bundle, installation, configuration, mutual TLS."""

from __future__ import annotations

from pathlib import Path

import pytest
from gguf import GGUFWriter

from device_agent.config import DeviceConfig
from protocol.errors import LinkError
from protocol.link import Published
from protocol.topics import DEVICE_STATUS
from provisioning.bundle import BrokerAddress, ModelFiles, install, make_bundle
from provisioning.fleet_directory import FleetDirectory
from tests.live_fleet import LiveFleet, Recorder


@pytest.fixture
def model(tmp_path: Path) -> ModelFiles:
    path = tmp_path / "draft.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_token_list(["a", "b"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return ModelFiles.of(path, "tiny")


def installed(directory: FleetDirectory, live: LiveFleet, model: ModelFiles, path: Path) -> DeviceConfig:
    broker = BrokerAddress(host="localhost", port=live.broker.device_port)
    bundle = make_bundle(
        directory,
        "board-1",
        model,
        broker,
        path / "board-1.sled",
        settings={"max_draft": 3, "temperature": 0},
    )
    return DeviceConfig.load(install(bundle, path / "board-1").home)


def test_an_installed_device_connects_as_itself_and_may_write_only_its_own_topics(
    live_fleet: LiveFleet, model: ModelFiles, tmp_path: Path
) -> None:
    config = installed(live_fleet.directory, live_fleet, model, tmp_path)
    assert (config.settings.max_draft, config.settings.temperature) == (3, 0.0)
    assert config.model.vocabulary == model.vocabulary
    assert config.model_file.read_bytes() == model.file.read_bytes()
    recorder = Recorder()
    with live_fleet.link("board-1", recorder, config.endpoint) as link:
        own = link.publish(DEVICE_STATUS.topic("f", d="board-1"), b"", is_retained=True)
        assert recorder.next(Published, lambda event: event.token == own).reason_code in (0x00, 0x10)
        foreign = link.publish(DEVICE_STATUS.topic("f", d="board-2"), b"x")
        assert recorder.next(Published, lambda event: event.token == foreign).reason_code == 0x87


def test_a_device_of_another_fleet_neither_gets_in_nor_trusts_the_broker(
    live_fleet: LiveFleet, model: ModelFiles, tmp_path: Path
) -> None:
    other = FleetDirectory.create(tmp_path / "other", fleet="f")
    config = installed(other, live_fleet, model, tmp_path)
    with pytest.raises(LinkError), live_fleet.link("board-1", Recorder(), config.endpoint):
        pass
