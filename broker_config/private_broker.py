"""A Mosquitto of our own: on its own ports, with a fleet's identities, ending with its parent."""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import signal
import subprocess
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from broker_config.configuration import (
    BrokerFiles,
    BrokerPlace,
    BrokerPorts,
    render_acl_of,
    render_configuration,
)
from broker_config.free_ports import check_is_free, choose_ports
from broker_config.probe import find_mosquitto
from broker_config.running_broker import RunningBroker, log_since, replace_text
from broker_config.tied_exec import tied
from protocol.errors import BrokerError

_START_S = 10.0
_STOP_S = 5.0
_POLL_S = 0.01
_ATTEMPTS = 5
"""Free ports may be taken by others between choosing and binding them."""
_RUNNING = b" running"
_MOST_CRASHES = 3
_CRASH_SPAN_S = 60.0
"""More crashes than that within this time have a cause that a start does not cure."""

_MOST_LOG_BYTES = 8 << 20
"""Of the log, and of what is kept of it when it is begun anew: brokers run for months."""

_logger = logging.getLogger(__name__)


class PrivateBroker:
    """Context manager around a Mosquitto child process.

    Everything it writes lies in `directory`: configuration, access list, log, persistence. The child ends
    when this process ends, also by SIGKILL (on Linux). It does not see the terminal's Ctrl-C, so that its
    owner can say farewell through it first.

    Args:
        files: of the fleet.
        directory: made when missing.
        listen: address to bind; `0.0.0.0` for every one.
        device_port, backend_port, claim_port: None takes a free one. Administration always does.

    Raises:
        BrokerError: on entering: Mosquitto is missing, a given port is taken, or it does not come up.
    """

    def __init__(
        self,
        files: BrokerFiles,
        directory: Path,
        *,
        listen: str = "127.0.0.1",
        device_port: int | None = None,
        backend_port: int | None = None,
        claim_port: int | None = None,
    ) -> None:
        self._files = files
        self._directory = directory
        self._listen = listen
        self._fixed = {"devices": device_port, "backend": backend_port, "claims": claim_port}
        self._ports: BrokerPorts | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._reaped = threading.Event()
        self._log_start = 0
        self._crashes_s: list[float] = []

    def __enter__(self) -> Self:
        binary = find_mosquitto()
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._start_somewhere(binary)
        except OSError as error:
            raise BrokerError(f"the broker's directory {self._directory} cannot be used: {error}") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def host(self) -> str:
        """Address by which this machine reaches the broker."""
        return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self._listen, self._listen)  # noqa: S104 - compared

    @property
    def device_port(self) -> int:
        return self._bound.devices

    @property
    def backend_port(self) -> int:
        return self._bound.backend

    @property
    def claim_port(self) -> int:
        return self._bound.claims

    @property
    def admin_port(self) -> int:
        return self._bound.admin

    @property
    def pid(self) -> int | None:
        """Process id of the broker; None while it is down."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    @property
    def log_file(self) -> Path:
        return self._directory / "mosquitto.log"

    @property
    def log(self) -> str:
        """What Mosquitto has logged since it was last started, or since its log was begun anew."""
        return log_since(self.log_file, self._log_start).decode(errors="replace")

    def check(self) -> None:
        """Do nothing while the broker runs.

        Raises:
            BrokerError: it has ended; with the last line of its log.
        """
        if self._process is None or self._process.poll() is not None:
            raise self._failure("the broker has ended")

    def revive(self) -> bool:
        """Start it again, on the same ports, when a signal has ended it; whether that was so.

        It comes back with the state that it saved last, at most half a minute old. While it runs, a log that
        has become long is begun anew.

        Raises:
            BrokerError: it has ended by itself, does not start, or crashes again and again.
        """
        ended = None if self._process is None else self._process.poll()
        if self._process is not None and ended is None:
            self._turn_log_over()
            return False
        now_s = time.monotonic()
        self._crashes_s = [at_s for at_s in self._crashes_s if now_s - at_s < _CRASH_SPAN_S] + [now_s]
        if ended is None or ended >= 0 or len(self._crashes_s) > _MOST_CRASHES:
            raise self._failure("the broker has ended")
        _logger.warning("the broker was ended by %s; it is started again", signal.Signals(-ended).name)
        self.restart()
        return True

    def reload(self, files: BrokerFiles | None = None) -> None:
        """Write configuration and access list again, for `files` if given, and have them read.

        New rules hold for live connections at once; certificates and revocation lists for new ones.

        Raises:
            BrokerError: the broker has ended, or does not react.
        """
        self._files = files or self._files
        self._write()
        self.check()
        if self._process is not None:
            RunningBroker(self._directory, self._process.pid, self._bound).signal_reload()

    def kill(self) -> None:
        """End it as a power cut would: nothing is saved, no connection is closed properly."""
        self._signal(signal.SIGKILL)
        self._reap()

    def stop(self) -> None:
        """End it properly: its state is saved. Nothing happens when it has ended already."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
        self._reap()

    def restart(self, *, keep_persistence: bool = True) -> None:
        """Stop it if it runs, and start it again on the same ports.

        Args:
            keep_persistence: False loses retained messages, queues and sessions.

        Raises:
            BrokerError: as on entering.
        """
        self.stop()
        if not keep_persistence:
            (self._directory / "mosquitto.db").unlink(missing_ok=True)
        self._start(find_mosquitto(), self._bound)

    # ---- starting

    def _start_somewhere(self, binary: Path) -> None:
        for name, port in self._fixed.items():
            if port is not None:
                check_is_free(self._listen, port, name)
        for attempt in range(1, _ATTEMPTS + 1):
            ports = choose_ports(self._listen, self._fixed)
            try:
                self._start(binary, ports)
            except BrokerError:
                if attempt == _ATTEMPTS or "Address already in use" not in self.log:
                    raise
            else:
                return

    def _start(self, binary: Path, ports: BrokerPorts) -> None:
        self._ports = ports
        self._write()
        with self.log_file.open("ab") as log:
            self._log_start = log.tell()
            self._process = self._spawn(binary, log)
        atexit.register(self.stop)
        try:
            self._wait_for(_RUNNING, self._log_start, "the broker did not start")
        except BrokerError:
            self.stop()
            raise
        if self._process is not None:
            RunningBroker(self._directory, self._process.pid, ports).record()

    def _spawn(self, binary: Path, log: BinaryIO) -> subprocess.Popen[bytes]:
        """Start the child from a thread that lives until `_reap`, since the kernel ties it to that thread."""
        spawned: Future[subprocess.Popen[bytes]] = Future()
        self._reaped = reaped = threading.Event()

        def keep() -> None:
            try:
                process = subprocess.Popen(
                    tied([str(binary), "-c", str(self._directory / "mosquitto.conf")]),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            except OSError as error:
                spawned.set_exception(error)
                return
            spawned.set_result(process)
            reaped.wait()

        threading.Thread(target=keep, name="private-broker-keeper", daemon=True).start()
        return spawned.result()

    def _write(self) -> None:
        place = BrokerPlace(
            acl_file=self._directory / "acl",
            persistence=self._directory,
            log="stderr",
            # Another user could not read the keys, and a change of user would untie the child from us.
            user="root" if os.geteuid() == 0 else None,
        )
        replace_text(place.acl_file, render_acl_of(self._files))
        text = render_configuration(self._files, self._bound, place, "Private broker; written at each start.")
        replace_text(self._directory / "mosquitto.conf", text)

    # ---- the running child

    @property
    def _bound(self) -> BrokerPorts:
        if self._ports is None:
            raise BrokerError("the broker has not been started")
        return self._ports

    def _signal(self, number: signal.Signals) -> None:
        self.check()
        if self._process is not None:
            self._process.send_signal(number)

    def _reap(self) -> None:
        atexit.unregister(self.stop)
        RunningBroker.forget(self._directory)
        if self._process is None:
            return
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        finally:
            self._reaped.set()

    def _wait_for(self, mark: bytes, log_start: int, trouble: str) -> None:
        """Until `mark` appears in the log behind `log_start`."""
        deadline_s = time.monotonic() + _START_S
        while mark not in log_since(self.log_file, log_start):
            if self._process is None or self._process.poll() is not None or time.monotonic() > deadline_s:
                raise self._failure(trouble)
            time.sleep(_POLL_S)

    def _turn_log_over(self) -> None:
        """Keep the log so far beside it and empty it; Mosquitto appends to it where it ends then."""
        if not self.log_file.exists() or self.log_file.stat().st_size <= _MOST_LOG_BYTES:
            return
        try:
            shutil.copyfile(self.log_file, self.log_file.with_name(f"{self.log_file.name}.1"))
        except OSError as error:
            _logger.warning("of the broker's long log not all is kept: %s", error)
        os.truncate(self.log_file, 0)
        self._log_start = 0

    def _failure(self, trouble: str) -> BrokerError:
        lines = self.log.splitlines() if self.log_file.exists() else []
        errors = [line for line in lines if ": Error" in line] or lines[-1:]
        said = f": {errors[0].partition(': ')[2] or errors[0]}" if errors else ""
        return BrokerError(f"{trouble}{said}", hint=f"its log: {self.log_file}")
