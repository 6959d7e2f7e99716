"""What a failed connection means: one sentence, and whether trying again can help."""

from __future__ import annotations

import socket
import ssl

from protocol.errors import LinkError
from protocol.link_types import Endpoint

_NOT_RETRYABLE_CODES = frozenset({0x84, 0x85, 0x86, 0x87, 0x8A, 0x8C, 0x98})
"""Protocol version, client id, credentials, not authorised, banned, authentication, administrative action."""
_IDENTITY_ALERTS = ("CERT", "UNKNOWN_CA", "ACCESS_DENIED", "DECRYPT_ERROR", "HANDSHAKE_FAILURE")
_IDENTITY_HINT = "check that this identity's certificate is of this fleet and listener, and not revoked"


def from_exception(error: OSError, endpoint: Endpoint) -> LinkError:
    """A connection that could not be made."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return LinkError(
            f"broker {endpoint} is not trusted: {error.verify_message}",
            is_retryable=False,
            hint="check the broker's address, its certificate's names and the fleet CA on this side",
        )
    if isinstance(error, ssl.SSLError):
        return from_alert(getattr(error, "reason", None) or str(error), endpoint)
    if isinstance(error, ConnectionRefusedError):
        return LinkError(
            f"nothing listens on {endpoint} (connection refused)",
            hint="start the broker, sled up, or check its port",
        )
    if isinstance(error, socket.gaierror):
        return LinkError(f"no address for broker host {endpoint.host!r}", hint="check the broker's name")
    if isinstance(error, TimeoutError):
        return LinkError(f"broker {endpoint} does not answer", hint="check the network and firewalls")
    return LinkError(f"broker {endpoint} cannot be reached: {error.strerror or error}")


def from_alert(alert: str, endpoint: Endpoint) -> LinkError:
    """A TLS alert or error by its OpenSSL name, such as `SSLV3_ALERT_CERTIFICATE_REVOKED`."""
    words = alert.rpartition("ALERT_")[2].replace("_", " ").lower()
    if "ALERT" in alert and any(mark in alert for mark in _IDENTITY_ALERTS):
        return LinkError(
            f"broker {endpoint} refused our certificate: {words}", is_retryable=False, hint=_IDENTITY_HINT
        )
    return LinkError(f"TLS with broker {endpoint} failed: {words}", hint="check that the port speaks TLS")


def from_reason_code(code: int, name: str, endpoint: Endpoint) -> LinkError:
    """A CONNACK or DISCONNECT of the broker with an MQTT v5 reason code of 0x80 or more."""
    is_retryable = code not in _NOT_RETRYABLE_CODES
    return LinkError(
        f"broker {endpoint} ended the connection: {name.lower()} (0x{code:02x})",
        is_retryable=is_retryable,
        hint="" if is_retryable else _IDENTITY_HINT,
    )


def connection_lost(endpoint: Endpoint, *, before_login: bool) -> LinkError:
    """A connection that ended without a word."""
    if before_login:
        return LinkError(
            f"broker {endpoint} closed the connection before login", hint="the broker's log says why"
        )
    return LinkError(f"connection to broker {endpoint} lost")
