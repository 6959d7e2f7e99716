"""Target models behind one interface; each library is imported by its own file only.

An engine is a class that keeps the contract of `edge_verifier.engine.Engine`, in a module of this package,
and a line in `ENGINES`; `table_engine.py` is the smallest example.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from edge_verifier.engine import Engine
from edge_verifier.engines.launch import Launch
from edge_verifier.engines.model_directory import find_directory
from protocol.errors import ConfigError, MissingLibraryError, RankLostError
from protocol.messages import SamplerSettings

if TYPE_CHECKING:
    from edge_verifier.engines.rank_group import RankGroup

ENGINES = {
    "transformers": ("edge_verifier.engines.hf", "TransformersEngine", "pip install 'sled[verifier]'"),
    "llama.cpp": ("edge_verifier.engines.llamacpp", "LlamaCppEngine", "pip install 'sled[verifier-gguf]'"),
}
"""Module, class and the command that installs what it needs, by the engine's name."""


class Reference(Protocol):
    """A target that decodes by itself, by code that the engines do not use."""

    def generate(self, prompt_ids: Sequence[int], settings: SamplerSettings, limit: int) -> list[int]:
        """The tokens that follow `prompt_ids` up to absolute length `limit`, the stop token included."""
        ...


def load_engine(
    target: str | Path,
    *,
    engine: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    n_threads: int | None = None,
    max_sessions: int = 64,
    max_context: int | None = None,
    kv_bytes: int | None = None,
    group: RankGroup | None = None,
) -> Engine:
    """Load a target model; takes seconds, and memory for the weights.

    Args:
        target: a local model directory, a hub id, or a GGUF file.
        engine: a name in `ENGINES`; None for the one that serves the kind of `target`.
        dtype: `auto`, `float32` or `bfloat16`; a GGUF target is served as stored or in float32.
        device: `auto`, `cpu` or `cuda`.
        n_threads: of the model; None for one per core.
        max_sessions: sessions that can be open at once.
        max_context: positions per session, if less than the model's own.
        kv_bytes: memory for all KV caches together, taken at once; with a group, of each of its processes.
            None for 2 GiB, which transformers takes on the CPU as they are used.
        group: processes that hold the target together, from `join_group`; this one leads.

    Raises:
        ConfigError: there is no such engine.
        ModelError: the engine is not installed, or the target cannot be found, read, or served right.
    """
    engine = engine or engine_for(target)
    if engine not in ENGINES:
        raise ConfigError(f"there is no engine {engine!r}", hint=f"use one of: {', '.join(ENGINES)}")
    module, name, install = ENGINES[engine]
    try:
        if engine == "transformers":
            find_directory(target)
        engine_class = getattr(import_module(module), name)
    except ImportError as error:
        raise MissingLibraryError(f"the engine {engine} is not installed ({error})", hint=install) from error
    loaded = engine_class(
        target,
        dtype=dtype,
        device=device,
        n_threads=n_threads,
        max_sessions=max_sessions,
        max_context=max_context,
        kv_bytes=kv_bytes,
        **({} if group is None else {"group": group}),
    )
    return cast("Engine", loaded)


def join_group(
    launch: Launch, target: str | Path, device: str, on_loss: Callable[[RankLostError], None]
) -> RankGroup:
    """Meet the other processes that hold `target`; see `RankGroup`.

    Raises:
        ConfigError: such a target is held by one process.
        ModelError: torch is not installed, the device cannot be used, or the others cannot be reached.
    """
    if engine_for(target) != "transformers":
        raise ConfigError(
            f"a GGUF target is held by one process, not by {launch.size}", hint="start it without torchrun"
        )
    try:
        from edge_verifier.engines.rank_group import RankGroup  # noqa: PLC0415 - brings in torch
    except ImportError as error:
        install = ENGINES["transformers"][2]
        raise MissingLibraryError(f"torch is not installed ({error})", hint=install) from error
    return RankGroup(launch, device, on_loss)


def follow(target: str | Path, group: RankGroup, **options: Any) -> None:  # noqa: ANN401 - as `load_engine`'s
    """Hold a part of `target` until the leader ends; `options` are those that the leader gives `load_engine`.

    Raises:
        RankLostError: another process is gone.
        ModelError: the target cannot be found, read, or served right.
    """
    from edge_verifier.engines import hf_follower  # noqa: PLC0415 - brings in torch

    find_directory(target)
    hf_follower.follow(target, group, **options)


def engine_for(target: str | Path) -> str:
    """The name in `ENGINES` of the engine that serves such a target."""
    return "llama.cpp" if str(target).lower().endswith(".gguf") else "transformers"


def load_reference(target: str | Path, dtype: str) -> Reference:
    """The target alone, for checking what was committed.

    Args:
        dtype: as in `EngineInfo`.

    Raises:
        ConfigError: a GGUF target that is not served in float32: there every batch has other rounding, and
            a comparison would find differences that are none.
        ModelError: the target cannot be read.
    """
    if engine_for(target) == "llama.cpp":
        if dtype != "float32":
            raise ConfigError(
                f"a GGUF target in {dtype} cannot be compared token by token",
                hint="use --dtype float32, in which batches and single tokens agree",
            )
        from edge_verifier.engines.llamacpp_reference import GgufAlone  # noqa: PLC0415 - brings in llama.cpp

        return GgufAlone(Path(target))
    from edge_verifier.engines.hf_reference import TargetAlone  # noqa: PLC0415 - brings in torch

    return TargetAlone(target, dtype)
