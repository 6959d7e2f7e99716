"""How a draft model reaches a device over bad links: time, and how much of it was sent more than once.

    python -m bench.delivery [--mib 30] [--cuts 20] [--links perfect wifi lte 5g-rural]

A file of random bytes, a private broker and the fleet's model server on this machine, the device behind an
emulated link that is cut at even shares of the file. It reconnects at once: so many cuts in so short a time
would else be answered by ever longer pauses. `sent` counts what the server published, `carried` what the link
delivered with TLS, MQTT and everything else, both as shares of the file. Goal: at most 1.10.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path

from bench.link_emulator import EmulatedLink, LinkEmulator
from bench.link_scenario import PERFECT, Scenario
from bench.machine import describe_machine
from broker_config.private_broker import PrivateBroker
from device_agent.config import Broker, DeviceConfig, Identity, Model
from device_agent.delivery.delivery import Delivery
from fleet.model_server import MODEL_SERVER, ModelServer
from protocol.codec import encode
from protocol.link import Endpoint, Link, LinkOptions
from protocol.model_messages import ModelStatus
from protocol.topics import MODEL_OFFER
from provisioning.bundle import ModelFiles
from provisioning.catalogue import bundled_pair
from provisioning.fleet_directory import OPERATOR, FleetDirectory
from provisioning.model_store import ModelStore, StagedModel

GOAL = 1.1
CUT_S = 0.05
TIMEOUT_S = 900.0
DEVICE = "bench"


class Receiver:
    """A device that takes one delivery and leaves when the file is whole."""

    def __init__(self, config: DeviceConfig) -> None:
        self._n_done = 0
        self._has_all = threading.Event()
        self._delivery = Delivery(config, on_status=self._note)
        options = LinkOptions(DEVICE, first_delay_s=0.05, longest_delay_s=0.2)
        self._link = Link(config.endpoint, options, self._feed)
        self._link.subscribe(self._delivery.subscriptions())

    def receive(self, link: EmulatedLink, n_bytes: int, n_cuts: int) -> float:
        """Seconds until the file is whole, with so many cuts on the way."""
        started_s = time.monotonic()
        self._delivery.start(self._link)
        self._link.start()
        try:
            for cut in range(1, n_cuts + 1):
                while link.bytes_down < cut * n_bytes / (n_cuts + 2) or self._link.traffic.n_connects < cut:
                    self._check(started_s)
                link.cut(CUT_S)
            while not self._has_all.is_set():
                self._check(started_s)
            return time.monotonic() - started_s
        finally:
            self._delivery.stop()
            self._link.stop()

    def _check(self, started_s: float) -> None:
        if time.monotonic() - started_s > TIMEOUT_S:
            raise TimeoutError(f"the file did not arrive within {TIMEOUT_S:g} s")
        time.sleep(0.002)

    def _note(self, status: ModelStatus) -> None:
        if status.state not in ("downloading", "waiting"):
            self._has_all.set()

    def _feed(self, event: object) -> None:
        self._delivery.feed(event)  # type: ignore[arg-type]  # the link's own events


class Depot:
    """A fleet with one staged file, its broker, and what serves it."""

    def __init__(self, folder: Path, n_bytes: int, parts: ExitStack) -> None:
        self.fleet = FleetDirectory.create(folder / "fleet", fleet="bench")
        self._models = self.fleet.add_backend(*MODEL_SERVER)
        self.broker = parts.enter_context(PrivateBroker(self.fleet.broker_files(), folder / "broker"))
        file = folder / "model.gguf"
        shutil.copy(ModelFiles.of(bundled_pair().drafts["draft-micro"]).file, file)
        with file.open("ab") as out:
            out.write(os.urandom(n_bytes - file.stat().st_size))
        self.staged: StagedModel = ModelStore(self.fleet).stage(file, "bench")
        self._offer()

    def serving(self) -> ModelServer:
        """The model server, to be entered."""
        endpoint = Endpoint("127.0.0.1", self.broker.backend_port, self._models)
        return ModelServer(endpoint, fleet="bench", directory=self.fleet.path / "models")

    def new_home(self, home: Path, port: int) -> DeviceConfig:
        """A device with nothing but an identity."""
        (home / "identity").mkdir(parents=True)
        issued = self.fleet.authority("device").issue(DEVICE)
        shutil.copy(self.fleet.server_ca_file, home / "identity" / "broker-ca.pem")
        (home / "identity" / "key.pem").write_bytes(issued.key_pem)
        (home / "identity" / "cert.pem").write_bytes(issued.certificate_pem)
        return DeviceConfig(
            home=home,
            identity=Identity(fleet="bench", device=DEVICE),
            broker=Broker(host="127.0.0.1", port=port),
            model=Model(path="none.gguf"),
        )

    def _offer(self) -> None:
        identity = ".".join(OPERATOR)
        endpoint = Endpoint("127.0.0.1", self.broker.backend_port, self.fleet.endpoint_tls(identity))
        link = Link(endpoint, LinkOptions(identity), lambda _: None)
        link.start()
        link.wait_connected(10.0)
        link.publish(MODEL_OFFER.topic("bench", d=DEVICE), encode(self.staged.offer), is_retained=True)
        link.stop()


def main() -> int:
    """Print one row per link; 1 when a goal was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--mib", type=int, default=30)
    parser.add_argument("--cuts", type=int, default=20)
    parser.add_argument("--links", nargs="+", default=["perfect", "wifi", "lte", "5g-rural"])
    options = parser.parse_args()
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # it warns of every connection that was cut
    n_bytes, is_met = options.mib * 1024 * 1024, True
    print(describe_machine())
    print(f"{options.mib} MiB, {options.cuts} cuts\n")
    print("| link | s | MiB/s | sent | carried |\n|---|--:|--:|--:|--:|")
    with tempfile.TemporaryDirectory() as folder, ExitStack() as parts:
        depot = Depot(Path(folder), n_bytes, parts)
        emulator = parts.enter_context(LinkEmulator())
        for name in options.links:
            scenario = PERFECT if name == "perfect" else Scenario.named(name)
            link = emulator.add("127.0.0.1", depot.broker.device_port, scenario, seed=1)
            with depot.serving() as server:
                config = depot.new_home(Path(folder) / name, link.port)
                took_s = Receiver(config).receive(link, n_bytes, options.cuts)
                sent, carried = server.n_sent_bytes / n_bytes, link.bytes_down / n_bytes
            is_met = is_met and max(sent, carried) <= GOAL
            speed = options.mib / took_s
            print(f"| {name} | {took_s:.1f} | {speed:.2f} | {sent:.3f} | {carried:.3f} |", flush=True)
    return 0 if is_met else 1


if __name__ == "__main__":
    sys.exit(main())
