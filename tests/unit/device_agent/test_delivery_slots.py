"""Two slots for draft models: the switch, the way back, and falling back by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from device_agent.config import DeviceConfig
from device_agent.delivery.model_start import StartedModel, start_model
from device_agent.delivery.offers import is_news
from device_agent.delivery.slots import (
    MOST_STARTS,
    ModelSlot,
    Slots,
    read_slots,
    slot_of,
    slots_file,
    store_of,
)
from device_agent.delivery.status_board import status_of
from device_agent.drafter import DrafterInfo
from protocol.errors import ModelError
from protocol.messages import SamplerSettings
from protocol.model_messages import DeliveryState
from tests.unit.device_agent.delivered_file import content_of, manifest_of

TOML = """\
[identity]
fleet = "home"
device = "pi-1"
[broker]
host = "edge.lan"
port = 8883
[model]
path = "models/own.gguf"
name = "own"
"""
MANIFEST = manifest_of(content_of(100), file="new.gguf", name="new")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "device.toml").write_text(TOML)
    (tmp_path / "models").mkdir()
    for name in ("own", "new", "newer"):
        (tmp_path / "models" / f"{name}.gguf").write_bytes(name.encode())
    return tmp_path


def put_to_use(home: Path, name: str) -> Slots:
    """As a delivery does when its health check was passed."""
    manifest = MANIFEST.model_copy(update={"file": f"{name}.gguf", "name": name})
    active = status_of(manifest, "active")
    return store_of(DeviceConfig.load(home)).update(
        lambda slots: slots.switched(slot_of(manifest)).with_status(active)
    )


def names_in_use(home: Path) -> tuple[str, str]:
    """Of the model in use, and of the one before."""
    slots = store_of(DeviceConfig.load(home)).load()
    return slots.current.name, slots.previous.name if slots.previous else ""


def test_without_slots_the_model_of_device_toml_is_in_use(home: Path) -> None:
    config = DeviceConfig.load(home)
    assert (config.model_file, config.own_model) == (home / "models/own.gguf", None)
    assert names_in_use(home) == ("own", "")


def test_a_delivered_model_comes_before_device_toml_and_after_what_is_typed(home: Path) -> None:
    put_to_use(home, "new")
    config = DeviceConfig.load(home)
    assert config.model_file == home / "models/new.gguf"
    assert config.own_model is not None
    assert config.own_model.name == "own"
    typed = DeviceConfig.load(home, {"model.path": "models/typed.gguf"})
    assert typed.model_file == home / "models/typed.gguf"
    named = DeviceConfig.load(home, environment={"SLED_DEVICE_MODEL_PATH": "models/env.gguf"})
    assert named.model_file == home / "models/env.gguf"


def test_the_third_model_pushes_the_first_out_but_never_that_of_device_toml(home: Path) -> None:
    put_to_use(home, "new")
    put_to_use(home, "newer")
    assert names_in_use(home) == ("newer", "new")
    assert (home / "models/own.gguf").exists()
    (home / "models/newest.gguf").write_bytes(b"newest")
    put_to_use(home, "newest")
    assert names_in_use(home) == ("newest", "newer")
    assert not (home / "models/new.gguf").exists()
    assert (home / "models/own.gguf").exists()


def test_rolling_back_swaps_the_two_and_ends_the_delivery(home: Path) -> None:
    put_to_use(home, "new")
    slots = store_of(DeviceConfig.load(home)).update(Slots.rolled_back)
    assert names_in_use(home) == ("own", "new")
    assert slots.status is not None
    assert slots.status.state == "rolled_back"
    assert names_in_use(home) == ("own", "new")
    store_of(DeviceConfig.load(home)).update(Slots.rolled_back)
    assert names_in_use(home) == ("new", "own")


def test_there_is_no_way_back_from_the_first_model(home: Path) -> None:
    with pytest.raises(ModelError, match="no model to go back to"):
        store_of(DeviceConfig.load(home)).update(Slots.rolled_back)


def test_damaged_slots_are_as_good_as_none(home: Path) -> None:
    put_to_use(home, "new")
    slots_file(home).write_text('{"current": 7}')
    assert read_slots(home) is None
    assert DeviceConfig.load(home).model_file == home / "models/own.gguf"


def test_a_file_outside_the_models_folder_is_never_removed(home: Path) -> None:
    precious = home / "precious.gguf"
    precious.write_bytes(b"mine")
    store = store_of(DeviceConfig.load(home))
    store.update(lambda slots: slots.switched(ModelSlot(path="precious.gguf")))
    for name in ("new", "newer"):
        put_to_use(home, name)
    assert precious.exists()


@dataclass
class FakeDrafter:
    info: DrafterInfo
    is_closed: bool = False

    def sync(self, tokens: Sequence[int]) -> None:
        del tokens

    def draft(self, settings: SamplerSettings, n: int, *, min_probability: float = 0.0) -> list[int]:
        del settings, min_probability
        return [1] * n

    def close(self) -> None:
        self.is_closed = True


class FakeVocabulary:
    def encode(self, text: str) -> list[int]:
        return [1] * len(text)


@dataclass
class Loader:
    """Loads by name; what is in `broken` cannot be loaded, `changed` has other bytes than delivered."""

    broken: set[str] = field(default_factory=set)
    changed: set[str] = field(default_factory=set)
    loaded: list[str] = field(default_factory=list)

    def __call__(self, config: DeviceConfig) -> StartedModel:
        name = config.model_file.stem
        self.loaded.append(name)
        if name in self.broken:
            raise ModelError(f"{name} is damaged")
        model_hash = "f" * 64 if name in self.changed else MANIFEST.sha256
        info = DrafterInfo("fake", name, model_hash, 10, MANIFEST.vocabulary, 100)
        vocabulary: Any = FakeVocabulary()
        return StartedModel(config, vocabulary, FakeDrafter(info))


def start(home: Path, loader: Loader) -> str:
    """The name of the model that an agent starts with."""
    return start_model(home, {}, {}, loader).config.model_file.stem


def state_of(home: Path) -> tuple[str, str]:
    slots = read_slots(home)
    assert slots is not None
    assert slots.status is not None
    return slots.status.state, slots.status.reason


def test_a_new_model_that_starts_is_proven(home: Path) -> None:
    put_to_use(home, "new")
    assert start(home, Loader()) == "new"
    slots = read_slots(home)
    assert slots is not None
    assert (slots.is_proven, slots.n_starts) == (True, 0)


@pytest.mark.parametrize(
    ("loader", "reason"),
    [(Loader(broken={"new"}), "damaged"), (Loader(changed={"new"}), "changed on the disk")],
)
def test_a_model_that_does_not_start_makes_way_for_the_one_before(
    home: Path, loader: Loader, reason: str
) -> None:
    put_to_use(home, "new")
    assert start(home, loader) == "own"
    state, why = state_of(home)
    assert state == "fell_back"
    assert reason in why
    assert not (home / "models/new.gguf").exists()
    assert start(home, loader) == "own"


def test_a_model_that_takes_the_device_down_is_given_up_after_a_few_starts(home: Path) -> None:
    """The count is on the disk before the model is loaded."""
    put_to_use(home, "new")

    def die(config: DeviceConfig) -> StartedModel:
        del config
        raise KeyboardInterrupt

    for _ in range(MOST_STARTS):
        with pytest.raises(KeyboardInterrupt):
            start_model(home, {}, {}, die)
    assert start(home, Loader()) == "own"
    assert state_of(home)[0] == "fell_back"


def test_when_both_slots_fail_the_model_of_device_toml_is_left(home: Path) -> None:
    put_to_use(home, "new")
    put_to_use(home, "newer")
    loader = Loader(broken={"new", "newer"})
    assert start(home, loader) == "own"
    assert loader.loaded == ["newer", "new", "own"]


def test_when_nothing_loads_that_is_said(home: Path) -> None:
    put_to_use(home, "new")
    with pytest.raises(ModelError, match="own is damaged"):
        start(home, Loader(broken={"own", "new"}))


def test_a_model_that_was_typed_is_loaded_or_refused(home: Path) -> None:
    put_to_use(home, "new")
    with pytest.raises(ModelError, match="typed is damaged"):
        start_model(home, {"model.path": "models/typed.gguf"}, {}, Loader(broken={"typed"}))
    assert names_in_use(home) == ("new", "own")


def test_files_of_deliveries_that_nobody_will_use_make_room(home: Path) -> None:
    kept = ("used-00000001", "before-00000002", "coming-00000003", "own", "mine")
    for name in (*kept, "waited-00000004"):
        (home / "models" / f"{name}.gguf").write_bytes(b"x")
    put_to_use(home, "before-00000002")
    put_to_use(home, "used-00000001")
    store = store_of(DeviceConfig.load(home))
    store.remove_strays("coming-00000003.gguf")
    assert {file.stem for file in (home / "models").glob("*.gguf")} == {*kept, "new", "newer"}
    slots_file(home).write_bytes(b"damaged")
    store.remove_strays("coming-00000003.gguf")
    assert (home / "models" / "used-00000001.gguf").exists(), "unknown is not unused"


@pytest.mark.parametrize("state", ["downloading", "waiting", "active", "refused"])
def test_an_older_offer_is_no_news_whatever_became_of_the_newer_one(state: DeliveryState) -> None:
    newer = status_of(MANIFEST.model_copy(update={"revision": MANIFEST.revision + 1}), state)
    assert not is_news(MANIFEST, newer)
    assert is_news(MANIFEST, None)
    assert is_news(MANIFEST.model_copy(update={"revision": MANIFEST.revision + 2}), newer)
