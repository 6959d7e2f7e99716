"""What devices have used of their quotas within a day, kept over a restart of the verifier.

Written every `PERIOD_S` and at the end: a verifier that is killed forgets at most that long, in the devices'
favour. The minute's use is not kept. Ages are reckoned by the wall clock between two lives and by the
monotonic one within a life; a clock that went back makes nothing older.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

import orjson

from edge_verifier.quota import Quotas, Usage
from protocol.atomic_file import SECRET_MODE, write_atomically

_logger = logging.getLogger(__name__)

PERIOD_S = 30.0
_FORMAT = 1


class UsageFile:
    """The file of one verifier, and the thread that writes it.

    Args:
        path: its folder is made when missing; where it cannot be written, that is logged and all goes on.
        clock: of the quotas.
        wall_clock: seconds since 1970.
    """

    def __init__(
        self,
        path: Path,
        quotas: Quotas,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._path = path
        self._quotas = quotas
        self._clock = clock
        self._wall_clock = wall_clock
        self._is_stopping = threading.Event()
        self._is_broken = False
        self._thread = threading.Thread(target=self._run, name="usage-file", daemon=True)

    def start(self) -> None:
        """Go on from the file, and write it from now on."""
        self.load()
        self._thread.start()

    def stop(self) -> None:
        """Write it once more."""
        self._is_stopping.set()
        if self._thread.ident is not None:
            self._thread.join()
            self.save()

    def load(self) -> None:
        """Take over what a former life has counted; a file that cannot be read counts nothing."""
        try:
            content = orjson.loads(self._path.read_bytes())
            away_s = max(0.0, self._wall_clock() - float(content["saved_at"]))
            usage = [
                Usage(
                    str(device),
                    _aged(entry["tokens"], away_s),
                    _aged(entry["bytes"], away_s),
                )
                for device, entry in content["devices"].items()
            ]
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            _logger.warning("%s cannot be read, the day's use begins anew: %s", self._path, error)
            return
        self._quotas.restore(usage, self._clock())

    def save(self) -> None:
        """Write it; complete or not at all."""
        usage = self._quotas.usage(self._clock())
        devices = {each.device: {"tokens": each.tokens, "bytes": each.bytes} for each in usage}
        content = {"format": _FORMAT, "saved_at": self._wall_clock(), "devices": devices}
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomically(self._path, orjson.dumps(content), mode=SECRET_MODE)
        except OSError as error:
            if not self._is_broken:
                _logger.warning("use of quotas is not kept over a restart: %s", error)
            self._is_broken = True
        else:
            self._is_broken = False

    def _run(self) -> None:
        while not self._is_stopping.wait(PERIOD_S):
            self.save()


def _aged(entries: list[list[float]], away_s: float) -> tuple[tuple[float, int], ...]:
    return tuple((float(age_s) + away_s, int(amount)) for age_s, amount in entries)
