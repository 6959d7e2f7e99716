"""A conductor on a table engine with a clock that tests move, and what it sends."""

from __future__ import annotations

from edge_verifier.conductor import Conductor, Flight
from edge_verifier.engines.table_engine import TableEngine
from edge_verifier.planner import Planner
from edge_verifier.policies import Policy
from edge_verifier.table import SessionTable
from edge_verifier.table_rules import TableRules
from protocol.coupling import Ends, decode_alone
from protocol.messages import Checkpoint, Refusal, SamplerSettings, Verdict, Window
from tests.unit.edge_verifier.scripted_device import ScriptedDevice


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Desk:
    """Also the conductor's outlet."""

    def __init__(
        self, engine: TableEngine, rules: TableRules | None = None, policy: Policy | None = None
    ) -> None:
        self.engine = engine
        self.clock = Clock()
        self.replies: list[tuple[str, int, Verdict | Refusal]] = []
        self.checkpoints: dict[tuple[str, int], Checkpoint | None] = {}
        self.n_checkpoint_writes = 0
        self.expiry_s = 0
        self.done: list[Flight] = []
        self.conductor = Conductor(
            engine,
            SessionTable(engine.info, rules),
            Planner(policy),
            self,
            self.done.append,
            clock=self.clock,
        )

    @property
    def table(self) -> SessionTable:
        return self.conductor.table

    def reply(self, device: str, slot: int, message: Verdict | Refusal) -> None:
        self.replies.append((device, slot, message))

    def write_checkpoint(self, device: str, slot: int, checkpoint: Checkpoint, expiry_s: int) -> None:
        self.n_checkpoint_writes += 1
        self.expiry_s = expiry_s
        self.checkpoints[device, slot] = checkpoint

    def clear_checkpoint(self, device: str, slot: int) -> None:
        self.checkpoints[device, slot] = None

    def send(self, device: ScriptedDevice, window: Window | None) -> None:
        """Deliver a window, without running any step to its end."""
        assert window is not None
        self.conductor.on_window(device.name, device.slot, window, self.clock())
        self.conductor.pump()

    def step(self) -> bool:
        """Let the step under way end and its verdicts go out."""
        self.engine.run_next()
        if not self.done:
            return False
        self.conductor.finish(self.done.pop(0))
        self.conductor.pump()
        return True

    def run(self) -> list[Verdict | Refusal]:
        """Run steps until nothing is left, moving the clock over holds; what was sent since the last call."""
        while True:
            if self.step():
                continue
            until_s = self.conductor.pump()
            if until_s is None and not self.done:
                break
            self.clock.now_s = max(self.clock.now_s, until_s or 0.0)
        sent = [message for _, _, message in self.replies]
        self.replies.clear()
        return sent

    def ask(self, device: ScriptedDevice, window: Window | None) -> list[Verdict | Refusal]:
        """Send one window and run: the replies."""
        self.send(device, window)
        return self.run()

    def finish(self, device: ScriptedDevice) -> None:
        """Run a session to the end of its turn on a perfect link."""
        for _ in range(10_000):
            if device.finished is not None:
                return
            while (window := device.next_window()) is not None:
                self.send(device, window)
            for reply in self.run():
                device.on_reply(reply)
        raise AssertionError("the turn does not end")


def alone(
    engine: TableEngine, prompt: list[int], settings: SamplerSettings, limit: int
) -> tuple[list[int], str]:
    """What the target alone would say."""
    ends = Ends(engine.info.stop_ids, limit, engine.info.max_context)
    return decode_alone(engine.next_logits, prompt, settings, ends)
