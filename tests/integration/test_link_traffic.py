"""The link's byte counters against what a proxy saw on the wire, without TLS."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from broker_config.probe import find_mosquitto
from broker_config.tied_exec import tied
from protocol.link import Connected, Endpoint, Link, LinkOptions, Published, Subscription
from tests.live_fleet import FAST, WAIT_S, Recorder
from tests.tcp_proxy import TcpProxy

PUBLISH, PUBACK = 3, 4


@pytest.fixture
def plain_port(tmp_path: Path) -> Iterator[int]:
    """A Mosquitto without TLS, so that a proxy can read what passes."""
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
    configuration = tmp_path / "plain.conf"
    configuration.write_text(
        f"listener {port} 127.0.0.1\nallow_anonymous true\nset_tcp_nodelay true\n", encoding="utf-8"
    )
    command = tied([str(find_mosquitto()), "-c", str(configuration)])
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        yield port
        process.terminate()


def _packet_bytes(recorded: bytes | bytearray, *kinds: int) -> int:
    """Bytes of the packets of these kinds, fixed header included; a packet still under way counts whole."""
    stream = bytes(recorded) + bytes(4)
    total = position = 0
    while position < len(recorded):
        length = shift = 0
        body = position + 1
        while True:
            byte = stream[body]
            length |= (byte & 0x7F) << shift
            shift += 7
            body += 1
            if not byte & 0x80:
                break
        if stream[position] >> 4 in kinds:
            total += body + length - position
        position = body + length
    return total


def test_counters_equal_the_bytes_on_the_wire(plain_port: int) -> None:
    """Both directions; QoS 0 and 1; empty, short and long; with expiry; taken and unheard; a reconnect."""
    recorder = Recorder()
    with TcpProxy("127.0.0.1", plain_port) as proxy:
        link = Link(Endpoint("127.0.0.1", proxy.port), LinkOptions("a", **FAST), recorder)
        link.start()
        link.wait_connected(WAIT_S)
        link.subscribe([Subscription("echo/#")])
        link.wait_subscribed(WAIT_S)
        for round_number in range(2):
            for size in (0, 1, 100, 130, 20_000):
                link.publish("echo/é", bytes(size))
                link.publish("unheard", bytes(size), expiry_s=60)
                link.publish("echo/0", bytes(size), qos=0)
                link.publish("echo/expiring", bytes(size), is_retained=True, expiry_s=60)
            for _ in range(15):
                recorder.next(Published)
            _wait_until(lambda n=15 * (round_number + 1): link.traffic.n_received >= n)
            # Acknowledgements are counted when written; a cut must not take them from the proxy.
            _wait_until(lambda: link.traffic.uplink_bytes == _packet_bytes(proxy.uplink, PUBLISH, PUBACK))
            if round_number == 0:
                proxy.cut()
                proxy.mend()
                recorder.next(Connected)
        link.stop()
        traffic = link.traffic
        uplink, downlink = bytes(proxy.uplink), bytes(proxy.downlink)
    assert traffic.uplink_bytes == _packet_bytes(uplink, PUBLISH, PUBACK)
    assert traffic.downlink_bytes == _packet_bytes(downlink, PUBLISH, PUBACK)
    assert traffic.uplink_bytes > 160_000
    assert traffic.downlink_bytes > 120_000
    assert (traffic.n_sent, traffic.n_dropped, traffic.n_connects) == (40, 0, 2)


def test_what_is_sent_again_counts_again(plain_port: int) -> None:
    recorder = Recorder()
    with TcpProxy("127.0.0.1", plain_port) as proxy:
        link = Link(Endpoint("127.0.0.1", proxy.port), LinkOptions("a", **FAST), recorder)
        link.start()
        link.wait_connected(WAIT_S)
        proxy.stall()
        link.publish("t", b"x" * 100)
        _wait_until(lambda: link.traffic.n_sent == 1)
        once = link.traffic.uplink_bytes
        proxy.cut()
        proxy.mend()
        recorder.next(Published)
        assert link.traffic.uplink_bytes == 2 * once
        link.stop()


def _wait_until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
