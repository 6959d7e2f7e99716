"""Staged models: what a device accepts of the fleet's signature, and every way of faking one."""

from __future__ import annotations

import base64
import datetime as dt
from hashlib import sha256
from pathlib import Path

import orjson
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from protocol.errors import MessageError, ModelError, ProvisioningError
from protocol.model_manifest import ModelManifest
from protocol.model_messages import ModelOffer
from protocol.model_signature import load_anchors, sign, signer_name, verify
from provisioning.fleet_directory import FleetDirectory
from provisioning.keys import load_key
from provisioning.model_store import ModelPlace, ModelStore
from tests.tiny_draft import write_vocabulary

NOW = dt.datetime(2030, 1, 1, tzinfo=dt.UTC)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> FleetDirectory:
    return FleetDirectory.create(tmp_path_factory.mktemp("fleet") / "fleet", fleet="home")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = write_vocabulary(tmp_path_factory.mktemp("model") / "my draft.gguf")
    with file.open("ab") as out:
        out.write(bytes(range(256)) * 1000)
    return file


def checked(fleet: FleetDirectory, offer: ModelOffer, now: dt.datetime = NOW) -> ModelManifest:
    return verify(offer, fleet="home", anchors=load_anchors(fleet.server_ca_file), now=now)


def test_a_staged_model_is_a_copy_whose_manifest_a_device_believes(
    fleet: FleetDirectory, model: Path
) -> None:
    staged = ModelStore(fleet).stage(model, "tiny")
    content = model.read_bytes()
    manifest = checked(fleet, staged.offer)
    assert staged.file.read_bytes() == content
    assert (manifest.name, manifest.n_bytes, manifest.sha256) == (
        "tiny",
        len(content),
        sha256(content).hexdigest(),
    )
    for chunk, digest in enumerate(manifest.digests):
        start = chunk * manifest.chunk_bytes
        assert sha256(content[start : start + manifest.chunk_size(chunk)]).digest() == digest
    assert manifest.file == f"my-draft-{manifest.sha256[:8]}.gguf"


def test_each_staging_has_a_higher_revision(fleet: FleetDirectory, model: Path) -> None:
    store = ModelStore(fleet)
    revisions = [store.stage(model, "tiny").manifest.revision for _ in range(3)]
    assert revisions == sorted(set(revisions))
    assert store.staged()[0].manifest.revision == revisions[-1]


def test_the_signer_is_made_once_and_its_key_is_private(fleet: FleetDirectory, model: Path) -> None:
    offers = {ModelStore(fleet).stage(model, "tiny").offer.certificates for _ in range(2)}
    assert len(offers) == 1
    assert (fleet.path / "identities" / "models" / "key.pem").stat().st_mode & 0o777 == 0o600


def test_an_expired_signer_is_refused(fleet: FleetDirectory, model: Path) -> None:
    staged = ModelStore(fleet).stage(model, "tiny")
    with pytest.raises(MessageError, match="expired on 20"):
        checked(fleet, staged.offer, NOW + dt.timedelta(days=3650))


def test_every_changed_byte_is_noticed(fleet: FleetDirectory, model: Path) -> None:
    offer = ModelStore(fleet).stage(model, "tiny").offer
    text = orjson.loads(offer.manifest)
    for field, value in (("revision", 2**40), ("url", "https://evil/x"), ("name", "other")):
        forged = offer.model_copy(update={"manifest": orjson.dumps({**text, field: value}).decode()})
        with pytest.raises(MessageError, match="signature is wrong"):
            checked(fleet, forged)


def test_the_brokers_own_certificate_signs_no_model(fleet: FleetDirectory, model: Path) -> None:
    """Its key lies on the broker's machine, and its CA is the one that devices trust."""
    manifest = checked(fleet, ModelStore(fleet).stage(model, "tiny").offer)
    server = fleet.path / "identities" / "server"
    certificate = x509.load_pem_x509_certificate((server / "cert.pem").read_bytes())
    with pytest.raises(MessageError, match=r"its signer is broker\.home"):
        checked(fleet, sign(manifest, load_key(server / "key.pem"), [certificate]))


def test_a_foreign_fleets_signer_is_refused(fleet: FleetDirectory, model: Path, tmp_path: Path) -> None:
    """Also one of the same name, and with the own CA named as if it had issued it."""
    stranger = FleetDirectory.create(tmp_path / "other", fleet="home")
    foreign = ModelStore(stranger).stage(model, "tiny").offer
    with pytest.raises(MessageError, match="not of the CA"):
        checked(fleet, foreign)
    ca = x509.load_pem_x509_certificate(fleet.server_ca_file.read_bytes())
    der = base64.b64encode(ca.public_bytes(Encoding.DER)).decode()
    with pytest.raises(MessageError, match="do not belong together"):
        checked(fleet, foreign.model_copy(update={"certificates": (*foreign.certificates, der)}))


def test_a_manifest_of_another_fleet_is_refused(model: Path, tmp_path: Path) -> None:
    other = FleetDirectory.create(tmp_path / "other", fleet="away")
    offer = ModelStore(other).stage(model, "tiny").offer
    with pytest.raises(MessageError, match=r"its signer is models\.away"):
        verify(offer, fleet="home", anchors=load_anchors(other.server_ca_file), now=NOW)


def test_a_device_certificate_of_the_right_name_is_refused(fleet: FleetDirectory, model: Path) -> None:
    """A client certificate of the trusted CA would do for the chain; what it is for does not."""
    manifest = checked(fleet, ModelStore(fleet).stage(model, "tiny").offer)
    issued = fleet.authority("device").issue("models-home")
    with pytest.raises(MessageError, match=f"not {signer_name('home')}"):
        checked(fleet, sign(manifest, issued.private_key, [issued.certificate]))


def test_garbage_is_refused(fleet: FleetDirectory, model: Path) -> None:
    offer = ModelStore(fleet).stage(model, "tiny").offer
    for change in ({"signature": "%%"}, {"certificates": ("AAAA",)}):
        with pytest.raises(MessageError, match="cannot be read"):
            checked(fleet, offer.model_copy(update=change))


def test_what_cannot_be_offered_is_said(fleet: FleetDirectory, model: Path, tmp_path: Path) -> None:
    store = ModelStore(fleet)
    with pytest.raises(ProvisioningError, match="url"):
        store.stage(model, "tiny", ModelPlace(url="http://plain/x.gguf"))
    with pytest.raises(ProvisioningError, match="nowhere"):
        store.stage(model, "tiny", ModelPlace(is_over_mqtt=False))
    (tmp_path / "no.gguf").write_bytes(b"text")
    with pytest.raises(ModelError):
        store.stage(tmp_path / "no.gguf", "no")
