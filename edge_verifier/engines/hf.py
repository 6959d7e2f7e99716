"""The transformers engine: any causal language model with standard attention, many sessions per pass."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from edge_verifier.engine import EngineInfo, Row, StepResult
from edge_verifier.engines.hf_arena import BLOCK
from edge_verifier.engines.hf_loading import LoadedModel, load_model
from edge_verifier.engines.hf_lockstep import LeadingWorker
from edge_verifier.engines.hf_runner import StepRunner, prepare
from edge_verifier.engines.hf_worker import LocalWorker, Worker
from edge_verifier.engines.ledger import Ledger, Limits
from protocol.errors import ModelError
from protocol.fingerprint import target_fingerprint

if TYPE_CHECKING:
    from edge_verifier.engines.rank_group import RankGroup

T = TypeVar("T")

ENGINE = "transformers"
logger = logging.getLogger(__name__)


class TransformersEngine:
    """An `Engine` on torch, with a model thread of its own.

    In fp32 on the CPU it is batch-invariant (`info.is_exact`), unless the model routes tokens to experts.

    Args:
        target: local directory or hub id.
        dtype: `float32`, `bfloat16` or `auto`, see `hf_loading.load_model`.
        device: `cpu`, `cuda` or `auto`.
        n_threads: of torch, for the whole process; None leaves torch's choice.
        max_sessions: sessions that can be open at once.
        max_context: positions per session, if less than the model's own.
        kv_bytes: memory for all KV caches together, taken at once; with a group, of each of its processes.
            None for a default that is taken as it is used.
        group: processes that hold the target together; this one leads, the others `hf_follower.follow` it.

    Raises:
        ModelError: the target cannot be found, read, or served right, or there is not enough memory.
    """

    def __init__(
        self,
        target: str | Path,
        *,
        dtype: str = "auto",
        device: str = "auto",
        n_threads: int | None = None,
        max_sessions: int = 64,
        max_context: int | None = None,
        kv_bytes: int | None = None,
        group: RankGroup | None = None,
    ) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")
        # Loading computes, too. Done on another thread it would leave torch two pools, together larger than
        # the machine; libgomp then no longer spins at barriers, and each small call takes 80 us more.
        load = partial(load_model, target, dtype=dtype, device=device, group=group)
        try:
            loaded = self._thread.submit(load).result()
            self._runner = self._thread.submit(StepRunner, loaded).result()
            prepared = self._thread.submit(
                prepare,
                self._runner,
                loaded,
                n_threads=n_threads,
                max_sessions=max_sessions,
                max_context=max_context,
                kv_bytes=kv_bytes,
            )
            memory = prepared.result()
        except BaseException:
            self._thread.shutdown()
            raise
        context = min(loaded.max_context, max_context or loaded.max_context)
        limits = Limits(
            vocab_size=loaded.vocab_size,
            max_context=min(context, memory.n_blocks * BLOCK),
            max_sessions=max_sessions,
            max_positions=memory.n_blocks * BLOCK,
            block=BLOCK,
        )
        self._ledger = Ledger(limits)
        worker = LocalWorker(self._runner, memory)
        self._worker: Worker = worker if group is None else LeadingWorker(worker, group)
        self._truncations: deque[tuple[int, int]] = deque()
        self._n_truncations = 0  # ordered so far; the model's thread has done the first `_n_truncated`
        self._n_truncated = 0
        self._is_shut_down = False
        self._info = _info(loaded, limits, is_exact=self._runner.is_exact and not _has_experts(loaded))
        logger.info(
            "target %s in %s on %s: context %s, %s KV positions, exact %s",
            self._info.model, self._info.dtype, loaded.device,
            limits.max_context, limits.max_positions, self._info.is_exact,
        )  # fmt: skip

    @property
    def info(self) -> EngineInfo:
        """See `Engine.info`."""
        return self._info

    def open(self) -> int:
        """See `Engine.open`."""
        return self._ledger.open()

    def fork(self, session: int, length: int) -> int:
        """See `Engine.fork`."""
        if self._is_shut_down:
            raise ModelError("the engine is shut down")
        forked = self._ledger.fork(session, length)
        self._do(self._worker.fork, forked, session, length)
        return forked

    def truncate(self, session: int, length: int) -> None:
        """See `Engine.truncate`."""
        self._ledger.truncate(session, length)
        self._truncations.append((session, length))
        self._n_truncations += 1

    def close(self, session: int) -> None:
        """See `Engine.close`."""
        self._ledger.close(session)
        if not self._is_shut_down:
            self._do(self._worker.close, session)

    def submit(self, rows: Sequence[Row]) -> Future[StepResult]:
        """See `Engine.submit`."""
        if self._is_shut_down:
            raise ModelError("the engine is shut down")
        batch = tuple(rows)
        self._ledger.admit(batch)
        return self._do(self._worker.run, batch)

    def shutdown(self) -> None:
        """See `Engine.shutdown`."""
        if not self._is_shut_down:
            self._is_shut_down = True
            self._thread.submit(self._worker.end)
        self._thread.shutdown(wait=True)

    def _do(self, call: Callable[..., T], *arguments: object) -> Future[T]:
        """Call on the model's thread, after the truncations up to now.

        These wait for company: handing over each for itself takes longer than a small step's planning.
        """
        return self._thread.submit(self._after, self._n_truncations, call, *arguments)

    def _after(self, n_truncations: int, call: Callable[..., T], *arguments: object) -> T:
        """Also does the truncations that a cancelled step before it has left undone."""
        while self._n_truncated < n_truncations:
            self._n_truncated += 1
            self._worker.truncate(*self._truncations.popleft())
        return call(*arguments)


def _has_experts(loaded: LoadedModel) -> bool:
    """Whether tokens are routed to experts, whose batches then depend on the rest of the step."""
    return any("expert" in type(module).__name__.lower() for module in loaded.model.modules())


def _info(loaded: LoadedModel, limits: Limits, *, is_exact: bool) -> EngineInfo:
    return EngineInfo(
        name=ENGINE,
        model=loaded.name,
        dtype=loaded.dtype,
        vocab_size=limits.vocab_size,
        max_context=limits.max_context,
        max_sessions=limits.max_sessions,
        stop_ids=loaded.stop_ids,
        target=target_fingerprint(loaded.weights_sha256, loaded.dtype, ENGINE),
        vocabulary=loaded.vocabulary,
        weights_sha256=loaded.weights_sha256,
        max_positions=limits.max_positions,
        block=limits.block,
        is_exact=is_exact,
        can_fork=True,
    )
