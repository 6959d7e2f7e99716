"""Puts a bundle in place on a device: checked completely before anything becomes visible.

device.toml                                  what `device_agent.config` reads
identity/{key.pem,cert.pem,broker-ca.pem}
models/{file}.gguf
journal/                                     left alone when the same device is installed again
"""

from __future__ import annotations

import os
import secrets
import shutil
import tarfile
import tomllib
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import IO

from cryptography import x509
from cryptography.x509.oid import NameOID
from pydantic import ValidationError

from protocol.atomic_file import SECRET_MODE, sync_directory, write_atomically
from protocol.errors import ModelError, ProvisioningError
from protocol.gguf_header import read_gguf_header
from provisioning import bundle_manifest as names
from provisioning.bundle_manifest import Manifest
from provisioning.keys import load_key
from provisioning.toml_text import toml_document

_PIECE_BYTES = 1 << 20
_ASK_AGAIN = "copy the bundle again, or have a new one made: sled provision device"


@dataclass(frozen=True)
class InstalledDevice:
    """What is now in the home."""

    fleet: str
    device: str
    home: Path


def install(
    bundle: Path, home: Path, *, replace: bool = False, prove: Callable[[Path], None] | None = None
) -> InstalledDevice:
    """Check `bundle` and put it into `home`.

    A home that was empty becomes complete in one step. A replaced one is moved aside first and removed when
    the new one is in place; the journal moves over when fleet and device are the same. When this is killed in
    the middle of that, the next call first puts the old home back, or moves the journal over.

    Args:
        prove: called with the complete new home before it takes the old one's place; raises to leave that.

    Raises:
        ProvisioningError: the bundle is damaged or is none, or `home` holds something already and `replace`
            is False; nothing has changed then.
    """
    _settle(home)
    check_home(home, replace=replace)
    home.parent.mkdir(parents=True, exist_ok=True)
    draft = home.with_name(f".{home.name}.{secrets.token_hex(4)}")
    try:
        draft.mkdir(mode=0o700)
        manifest = _unpack(bundle, draft)
        _check_identity(draft, manifest)
        complete(draft, manifest)
        if prove is not None:
            prove(draft)
        _put_in_place(draft, home)
    except (EOFError, tarfile.TarError, ValidationError, ValueError) as error:
        text = (
            f"{error.error_count()} faults in its manifest" if isinstance(error, ValidationError) else error
        )
        raise ProvisioningError(f"{bundle} is not a usable bundle: {text}", hint=_ASK_AGAIN) from error
    except OSError as error:
        raise ProvisioningError(
            f"{bundle} cannot be installed: {error.strerror or error}",
            hint=f"check its path, and that {home.parent} may be written and has room",
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return InstalledDevice(manifest.fleet, manifest.device, home)


def read_identity(bundle: Path) -> tuple[str, str]:
    """Fleet and device of a bundle, from its manifest alone.

    Raises:
        ProvisioningError: it cannot be read, or is no bundle.
    """
    try:
        with tarfile.open(bundle, mode="r|gz") as archive:
            manifest = _read_manifest(next(_members(archive), None))
    except (EOFError, tarfile.TarError, ValidationError, ValueError, zlib.error) as error:
        raise ProvisioningError(f"{bundle} is not a usable bundle", hint=_ASK_AGAIN) from error
    except OSError as error:
        raise ProvisioningError(
            f"{bundle} cannot be read: {error.strerror or error}", hint="check its path"
        ) from error
    return manifest.fleet, manifest.device


def complete(draft: Path, manifest: Manifest) -> None:
    """Add configuration and journal to a home that has identity and model."""
    write_atomically(draft / "device.toml", _device_toml(manifest).encode(), mode=SECRET_MODE)
    (draft / "journal").mkdir(mode=0o700, exist_ok=True)


def check_home(home: Path, *, replace: bool) -> None:
    """Do nothing when a device may be put into `home`.

    Raises:
        ProvisioningError: there is something, and it is no device or `replace` is False.
    """
    if not home.exists() or (home.is_dir() and not any(home.iterdir())):
        return
    if not (home / "device.toml").is_file():
        raise ProvisioningError(f"{home} is not empty and holds no device", hint="name another home: --home")
    if not replace:
        owner = identity_of(home)[1] or "a device"
        raise ProvisioningError(
            f"{home} already holds {owner}", hint="replace its identity on purpose: --replace"
        )


def _unpack(bundle: Path, draft: Path) -> Manifest:
    """Only members that the manifest may name, each a plain file of the size and checksum that it states."""
    # Nothing of the archive's own names, modes or links is used, so that none can lead out of `draft`.
    with tarfile.open(bundle, mode="r|gz") as archive:
        members = _members(archive)
        manifest = _read_manifest(next(members, None))
        wanted = set(manifest.expected_members)
        if set(manifest.members) != wanted:
            raise ValueError("its manifest names other files than a bundle has")
        for name, n_bytes, content in members:
            if name not in wanted:
                raise ValueError(f"member {name!r:.80} does not belong in it, or is there twice")
            wanted.remove(name)
            limit = names.MAX_MODEL_BYTES if name == manifest.model_member else names.MAX_PEM_BYTES
            expected = manifest.members[name]
            if n_bytes != expected.n_bytes or n_bytes > limit:
                raise ValueError(f"{name} has {n_bytes} bytes, not {expected.n_bytes}")
            if _write(draft / name, content) != expected.sha256:
                raise ValueError(f"checksum of {name} is wrong")
    if wanted:
        raise ValueError(f"{', '.join(sorted(wanted))} missing")
    return manifest


def _members(archive: tarfile.TarFile) -> Iterator[tuple[str, int, IO[bytes]]]:
    for entry in archive:
        content = archive.extractfile(entry) if entry.isreg() else None
        if content is None:
            raise ValueError(f"member {entry.name!r:.80} is not a plain file")
        yield entry.name, entry.size, content


def _read_manifest(member: tuple[str, int, IO[bytes]] | None) -> Manifest:
    if member is None or member[0] != names.MANIFEST:
        raise ValueError("it does not begin with a manifest")
    _, n_bytes, content = member
    if n_bytes > names.MAX_MANIFEST_BYTES:
        raise ValueError(f"its manifest has {n_bytes} bytes, more than {names.MAX_MANIFEST_BYTES}")
    manifest = Manifest.model_validate_json(content.read())
    if manifest.format != names.FORMAT:
        raise ProvisioningError(
            f"the bundle has format {manifest.format}, this SLED installs {names.FORMAT}", hint="update SLED"
        )
    return manifest


def _write(file: Path, content: IO[bytes]) -> str:
    """Copy to `file`, synced and readable by its owner only; the sha256 of what was written."""
    file.parent.mkdir(mode=0o700, exist_ok=True)
    digest = sha256()
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, SECRET_MODE)
    with os.fdopen(descriptor, "wb") as target:
        while piece := content.read(_PIECE_BYTES):
            digest.update(piece)
            target.write(piece)
        target.flush()
        os.fsync(target.fileno())
    return digest.hexdigest()


