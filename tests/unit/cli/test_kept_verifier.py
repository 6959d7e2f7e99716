"""Who keeps a verifier starts it again when it has ended, in its time, and says how it ended."""

from __future__ import annotations

import logging
import random
from typing import cast

import pytest

from cli.diagnostics import ExitCode
from cli.kept_verifier import KeptVerifier, VerifierLostError
from cli.restarts import MOST_EARLY_ENDS, STABLE_S, Restarts
from cli.verifier_process import VerifierProcess


class Life:
    """A verifier's process that ends when the test says so."""

    def __init__(self, process_id: int) -> None:
        self.process_id = process_id
        self.is_ready = False
        self.exit_code: int | None = None
        self.n_stops = 0

    def wait_ready(self, _timeout_s: float) -> dict[str, object]:
        self.is_ready = True
        return {"verifier": "v1"}

    def stop(self) -> None:
        self.n_stops += 1


class Stage:
    """Lives, a clock, and what keeps the one going by the other."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.lives: list[Life] = []
        self.is_out_of_processes = False
        self.kept = KeptVerifier(self._start, Restarts(random.Random(3)), lambda: self.now_s)

    def _start(self) -> VerifierProcess:
        if self.is_out_of_processes:
            raise OSError(11, "no more processes")
        self.lives.append(Life(1000 + len(self.lives)))
        return cast("VerifierProcess", self.lives[-1])

    def let_pass(self, seconds: float) -> None:
        until_s = self.now_s + seconds
        while self.now_s < until_s:
            self.now_s = min(until_s, self.now_s + 0.5)
            self.kept.check()

    def end_lives(self, exit_code: int, after_s: float) -> None:
        """Let every life end so, none of them ready."""
        for _ in range(100):
            self.let_pass(after_s)
            self.lives[-1].exit_code = exit_code


@pytest.fixture
def stage() -> Stage:
    return Stage()


@pytest.mark.parametrize(
    ("exit_code", "told"), [(-9, "by SIGKILL"), (-40, "by signal 40"), (4, "with exit code 4")]
)
def test_an_end_is_told_and_mended(
    stage: Stage, caplog: pytest.LogCaptureFixture, exit_code: int, told: str
) -> None:
    with stage.kept as kept:
        assert kept.wait_ready(1.0) == {"verifier": "v1"}
        stage.let_pass(2 * STABLE_S)
        assert len(stage.lives) == 1
        stage.lives[0].exit_code = exit_code
        with caplog.at_level(logging.WARNING):
            kept.check()
            assert kept.process_id is None
            stage.let_pass(1.0)
        assert [record.message.partition(";")[0] for record in caplog.records] == [
            f"the verifier ended {told}"
        ]
        assert kept.process_id == 1001
    assert [life.n_stops for life in stage.lives] == [1, 1]


def test_one_that_ends_again_and_again_is_given_up(stage: Stage) -> None:
    with stage.kept as kept:
        kept.wait_ready(1.0)
        with pytest.raises(
            VerifierLostError, match="ended 5 times in a row, the last time by SIGSEGV"
        ) as lost:
            stage.end_lives(-11, after_s=0.5)
    assert lost.value.exit_code == ExitCode.VERIFIER_LOST
    assert len(stage.lives) == MOST_EARLY_ENDS


def test_slow_loads_that_come_to_nothing_are_early_ends_and_slow_loads_that_serve_are_not(
    stage: Stage,
) -> None:
    with stage.kept as kept:
        kept.wait_ready(1.0)
        for _ in range(3 * MOST_EARLY_ENDS):
            stage.let_pass(10 * STABLE_S)
            stage.lives[-1].is_ready = True
            stage.let_pass(STABLE_S + 1.0)
            stage.lives[-1].exit_code = -9
            stage.let_pass(20.0)
        n_lives = len(stage.lives)
        with pytest.raises(VerifierLostError):
            stage.end_lives(4, after_s=10 * STABLE_S)
    assert len(stage.lives) - n_lives == MOST_EARLY_ENDS - 1


def test_a_machine_without_room_for_a_process_is_asked_again_later(stage: Stage) -> None:
    with stage.kept as kept:
        kept.wait_ready(1.0)
        stage.lives[0].exit_code = -9
        stage.is_out_of_processes = True
        kept.check()
        stage.let_pass(0.5)
        stage.is_out_of_processes = False
        stage.let_pass(10.0)
        assert kept.process_id == 1001
