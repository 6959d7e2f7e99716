"""The models that a fleet delivers: copied into the fleet directory, each with a signed manifest.

models/{sha256}.gguf            what devices get, never changed
models/{sha256}.offer.json      the newest signed manifest of it

`sled fleet serve` hands these files out; `fleet backup` leaves them out, as they can be pushed again.
"""

from __future__ import annotations

import os
import re
import secrets
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from pydantic import ValidationError

from protocol.atomic_file import locked, sync_directory, write_atomically
from protocol.codec import decode, encode
from protocol.errors import MessageError, ProvisioningError
from protocol.fingerprint import vocabulary_fingerprint
from protocol.messages import MAX_PAYLOAD_BYTES
from protocol.model_manifest import ModelManifest, chunk_bytes_for, pack_digests
from protocol.model_messages import ModelOffer
from protocol.vocabulary import gguf_vocabulary
from provisioning.fleet_directory import FleetDirectory
from provisioning.model_signer import ModelSigner

MODELS = "models"


@dataclass(frozen=True)
class StagedModel:
    """A model that can be offered to devices."""

    manifest: ModelManifest
    offer: ModelOffer
    file: Path


@dataclass(frozen=True)
class ModelPlace:
    """Where devices get a file beside the fleet's own service.

    Attributes:
        url: `https://...` of exactly this file; empty for none.
        url_ca: PEM certificates by which to know that server; empty trusts the devices' systems.
        is_over_mqtt: False when the file is to come from `url` only.
    """

    url: str = ""
    url_ca: str = ""
    is_over_mqtt: bool = True


class ModelStore:
    """The staged models of one fleet."""

    def __init__(self, fleet: FleetDirectory) -> None:
        self._fleet = fleet
        self._directory = fleet.path / MODELS

    def stage(self, file: Path, name: str, place: ModelPlace | None = None) -> StagedModel:
        """Copy `file`, sign a manifest of it with a new revision, and keep both.

        Raises:
            ModelError: it is not a GGUF file with a vocabulary.
            ProvisioningError: it cannot be read or copied, or name or place cannot be sent.
        """
        vocabulary = vocabulary_fingerprint(gguf_vocabulary(file))
        signer = ModelSigner.of(self._fleet)
        place = place or ModelPlace()
        try:
            self._directory.mkdir(mode=0o700, exist_ok=True)
            with locked(self._directory / ".lock"):
                digest, chunks, n_bytes = self._copy(file)
                manifest = ModelManifest(
                    fleet=self._fleet.fleet,
                    revision=self._next_revision(),
                    name=name,
                    file=_file_name(file, digest),
                    n_bytes=n_bytes,
                    sha256=digest,
                    vocabulary=vocabulary,
                    chunk_bytes=chunk_bytes_for(n_bytes),
                    chunks=chunks,
                    is_over_mqtt=place.is_over_mqtt,
                    url=place.url,
                    url_ca=place.url_ca,
                )
                offer = signer.sign(manifest)
                payload = encode(offer)
                if len(payload) > MAX_PAYLOAD_BYTES:
                    raise ProvisioningError(
                        f"the manifest of {name} has {len(payload)} bytes, more than one message can carry",
                        hint="name a CA file with fewer certificates",
                    )
                self._fleet.audit.append("stage-model", name, sha256=digest, revision=manifest.revision)
                write_atomically(self._directory / f"{digest}.offer.json", payload)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "manifest"
            raise ProvisioningError(f"this model cannot be offered: {where}: {first['msg']}") from error
        except OSError as error:
            raise ProvisioningError(f"{file} cannot be staged: {error.strerror or error}") from error
        return StagedModel(manifest, offer, self._directory / f"{digest}.gguf")

    def staged(self) -> tuple[StagedModel, ...]:
        """All of them, the newest first; an offer that cannot be read is left out."""
        return tuple(sorted(self._read(), key=lambda each: -each.manifest.revision))

    def prune(self, offered: Collection[str]) -> tuple[str, ...]:
        """Remove the models whose sha256 is not one of `offered`; the names of those removed."""
        removed: list[str] = []
        if not self._directory.is_dir():
            return ()
        with locked(self._directory / ".lock"):
            for staged in self.staged():
                if staged.manifest.sha256 not in offered:
                    staged.file.unlink(missing_ok=True)
                    (self._directory / f"{staged.manifest.sha256}.offer.json").unlink(missing_ok=True)
                    removed.append(staged.manifest.name)
        if removed:
            self._fleet.audit.append("prune-models", self._fleet.fleet, models=removed)
        return tuple(removed)

    def _read(self) -> Iterator[StagedModel]:
        for path in self._directory.glob("*.offer.json"):
            try:
                offer = decode(ModelOffer, path.read_bytes())
                manifest = ModelManifest.parse(offer.manifest)
            except (OSError, MessageError):
                continue
            yield StagedModel(manifest, offer, self._directory / f"{manifest.sha256}.gguf")

    def _next_revision(self) -> int:
        """Above all that were signed; by the clock, as a fleet directory may come back from a backup."""
        last = max((each.manifest.revision for each in self._read()), default=0)
        return max(last + 1, int(time.time()))

    def _copy(self, file: Path) -> tuple[str, str, int]:
        """Put the file in its place; its sha256, the digests of its chunks, and its size."""
        draft = self._directory / f".{secrets.token_hex(8)}"
        chunk_bytes = chunk_bytes_for(file.stat().st_size)
        whole = sha256()
        try:
            with file.open("rb") as source, draft.open("wb") as target:

                def chunks() -> Iterator[bytes]:
                    while chunk := source.read(chunk_bytes):
                        whole.update(chunk)
                        target.write(chunk)
                        yield chunk

                digests = pack_digests(chunks())
                n_bytes = target.tell()
                target.flush()
                os.fsync(target.fileno())
            draft.replace(self._directory / f"{whole.hexdigest()}.gguf")
            sync_directory(self._directory)
        finally:
            draft.unlink(missing_ok=True)
        return whole.hexdigest(), digests, n_bytes


def _file_name(file: Path, digest: str) -> str:
    """A name that every device can use, and that no other model has."""
    stem = re.sub(r"[^A-Za-z0-9._-]", "-", file.stem).lstrip("._-")[:100] or "model"
    return f"{stem}-{digest[:8]}.gguf"
