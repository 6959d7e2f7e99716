"""Attacks in processes of their own that count what they do; rounds beside them, compared with quiet ones."""

from __future__ import annotations

import os
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from broker_config.tied_exec import tied
from tests.live_fleet import LiveFleet

_COUNTER = """
import mmap, socket, ssl, struct, sys, threading, time
from pathlib import Path
from protocol.link import Endpoint, TlsFiles
from tests.raw_mqtt import RawClient, packet, text

with open(sys.argv[1], "r+b") as file:
    counter = mmap.mmap(file.fileno(), 8)
port = int(sys.argv[2])

def count(number):
    counter[:] = struct.pack("<Q", struct.unpack("<Q", counter[:])[0] + number)
"""

_CONNECTIONS = """
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(100)]  # never say a word
print("begun", flush=True)
while True:
    try:
        with socket.create_connection(("127.0.0.1", port), 5) as plain, context.wrap_socket(plain) as secured:
            secured.recv(1)
    except OSError:
        count(1)  # refused
    time.sleep(0.005)
"""

_MESSAGES = """
rate, qos = int(sys.argv[3]), int(sys.argv[4])
endpoint = Endpoint("127.0.0.1", port, TlsFiles(*map(Path, sys.argv[5:])))
topic = text("sled/1/f/verifier/v1/device/flood/session/0/window")

def one(number):
    name = (number % 60_000 + 1).to_bytes(2, "big") if qos else b""
    return packet(0x30 | qos << 1, topic + name + b"\\0" + b"x" * 100)

chunk = b"".join(one(number) for number in range(400))

def discard(client):
    try:
        while client.socket.recv(65_536):
            pass
    except (OSError, ValueError):
        pass

def flood():
    with RawClient(endpoint, "flood") as client:
        print("begun", flush=True)
        client.socket.settimeout(None)
        threading.Thread(target=discard, args=(client,), daemon=True).start()
        n_sent, started_s = 0, time.monotonic()
        while True:
            if rate:
                due = int((time.monotonic() - started_s) * rate) - n_sent
                n_sent += due
                due = min(due, rate // 20)  # what a pause held back stays unsent
                client.send(b"".join(one(number) for number in range(due)))
                count(due)
                time.sleep(0.002)
            else:
                client.send(chunk)
                count(400)

while True:
    try:
        flood()
    except (OSError, ValueError, AssertionError):
        time.sleep(0.5)
"""


@dataclass(frozen=True)
class Attack:
    """One that goes on.

    Attributes:
        least_per_s: messages or connections a second without which it is none.
    """

    process: subprocess.Popen[str]
    counter: Path
    least_per_s: float

    @property
    def count(self) -> int:
        """Messages sent, or connections refused, up to now."""
        (number,) = struct.unpack("<Q", self.counter.read_bytes())
        return int(number)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Quiet for so long."""
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)


@contextmanager
def flood(live: LiveFleet, *, rate_s: int = 0, qos: int = 0) -> Iterator[Attack]:
    """Device `flood` publishes garbage, as fast as it can or `rate_s` a second; thrown out, it comes back."""
    files = live.tls("flood")
    arguments = (rate_s, qos, files.ca_file, files.cert_file, files.key_file)
    with _running(_MESSAGES, 0.9 * (rate_s or 2_000), live.broker.device_port, *arguments) as attack:
        yield attack


@contextmanager
def connections(live: LiveFleet) -> Iterator[Attack]:
    """Refused handshakes, one after the other, beside 100 connections that never say a word."""
    with _running(_CONNECTIONS, 50.0, live.broker.device_port) as attack:
        yield attack


@contextmanager
def _running(script: str, least_per_s: float, *arguments: str | int | Path) -> Iterator[Attack]:
    """A process of its own, so that it does not hold up the one that measures; begun when this returns."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with tempfile.NamedTemporaryFile(prefix="sled-attack-") as counter:
        counter.write(bytes(8))
        counter.flush()
        command = [sys.executable, "-c", _COUNTER + script, counter.name, *map(str, arguments)]
        with subprocess.Popen(
            tied(command, signal.SIGKILL), env=environment, stdout=subprocess.PIPE, text=True
        ) as process:
            try:
                assert process.stdout is not None
                assert process.stdout.readline() == "begun\n"
                yield Attack(process, Path(counter.name), least_per_s)
            finally:
                process.kill()


@dataclass(frozen=True)
class Sample:
    """Median rounds beside an attack and, right after, without; how fast the attack went meanwhile."""

    under_s: float
    quiet_s: float
    per_s: float


@dataclass(frozen=True)
class Comparison:
    """The lowest medians of many samples, as others' work on the machine only ever adds to them.

    Attributes:
        n_samples: in which the attack went on; others tell nothing.
        pooled: the middle one of the samples' own ratios.
    """

    under_s: float
    quiet_s: float
    n_samples: int
    per_s: float
    pooled: float

    @classmethod
    def of(cls, samples: Sequence[Sample], least_per_s: float) -> Comparison:
        told = [each for each in samples if each.per_s >= least_per_s]
        assert told, f"the attack did not go on: {[round(each.per_s) for each in samples]} a second"
        return cls(
            under_s=min(each.under_s for each in told),
            quiet_s=min(each.quiet_s for each in told),
            n_samples=len(told),
            per_s=statistics.median(each.per_s for each in told),
            pooled=statistics.median(each.under_s / each.quiet_s for each in told),
        )

    @property
    def ratio(self) -> float:
        return self.under_s / self.quiet_s

    def __str__(self) -> str:
        return (
            f"{1000 * self.under_s:.2f} ms beside {self.per_s:,.0f}/s, quiet {1000 * self.quiet_s:.2f} ms:"
            f" x {self.ratio:.2f} (middle of {self.n_samples} samples: x {self.pooled:.2f})"
        )


def compare(
    round_s: Callable[[], float], attack: Attack, factor: float, *, n_rounds: int = 30, n_samples: int = 12
) -> Comparison:
    """Rounds with and without, in turns; up to four times as many samples where others' work disturbs."""
    samples: list[Sample] = []
    for _ in range(4):
        samples += [_sample(round_s, attack, n_rounds) for _ in range(n_samples)]
        if (comparison := Comparison.of(samples, attack.least_per_s)).ratio < factor:
            break
    return comparison


def _sample(round_s: Callable[[], float], attack: Attack, n_rounds: int) -> Sample:
    round_s()
    n_before, started_s = attack.count, time.monotonic()
    under_s = statistics.median(round_s() for _ in range(n_rounds))
    per_s = (attack.count - n_before) / (time.monotonic() - started_s)
    with attack.paused():
        round_s()
        quiet_s = statistics.median(round_s() for _ in range(n_rounds))
    return Sample(under_s, quiet_s, per_s)
