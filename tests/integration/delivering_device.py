"""A device that does nothing but take deliveries, and a fleet that offers them, over a real broker."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

from device_agent.config import DeviceConfig
from device_agent.delivery.delivery import Delivery
from device_agent.delivery.slots import Slots, store_of
from fleet.model_server import ModelServer
from protocol.codec import encode
from protocol.link import Endpoint, Link, LinkEvent, LinkOptions, Published, Subscription
from protocol.model_messages import OVER, DeliveryState, ModelOffer, ModelStatus
from protocol.topics import MODEL_OFFER, VERIFIER_STATUS
from provisioning.catalogue import bundled_pair
from tests.live_fleet import FAST, WAIT_S, LiveFleet, Recorder


def padded_model(file: Path, n_bytes: int, seed: bytes = b"x") -> Path:
    """A real draft model of this size: what follows the tensors is not looked at by llama.cpp."""
    shutil.copy(bundled_pair().drafts["draft-micro"], file)
    with file.open("ab") as out:
        rest = n_bytes - out.tell()
        block = bytes((place * 7 + seed[0]) % 251 for place in range(4096))
        for number in range(-(-rest // len(block))):
            out.write((number.to_bytes(4, "big") + block)[: max(0, min(len(block), n_bytes - out.tell()))])
    return file


def make_home(fleet: LiveFleet, home: Path, device: str, *, port: int | None = None) -> Path:
    """What an installed bundle leaves, with the bundled draft as the model in use."""
    (home / "models").mkdir(parents=True)
    (home / "identity").mkdir()
    model = shutil.copy(bundled_pair().drafts["draft-micro"], home / "models" / "own.gguf")
    tls = fleet.tls(device)
    for name, file in (("broker-ca", tls.ca_file), ("cert", tls.cert_file), ("key", tls.key_file)):
        shutil.copy(file, home / "identity" / f"{name}.pem")
    broker = fleet.broker
    (home / "device.toml").write_text(
        f'[identity]\nfleet = "f"\ndevice = "{device}"\n'
        f'[broker]\nhost = "{broker.host}"\nport = {port or broker.device_port}\n'
        f'[model]\npath = "models/{Path(model).name}"\nvocabulary = "{bundled_pair().vocabulary}"\n'
    )
    return home


def offer_to(fleet: LiveFleet, device: str, offer: ModelOffer | bytes) -> None:
    """Retain an offer, as `sled fleet models push` does."""
    recorder = Recorder()
    payload = offer if isinstance(offer, bytes) else encode(offer)
    with fleet.link("fleet.ops", recorder) as link:
        token = link.publish(MODEL_OFFER.topic("f", d=device), payload, is_retained=True)
        assert recorder.next(Published, lambda event: event.token == token).reason_code in (0x00, 0x10)


def serving_models(fleet: LiveFleet) -> ModelServer:
    """The service that hands models out, to be entered."""
    directory = fleet.directory.path / "models"
    return ModelServer(fleet.endpoint("fleet.models"), fleet="f", directory=directory)


class DeliveringDevice:
    """A link with a delivery on it; a context manager.

    Attributes:
        statuses: all that it told.
    """

    def __init__(self, home: Path, endpoint: Endpoint | None = None, *, limit_kib_per_s: int = 0) -> None:
        self.config = DeviceConfig.load(home)
        self.statuses: list[ModelStatus] = []
        self._changed = threading.Condition()
        self.delivery = Delivery(self.config, on_status=self._note)
        self._limit_kib_per_s = limit_kib_per_s
        options = LinkOptions(self.config.identity.device, keepalive_s=2, **FAST)
        self.link = Link(endpoint or self.config.endpoint, options, self._on_event)

    def __enter__(self) -> Self:
        adverts = Subscription(VERIFIER_STATUS.filter("f"), qos=0)
        self.link.subscribe([*self.delivery.subscriptions(), adverts])
        self.delivery.start(self.link, lambda: self._limit_kib_per_s)
        self.link.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.delivery.stop()
        self.link.stop()

    def slots(self) -> Slots:
        """What is on its disk."""
        return store_of(self.config).load()

    def wait_for(self, *states: DeliveryState, within_s: float = 3 * WAIT_S) -> ModelStatus:
        """The first status with one of these states."""
        with self._changed:
            found = self._changed.wait_for(
                lambda: next((each for each in self.statuses if each.state in states), None), within_s
            )
        assert found, f"none of {states} came: {self.statuses[-3:]}"
        return found

    def wait_for_bytes(self, n_bytes: int, within_s: float = 3 * WAIT_S) -> None:
        """Return once so much is here."""
        with self._changed:
            is_there = self._changed.wait_for(
                lambda: any(each.n_done >= n_bytes or each.state in OVER for each in self.statuses), within_s
            )
        assert is_there, f"{n_bytes} bytes did not come: {self.statuses[-3:]}"

    def _note(self, status: ModelStatus) -> None:
        with self._changed:
            self.statuses.append(status)
            self._changed.notify_all()

    def _on_event(self, event: LinkEvent) -> None:
        self.delivery.feed(event)
