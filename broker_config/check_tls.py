"""Checks of the broker's TLS: versions, its certificate's time, whom it lets in."""

from __future__ import annotations

import dataclasses
import datetime as dt
import socket
import ssl
import warnings
from collections.abc import Iterator

from cryptography import x509

from broker_config.check import Finding, Visitors
from protocol.errors import LinkError
from protocol.link import Endpoint
from protocol.link_tls import check_certificate, mutual_tls

TIMEOUT_S = 5.0
_SOON = dt.timedelta(days=30)


def check_tls(visitors: Visitors) -> Iterator[Finding]:
    """Both listeners: reachable, trusted, new enough, closed to strangers and to the other kind."""
    for name, endpoint in (("devices", visitors.device), ("backend", visitors.operator)):
        yield from _certificate(name, endpoint)
        yield _old_version(name, endpoint)
        yield _stranger(name, endpoint)
    yield _wrong_kind("devices", visitors.device, visitors.operator)
    yield _wrong_kind("backend", visitors.operator, visitors.device)


def check_revocation_list(file: str, pem: bytes, now: dt.datetime) -> Finding:
    """A revocation list as the fleet has it; a broker refuses everyone once it is past its next update."""
    revoked = x509.load_pem_x509_crl(pem)
    ends = revoked.next_update_utc
    if ends is None or ends <= now:
        return Finding("revocation", "fault", f"{file} is past its next update", "sled fleet serve")
    if ends - now < _SOON:
        return Finding("revocation", "warning", f"{file} ends on {ends:%Y-%m-%d}", "sled fleet serve")
    return Finding("revocation", "ok", f"{file}: {len(list(revoked))} revoked, good until {ends:%Y-%m-%d}")


def _certificate(name: str, endpoint: Endpoint) -> Iterator[Finding]:
    check = f"tls {name}"
    if endpoint.tls is None:
        return
    context = mutual_tls(endpoint.tls, endpoint.server_name)
    check_certificate(endpoint, TIMEOUT_S)
    with (
        socket.create_connection((endpoint.host, endpoint.port), TIMEOUT_S) as connection,
        context.wrap_socket(connection, server_hostname=endpoint.host) as secured,
    ):
        version, der = secured.version(), secured.getpeercert(binary_form=True)
    yield Finding(check, "ok", f"{version}; its certificate is of the fleet's CA and names {endpoint.host}")
    ends = x509.load_der_x509_certificate(der or b"").not_valid_after_utc
    left = ends - dt.datetime.now(dt.UTC)
    text = f"its certificate ends on {ends:%Y-%m-%d}, in {left.days} days"
    if left < _SOON:
        yield Finding(check, "warning", text, "issue a new one and reload the broker")
    else:
        yield Finding(check, "ok", text)


def _old_version(name: str, endpoint: Endpoint) -> Finding:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if endpoint.tls is not None:
        context.load_cert_chain(endpoint.tls.cert_file, endpoint.tls.key_file)
    context.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    if _opens(context, endpoint):
        return Finding(f"tls {name}", "fault", "TLS 1.1 is accepted", "tls_version tlsv1.2")
    return Finding(f"tls {name}", "ok", "TLS 1.1 is refused")


def _stranger(name: str, endpoint: Endpoint) -> Finding:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    if _opens(context, endpoint):
        return Finding(
            f"tls {name}", "fault", "a connection without a certificate is let in", "require_certificate true"
        )
    return Finding(f"tls {name}", "ok", "nobody gets in without a certificate")


def _opens(context: ssl.SSLContext, endpoint: Endpoint) -> bool:
    try:
        with (
            socket.create_connection((endpoint.host, endpoint.port), TIMEOUT_S) as connection,
            context.wrap_socket(connection),
        ):
            return True
    except OSError:
        return False


def _wrong_kind(name: str, listener: Endpoint, visitor: Endpoint) -> Finding:
    try:
        check_certificate(dataclasses.replace(listener, tls=visitor.tls), TIMEOUT_S)
    except LinkError as error:
        if not error.is_retryable:
            return Finding("listeners", "ok", f"the {name} listener refuses the other kind of identity")
        raise
    return Finding(
        "listeners",
        "fault",
        f"the {name} listener lets the other kind of identity in",
        "give each listener the CA of its own kind alone",
    )
