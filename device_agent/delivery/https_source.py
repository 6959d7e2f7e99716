"""Brings runs of blocks from a web server, on a thread of its own: HTTPS with Range, nothing else.

A server that ignores Range is read from the start and what is here already is skipped. The socket's receive
buffer is small, so that little is on its way when the connection breaks or somebody waits for an answer.
"""

from __future__ import annotations

import contextlib
import http.client
import logging
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urljoin, urlsplit

from device_agent.delivery.pace import Pace, Throttle
from protocol.model_block import BLOCK_BYTES
from protocol.model_manifest import ModelManifest

_logger = logging.getLogger(__name__)

TIMEOUT_S = 30.0
RECEIVE_BUFFER_BYTES = 128 * 1024
MAX_REDIRECTS = 3
MAX_WAITING_BLOCKS = 16
"""Blocks that may wait to be taken in."""
_WAIT_STEP_S = 0.25
_STOP_S = 1.0
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


@dataclass(frozen=True, slots=True)
class HttpsBlock:
    """A block has come; to be answered with `HttpsSource.taken`."""

    source: HttpsSource
    index: int
    data: bytes


@dataclass(frozen=True, slots=True)
class HttpsEnd:
    """The fetch is over. `problem` is empty when all has come; `is_final`: trying again hardly helps."""

    source: HttpsSource
    problem: str = ""
    is_final: bool = False


class _RefusedError(Exception):
    """The server answers, and not with the file."""


