"""Target models behind one interface; each library is imported by its own file only.

An engine is a class that keeps the contract of `edge_verifier.engine.Engine`, in a module of this package,
and a line in `ENGINES`; `table_engine.py` is the smallest example.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import cast

from edge_verifier.engine import Engine
from edge_verifier.engines.model_directory import find_directory
from protocol.errors import ConfigError, ModelError

ENGINES = {
    "transformers": ("edge_verifier.engines.hf", "TransformersEngine", "pip install 'sled[verifier]'"),
}
"""Module, class and the command that installs what it needs, by the engine's name."""


def load_engine(
    target: str | Path,
    *,
    engine: str = "transformers",
    dtype: str = "auto",
    device: str = "auto",
    n_threads: int | None = None,
    max_sessions: int = 64,
    max_context: int | None = None,
    kv_bytes: int = 2 << 30,
) -> Engine:
    """Load a target model; takes seconds, and memory for the weights.

    Args:
        target: a local model directory or a hub id.
        engine: a name in `ENGINES`.
        dtype: `auto`, `float32` or `bfloat16`.
        device: `auto`, `cpu` or `cuda`.
        n_threads: of the model; None for one per core.
        max_sessions: sessions that can be open at once.
        max_context: positions per session, if less than the model's own.
        kv_bytes: memory for all KV caches together.

    Raises:
        ConfigError: there is no such engine.
        ModelError: the engine is not installed, or the target cannot be found, read, or served right.
    """
    if engine not in ENGINES:
        raise ConfigError(f"there is no engine {engine!r}", hint=f"use one of: {', '.join(ENGINES)}")
    module, name, install = ENGINES[engine]
    try:
        if engine == "transformers":
            find_directory(target)
        engine_class = getattr(import_module(module), name)
    except ImportError as error:
        raise ModelError(f"the engine {engine} is not installed ({error})", hint=install) from error
    loaded = engine_class(
        target,
        dtype=dtype,
        device=device,
        n_threads=n_threads,
        max_sessions=max_sessions,
        max_context=max_context,
        kv_bytes=kv_bytes,
    )
    return cast("Engine", loaded)
