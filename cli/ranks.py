"""The processes that torchrun starts for one target: all run the same command, and process 0 serves."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli import diagnostics
from protocol.errors import RankLostError

if TYPE_CHECKING:
    from edge_verifier.engines.rank_group import RankGroup

FAREWELL_S = 10.0


def join(target: str | Path, device: str) -> RankGroup | None:
    """Meet the other processes of this launch; None when there are none.

    Raises:
        ConfigError: the launch is incomplete, or such a target is held by one process.
        ModelError: the device cannot be used, or the others cannot be reached.
    """
    from edge_verifier.engines import join_group
    from edge_verifier.engines.launch import Launch

    launch = Launch.of(os.environ)
    if launch is None:
        return None
    diagnostics.say(f"process {launch.rank} of {launch.size} joins the others")
    return join_group(launch, target, device, _end)


def follow(group: RankGroup, target: str | Path, **options: Any) -> None:  # noqa: ANN401 - as `engines.follow`
    """Hold a part of the target until process 0 ends.

    Signals reach all processes of a launch; what follows from them process 0 says when its turns are over.
    """
    from edge_verifier import engines

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    with _explaining_itself(group):
        engines.follow(target, group, **options)
    group.leave()


@contextmanager
def leading(group: RankGroup | None) -> Iterator[Callable[[], None]]:
    """While process 0 serves: yields what to call now and then, which raises once another process is gone.

    Then this process has some seconds to say farewell before it ends; its model may hang for good.
    """
    if group is None:
        yield lambda: None
        return
    group.on_loss = _end_soon
    try:
        try:
            yield group.check
        finally:
            group.leave()
        group.check()
    except RankLostError as loss:
        _end(loss)


@contextmanager
def loading(group: RankGroup | None) -> Iterator[None]:
    """While process 0 loads its part."""
    if group is None:
        yield
        return
    with _explaining_itself(group):
        yield


@contextmanager
def _explaining_itself(group: RankGroup) -> Iterator[None]:
    """An error of this process is told as it is, though others end because of it, or of the same one."""
    try:
        yield
    except BaseException:
        group.on_loss = _end_soon
        raise


def _end_soon(loss: RankLostError) -> None:
    timer = threading.Timer(FAREWELL_S, _end, [loss])
    timer.daemon = True
    timer.start()


def _end(loss: RankLostError) -> None:
    sys.stdout.flush()
    os._exit(diagnostics.error(loss))
