"""Becomes another program that ends when its parent does.

Run as a script: PARENT_PID SIGNAL_NUMBER PROGRAM [ARGUMENT...]

The kernel sends the signal as soon as the parent is gone, however it ended (Linux; elsewhere the program is
simply started). The wish survives the exec. The kernel takes the *thread* that started us for the parent, so
whoever starts this must keep that thread.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1


def tied(program: Sequence[str], death_signal: signal.Signals = signal.SIGTERM) -> list[str]:
    """The command line that runs `program`, with its whole path, as a child that ends with this process."""
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), str(int(death_signal)), *program]


def main(arguments: list[str]) -> None:
    """Tie this process to its parent, then become the program."""
    parent, death_signal, *program = arguments
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0)
        if os.getppid() != int(parent):  # it ended before the wish was made
            sys.exit(1)
    os.execv(program[0], program)  # noqa: S606 - becoming the program is the point


if __name__ == "__main__":
    main(sys.argv[1:])
