"""A step that is over is gone at once: what it computed does not wait for the garbage collector."""

from __future__ import annotations

import gc
import weakref

from edge_verifier.engines.table_engine import TableEngine
from tests.unit.edge_verifier.desk import Desk
from tests.unit.edge_verifier.scripted_device import ScriptedDevice


def test_the_logits_of_a_step_are_freed_when_its_verdicts_are_out() -> None:
    engine = TableEngine(is_held=True)
    desk, device = Desk(engine), ScriptedDevice(engine)
    kept = []
    gc.collect()
    gc.disable()
    try:
        for _ in range(5):
            desk.send(device, device.next_window())
            engine.run_next()
            kept.append(weakref.ref(desk.done[0].future.result().logits[0]))
            for reply in desk.run():
                device.on_reply(reply)
        assert sum(each() is not None for each in kept) == 0
    finally:
        gc.enable()
