"""Which delivered models a device puts to use: signed, newest, healthy, and with room on its disk."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from device_agent.delivery import desk
from device_agent.delivery.pull import WINDOW_BLOCKS
from fleet.model_server import ModelServer
from protocol.codec import encode
from protocol.link import Link
from protocol.messages import VerifierStatus
from protocol.model_block import BLOCK_BYTES
from protocol.topics import VERIFIER_STATUS
from provisioning.catalogue import bundled_pair
from provisioning.fleet_directory import FleetDirectory
from provisioning.model_signer import ModelSigner
from provisioning.model_store import ModelStore
from tests.integration.delivering_device import DeliveringDevice, make_home, offer_to, padded_model
from tests.live_fleet import WAIT_S, LiveFleet, Recorder
from tests.tiny_draft import write_vocabulary

pytestmark = pytest.mark.usefixtures("model_server")
MIB = 1024 * 1024


class TestOffers:
    """What a device takes up, and what it does not."""

    def test_only_what_its_own_fleet_has_signed(self, depot: LiveFleet, tmp_path: Path) -> None:
        model = padded_model(tmp_path / "forged.gguf", 2 * MIB)
        stranger = FleetDirectory.create(tmp_path / "stranger", fleet="f")
        with DeliveringDevice(make_home(depot, tmp_path / "home", "forged")) as device:
            offer_to(depot, "forged", ModelStore(stranger).stage(model, "evil").offer)
            assert "not of the CA" in device.wait_for("refused").reason
            offer_to(depot, "forged", b"garbage")
            assert device.slots().status is None
            staged = ModelStore(depot.directory).stage(model, "good")
            offer_to(depot, "forged", staged.offer)
            assert device.wait_for("active").name == "good"

    def test_no_old_one_from_an_old_persistence_file(
        self, depot: LiveFleet, model_server: ModelServer, tmp_path: Path
    ) -> None:
        store = ModelStore(depot.directory)
        old = store.stage(padded_model(tmp_path / "old.gguf", 2 * MIB, b"o"), "old")
        new = store.stage(padded_model(tmp_path / "new.gguf", 2 * MIB, b"n"), "new")
        home = make_home(depot, tmp_path / "home", "monotone")
        offer_to(depot, "monotone", new.offer)
        with DeliveringDevice(home) as device:
            device.wait_for("active")
        offer_to(depot, "monotone", old.offer)
        with DeliveringDevice(home) as device:
            assert device.delivery.offered.wait(WAIT_S)
            assert device.slots().current.name == "new"
        assert model_server.n_sent_bytes == 2 * MIB

    def test_one_that_is_taken_back_stops(self, depot: LiveFleet, tmp_path: Path) -> None:
        staged = ModelStore(depot.directory).stage(padded_model(tmp_path / "back.gguf", 3 * MIB), "back")
        offer_to(depot, "taken-back", staged.offer)
        home = make_home(depot, tmp_path / "home", "taken-back")
        with DeliveringDevice(home, limit_kib_per_s=512) as device:
            device.wait_for_bytes(MIB // 4)
            offer_to(depot, "taken-back", b"")
            device.wait_for("withdrawn")
            assert device.slots().previous is None


class TestHealthCheck:
    """Nothing is put to use that has not drafted."""

    def test_a_file_without_weights_is_refused_and_removed(self, depot: LiveFleet, tmp_path: Path) -> None:
        staged = ModelStore(depot.directory).stage(write_vocabulary(tmp_path / "empty.gguf"), "empty")
        offer_to(depot, "empty", staged.offer)
        with DeliveringDevice(make_home(depot, tmp_path / "home", "empty")) as device:
            assert "health check" in device.wait_for("refused").reason
            assert device.slots().current.path == "models/own.gguf"
            assert not (device.config.home / "models" / staged.manifest.file).exists()

    def test_a_vocabulary_that_is_not_the_promised_one_is_refused(
        self, depot: LiveFleet, tmp_path: Path
    ) -> None:
        staged = ModelStore(depot.directory).stage(padded_model(tmp_path / "v.gguf", 2 * MIB, b"v"), "v")
        lie = staged.manifest.model_copy(update={"vocabulary": "f" * 16})
        offer_to(depot, "misled", ModelSigner.of(depot.directory).sign(lie))
        with DeliveringDevice(make_home(depot, tmp_path / "home", "misled")) as device:
            assert "not ffffffffffffffff as its manifest says" in device.wait_for("refused").reason

    def test_a_model_waits_for_a_verifier_of_its_vocabulary(self, depot: LiveFleet, tmp_path: Path) -> None:
        home = make_home(depot, tmp_path / "home", "moving")
        text = (home / "device.toml").read_text()
        vocabulary = bundled_pair().vocabulary
        (home / "device.toml").write_text(text.replace(vocabulary, "0" * 16))
        staged = ModelStore(depot.directory).stage(padded_model(tmp_path / "m.gguf", 2 * MIB, b"m"), "m")
        offer_to(depot, "moving", staged.offer)
        with depot.link("verifier.v1", Recorder()) as verifier, DeliveringDevice(home) as device:
            advertise(verifier, "0" * 16)
            assert "no verifier speaks its vocabulary" in device.wait_for("waiting").reason
            advertise(verifier, vocabulary)
            device.wait_for("active")
            assert device.delivery.switched.is_set()
        with depot.link("verifier.v1", Recorder()) as verifier:
            verifier.publish(VERIFIER_STATUS.topic("f", v="v1"), b"", is_retained=True)


class TestDisk:
    """Full disks are said and waited out; nothing is lost."""

    @pytest.fixture(autouse=True)
    def hurry(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(desk, "ROOM_RETRY_S", 0.2)
        monkeypatch.setattr(desk, "try_out", lambda *_: None)

    def test_too_little_room_is_said_and_the_download_goes_on_when_there_is_more(
        self, depot: LiveFleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        staged = ModelStore(depot.directory).stage(padded_model(tmp_path / "r.gguf", 2 * MIB, b"r"), "r")
        offer_to(depot, "small-disk", staged.offer)
        with monkeypatch.context() as small:
            small.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=MIB))
            device = DeliveringDevice(make_home(depot, tmp_path / "home", "small-disk"))
            with device:
                assert "1 MiB are free" in device.wait_for("waiting").reason
                small.undo()
                assert device.wait_for("active", "refused", "failed").state == "active"

    def test_a_disk_that_fills_up_in_the_middle_is_waited_for(
        self,
        depot: LiveFleet,
        model_server: ModelServer,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        staged = ModelStore(depot.directory).stage(padded_model(tmp_path / "f.gguf", 2 * MIB, b"f"), "f")
        offer_to(depot, "filling", staged.offer)
        write, is_full = os.pwrite, threading.Event()
        is_full.set()

        def pwrite(descriptor: int, data: bytes, place: int) -> int:
            if place > MIB and is_full.is_set():
                raise OSError(errno.ENOSPC, "No space left on device")
            return write(descriptor, data, place)

        monkeypatch.setattr(os, "pwrite", pwrite)
        with DeliveringDevice(make_home(depot, tmp_path / "home", "filling")) as device:
            assert device.wait_for("waiting").reason == "the disk is full"
            is_full.clear()
            assert device.wait_for("active", "refused", "failed").state == "active"
            assert model_server.n_sent_bytes <= 2 * MIB + 10 * WINDOW_BLOCKS * BLOCK_BYTES


def advertise(verifier: Link, vocabulary: str) -> None:
    status = VerifierStatus(is_alive=True, incarnation="i", vocabulary=vocabulary)
    verifier.publish(VERIFIER_STATUS.topic("f", v="v1"), encode(status), is_retained=True)
