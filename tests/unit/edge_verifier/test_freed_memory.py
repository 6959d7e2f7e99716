from __future__ import annotations

import subprocess
import sys

import pytest

from edge_verifier.freed_memory import EVERY_S, FreedMemory


def test_it_is_given_back_at_most_once_in_a_while() -> None:
    calls: list[None] = []
    freed = FreedMemory(lambda: calls.append(None))
    for now_s in (0.0, 1.0, EVERY_S - 0.1, EVERY_S, EVERY_S + 1.0, 3 * EVERY_S):
        freed.tend(now_s)
    assert len(calls) == 3


FRAGMENTS = """
from pathlib import Path
from edge_verifier.freed_memory import FreedMemory

def resident_mib():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20

before = resident_mib()
pieces = [bytearray(60_000) for _ in range(4000)]  # below what the C library maps one by one
del pieces[:-1]  # the last one is in the way of what the C library gives back by itself
kept = resident_mib()
FreedMemory().tend(0.0)
print(before, kept, resident_mib())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the GNU C library's own")
def test_the_system_gets_it_back() -> None:
    done = subprocess.run([sys.executable, "-c", FRAGMENTS], capture_output=True, text=True, check=True)
    before, kept, after = map(float, done.stdout.split())
    assert kept > before + 50.0
    assert after < before + 10.0
