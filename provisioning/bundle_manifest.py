"""What a bundle says of itself: the first member of a `.sled` file, checked before anything is unpacked."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

FORMAT = 1
MANIFEST = "manifest.json"
KEY, CERTIFICATE, BROKER_CA = "identity/key.pem", "identity/cert.pem", "identity/broker-ca.pem"
MODELS = "models"
MAX_MANIFEST_BYTES = 64 * 1024
MAX_PEM_BYTES = 64 * 1024
MAX_MODEL_BYTES = 32 * 1024**3

_Name = r"^[a-z0-9-]{1,48}$"
_FileName = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,150}\.gguf$"
_Sha256 = r"^[0-9a-f]{64}$"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class BrokerAddress(_Part):
    """The device listener; `server_name` when the certificate carries another name than `host`."""

    host: str = Field(min_length=1, max_length=255)
    port: int = Field(ge=1, le=65_535)
    server_name: str = ""


class BundledModel(_Part):
    """The draft model; `file` lies below `models/`."""

    name: str = Field(max_length=200)
    file: str = Field(pattern=_FileName)
    vocabulary: str = Field(pattern=r"^[0-9a-f]{16}$")


class Member(_Part):
    """Size and checksum of one file."""

    n_bytes: int = Field(ge=0, le=MAX_MODEL_BYTES)
    sha256: str = Field(pattern=_Sha256)


class Manifest(_Part):
    """All of it. `settings` are the device's; the device itself judges them when it starts."""

    format: int = FORMAT
    fleet: str = Field(pattern=_Name)
    device: str = Field(pattern=_Name)
    broker: BrokerAddress
    model: BundledModel
    settings: dict[str, str | bool | int | float] = Field(max_length=64)
    members: dict[str, Member] = Field(max_length=8)

    @property
    def model_member(self) -> str:
        return f"{MODELS}/{self.model.file}"

    @property
    def expected_members(self) -> tuple[str, ...]:
        """The names that the archive must hold besides the manifest: these and no others."""
        return KEY, CERTIFICATE, BROKER_CA, self.model_member