class HttpsSource:
    """The web server of one manifest.

    Args:
        post: called on the fetching thread with each block and the end; it must only enqueue.
    """

    def __init__(self, manifest: ModelManifest, post: Callable[[HttpsBlock | HttpsEnd], None]) -> None:
        self._manifest = manifest
        self._post = post
        self._throttle = Throttle()
        self._room = threading.Semaphore(MAX_WAITING_BLOCKS)
        self._is_stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._connection: http.client.HTTPSConnection | None = None

    def set_pace(self, pace: Pace) -> None:
        """Go faster or slower from now on."""
        self._throttle.pace = pace

    def fetch(self, first: int, n_blocks: int) -> None:
        """Get these blocks; the fetch before must have ended."""
        self._thread = threading.Thread(
            target=self._run, args=(first, n_blocks), name="model-download", daemon=True
        )
        self._thread.start()

    def taken(self) -> None:
        """A block has been taken in."""
        self._room.release()

    def stop(self) -> None:
        """End the fetch under way; one that is still looking for its server ends by itself, unheard."""
        self._is_stopping.set()
        self._room.release()
        connection = self._connection
        if connection is not None and connection.sock is not None:
            with contextlib.suppress(OSError):
                connection.sock.shutdown(socket.SHUT_RDWR)
        if self._thread is not None:
            self._thread.join(_STOP_S)

    def _run(self, first: int, n_blocks: int) -> None:
        try:
            self._fetch(self._manifest.url, first, n_blocks)
        except _RefusedError as error:
            self._post(HttpsEnd(self, str(error), is_final=True))
        except ssl.SSLCertVerificationError as error:
            self._post(HttpsEnd(self, f"its server is not trusted: {error.verify_message}", is_final=True))
        except (OSError, http.client.HTTPException, ValueError) as error:
            self._post(HttpsEnd(self, f"{type(error).__name__}: {error}".removesuffix(": ")))
        else:
            self._post(HttpsEnd(self))

    def _fetch(self, url: str, first: int, n_blocks: int) -> None:
        for _ in range(MAX_REDIRECTS + 1):
            connection = self._connection = _connect(url, self._manifest.url_ca)
            try:
                response = self._answer(connection, url, first, n_blocks)
                if isinstance(response, str):
                    url = response
                    continue
                self._read(response, first, n_blocks)
                return
            finally:
                connection.close()
        raise _RefusedError(f"{MAX_REDIRECTS} redirections lead nowhere")

    def _answer(
        self, connection: http.client.HTTPSConnection, url: str, first: int, n_blocks: int
    ) -> http.client.HTTPResponse | str:
        """The response, read up to the first block that is wanted; or where it is said to be."""
        start = first * BLOCK_BYTES
        end = min((first + n_blocks) * BLOCK_BYTES, self._manifest.n_bytes)
        parts = urlsplit(url)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        headers = {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity", "User-Agent": "sled"}
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        status = response.status
        if status in (301, 302, 303, 307, 308):
            return urljoin(url, response.headers.get("Location", ""))
        if status == http.client.PARTIAL_CONTENT:
            self._check_range(response, start)
        elif status == http.client.OK:
            self._check_length(response)
            self._skip(response, start)
        elif status in (429, 500, 502, 503, 504):
            raise OSError(f"its server answers {status} {response.reason}")
        else:
            raise _RefusedError(f"its server answers {status} {response.reason}")
        return response

    def _check_range(self, response: http.client.HTTPResponse, start: int) -> None:
        stated = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if stated is None or int(stated[1]) != start or stated[3] not in ("*", str(self._manifest.n_bytes)):
            raise _RefusedError(
                f"its server sends {response.headers.get('Content-Range')!r:.60},"
                f" not from byte {start} of {self._manifest.n_bytes}"
            )

    def _check_length(self, response: http.client.HTTPResponse) -> None:
        length = response.headers.get("Content-Length", "")
        if length and length != str(self._manifest.n_bytes):
            raise _RefusedError(f"its server has a file of {length} bytes, not {self._manifest.n_bytes}")

    def _skip(self, response: http.client.HTTPResponse, n_bytes: int) -> None:
        if n_bytes:
            _logger.info("the server of %s ignores Range: skipping %d bytes", self._manifest.name, n_bytes)
        while n_bytes > 0:
            self._wait(BLOCK_BYTES)
            piece = response.read(min(n_bytes, BLOCK_BYTES))
            if not piece:
                raise OSError("the connection broke")
            n_bytes -= len(piece)

    def _read(self, response: http.client.HTTPResponse, first: int, n_blocks: int) -> None:
        for block in range(first, first + n_blocks):
            size = self._manifest.block_size(block)
            self._wait(size)
            data = response.read(size)
            if len(data) < size:
                raise OSError("the connection broke")
            self._room.acquire()
            self._check_going_on()
            self._post(HttpsBlock(self, block, data))

    def _wait(self, n_bytes: int) -> None:
        """Until the pace allows a piece."""
        while (wait_s := self._throttle.wait_s(time.monotonic())) > 0:
            self._is_stopping.wait(min(wait_s, _WAIT_STEP_S))
            self._check_going_on()
        self._check_going_on()
        self._throttle.spend(n_bytes, time.monotonic())

    def _check_going_on(self) -> None:
        if self._is_stopping.is_set():
            raise OSError("stopped")


class _NarrowConnection(http.client.HTTPSConnection):
    """With a small receive buffer, which must be set before the connection is made."""

    def __init__(self, host: str, port: int, context: ssl.SSLContext) -> None:
        super().__init__(host, port, timeout=TIMEOUT_S, context=context)
        self._tls = context

    def connect(self) -> None:
        """As `HTTPSConnection.connect`."""
        failure: OSError | None = None
        for family, kind, protocol, _, address in socket.getaddrinfo(
            self.host, self.port, type=socket.SOCK_STREAM
        ):
            plain = socket.socket(family, kind, protocol)
            try:
                plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
                plain.settimeout(TIMEOUT_S)
                plain.connect(address)
                self.sock = self._tls.wrap_socket(plain, server_hostname=self.host)
            except OSError as error:
                plain.close()
                failure = error
            else:
                return
        raise failure or OSError(f"{self.host} has no address")


def _connect(url: str, url_ca: str) -> http.client.HTTPSConnection:
    parts = urlsplit(url)
    if parts.scheme != "https" or not parts.hostname:
        raise _RefusedError(f"{url!r:.80} is no https address")
    # With a CA of its own, the system's are not trusted for this server.
    context = ssl.create_default_context(cadata=url_ca or None)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return _NarrowConnection(parts.hostname, parts.port or 443, context)