def _check_identity(draft: Path, manifest: Manifest) -> None:
    try:
        key = load_key(draft / names.KEY)
    except ProvisioningError as error:
        raise ValueError("its key cannot be read") from error
    certificate = x509.load_pem_x509_certificate((draft / names.CERTIFICATE).read_bytes())
    x509.load_pem_x509_certificate((draft / names.BROKER_CA).read_bytes())
    common_names = [name.value for name in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    if common_names != [manifest.device]:
        raise ValueError(f"its certificate is not that of {manifest.device}")
    if key.public_key() != certificate.public_key():
        raise ValueError("its key and certificate do not belong together")
    try:
        read_gguf_header(draft / manifest.model_member)
    except ModelError as error:
        raise ValueError("its draft model is not a GGUF file") from error


def _device_toml(manifest: Manifest) -> str:
    model = manifest.model
    broker = manifest.broker
    return toml_document(
        {
            "identity": {"fleet": manifest.fleet, "device": manifest.device},
            "broker": {"host": broker.host, "port": broker.port, "server_name": broker.server_name},
            "model": {
                "path": manifest.model_member,
                "sha256": manifest.members[manifest.model_member].sha256,
                "vocabulary": model.vocabulary,
                "name": model.name,
            },
            "settings": manifest.settings,
        }
    )


def _put_in_place(draft: Path, home: Path) -> None:
    if not (home / "device.toml").exists():
        draft.rename(home)
        sync_directory(home.parent)
        return
    previous = _previous(home)
    home.rename(previous)
    draft.rename(home)
    _settle(home)


def _settle(home: Path) -> None:
    """Finish a replacement whose new home is in place, or undo one that was killed before."""
    previous = _previous(home)
    if not previous.is_dir():
        return
    if not home.exists() or (home.is_dir() and not any(home.iterdir())):
        previous.rename(home)
    elif (home / "device.toml").exists():
        if identity_of(home) == identity_of(previous) and (previous / "journal").is_dir():
            _move_journal(previous / "journal", home / "journal")
        shutil.rmtree(previous, ignore_errors=True)
    sync_directory(home.parent)


def _move_journal(old: Path, new: Path) -> None:
    """What `new` has already, from a start since, stays."""
    for file in old.iterdir():
        if not (new / file.name).exists():
            file.rename(new / file.name)
    sync_directory(new)


def _previous(home: Path) -> Path:
    return home.with_name(f".{home.name}.previous")


def identity_of(home: Path) -> tuple[str, str]:
    """Fleet and device that are installed in `home`; empty when that cannot be read."""
    try:
        identity = tomllib.loads((home / "device.toml").read_text(encoding="utf-8"))["identity"]
        return str(identity["fleet"]), str(identity["device"])
    except (OSError, ValueError, KeyError, TypeError):
        return "", ""
