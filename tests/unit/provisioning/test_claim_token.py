"""Claim tokens: one line there and back, and nothing but a whole one is taken."""

from __future__ import annotations

import base64
import dataclasses
import datetime as dt
import zlib

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from protocol.errors import ProvisioningError
from provisioning.certificate import certificate_builder
from provisioning.claim_book import ClaimTerms, make_claim
from provisioning.claim_token import MAX_CHARACTERS, PREFIX, ClaimToken
from provisioning.fleet_directory import FleetDirectory

TERMS = ClaimTerms(dt.timedelta(hours=1), "edge.lan", 8885, {})


@pytest.fixture
def token(fleet: FleetDirectory) -> ClaimToken:
    return make_claim(fleet, TERMS)


def test_a_token_comes_back_whole_also_from_wrapped_lines(token: ClaimToken) -> None:
    text = token.encode()
    wrapped = "\n  ".join(text[start : start + 60] for start in range(0, len(text), 60))
    again = ClaimToken.decode(wrapped)
    assert (again.fleet, again.claim, again.host, again.port) == ("home", token.claim, "edge.lan", 8885)
    assert (again.certificate, again.authority) == (token.certificate, token.authority)
    assert _public(again) == _public(token)
    assert again.fingerprint == token.fingerprint
    assert len(text) < MAX_CHARACTERS


def test_its_key_is_in_no_repr(token: ClaimToken) -> None:
    assert f"{token.key.private_numbers().private_value:x}" not in repr(token)


def test_what_is_no_token_is_one_sentence(token: ClaimToken, fleet: FleetDirectory) -> None:
    text = token.encode()
    other = make_claim(fleet, TERMS)
    mixed = ClaimToken(
        token.fleet, token.claim, token.host, token.port, token.certificate, token.authority, other.key
    )
    bomb = PREFIX + base64.urlsafe_b64encode(zlib.compress(b"0" * 10_000_000, 9)).decode()
    for bad in ("", "hello", text[:-20], text.replace(PREFIX, "sled-claim-9."), bomb, mixed.encode(), PREFIX):
        with pytest.raises(ProvisioningError, match="claim token"):
            ClaimToken.decode(bad)


@pytest.mark.parametrize("name", ["claim.x/../../y", "verifier.v1", "claim.", "claim.+"])
def test_a_token_in_another_name_than_a_claim_s_is_refused(token: ClaimToken, name: str) -> None:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    certificate = certificate_builder(subject, subject, token.key.public_key(), dt.timedelta(hours=1))
    forged = dataclasses.replace(token, certificate=certificate.sign(token.key, hashes.SHA256()))
    with pytest.raises(ProvisioningError, match="claim token is damaged"):
        ClaimToken.decode(forged.encode())


def test_every_claim_has_a_certificate_of_its_own(fleet: FleetDirectory) -> None:
    tokens = [make_claim(fleet, TERMS) for _ in range(3)]
    assert len({token.certificate.serial_number for token in tokens}) == 3
    assert len({token.claim for token in tokens}) == 3
    assert all(token.claim.startswith("claim.") for token in tokens)


def _public(token: ClaimToken) -> bytes:
    return token.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
