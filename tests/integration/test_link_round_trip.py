"""The link over mutual TLS and a real Mosquitto while nothing goes wrong."""

from __future__ import annotations

import statistics
import threading
import time

from protocol.link import Published, Received, Subscription
from protocol.topics import VERDICT, WINDOW
from tests.live_fleet import LiveFleet, Recorder

N_BATCHES = 6
BATCH_ROUNDS = 20


def test_request_and_reply_take_less_than_5_ms(live_fleet: LiveFleet) -> None:
    """Without TCP_NODELAY on both sides the median is above 40 ms, in every batch but the first.

    The best batch counts: a busy machine slows some of them down, a delayed acknowledgement all.
    """
    names = {"v": "v1", "d": "dev-a", "n": 0}
    window, verdict = WINDOW.topic("f", **names), VERDICT.topic("f", **names)
    device, verifier = Recorder(), Recorder()
    with live_fleet.link("dev-a", device) as asking, live_fleet.link("verifier.v1", verifier) as answering:
        asking.subscribe([Subscription(VERDICT.filter("f", d="dev-a"))])
        answering.subscribe([Subscription(WINDOW.filter("f", v="v1"))])
        asking.wait_subscribed(5)
        answering.wait_subscribed(5)

        def answer() -> None:
            for _ in range(N_BATCHES * BATCH_ROUNDS):
                request = verifier.next(Received)
                answering.publish(verdict, request.payload)

        thread = threading.Thread(target=answer)
        thread.start()
        taken_s = []
        for number in range(N_BATCHES * BATCH_ROUNDS):
            start_s = time.perf_counter()
            asking.publish(window, b"%d" % number)
            assert device.next(Received).payload == b"%d" % number
            taken_s.append(time.perf_counter() - start_s)
        thread.join()
    batches = [taken_s[start:][:BATCH_ROUNDS] for start in range(BATCH_ROUNDS, len(taken_s), BATCH_ROUNDS)]
    assert len(batches) == N_BATCHES - 1
    assert min(map(statistics.median, batches)) < 0.005


def test_reason_codes_tell_taken_unheard_and_refused(live_fleet: LiveFleet) -> None:
    names = {"v": "v2", "d": "dev-b", "n": 0}
    device = Recorder()
    with live_fleet.link("dev-b", device) as link:
        unheard = link.publish(WINDOW.topic("f", **names), b"x")
        assert device.next(Published, lambda each: each.token == unheard).reason_code == 0x10
        refused = link.publish(VERDICT.topic("f", **names), b"x")
        assert device.next(Published, lambda each: each.token == refused).reason_code == 0x87
