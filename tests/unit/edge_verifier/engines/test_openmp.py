"""How long torch's threads stay awake."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
from edge_verifier.engines.openmp import rest_soon
rest_soon()
import os
print(os.environ.get("GOMP_SPINCOUNT"), os.environ.get("OMP_WAIT_POLICY"))
"""


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "10000 None"),
        ({"GOMP_SPINCOUNT": "7"}, "7 None"),
        ({"OMP_WAIT_POLICY": "passive"}, "None passive"),
    ],
)
def test_what_the_environment_says_stays(given: dict[str, str], expected: str) -> None:
    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    environment = {name: value for name, value in os.environ.items() if name not in names} | given
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == expected


def test_a_thread_sleeps_half_a_millisecond_after_a_step_and_not_before() -> None:
    """Processor time of the process beyond one thread's, after short steps with long pauses between them."""
    program = """
import time
from edge_verifier.engines.openmp import rest_soon
rest_soon()
import torch
torch.set_num_threads(2)
values = torch.zeros(1 << 20)
values.exp()
started_s = time.process_time() - time.thread_time()
for _ in range(50):
    values.exp()
    time.sleep(0.01)
print((time.process_time() - time.thread_time() - started_s) / 50)
"""
    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert float(done.stdout) < 0.004
