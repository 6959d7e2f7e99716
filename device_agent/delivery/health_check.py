"""Tries a draft model out before it is put to use: loads it, drafts some tokens, computes its vocabulary.

In a process of its own, so that a file that takes llama.cpp down does not take the agent and its
conversations with it: `python -m device_agent.delivery.health_check FILE` prints one line of JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from protocol.errors import ModelError, SledError
from protocol.messages import SamplerSettings

if TYPE_CHECKING:
    from device_agent.drafter import Drafter

TIMEOUT_S = 300.0
TRIED_TOKENS = 8
_CONTEXT_TOKENS = 128
_NICENESS = 10
_POLL_S = 0.1


def try_out(file: Path, vocabulary: str, stop: threading.Event | None = None) -> None:
    """Return when the model in `file` drafts and has this vocabulary fingerprint.

    Args:
        stop: ends the wait.

    Raises:
        ModelError: it does not, takes too long, or its process died.
        InterruptedError: `stop` was set.
    """
    command = [sys.executable, "-m", "device_agent.delivery.health_check", str(file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            found = _answer(process, stop or threading.Event())
        finally:
            process.kill()
    if "error" in found:
        raise ModelError(f"its health check failed: {found['error']}")
    check_vocabulary(str(found.get("vocabulary")), vocabulary)


def check_vocabulary(found: str, promised: str) -> None:
    """Return when they are equal.

    Raises:
        ModelError: they are not.
    """
    if found != promised:
        raise ModelError(f"its vocabulary is {found}, not {promised} as its manifest says")


def check_drafts(drafter: Drafter, context: list[int]) -> int:
    """Have the drafter go on after `context`; how many tokens it drafted.

    Raises:
        ModelError: it fails, or drafts nothing.
    """
    drafter.sync(context)
    n_drafted = len(drafter.draft(SamplerSettings(temperature=1.0, seed=1), TRIED_TOKENS))
    drafter.sync([])
    if not n_drafted:
        raise ModelError("it drafts nothing")
    return n_drafted


def _answer(process: subprocess.Popen[str], stop: threading.Event) -> dict[str, object]:
    until_s = time.monotonic() + TIMEOUT_S
    while process.poll() is None:
        if stop.wait(_POLL_S):
            raise InterruptedError("the device stops")
        if time.monotonic() > until_s:
            raise ModelError(f"its health check did not end within {TIMEOUT_S:g} s")
    text = process.stdout.read() if process.stdout else ""
    try:
        answer = json.loads(text)
    except ValueError as error:
        raise ModelError(f"its health check ended with exit code {process.returncode}") from error
    return answer if isinstance(answer, dict) else {}


def _main(file: Path) -> dict[str, object]:
    """What the process says of the model."""
    from device_agent.drafters import load_drafter, load_vocabulary  # noqa: PLC0415 - in this process only

    os.nice(_NICENESS)
    context = load_vocabulary(file).encode("The lamp in the kitchen is on.")
    drafter = load_drafter("llama.cpp", file, max_context=_CONTEXT_TOKENS)
    try:
        n_drafted = check_drafts(drafter, context[: _CONTEXT_TOKENS // 2])
        return {"vocabulary": drafter.info.vocabulary, "n_drafted": n_drafted}
    finally:
        drafter.close()


if __name__ == "__main__":
    try:
        said = _main(Path(sys.argv[1]))
    except SledError as failure:
        said = {"error": str(failure)}
    sys.stdout.write(json.dumps(said))
