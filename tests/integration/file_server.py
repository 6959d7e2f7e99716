"""A web server with one file, over TLS, that cuts, ignores Range or sends wrong bytes when told to."""

from __future__ import annotations

import http.server
import re
import ssl
import threading
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from provisioning.fleet_directory import FleetDirectory

PIECE_BYTES = 8 * 1024


@dataclass
class FileServer:
    """`content` at `url`; a context manager.

    Attributes:
        cuts: after so many bytes of a response the connection is cut; one for each response, then none.
        ignores_range: answers everything with the whole file.
        spoils: places of bytes that are sent wrong, once each.
        status: answered instead of the file, if any.
        ranges: what was asked for; `n_sent`: bytes of bodies that were sent.
    """

    directory: FleetDirectory
    path: Path
    content: bytes
    cuts: list[int] = field(default_factory=list)
    ignores_range: bool = False
    spoils: set[int] = field(default_factory=set)
    status: int = 0
    redirects_to: str = ""
    ranges: list[str] = field(default_factory=list)
    n_sent: int = 0

    def __enter__(self) -> Self:
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.answer(self)

            def log_message(self, *_: Any) -> None:
                pass

        authority = self.directory.authority("server")
        issued = authority.issue("broker.web", host_names=["localhost", "127.0.0.1"])
        certificate, key = self.path / "web.pem", self.path / "web.key"
        certificate.write_bytes(issued.certificate_pem + authority.certificate_file.read_bytes())
        key.write_bytes(issued.key_pem)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="web")
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"https://localhost:{self._server.server_port}/models/draft.gguf?v=1"

    def answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        """One GET."""
        asked = request.headers.get("Range", "")
        self.ranges.append(asked)
        if self.redirects_to and not request.path.startswith("/models/moved"):
            request.send_response(302)
            request.send_header("Location", "/models/moved")
            request.end_headers()
            return
        if self.status:
            request.send_error(self.status)
            return
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", asked)
        start, end = (0, len(self.content)) if match is None else (int(match[1]), int(match[2]) + 1)
        if match is None or self.ignores_range:
            start, end = 0, len(self.content)
            request.send_response(200)
        else:
            request.send_response(206)
            request.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(self.content)}")
        request.send_header("Content-Length", str(end - start))
        request.end_headers()
        self._send(request, start, end)

    def _send(self, request: http.server.BaseHTTPRequestHandler, start: int, end: int) -> None:
        left = self.cuts.pop(0) if self.cuts else end - start
        for place in range(start, end, PIECE_BYTES):
            piece = bytearray(self.content[place : min(place + PIECE_BYTES, end)])[: max(0, left)]
            for spoilt in [each for each in self.spoils if place <= each < place + len(piece)]:
                piece[spoilt - place] ^= 0xFF
                self.spoils.discard(spoilt)
            try:
                request.wfile.write(piece)
            except OSError:
                return
            self.n_sent += len(piece)
            left -= len(piece)
            if left <= 0:
                break
        request.close_connection = True
