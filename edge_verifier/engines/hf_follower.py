"""A process that holds a part of a transformers target, beside the one that serves it."""

from __future__ import annotations

import logging
from pathlib import Path

from edge_verifier.engines.hf_loading import load_model
from edge_verifier.engines.hf_lockstep import obey
from edge_verifier.engines.hf_runner import StepRunner, prepare
from edge_verifier.engines.hf_worker import LocalWorker
from edge_verifier.engines.rank_group import RankGroup

_logger = logging.getLogger(__name__)


def follow(
    target: str | Path,
    group: RankGroup,
    *,
    dtype: str = "auto",
    device: str = "auto",
    n_threads: int | None = None,
    max_sessions: int = 64,
    max_context: int | None = None,
    kv_bytes: int | None = None,
) -> None:
    """Load this process's part of `target` and compute with it, on this thread, until the leader ends.

    The arguments are the same as the leader's for `TransformersEngine`.

    Raises:
        RankLostError: another process is gone.
        ModelError: the target cannot be served right here, or a step failed.
    """
    loaded = load_model(target, dtype=dtype, device=device, group=group)
    runner = StepRunner(loaded)
    memory = prepare(
        runner,
        loaded,
        n_threads=n_threads,
        max_sessions=max_sessions,
        max_context=max_context,
        kv_bytes=kv_bytes,
    )
    _logger.info("process %d of %d follows", group.rank, group.size)
    obey(LocalWorker(runner, memory), group)
