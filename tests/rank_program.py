"""What each process of a group does in tests of groups; the leader prints one JSON object per result.

WORLD_SIZE=2 RANK=0 ... python -m tests.rank_program SCENARIO TARGET...
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_verifier.engine import Engine, Row
from edge_verifier.engines import follow, join_group, load_engine, rank_group
from edge_verifier.engines.launch import Launch
from edge_verifier.engines.rank_group import RankGroup
from protocol.errors import ModelError, RankLostError

TEXT_LENGTH = 32
OPTIONS: dict[str, Any] = {"dtype": "float32", "device": "cpu", "n_threads": 1, "kv_bytes": 1 << 24}


def text_of(vocab_size: int) -> tuple[int, ...]:
    """The text whose logits are compared."""
    return tuple(np.random.default_rng(0).integers(0, vocab_size, TEXT_LENGTH).tolist())


def logits_by_tokens(engine: Engine, text: tuple[int, ...]) -> NDArray[np.float32]:
    """Logits of every position, by one-token steps of a session alone."""
    session = engine.open()
    found = [engine.submit([Row(session, i, (token,), 1)]).result() for i, token in enumerate(text)]
    engine.close(session)
    return np.stack([result.logits[0][0] for result in found])


def logits_by_windows(engine: Engine, text: tuple[int, ...]) -> NDArray[np.float32]:
    """The same in windows beside another session, each computed twice: rolled back, and in a copy."""
    session, other, long = engine.open(), engine.open(), engine.open()
    engine.submit([Row(other, 0, text[:29], 0), Row(long, 0, (text * 40)[:1000], 1)]).result()
    engine.close(long)
    found, start = [], 0
    for n in (9, 1, 5, 14, 3):
        row = Row(session, start, text[start : start + n], n)
        engine.submit([Row(other, 29 + start, text[:n], 1), row]).result()
        engine.truncate(session, start)
        if start:
            copy = engine.fork(session, start)
            engine.close(session)
            session = copy
        found.append(engine.submit([replace(row, session=session)]).result().logits[0])
        start += n
    engine.close(session)
    engine.close(other)
    return np.concatenate(found)


def compare(group: RankGroup, targets: list[str]) -> None:
    """One target after the other: the leader tells whether batches are exact, and saves the logits."""
    for target in targets:
        if not group.is_leader:
            follow(target, group, **OPTIONS)
            continue
        engine = load_engine(target, group=group, **OPTIONS)
        text = text_of(engine.info.vocab_size)
        alone = logits_by_tokens(engine, text)
        is_exact = bool(np.array_equal(alone, logits_by_windows(engine, text)))
        engine.shutdown()
        _tell({"is_exact": is_exact, "logits": alone.tolist()})
    group.leave()


def idle(group: RankGroup, targets: list[str]) -> None:
    """Nothing is asked for longer than an answer to a beat may take; then it still works."""
    if not group.is_leader:
        follow(targets[0], group, **OPTIONS)
    else:
        engine = load_engine(targets[0], group=group, **OPTIONS)
        time.sleep(13.0)
        engine.submit([Row(engine.open(), 0, (1, 2, 3), 1)]).result()
        engine.shutdown()
        _tell({"is_lost": False})
    group.leave()


def hang(group: RankGroup, targets: list[str]) -> None:
    """A follower that is stopped is noticed while nothing is asked of it."""
    del targets
    if not group.is_leader:
        os.kill(os.getpid(), signal.SIGSTOP)
    while True:
        group.check()
        time.sleep(0.05)


def differ(group: RankGroup, targets: list[str]) -> None:
    """Processes that were told different things do not begin: budgets, and sessions could fill either."""
    options = OPTIONS | {"kv_bytes": (1 << 18) * (1 + group.rank)}
    if group.is_leader:
        load_engine(targets[0], group=group, **options)
    else:
        follow(targets[0], group, **options)


def _tell(result: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(result) + "\n")
    sys.stdout.flush()


SCENARIOS: dict[str, Callable[[RankGroup, list[str]], None]] = {
    "compare": compare,
    "idle": idle,
    "hang": hang,
    "differ": differ,
}


def main(scenario: str, targets: list[str]) -> None:
    """Join the group, play the part, and tell the errors that are meant to come."""
    if scenario in ("idle", "hang"):
        rank_group._LEADER_TIMEOUT = timedelta(seconds=8)
        rank_group._FOLLOWER_TIMEOUT = timedelta(seconds=10)
    launch = Launch.of(os.environ)
    assert launch is not None
    try:
        group = join_group(launch, targets[0], "cpu", lambda _: None)
        SCENARIOS[scenario](group, targets)
    except ModelError as error:
        kind = "lost" if isinstance(error, RankLostError) else "refused"
        _tell({kind: str(error), "hint": error.hint})
        os._exit(error.exit_code)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
