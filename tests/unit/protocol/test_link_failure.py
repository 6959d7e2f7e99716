"""What failed connections are called, and whether trying again is thought to help."""

from __future__ import annotations

import socket
import ssl

import pytest

from protocol import link_failure
from protocol.link_types import Endpoint

AT = Endpoint("broker.example", 8883)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ConnectionRefusedError(111, "Connection refused"), "nothing listens on broker.example:8883"),
        (socket.gaierror(-2, "Name or service not known"), "no address for broker host 'broker.example'"),
        (TimeoutError("timed out"), "broker.example:8883 does not answer"),
        (OSError(113, "No route to host"), "cannot be reached: No route to host"),
        (ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER] wrong version number"), "TLS with broker"),
    ],
)
def test_troubles_of_network_and_place_are_retryable(error: OSError, said: str) -> None:
    failure = link_failure.from_exception(error, AT)
    assert said in str(failure)
    assert failure.is_retryable


def test_a_broker_that_we_do_not_trust_is_not() -> None:
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.verify_message = "self-signed certificate"
    failure = link_failure.from_exception(error, AT)
    assert "not trusted: self-signed certificate" in str(failure)
    assert not failure.is_retryable


@pytest.mark.parametrize(
    "alert",
    [
        "SSLV3_ALERT_CERTIFICATE_REVOKED",
        "SSLV3_ALERT_CERTIFICATE_EXPIRED",
        "TLSV13_ALERT_CERTIFICATE_REQUIRED",
        "TLSV1_ALERT_UNKNOWN_CA",
        "SSLV3_ALERT_BAD_CERTIFICATE",
    ],
)
def test_a_refused_certificate_is_not_retryable_and_named(alert: str) -> None:
    failure = link_failure.from_alert(alert, AT)
    assert "refused our certificate" in str(failure)
    assert not failure.is_retryable
    assert failure.hint


@pytest.mark.parametrize("code", [0x84, 0x85, 0x86, 0x87, 0x8A, 0x8C, 0x98])
def test_refused_identities_are_not_retryable(code: int) -> None:
    assert not link_failure.from_reason_code(code, "Not authorized", AT).is_retryable


@pytest.mark.parametrize("code", [0x88, 0x89, 0x8B, 0x8E, 0x97])
def test_a_busy_or_leaving_broker_is_retryable(code: int) -> None:
    assert link_failure.from_reason_code(code, "Server busy", AT).is_retryable
