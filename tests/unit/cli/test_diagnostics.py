"""stderr and exit codes: one line, one hint, nothing that could control the terminal."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from cli import diagnostics
from cli.main import run
from protocol import errors


def test_an_error_is_one_line_and_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    code = diagnostics.error(errors.LinkError("broker edge:8883 refused", hint="sled broker check"))
    assert code == diagnostics.ExitCode.UNREACHABLE
    assert capsys.readouterr().err == "sled: error: broker edge:8883 refused\n  try: sled broker check\n"


def test_control_characters_never_reach_the_terminal() -> None:
    assert diagnostics.printable("a\x1b[2Jb\x07\nc\td\u202e") == "a\ufffd[2Jb\ufffd\nc\td\ufffd"


def test_every_error_class_has_a_documented_exit_code() -> None:
    classes = [errors.SledError]
    for error in classes:
        classes += error.__subclasses__()
    assert {error.exit_code for error in classes} <= {int(code) for code in diagnostics.ExitCode}


@pytest.mark.parametrize("arguments", [["nonsense"], ["demo", "--devices", "zero"], ["fleet", "ping"]])
def test_wrong_usage_is_exit_code_2_without_a_traceback(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == diagnostics.ExitCode.USAGE
    assert "Traceback" not in capsys.readouterr().err


def test_a_missing_fleet_is_one_line_with_the_next_command(
    tmp_path: object, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["fleet", "ls", "--fleet", f"{tmp_path}/none"]) == diagnostics.ExitCode.PROVISIONING
    error_lines = capsys.readouterr().err.splitlines()
    assert len(error_lines) == 2
    assert "sled fleet init" in error_lines[1]


def test_logging_started_again_takes_the_place_of_what_was_there(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    diagnostics.start_logging(0, tmp_path / "first.log")
    diagnostics.start_logging(0, None)
    logging.getLogger("sled.test").warning("once")
    assert capsys.readouterr().err.count("once") == 1
    assert (tmp_path / "first.log").read_text() == ""


def test_a_conversation_is_not_interrupted_by_warnings_but_the_log_file_has_them(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    diagnostics.start_logging(0, tmp_path / "chat.log")
    diagnostics.keep_log_off_conversation()
    logger = logging.getLogger("sled.test")
    logger.warning("a new connection")
    logger.error("a fault")
    shown, kept = capsys.readouterr().err, (tmp_path / "chat.log").read_text()
    assert "a new connection" not in shown
    assert "a fault" in shown
    assert "a new connection" in kept
    diagnostics.start_logging(1, None)
    diagnostics.keep_log_off_conversation()
    logger.warning("asked for")
    assert "asked for" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [["fleet", "init", "{}/fleet"], ["--log-file", "{}/a/log", "models", "list"]],
    ids=lambda arguments: arguments[0],
)
def test_a_folder_that_cannot_be_made_is_one_line_and_a_hint(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.touch()
    assert run([each.format(file) for each in arguments]) == diagnostics.ExitCode.FAILED
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert said[0].startswith(f"sled: error: {file}")
    assert said[1].startswith("  try: ")


def test_a_failure_of_the_system_without_a_file_still_says_why() -> None:
    failure = diagnostics.system_failure(OSError(28, "No space left on device"))
    assert str(failure) == "No space left on device"
    assert failure.hint


def test_of_two_files_the_one_to_be_written_is_named() -> None:
    failure = diagnostics.system_failure(OSError(28, "No space left on device", "from.pem", None, "to.pem"))
    assert str(failure) == "to.pem: No space left on device"


@pytest.mark.parametrize(
    "arguments",
    [
        ["fleet", "backup", "{0}/none/b.tgz", "--fleet", "{0}/fleet"],
        ["provision", "device", "pi", "--out", "{0}/none/pi.sled", "--fleet", "{0}/fleet"],
        ["provision", "batch", "{0}/none.csv", "--fleet", "{0}/fleet"],
        ["device", "install", "{0}/none.sled", "--home", "{0}/home"],
        ["chat", "--bundle", "{0}/none.sled", "--home", "{0}/home"],
        ["device", "enroll", "--claim", "@{0}/none", "--home", "{0}/home"],
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_a_file_out_of_reach_is_named_with_what_to_do(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["fleet", "init", str(tmp_path / "fleet")]) == diagnostics.ExitCode.OK
    capsys.readouterr()
    assert run([each.format(tmp_path) for each in arguments]) in {
        diagnostics.ExitCode.USAGE,
        diagnostics.ExitCode.PROVISIONING,
    }
    said = capsys.readouterr().err
    assert str(tmp_path) in said
    assert "Errno" not in said
    assert "\n  try: " in said
