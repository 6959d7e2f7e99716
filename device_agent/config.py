"""The configuration of a device: what `sled device install` put into its home, environment, explicit values.

    device.toml     [identity] fleet, device
                    [broker]   host, port, server_name
                    [model]    path, sha256, vocabulary, name
                    [settings] see `device_agent.settings`
    identity/       key.pem (0600), cert.pem, broker-ca.pem
    models/         the draft model
    journal/        what the device must not forget

Later sources win: device.toml, then for the model what the fleet has delivered (`models/slots.json`), then
environment variables `SLED_DEVICE_<SECTION>_<KEY>` (such as `SLED_DEVICE_SETTINGS_TEMPERATURE=0`), then
overrides that the user typed (`{"settings.temperature": 0}`).
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from device_agent.delivery.slots import read_slots
from device_agent.settings import Settings
from protocol.errors import ConfigError
from protocol.link_types import Endpoint, TlsFiles
from protocol.unknown_key import unknown_key

ENVIRONMENT_PREFIX = "SLED_DEVICE_"
HOME_VARIABLE = "SLED_DEVICE_HOME"
"""Says where the home is, for those who start us; nothing in it."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Identity(_Section):
    """Who this device is; equal to the common name of its certificate."""

    fleet: str = Field(pattern=r"^[a-z0-9-]{1,48}$")
    device: str = Field(pattern=r"^[a-z0-9-]{1,48}$")


class Broker(_Section):
    """Where the broker's device listener is.

    Attributes:
        server_name: name that the broker's certificate must carry, when it is not `host`.
    """

    host: str = Field(min_length=1, max_length=255)
    port: int = Field(ge=1, le=65_535)
    server_name: str = ""


class Model(_Section):
    """The draft model.

    Attributes:
        path: a GGUF file; relative to the home.
        sha256: 64 hex digits of the file.
        vocabulary: vocabulary fingerprint; a verifier with another one is not used.
    """

    path: str = Field(min_length=1)
    sha256: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")
    vocabulary: str = Field(default="", pattern=r"^([0-9a-f]{16})?$")
    name: str = ""


_SectionT = TypeVar("_SectionT", bound=BaseModel)

_SECTIONS: dict[str, type[BaseModel]] = {
    "identity": Identity,
    "broker": Broker,
    "model": Model,
    "settings": Settings,
}


class DeviceConfig(BaseModel):
    """A device's whole configuration, checked and frozen.

    Attributes:
        model: the draft model in use: a delivered one, else that of device.toml.
        own_model: that of device.toml; None when it is in use.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    home: Path
    identity: Identity
    broker: Broker
    model: Model
    settings: Settings = Settings()
    own_model: Model | None = None

    @classmethod
    def load(
        cls,
        home: Path,
        overrides: Mapping[str, Any] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> DeviceConfig:
        """Read `home/device.toml`; environment and overrides go on top.

        Args:
            overrides: `section.key` to value; what the user typed, as text or as a value of the right type.
            environment: the process's environment; only `SLED_DEVICE_*` counts, but for the home's own.

        Raises:
            ConfigError: the device is not installed, or a key or value is not legal; it names file or
                variable and key.
        """
        tables = _read_tables(home / "device.toml")
        for name, text in sorted((environment or {}).items()):
            if name.startswith(ENVIRONMENT_PREFIX) and name != HOME_VARIABLE:
                _put(tables, _environment_key(name), text, source=name)
        for key, value in (overrides or {}).items():
            _put(tables, key, value, source="override")
        identity = _checked(Identity, "identity", tables, home)
        broker = _checked(Broker, "broker", tables, home)
        model = _checked(Model, "model", tables, home)
        delivered = None if _is_model_named(overrides, environment) else _delivered_model(home)
        return cls(
            home=home,
            identity=identity,
            broker=broker,
            model=delivered or model,
            settings=_checked(Settings, "settings", tables, home),
            own_model=model if delivered else None,
        )

    @property
    def model_file(self) -> Path:
        return self.home / self.model.path

    @property
    def journal_directory(self) -> Path:
        return self.home / "journal"

    @property
    def endpoint(self) -> Endpoint:
        """The broker's device listener, with this device's own certificate."""
        identity = self.home / "identity"
        tls = TlsFiles(identity / "broker-ca.pem", identity / "cert.pem", identity / "key.pem")
        return Endpoint(self.broker.host, self.broker.port, tls, self.broker.server_name or None)


def _read_tables(file: Path) -> dict[str, dict[str, Any]]:
    try:
        tables = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(
            f"there is no device in {file.parent}", hint="install its bundle: sled device install FILE"
        ) from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read: {error}", hint="install the bundle again") from error
    for name, table in tables.items():
        if name not in _SECTIONS:
            raise ConfigError(f"{file}: section {unknown_key(name, _SECTIONS)}")
        if not isinstance(table, dict):
            raise ConfigError(f"{file}: {name!r} is a value, not a section", hint=f"write [{name}]")
        for key in table:
            _check_key(name, key, source=str(file))
    return {name: dict(tables.get(name, {})) for name in _SECTIONS}


def _check_key(section: str, key: str, *, source: str) -> None:
    fields = _SECTIONS[section].model_fields
    if key not in fields:
        raise ConfigError(f"{source}: [{section}] {unknown_key(key, fields)}")


def _put(tables: dict[str, dict[str, Any]], dotted: str, value: object, *, source: str) -> None:
    section, _, key = dotted.partition(".")
    if section not in _SECTIONS:
        raise ConfigError(
            f"{source}: section {unknown_key(section, _SECTIONS)}",
            hint=f"name section and key: {ENVIRONMENT_PREFIX}SETTINGS_TEMPERATURE, settings.temperature",
        )
    _check_key(section, key, source=source)
    field = _SECTIONS[section].model_fields[key]
    is_typed_text = isinstance(value, str) and field.annotation is not str
    tables[section][key] = _parsed(str(value)) if is_typed_text else value


def _environment_key(name: str) -> str:
    section, _, key = name.removeprefix(ENVIRONMENT_PREFIX).lower().partition("_")
    return f"{section}.{key}"


def _is_model_named(overrides: Mapping[str, Any] | None, environment: Mapping[str, str] | None) -> bool:
    """Whether somebody says by hand which model to use."""
    return any(key.startswith("model.") for key in overrides or {}) or any(
        name.startswith(f"{ENVIRONMENT_PREFIX}MODEL_") for name in environment or {}
    )


def _delivered_model(home: Path) -> Model | None:
    slots = read_slots(home)
    return None if slots is None else Model.model_validate(slots.current.model_dump())


def _parsed(text: str) -> object:
    """A TOML value where `text` is one, else the text itself."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _checked(
    section: type[_SectionT], name: str, tables: Mapping[str, Mapping[str, Any]], home: Path
) -> _SectionT:
    try:
        return section.model_validate(tables[name])
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ConfigError(
            f"configuration of {home}: [{name}] {key}: {first['msg']}",
            hint=f"correct it in {home / 'device.toml'} or in the value that was typed",
        ) from error
