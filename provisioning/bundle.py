"""Bundles: everything that makes a board a device of a fleet, in one `.sled` file.

A gzipped tar with a fixed order of members: `manifest.json`, key, certificate, the broker's CA, the draft
model. It holds a private key, so it is readable by its owner only. `provisioning.installation` unpacks it.
"""

from __future__ import annotations

import gzip
import io
import os
import re
import secrets
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from pydantic import ValidationError

from protocol.atomic_file import SECRET_MODE, sync_directory
from protocol.errors import ProvisioningError
from protocol.fingerprint import file_sha256, vocabulary_fingerprint
from protocol.vocabulary import gguf_vocabulary
from provisioning import bundle_manifest as names
from provisioning.bundle_manifest import BrokerAddress, BundledModel, Manifest, Member
from provisioning.fleet_directory import FleetDirectory
from provisioning.installation import InstalledDevice, install
from provisioning.toml_text import Scalar

__all__ = ["BrokerAddress", "InstalledDevice", "ModelFiles", "install", "make_bundle"]


@dataclass(frozen=True)
class ModelFiles:
    """A draft model: its file, the name that people know it by, and what was computed from the file."""

    file: Path
    name: str
    sha256: str
    vocabulary: str

    @classmethod
    def of(cls, file: Path, name: str = "") -> ModelFiles:
        """Read `file`.

        Raises:
            ModelError: it is not a GGUF file with a vocabulary.
        """
        vocabulary = vocabulary_fingerprint(gguf_vocabulary(file))
        return cls(file, name or file.stem, file_sha256(file), vocabulary)


def make_bundle(
    fleet: FleetDirectory,
    device_id: str,
    model: ModelFiles,
    broker: BrokerAddress,
    out: Path,
    *,
    settings: Mapping[str, Scalar] | None = None,
    replace: bool = False,
) -> Path:
    """Give a device an identity and write its bundle to `out`, which appears complete or not at all.

    The private key is nowhere but in the bundle.

    Args:
        replace: give a known device a new identity; also overwrite `out`.

    Raises:
        ProvisioningError: the id is not legal or taken, or `out` exists, or cannot be written.
    """
    if out.exists() and not replace:
        raise ProvisioningError(f"{out} exists", hint="name another file, or use --replace")
    if not replace:
        fleet.registry.check_is_new(device_id)
    issued = fleet.authority("device").issue(device_id)
    pems = {
        names.KEY: issued.key_pem,
        names.CERTIFICATE: issued.certificate_pem,
        names.BROKER_CA: fleet.server_ca_file.read_bytes(),
    }
    manifest = _manifest(fleet.fleet, device_id, model, broker, settings=settings or {}, pems=pems)
    draft = out.with_name(f".{out.name}.{secrets.token_hex(4)}")
    fleet.audit.append("provision", device_id, model=model.name, replace=replace)
    try:
        _write(draft, manifest, pems, model.file)
        # Recorded before the bundle has its name: a certificate that may have left is always known.
        fleet.registry.add_device(device_id, model.name, issued.certificate, replace=replace)
        draft.replace(out)
        sync_directory(out.parent)
    except OSError as error:
        raise ProvisioningError(
            f"bundle {out} cannot be written: {error.strerror or error}",
            hint="name a file in a folder that may be written and has room: --out FILE",
        ) from error
    finally:
        draft.unlink(missing_ok=True)
    return out


def _manifest(
    fleet: str,
    device_id: str,
    model: ModelFiles,
    broker: BrokerAddress,
    *,
    settings: Mapping[str, Scalar],
    pems: Mapping[str, bytes],
) -> Manifest:
    file = re.sub(r"[^A-Za-z0-9._-]", "-", model.file.name).lstrip("._-")
    members = {name: Member(n_bytes=len(pem), sha256=sha256(pem).hexdigest()) for name, pem in pems.items()}
    size = model.file.stat().st_size
    members[f"{names.MODELS}/{file}"] = Member(n_bytes=size, sha256=model.sha256)
    try:
        return Manifest(
            fleet=fleet,
            device=device_id,
            broker=broker,
            model=BundledModel(name=model.name, file=file, vocabulary=model.vocabulary),
            settings=dict(settings),
            members=members,
        )
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"][:2])
        raise ProvisioningError(f"a bundle cannot hold this {where}: {first['msg']}") from error


def _write(file: Path, manifest: Manifest, pems: Mapping[str, bytes], model: Path) -> None:
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, SECRET_MODE)
    with os.fdopen(descriptor, "wb") as raw:
        # No name and no time in the header, and level 1 because weights hardly shrink.
        with (
            gzip.GzipFile("", "wb", compresslevel=1, fileobj=raw, mtime=0) as packed,
            tarfile.open(fileobj=packed, mode="w|", format=tarfile.PAX_FORMAT) as archive,
        ):
            texts = {names.MANIFEST: manifest.model_dump_json(indent=1).encode(), **pems}
            for name, content in texts.items():
                archive.addfile(_entry(name, len(content)), io.BytesIO(content))
            with model.open("rb") as content_file:
                archive.addfile(_entry(manifest.model_member, model.stat().st_size), content_file)
        raw.flush()
        os.fsync(raw.fileno())


def _entry(name: str, n_bytes: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = n_bytes, SECRET_MODE
    return entry
