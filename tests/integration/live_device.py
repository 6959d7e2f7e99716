"""A scripted device on a real link, and an engine that takes its time."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from edge_verifier.engine import Row, StepResult
from edge_verifier.engines.table_engine import TableEngine
from protocol import topics
from protocol.codec import decode_reply, encode
from protocol.link import Link, Received, Subscription
from protocol.messages import Refusal, Verdict, Window
from tests.live_fleet import WAIT_S, LiveFleet, Recorder
from tests.unit.edge_verifier.scripted_device import ScriptedDevice

RESEND_S = 1.0


class PacedEngine(TableEngine):
    """A table engine whose steps run on a thread of their own and take `step_s`."""

    def __init__(self, step_s: float = 0.004, **options: object) -> None:
        super().__init__(is_held=True, **options)  # type: ignore[arg-type]  # options by name
        self._step_s = step_s
        self._worker = ThreadPoolExecutor(1, "paced-engine")

    def submit(self, rows: Sequence[Row]) -> Future[StepResult]:
        future = super().submit(rows)
        self._worker.submit(self.run_next)
        return future

    def _run(self, rows: tuple[Row, ...]) -> tuple[NDArray[np.float32], ...]:
        time.sleep(self._step_s)
        return super()._run(rows)

    def shutdown(self) -> None:
        self._worker.shutdown()
        super().shutdown()


class LiveDevice:
    """Speaks for a scripted device over a link until its turn ends."""

    def __init__(
        self, fleet: LiveFleet, script: ScriptedDevice, verifier: str = "v1", *, turn_s: float = 6 * WAIT_S
    ) -> None:
        self.script = script
        self.recorder = Recorder()
        self._fleet = fleet
        self._verifier = verifier
        self._turn_s = turn_s
        self.round_s: list[float] = []
        self.error: BaseException | None = None

    def topic(self, channel: topics.Channel) -> str:
        return channel.topic("f", v=self._verifier, d=self.script.name, n=self.script.slot)

    def publish(self, link: Link, window: Window) -> None:
        link.publish(self.topic(topics.WINDOW), encode(window))

    def run(self) -> None:
        try:
            with self._fleet.link(self.script.name, self.recorder) as link:
                link.subscribe([Subscription(self.topic(topics.VERDICT))])
                link.wait_subscribed(WAIT_S)
                self.talk(link)
        except BaseException as error:  # noqa: BLE001 - shown by the test that joins
            self.error = error

    def talk(self, link: Link) -> None:
        """From wherever the script stands to the end of its turn."""
        deadline_s = time.monotonic() + self._turn_s
        while self.script.finished is None:
            assert time.monotonic() < deadline_s, "the turn does not end"
            while (window := self.script.next_window()) is not None:
                self.publish(link, window)
            started_s = time.monotonic()
            try:
                self.script.on_reply(self.reply(RESEND_S))
                self.round_s.append(time.monotonic() - started_s)
            except AssertionError:
                for window in self.script.sent.values():
                    self.publish(link, window)

    def reply(self, within_s: float = WAIT_S) -> Verdict | Refusal:
        """The next verdict or refusal."""
        received = self.recorder.next(
            Received, lambda event: event.topic == self.topic(topics.VERDICT), within_s
        )
        return decode_reply(received.payload)


def run_together(devices: Sequence[LiveDevice]) -> None:
    """Run devices at the same time; raise what any of them raised."""
    threads = [threading.Thread(target=device.run, daemon=True) for device in devices]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(8 * WAIT_S)
    for device in devices:
        if device.error is not None:
            raise device.error
