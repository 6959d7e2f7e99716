"""TLS of the link: mutual, 1.2 or later, checked against the fleet's own CA and the broker's name."""

from __future__ import annotations

import contextlib
import errno
import io
import socket
import ssl
from pathlib import Path
from typing import Any

from protocol import link_failure
from protocol.errors import LinkError
from protocol.inlet import Inlet
from protocol.link_types import Endpoint, TlsFiles

_RECORD_BYTES = 16_384
"""The longest TLS record: reading so much leaves nothing of one behind."""
_MOST_READS = 256
"""Reads of nothing but what is shed, after which the caller gets its turn."""


class LinkSocket(ssl.SSLSocket):
    """An SSL socket that remembers why the other end refused us, and may hold packets or shed unwanted ones.

    In TLS 1.3 a broker judges our certificate after the handshake has ended for us, so that the refusal
    comes as an alert with the first read; or the connection is gone before we have written anything, and
    the alert lies unread.

    Attributes:
        inlet: what is received goes through it.
    """

    refusal: str = ""
    inlet: Inlet | None = None
    _ready: io.BytesIO | None = None
    _is_holding = False
    _unsent = b""

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        """As `ssl.SSLSocket.recv`, through the inlet; a TLS alert is kept in `refusal`."""
        if self.inlet is None:
            return self._received(buflen, flags)
        if self._ready is not None and (piece := self._ready.read(buflen)):
            return piece
        for _ in range(_MOST_READS):
            content = self._received(_RECORD_BYTES, flags)
            if not content:
                return b""
            self._ready = io.BytesIO(self.inlet.feed(content))
            if piece := self._ready.read(buflen):
                return piece
        raise ssl.SSLWantReadError(ssl.SSL_ERROR_WANT_READ, "nothing but what is shed")

    def send(self, data: Any, flags: int = 0) -> int:  # noqa: ANN401 - the overridden signature
        """As `ssl.SSLSocket.send`; where it fails, an alert that came before goes to `refusal`.

        While packets are held, or some of them still wait, all of `data` is taken.
        """
        if self._is_holding or self._unsent:
            self._unsent += bytes(data)
            return len(data)
        try:
            return super().send(data, flags)
        except (ssl.SSLEOFError, ConnectionError):
            with contextlib.suppress(OSError):
                self._received(_RECORD_BYTES, 0)
            raise

    @property
    def n_unsent(self) -> int:
        """Bytes taken and not sent yet."""
        return len(self._unsent)

    def hold(self) -> None:
        """Keep what is sent from now on: many small packets in one record cost hardly more than one."""
        self._is_holding = True

    def flush(self) -> None:
        """Send what is held as far as the connection takes it; where that fails, the next read ends it."""
        while self._unsent:
            try:
                # After "try again" OpenSSL wants to see the same bytes; more may follow them.
                n_sent = super().send(self._unsent)
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return
            except OSError:
                self._unsent = b""
                # Whatever it was: a connection that has lost bytes must not go on.
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(self, socket.SHUT_RDWR)
                return
            self._unsent = self._unsent[n_sent:]

    def release(self) -> None:
        """Hold no longer, and send what was held."""
        self._is_holding = False
        self.flush()

    def pending(self) -> int:
        """As `ssl.SSLSocket.pending`, with what has passed the inlet."""
        left = 0 if self._ready is None else len(self._ready.getbuffer()) - self._ready.tell()
        return left + super().pending()

    def _received(self, buflen: int, flags: int) -> bytes:
        try:
            return super().recv(buflen, flags)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except ssl.SSLError as error:
            self.refusal = getattr(error, "reason", None) or str(error)
            raise
        except OSError as error:
            # So reads `ssl` from a socket that it is about to wrap and finds cut off; nobody else closes it.
            is_being_made = self.version() is None
            if is_being_made and error.errno not in (errno.ENOTCONN, errno.EINVAL):
                self.close()
            raise

    def do_handshake(self, block: bool = False) -> None:  # noqa: FBT001, FBT002 - the overridden signature
        """As `ssl.SSLSocket.do_handshake`; a failed one closes the socket, which nobody else would."""
        try:
            super().do_handshake(block)
        except OSError:
            self.close()
            raise


class _NamedContext(ssl.SSLContext):
    """Checks the broker's certificate against `server_name` instead of the address we dial."""

    server_name: str | None = None
    sslsocket_class = LinkSocket

    def wrap_socket(self, sock: socket.socket, **options: Any) -> ssl.SSLSocket:  # type: ignore[override]  # noqa: ANN401 - passed through
        if self.server_name:
            options["server_hostname"] = self.server_name
        return super().wrap_socket(sock, **options)


def mutual_tls(files: TlsFiles, server_name: str | None = None) -> ssl.SSLContext:
    """A context that shows our certificate and accepts only certificates of `files.ca_file`.

    Raises:
        LinkError: a file is missing, unreadable or not what it should be; not retryable.
    """
    context = _NamedContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = True
    context.server_name = server_name
    _load(files.ca_file, lambda: context.load_verify_locations(files.ca_file))
    load_identity(context, files)
    return context


def load_identity(context: ssl.SSLContext, files: TlsFiles) -> None:
    """Show the certificate that is in `files` now, from the context's next connection on.

    Raises:
        LinkError: as `mutual_tls`; the context keeps what it had when a file is missing.
    """
    _load(files.cert_file, lambda: context.load_cert_chain(files.cert_file, files.key_file))


def check_certificate(endpoint: Endpoint, timeout_s: float) -> None:
    """Have the broker judge our certificate, without logging in: a live connection of ours is not disturbed.

    Raises:
        LinkError: it is refused, or the broker is not trusted (both not retryable), or out of reach.
    """
    if endpoint.tls is None:
        raise LinkError(f"{endpoint} has no certificate to check", is_retryable=False)
    context = mutual_tls(endpoint.tls, endpoint.server_name)
    # In TLS 1.2 the handshake ends only after the broker has judged our certificate.
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    try:
        with (
            socket.create_connection((endpoint.host, endpoint.port), timeout_s) as connection,
            context.wrap_socket(connection, server_hostname=endpoint.host),
        ):
            pass
    except OSError as error:
        raise link_failure.from_exception(error, endpoint) from error


def _load(path: Path, load: Any) -> None:  # noqa: ANN401 - any callable without arguments
    try:
        load()
    except OSError as error:
        reason = getattr(error, "reason", None) or error.strerror or str(error)
        raise LinkError(
            f"TLS file {path} or its key cannot be used: {reason}",
            is_retryable=False,
            hint="install the bundle of this identity again",
        ) from error
