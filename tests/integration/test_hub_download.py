"""Models from a hub: a small one of our own, over HTTP, with huggingface_hub as it is."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub.constants
import pytest

from protocol.errors import ConfigError, ModelError
from provisioning.catalogue import bundled_pair
from provisioning.model_download import download_model
from provisioning.model_facts import read_facts
from tests.e2e.sled import free_port, sled

COMMIT = "a" * 40


class Hub(ThreadingHTTPServer):
    """Serves `repositories`: the content of files by name, by id."""

    repositories: dict[str, dict[str, bytes]]

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories = {}
        self.fetched: list[str] = []

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        content = self._content()
        self._answer(content)
        self.wfile.write(content or b"")
        if "/resolve/" in self.path:
            self.server.fetched.append(self.path.rpartition("/")[2])

    def do_HEAD(self) -> None:
        self._answer(self._content())

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - its name there
        """Keep the test's output clean."""

    def _content(self) -> bytes | None:
        parts = self.path.partition("?")[0].strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            files = self.server.repositories.get("/".join(parts[2:4]))
            if files is None:
                return None
            if "tree" in parts:
                entries = [
                    {"type": "file", "path": n, "size": len(b), "oid": "0" * 40} for n, b in files.items()
                ]
                return json.dumps(entries).encode()
            siblings = [{"rfilename": name} for name in files]
            return json.dumps({"id": "/".join(parts[2:4]), "sha": COMMIT, "siblings": siblings}).encode()
        return self.server.repositories.get("/".join(parts[:2]), {}).get(parts[-1])

    def _answer(self, content: bytes | None) -> None:
        self.send_response(404 if content is None else 200)
        if content is None:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", str(len(content or b"")))
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{sha256(content or b"").hexdigest()}"')
        self.end_headers()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield hub
        hub.shutdown()
        thread.join()


def test_a_gguf_repository_brings_its_file_once(hub: Hub, tmp_path: Path) -> None:
    source = bundled_pair().draft("draft-micro")
    hub.repositories["o/m"] = {"Draft.gguf": source.read_bytes(), "README.md": b"card"}
    found = download_model("o/m", tmp_path / "m", endpoint=hub.endpoint)
    assert found == tmp_path / "m" / "Draft.gguf"
    assert read_facts(found).sha256 == read_facts(source).sha256
    assert download_model("o/m", tmp_path / "m", endpoint=hub.endpoint) == found
    assert hub.fetched == ["Draft.gguf"]


def test_a_directory_comes_with_what_belongs_to_it_and_nothing_else(hub: Hub, tmp_path: Path) -> None:
    directory = bundled_pair().both_forms["draft"][0]
    content = {file.name: file.read_bytes() for file in directory.iterdir()}
    others = {"pytorch_model.bin": b"x", "consolidated.safetensors": b"x", "../escape.json": b"x"}
    hub.repositories["o/d"] = {**content, **others}
    found = download_model("o/d", tmp_path / "d", endpoint=hub.endpoint)
    assert {file.name for file in found.iterdir() if file.is_file()} == set(content)
    assert read_facts(found).vocabulary == bundled_pair().vocabulary
    assert not (tmp_path / "escape.json").exists()


def test_of_several_files_one_must_be_named(hub: Hub, tmp_path: Path) -> None:
    hub.repositories["o/q"] = {"a-q4.gguf": b"GGUF4", "a-q8.gguf": b"GGUF8"}
    with pytest.raises(ConfigError, match="has 2 GGUF files") as caught:
        download_model("o/q", tmp_path / "q", endpoint=hub.endpoint)
    assert "--file: a-q4.gguf, a-q8.gguf" in caught.value.hint
    with pytest.raises(ConfigError, match=r"no GGUF file 'b\.gguf'"):
        download_model("o/q", tmp_path / "q", file="b.gguf", endpoint=hub.endpoint)
    found = download_model("o/q", tmp_path / "q", file="a-q8.gguf", endpoint=hub.endpoint)
    assert found.read_bytes() == b"GGUF8"


def test_what_is_not_there_is_said(hub: Hub, tmp_path: Path) -> None:
    hub.repositories["o/empty"] = {"README.md": b"nothing"}
    with pytest.raises(ModelError, match="neither safetensors"):
        download_model("o/empty", tmp_path / "e", endpoint=hub.endpoint)
    with pytest.raises(ModelError, match="has no o/none"):
        download_model("o/none", tmp_path / "n", endpoint=hub.endpoint)


def test_a_hub_out_of_reach_is_said_at_once(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be fetched") as caught:
        download_model("o/m", tmp_path / "m", endpoint=f"http://127.0.0.1:{free_port()}")
    assert "add files that are here" in caught.value.hint
    assert hub.fetched == []


def test_without_a_network_the_command_says_so(tmp_path: Path) -> None:
    done = sled(tmp_path, "models", "add", "owner/name")
    assert done.exit_code == ModelError.exit_code
    assert done.stdout == ""
    assert done.stderr.count("\n") == 2, done.stderr
    assert "owner/name cannot be fetched" in done.stderr
