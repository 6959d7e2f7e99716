"""A device's configuration: order of sources, refusals that name what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from device_agent.config import DeviceConfig
from protocol.errors import ConfigError

TOML = """\
[identity]
fleet = "home"
device = "pi-1"
[broker]
host = "edge.lan"
port = 8883
[model]
path = "models/draft.gguf"
[settings]
temperature = 0.5
max_draft = 4
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "device.toml").write_text(TOML)
    return tmp_path


def test_the_file_is_read(home: Path) -> None:
    config = DeviceConfig.load(home)
    assert (config.identity.fleet, config.identity.device) == ("home", "pi-1")
    assert config.settings.temperature == 0.5
    assert config.model_file == home / "models/draft.gguf"
    assert str(config.endpoint) == "edge.lan:8883"
    assert config.endpoint.tls is not None
    assert config.endpoint.tls.key_file == home / "identity/key.pem"


def test_environment_beats_the_file_and_overrides_beat_the_environment(home: Path) -> None:
    environment = {
        "SLED_DEVICE_SETTINGS_TEMPERATURE": "1",
        "SLED_DEVICE_SETTINGS_MAX_DRAFT": "2",
        "SLED_DEVICE_SETTINGS_SYSTEM_PROMPT": "1e3",
        "SLED_DEVICE_HOME": str(home),
        "PATH": "/bin",
    }
    config = DeviceConfig.load(home, {"settings.max_draft": 8, "settings.top_k": "5"}, environment)
    assert config.settings.temperature == 1.0
    assert (config.settings.max_draft, config.settings.top_k) == (8, 5)
    assert config.settings.system_prompt == "1e3"


def test_nothing_of_the_environment_counts_unless_it_is_passed(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLED_DEVICE_SETTINGS_TEMPERATURE", "9")
    assert DeviceConfig.load(home).settings.temperature == 0.5


@pytest.mark.parametrize(
    ("text", "overrides", "environment", "words"),
    [
        ("[settings]\ntemprature = 1\n", {}, {}, ["device.toml", "temprature", "did you mean 'temperature'"]),
        ("[setings]\n", {}, {}, ["device.toml", "setings", "did you mean 'settings'"]),
        ("settings = 3\n", {}, {}, ["settings", "not a section"]),
        ("[settings]\ntemperature = -1\n", {}, {}, ["[settings] temperature"]),
        ("[settings]\nmax_draft = 33\n", {}, {}, ["[settings] max_draft"]),
        ("[settings\n", {}, {}, ["device.toml", "cannot be read"]),
        ("", {"settings.max_drfat": 1}, {}, ["override", "did you mean 'max_draft'"]),
        (
            "",
            {},
            {"SLED_DEVICE_SETTINGS_TEMPRATURE": "1"},
            ["SLED_DEVICE_SETTINGS_TEMPRATURE", "temperature"],
        ),
        ("", {}, {"SLED_DEVICE_BROKER_PORT": "many"}, ["[broker] port"]),
    ],
)
def test_what_cannot_be_used_is_named(
    home: Path, text: str, overrides: dict[str, object], environment: dict[str, str], words: list[str]
) -> None:
    source = (home / "device.toml").read_text()
    if text.startswith(("[settings]", "settings")):
        source = source.replace("[settings]\ntemperature = 0.5\nmax_draft = 4\n", "")
    (home / "device.toml").write_text(text + source)
    with pytest.raises(ConfigError) as caught:
        DeviceConfig.load(home, overrides, environment)
    for word in words:
        assert word in str(caught.value)


def test_an_empty_home_says_how_to_install(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no device") as caught:
        DeviceConfig.load(tmp_path)
    assert "sled device install" in caught.value.hint


def test_a_missing_section_is_named(tmp_path: Path) -> None:
    (tmp_path / "device.toml").write_text('[identity]\nfleet = "home"\ndevice = "pi-1"\n')
    with pytest.raises(ConfigError, match=r"\[broker\] host: Field required"):
        DeviceConfig.load(tmp_path)


def test_the_fleet_changes_what_it_may_and_each_refusal_has_its_reason(home: Path) -> None:
    settings, refusals = DeviceConfig.load(home).settings.changed(
        {"temperature": 0, "max_draft": "x", "keep_checkpoint": False, "max_tokn": 5}
    )
    assert settings.temperature == 0.0
    assert (settings.max_draft, settings.keep_checkpoint) == (4, True)
    assert {refusal.key: refusal.reason for refusal in refusals} == {
        "max_draft": "'x': Input should be a valid integer",
        "keep_checkpoint": "only the device itself may change this",
        "max_tokn": "'max_tokn' is unknown; did you mean 'max_tokens'?",
    }
