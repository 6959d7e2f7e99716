"""The logits of a few texts by one engine, to hold the same model in two libraries against each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_verifier.engine import EngineInfo, Row
from edge_verifier.engines import load_engine
from protocol.errors import ModelError
from protocol.raw_logits import as_floats


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What an engine says of itself, and its logits [tokens, vocab] for each text."""

    info: EngineInfo
    logits: tuple[NDArray[np.float32], ...]


def probe_target(target: str | Path, texts: Sequence[Sequence[int]], *, dtype: str = "auto") -> ProbeResult:
    """Load a target on the CPU, run each text from its beginning, and free it again.

    Raises:
        ModelError: the target cannot be loaded, or a text does not fit it.
    """
    longest = max((len(text) for text in texts), default=1)
    engine = load_engine(target, dtype=dtype, device="cpu", max_sessions=1, max_context=longest)
    try:
        logits = []
        for text in texts:
            session = engine.open()
            row = Row(session, 0, tuple(text), len(text))
            logits.append(as_floats(engine.submit([row]).result().logits[0]))
            engine.close(session)
        return ProbeResult(engine.info, tuple(logits))
    finally:
        engine.shutdown()


def largest_difference(one: ProbeResult, other: ProbeResult) -> float:
    """How far apart any two logits for the same texts are.

    Raises:
        ModelError: the models have vocabularies of different sizes.
    """
    if one.info.vocab_size != other.info.vocab_size:
        raise ModelError(
            f"{one.info.model} has {one.info.vocab_size} tokens, {other.info.model} {other.info.vocab_size}",
            hint="they are not the same model: export the GGUF file again",
        )
    pairs = zip(one.logits, other.logits, strict=True)
    return max((float(np.abs(mine - theirs).max()) for mine, theirs in pairs), default=0.0)
