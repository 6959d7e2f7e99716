"""The processes that hold one target together: how they meet, talk, and notice that one is gone.

Process 0 leads. Besides the model's own exchange there are two channels over gloo, both for plain integers:
what the leader tells the others, on which they may wait for days, and a beat every second, by which each side
notices within seconds that the other has ended, and within a minute that it hangs.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Mapping
from datetime import timedelta
from importlib.metadata import version

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from edge_verifier.engines.launch import Launch
from edge_verifier.engines.model_directory import first_line
from edge_verifier.engines.rank_device import rank_device
from edge_verifier.engines.step_messages import VERSION
from protocol.errors import ModelError, RankLostError

_FIRST_PART = 1024
"""Numbers that are sent at once; longer messages come in two parts."""
_BEAT_S = 1.0
_LEADER_TIMEOUT = timedelta(seconds=30)
"""For an answer to a beat. A process may be busy or short of memory for a while."""
_FOLLOWER_TIMEOUT = timedelta(seconds=60)
"""Between two beats; longer, so that the leader, who knows which process hangs, is the first to say so."""
_NO_TIMEOUT = timedelta(days=365)
_MEETING_TIMEOUT = timedelta(minutes=30)
_NAMING_S = 3.0
"""How long a failed exchange waits for the beat to say who is gone."""

OnLoss = Callable[[RankLostError], None]


class RankGroup:
    """This process among those of its launch; made by all of them at the same time.

    Args:
        device: `cpu`, `cuda` or `auto`.
        on_loss: called once, on any thread, when another process is gone. The group is of no use then, and
            threads of this process may hang in an exchange for good.

    Attributes:
        on_loss: may be replaced while nothing is lost.

    Raises:
        ModelError: the device cannot be used, or the processes do not find each other.
    """

    def __init__(self, launch: Launch, device: str, on_loss: OnLoss) -> None:
        self.rank = launch.rank
        self.size = launch.size
        self.device = rank_device(launch, device)
        self.on_loss = on_loss
        self._loss: RankLostError | None = None
        self._losing = threading.Lock()
        self._is_lost = threading.Event()
        self._is_leaving = threading.Event()
        self._messages, self._beats = self._meet()
        watch = self._watch_followers if self.is_leader else self._watch_leader
        self._watch = threading.Thread(target=watch, name="rank-watch", daemon=True)
        self._watch.start()

    @property
    def is_leader(self) -> bool:
        """Whether this is process 0."""
        return self.rank == 0

    def check(self) -> None:
        """Raise RankLostError once a process is gone."""
        if self._loss is not None:
            raise self._loss

    def send(self, message: NDArray[np.int64]) -> None:
        """Tell all others; for the leader.

        Raises:
            RankLostError: a process is gone.
        """
        self.check()
        numbers = torch.zeros(_FIRST_PART, dtype=torch.int64)
        numbers[0] = len(message)
        first, rest = torch.from_numpy(message).tensor_split([_FIRST_PART - 1])
        numbers[1 : 1 + len(first)] = first
        self._exchange(lambda: dist.broadcast(numbers, 0, group=self._messages))
        if len(rest):
            self._exchange(lambda: dist.broadcast(rest, 0, group=self._messages))

    def receive(self) -> NDArray[np.int64]:
        """The leader's next message, however long it takes.

        Raises:
            RankLostError: a process is gone.
        """
        numbers = torch.zeros(_FIRST_PART, dtype=torch.int64)
        self._exchange(lambda: dist.broadcast(numbers, 0, group=self._messages))
        n = int(numbers[0])
        rest = torch.zeros(max(0, n - (_FIRST_PART - 1)), dtype=torch.int64)
        if len(rest):
            self._exchange(lambda: dist.broadcast(rest, 0, group=self._messages))
        found: NDArray[np.int64] = torch.cat([numbers[1:], rest])[:n].numpy()
        return found

    def agree(self, facts: Mapping[str, str]) -> None:
        """Make sure that all processes have the same facts and versions; called by all.

        Raises:
            ModelError: one differs; it is named.
            RankLostError: a process is gone.
        """
        versions = {f"version of {name}": version(name) for name in ("torch", "transformers")}
        facts = {**facts, **versions, "version of SLED": str(VERSION)}
        digests = [hashlib.sha256(fact.encode()).digest()[:8] for fact in facts.values()]
        own = torch.from_numpy(np.frombuffer(b"".join(digests), dtype=np.int64).copy())
        found = [torch.empty_like(own) for _ in range(self.size)]
        self._exchange(lambda: dist.all_gather(found, own, group=self._messages))
        for rank, theirs in enumerate(found):
            for name, one, other in zip(facts, found[0].tolist(), theirs.tolist(), strict=True):
                if one != other:
                    raise ModelError(
                        f"process {rank} of the target has another {name} than process 0",
                        hint="give all machines the same files, versions and command line",
                    )

    def sum(self, part: Tensor, *, is_exact: bool) -> Tensor:
        """The sum of all processes' parts, in each of them.

        Args:
            is_exact: add in the order of ranks, so that no element's bits depend on how many others there
                are: otherwise where an element lies decides the order in which parts are added.
        """
        if not is_exact:
            self._exchange(lambda: dist.all_reduce(part))
            return part
        parts = self._gathered(part)
        total = parts[0]
        for other in parts[1:]:
            total += other
        return total

    def columns(self, part: Tensor, width: int) -> Tensor:
        """All processes' parts side by side, in each of them; the last may be narrower.

        Args:
            part: the columns of this process, cut as `torch.chunk` cuts.
            width: of the whole.
        """
        return torch.cat(self._gathered(self._widened(part, width)), dim=-1)[..., :width]

    def columns_for_leader(self, part: Tensor, width: int) -> Tensor:
        """As `columns`, but in process 0 only; the others get their part."""
        part = self._widened(part, width)
        parts = [torch.empty_like(part) for _ in range(self.size)] if self.is_leader else None
        self._exchange(lambda: dist.gather(part, parts, dst=0))
        return part if parts is None else torch.cat(parts, dim=-1)[..., :width]

    def fail(self, error: BaseException) -> None:
        """A step failed here, which means that this process and the others no longer stand alike."""
        self._is_lost.wait(_NAMING_S)
        self._lose(f"a step failed in process {self.rank} of {self.size} ({_line(error)})")

    def leave(self) -> None:
        """Part in peace: after the leader's last message. Nothing more may be called."""
        self._is_leaving.set()
        self._watch.join()
        if self._loss is None:
            dist.destroy_process_group()

    def _meet(self) -> tuple[dist.ProcessGroup, dist.ProcessGroup]:
        is_cuda = self.device.type == "cuda"
        try:
            dist.init_process_group(
                "nccl" if is_cuda else "gloo",
                device_id=self.device if is_cuda else None,
                timeout=_MEETING_TIMEOUT,
            )
            beat_timeout = _LEADER_TIMEOUT if self.is_leader else _FOLLOWER_TIMEOUT
            return (
                dist.new_group(backend="gloo", timeout=_NO_TIMEOUT),
                dist.new_group(backend="gloo", timeout=beat_timeout),
            )
        except (RuntimeError, ValueError) as error:
            raise ModelError(
                f"process {self.rank} of {self.size} cannot reach the others ({first_line(error)})",
                hint="see that the machines reach each other; GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME name"
                " the network interface to use",
            ) from error

    def _gathered(self, part: Tensor) -> list[Tensor]:
        part = part.contiguous()
        parts = [torch.empty_like(part) for _ in range(self.size)]
        self._exchange(lambda: dist.all_gather(parts, part))
        return parts

    def _widened(self, part: Tensor, width: int) -> Tensor:
        n_missing = -(-width // self.size) - part.shape[-1]
        return torch.nn.functional.pad(part, (0, n_missing)) if n_missing else part

    def _exchange(self, exchange: Callable[[], object]) -> None:
        try:
            exchange()
        except RuntimeError as error:
            self.fail(error)
            self.check()

    def _watch_followers(self) -> None:
        is_last = False
        while not is_last:
            is_last = self._is_leaving.wait(_BEAT_S)
            for rank in range(1, self.size):
                try:
                    dist.send(torch.tensor([int(is_last)]), rank, group=self._beats)
                    dist.recv(torch.tensor([0]), rank, group=self._beats)
                except RuntimeError as error:
                    self._lose(f"process {rank} of {self.size} has ended or hangs ({_line(error)})")
                    return

    def _watch_leader(self) -> None:
        beat = torch.tensor([0])
        while not beat.item():
            try:
                dist.recv(beat, 0, group=self._beats)
                dist.send(beat, 0, group=self._beats)
            except RuntimeError as error:
                self._lose(f"process 0 of {self.size} has ended or hangs ({_line(error)})")
                return

    def _lose(self, what: str) -> None:
        """Only the first loss counts: others follow from it. Who comes second waits for `on_loss`."""
        with self._losing:
            if self._loss is not None:
                return
            self._loss = RankLostError(what, hint="see what it said last, then start all of them again")
            self._is_lost.set()
            self.on_loss(self._loss)


def _line(error: BaseException) -> str:
    """The part of an error of gloo that tells something."""
    lines = str(error).splitlines() or [type(error).__name__]
    return lines[0].rpartition("] ")[2].partition(". This is")[0][:160]
