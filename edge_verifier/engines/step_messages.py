"""What the first process of a target tells the others: operations on sessions, as one array of integers.

Nothing is pickled: whatever arrives, decoding it can only give operations or a `ModelError`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_verifier.engine import Row
from protocol.errors import ModelError

VERSION = 2
"""Processes with another one do not work together."""

_END, _CLOSE, _TRUNCATE, _RUN, _FORK = range(5)


@dataclass(frozen=True, slots=True)
class End:
    """There is nothing more to do."""


@dataclass(frozen=True, slots=True)
class Close:
    """Forget a session."""

    session: int


@dataclass(frozen=True, slots=True)
class Truncate:
    """Keep the first `length` positions of a session."""

    session: int
    length: int


@dataclass(frozen=True, slots=True)
class Fork:
    """Begin a session with the first `length` positions of another, `source`."""

    session: int
    source: int
    length: int


@dataclass(frozen=True, slots=True)
class Run:
    """Compute one step."""

    rows: tuple[Row, ...]


Operation = End | Close | Truncate | Fork | Run


def encode(operations: Sequence[Operation]) -> NDArray[np.int64]:
    """Operations, in order, as integers."""
    numbers: list[int] = []
    for operation in operations:
        match operation:
            case End():
                numbers.append(_END)
            case Close(session):
                numbers += (_CLOSE, session)
            case Truncate(session, length):
                numbers += (_TRUNCATE, session, length)
            case Fork(session, source, length):
                numbers += (_FORK, session, source, length)
            case Run(rows):
                numbers += (_RUN, len(rows))
                for row in rows:
                    numbers += (row.session, row.start, row.n_logits, len(row.tokens), *row.tokens)
    return np.array(numbers, dtype=np.int64)


def decode(message: NDArray[np.int64]) -> list[Operation]:
    """The operations of one message.

    Raises:
        ModelError: it is none.
    """
    numbers = iter(message.tolist())
    operations = []
    try:
        while (kind := next(numbers, None)) is not None:
            operations.append(_operation(kind, numbers))
    except StopIteration:
        raise ModelError("a message between the processes of a target is cut off") from None
    return operations


def _operation(kind: int, numbers: Iterator[int]) -> Operation:
    if kind == _END:
        return End()
    if kind == _CLOSE:
        return Close(next(numbers))
    if kind == _TRUNCATE:
        session, length = next(numbers), next(numbers)
        return Truncate(session, length)
    if kind == _FORK:
        session, source, length = next(numbers), next(numbers), next(numbers)
        return Fork(session, source, length)
    if kind != _RUN:
        raise ModelError(f"a message between the processes of a target holds an operation {kind}")
    n_rows = next(numbers)
    return Run(tuple([_row(numbers) for _ in range(n_rows)]))


def _row(numbers: Iterator[int]) -> Row:
    session, start, n_logits, n_tokens = (next(numbers), next(numbers), next(numbers), next(numbers))
    tokens = [next(numbers) for _ in range(n_tokens)]
    return Row(session, start, tuple(tokens), n_logits)
