"""Whatever is wrong, the user gets one line with the cause, one with the way out, and no traceback."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tests.e2e.sled import Done, sled
from tests.tiny_models import TinyPair


def assert_refused(done: Done, *words: str) -> None:
    assert done.exit_code not in {0, 130}
    assert "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("sled: error:")]
    assert len(errors) == 1, done.stderr
    assert "  try: " in done.stderr
    for word in words:
        assert word in done.stderr


def test_an_empty_prompt(tmp_path: Path) -> None:
    assert_refused(sled(tmp_path, "demo", "--prompt", "  "), "empty")


@pytest.mark.timeout(200)
def test_a_prompt_longer_than_the_context(tmp_path: Path) -> None:
    assert_refused(sled(tmp_path, "demo", "--prompt", "light on " * 3_000), "the target holds 2048")


def test_a_gguf_that_is_none(tmp_path: Path) -> None:
    fake = tmp_path / "fake.gguf"
    fake.write_bytes(b"MZ" * 500)
    assert_refused(sled(tmp_path, "demo", "--draft", str(fake)), "fake.gguf")


def test_a_target_directory_without_weights(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / "config.json").write_text("{}")
    assert_refused(sled(tmp_path, "demo", "--target", str(target)), "no weights")


def test_a_busy_port(tmp_path: Path) -> None:
    fleet = str(tmp_path / "fleet")
    assert sled(tmp_path, "fleet", "init", fleet, "--name", "home").exit_code == 0
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert_refused(sled(tmp_path, "up", "--fleet", fleet, "--port", port), port)


def test_a_broker_that_refuses(tmp_path: Path) -> None:
    """Nobody listens where the fleet's broker should be."""
    fleet = str(tmp_path / "fleet")
    assert sled(tmp_path, "fleet", "init", fleet, "--name", "home").exit_code == 0
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    done = sled(tmp_path, "fleet", "ls", "--fleet", fleet, "--broker", f"127.0.0.1:{port}", "--timeout", "2")
    assert_refused(done, str(port))
    assert done.exit_code == 3


def test_a_device_that_was_never_installed(tmp_path: Path) -> None:
    assert_refused(sled(tmp_path, "chat", "--home", str(tmp_path / "none")), "sled device install")


@pytest.mark.timeout(200)
def test_a_draft_of_another_vocabulary_is_refused_with_both_named(
    tmp_path: Path, tiny_pair: TinyPair
) -> None:
    done = sled(tmp_path, "demo", "--target", str(tiny_pair.target), "--draft", "draft")
    assert_refused(done, "draft model sled draft", "does not fit target model target")
