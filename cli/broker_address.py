"""Where a fleet's broker is: written by whoever runs it, read by every command that needs it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from cli.options import host_and_port
from protocol.errors import ConfigError
from protocol.link_types import Endpoint, TlsFiles

DEVICE_PORT = 8883
BACKEND_PORT = 8884
CLAIM_PORT = 8885


@dataclass(frozen=True)
class BrokerAddress:
    """The broker's listeners.

    Attributes:
        host: by which devices and backends reach it.
    """

    host: str = "localhost"
    device_port: int = DEVICE_PORT
    backend_port: int = BACKEND_PORT
    claim_port: int = CLAIM_PORT

    @classmethod
    def of(cls, fleet_directory: Path, broker: str | None) -> BrokerAddress:
        """The address to use: `broker` as `HOST[:BACKEND_PORT]` when given, else the fleet's own.

        Raises:
            ConfigError: `broker` has a port that is none.
        """
        own = cls._stored(fleet_directory)
        if broker is None:
            return own
        host, backend_port = host_and_port(broker, own.host, own.backend_port)
        return cls(host, own.device_port, backend_port, own.claim_port)

    def store(self, fleet_directory: Path) -> None:
        """Remember this address with the fleet."""
        file = self._file(fleet_directory)
        draft = file.with_suffix(".draft")
        draft.write_text(json.dumps(asdict(self)), encoding="utf-8")
        draft.replace(file)

    def backend_endpoint(self, tls: TlsFiles) -> Endpoint:
        """The listener for verifiers and operators."""
        return Endpoint(self.host, self.backend_port, tls)

    @classmethod
    def _stored(cls, fleet_directory: Path) -> BrokerAddress:
        file = cls._file(fleet_directory)
        try:
            return cls(**json.loads(file.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return cls()
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(
                f"{file} cannot be read: {error}", hint="delete it; sled up writes it again"
            ) from error

    @staticmethod
    def _file(fleet_directory: Path) -> Path:
        return fleet_directory / "broker" / "address.json"
