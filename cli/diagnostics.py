"""Everything that `sled` writes to stderr, and its exit codes.

Exit codes: 0 done; 1 the operation failed; 2 usage or configuration; 3 broker or verifier out of reach
(trying again makes sense); 4 a model cannot be used; 5 a session cannot go on; 6 an identity, bundle or
fleet directory cannot be used; 7 a process of a target that several hold is gone; 8 the verifier ended again
and again; 130 interrupted.
"""

from __future__ import annotations

import logging
import sys
from enum import IntEnum
from pathlib import Path

from protocol.errors import SledError, reason_of

_HANDLER = "sled"


class ExitCode(IntEnum):
    """What the shell sees."""

    OK = 0
    FAILED = 1
    USAGE = 2
    UNREACHABLE = 3
    MODEL = 4
    SESSION = 5
    PROVISIONING = 6
    RANK_LOST = 7
    VERIFIER_LOST = 8
    INTERRUPTED = 130


class ExplainedError(SledError):
    """The failure of another process of ours, which has told the user itself when `is_explained`."""

    is_explained = False
    explained_exit_code = int(ExitCode.FAILED)


def error(failure: SledError) -> int:
    """Print one line for `failure`, one for what to do next, and return the exit code."""
    if isinstance(failure, ExplainedError) and failure.is_explained:
        return failure.explained_exit_code
    sys.stderr.write(f"sled: error: {printable(str(failure))}\n")
    if failure.hint:
        sys.stderr.write(f"  try: {printable(failure.hint)}\n")
    return failure.exit_code


def system_failure(failure: OSError) -> SledError:
    """What the operating system refused: which file (of two the second), why, and what to look at."""
    reason = reason_of(failure)
    file = failure.filename2 or failure.filename
    if file is None:
        return SledError(reason, hint="see where it happened: sled -vv, then the command again")
    return SledError(
        f"{file}: {reason}",
        hint="check that the folder is there, may be written and has room, or name another",
    )


def say(text: str) -> None:
    """One line of narration."""
    sys.stderr.write(f"{printable(text)}\n")
    sys.stderr.flush()


def printable(text: str) -> str:
    """`text` without control characters: models and messages are not trusted with the terminal."""
    return "".join(
        char if char.isprintable() or char in "\n\t" else "\N{REPLACEMENT CHARACTER}" for char in text
    )


def keep_log_off_conversation() -> None:
    """On stderr only errors of the log, unless more was asked for: a chat tells its user of troubles."""
    for handler in logging.getLogger().handlers:
        is_stderr = handler.get_name() == _HANDLER and not isinstance(handler, logging.FileHandler)
        if is_stderr and handler.level == logging.WARNING:
            handler.setLevel(logging.ERROR)


def start_logging(verbosity: int, log_file: Path | None) -> None:
    """Where log records go: warnings to stderr, and with verbosity 1 infos, with 2 everything.

    With `log_file` stderr keeps to warnings, and the file gets infos, with verbosity 1 everything. A second
    call takes the place of the first.
    """
    levels = (logging.WARNING, logging.INFO, logging.DEBUG)
    stderr: logging.Handler = logging.StreamHandler()
    stderr.setLevel(levels[0] if log_file else levels[min(verbosity, 2)])
    handlers = [stderr]
    if log_file is not None:
        log_file.parent.mkdir(parents=True, exist_ok=True)
        file = logging.FileHandler(log_file)
        file.setLevel(levels[min(verbosity + 1, 2)])
        handlers.append(file)
    root = logging.getLogger()
    root.setLevel(min(handler.level for handler in handlers))
    for old in [handler for handler in root.handlers if handler.get_name() == _HANDLER]:
        root.removeHandler(old)
        old.close()
    for handler in handlers:
        handler.set_name(_HANDLER)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        root.addHandler(handler)
