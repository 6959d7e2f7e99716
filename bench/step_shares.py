"""The share of a verifier's step that is not the forward pass: decoding, planning, coupling, publishing.

    python -m bench.step_shares                               bundled target, top-k 40 and none
    python -m bench.step_shares --shape 0.5b                  0.5B Qwen2 shape, random weights, bf16
    python -m bench.step_shares --sessions 8 --dtype float32

Everything is the product's own but the devices: payloads go through admission, session table, planner,
engine, judging, codec and a link over TLS to a private broker. A step begins with the first payload and ends
when the last verdict's packet has been sent; the next one begins when the broker has acknowledged them all.
All drafts are right, which is what costs most: every position is judged. Sessions raise their generation
before each step and go back to where they were, so that steps are alike.
"""

from __future__ import annotations

import argparse
import queue
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

import edge_verifier.conductor as conductor_module
from bench.engine_step import SHAPES, random_target
from bench.machine import describe_machine
from broker_config.private_broker import PrivateBroker
from edge_verifier.admission import Admission, Admitted
from edge_verifier.conductor import Conductor, Flight
from edge_verifier.engine import Engine
from edge_verifier.engines import load_engine
from edge_verifier.planner import Planner
from edge_verifier.policies import Greedy
from edge_verifier.publisher import Publisher
from edge_verifier.reception import MAX_IN_FLIGHT
from edge_verifier.step_rows import PlannerLimits
from edge_verifier.table import SessionTable
from protocol import topics
from protocol.chain import Chain, origin
from protocol.codec import encode
from protocol.link import Endpoint, Link, LinkEvent, LinkOptions, Published
from protocol.messages import Checkpoint, Opening, Refusal, SamplerSettings, Verdict, Window
from protocol.sampler import SAMPLER_VERSION
from provisioning.fleet_directory import FleetDirectory

FLEET, VERIFIER = "bench", "v1"
GOALS = {("0.5b", 40): 0.08, ("0.5b", 0): 0.20, ("bundled", 40): 0.15, ("bundled", 0): 0.15}
WAIT_S = 60.0
N_WARM = 2


@dataclass
class Parts:
    """Seconds of one step.

    Attributes:
        receive: topic, rate, decoding, validation.
        plan: session table and planner, until the engine has its rows.
        forward: what the engine says the step took, without its search for the greatest logits.
        judge: that search, sampler and coupling.
        publish: from the first verdict's encoding until the last packet is sent, less what was judged then.
        rest: everything else, such as waking threads and the session table after judging.
    """

    receive: float = 0.0
    plan: float = 0.0
    forward: float = 0.0
    judge: float = 0.0
    publish: float = 0.0
    rest: float = 0.0

    @property
    def total(self) -> float:
        """The whole step."""
        return sum(getattr(self, field.name) for field in fields(self))

    @property
    def share(self) -> float:
        """Part of the whole that is not the forward pass."""
        return 1.0 - self.forward / self.total


class TimedLink(Link):
    """A link that knows when a packet was last sent.

    A thread that waits for it learns that up to 2 ms late: acknowledgements come in at once, and keep it
    waiting for Python's lock.

    Attributes:
        sent: how many packets had been sent, and when, as `time.perf_counter` has it.
        n_acknowledged: how many of them.
    """

    def __init__(self, endpoint: Endpoint, options: LinkOptions) -> None:
        super().__init__(endpoint, options, self._heard, on_shed=lambda _shed: None)
        self.sent = (0, 0.0)
        self.n_acknowledged = 0

    def _heard(self, event: LinkEvent) -> None:
        self.n_acknowledged += isinstance(event, Published)

    def _hand_over(self) -> None:
        super()._hand_over()
        n_sent = self.traffic.n_sent
        if n_sent > self.sent[0]:
            self.sent = n_sent, time.perf_counter()


class Device:
    """One session's side of the wire: it knows what the target says next, and drafts it."""

    def __init__(self, number: int, prompt: Sequence[int], settings: SamplerSettings, target: str) -> None:
        self.name = f"dev-{number}"
        self.topic = topics.WINDOW.topic(FLEET, v=VERIFIER, d=self.name, n=0)
        self.prompt = tuple(prompt)
        self.truth: list[int] = []
        self._uid = f"{number:016x}"
        self._settings = settings
        self._target = target
        self._generation, self._round = 1, 0

    def opening(self) -> bytes:
        """The session's first payload."""
        opening = Opening(
            settings=self._settings,
            target=self._target,
            sampler_version=SAMPLER_VERSION,
            keep_checkpoint=False,
        )
        limit = len(self.prompt) + 4096
        start = origin(self._settings, self._target).hex()
        return self._payload(base=0, hash=start, opening=opening, context=self.prompt, limit=limit)

    def one_token(self) -> bytes:
        """Ask for the next token alone."""
        return self._payload(**self._at([*self.prompt, *self.truth]))

    def window(self, n_tokens: int) -> bytes:
        """Back to the prompt and its first token, with right drafts: a step of `n_tokens`."""
        self._generation += 1
        text = [*self.prompt, self.truth[0]]
        return self._payload(**self._at(text), draft=tuple(self.truth[1:n_tokens]))

    def _at(self, text: list[int]) -> dict[str, Any]:
        chain = Chain(self._settings, self._target, text)
        return {"base": len(text), "ack": len(text), "hash": chain.hash_at(len(text))}

    def _payload(self, **given: Any) -> bytes:  # noqa: ANN401 - fields of a window
        self._round += 1
        common = {"uid": self._uid, "generation": self._generation, "round": self._round}
        ack = given.pop("ack", len(self.prompt))
        return encode(Window.model_validate({**common, "ack": ack, **given}))


class Rig:
    """A conductor on a real engine, publishing over `link`; also its outlet, with a stopwatch.

    Args:
        n_tokens: of one round, all of which go into one step.
    """

    def __init__(self, engine: Engine, link: TimedLink, n_tokens: int) -> None:
        self._done: queue.SimpleQueue[Flight] = queue.SimpleQueue()
        self._publisher = Publisher(link, FLEET, VERIFIER)
        self._link = link
        self._admission = Admission(FLEET, VERIFIER)
        planner = Planner(Greedy(), PlannerLimits(min_tokens=n_tokens))
        self._conductor = Conductor(engine, SessionTable(engine.info), planner, self, self._done.put)
        self.verdicts: dict[str, Verdict] = {}
        self.parts = Parts()

    def reply(self, device: str, slot: int, message: Verdict | Refusal) -> None:
        """See `Outlet.reply`."""
        if isinstance(message, Refusal):
            raise SystemExit(f"refused: {message.detail}")
        started_s = time.perf_counter()
        self.verdicts[device] = message
        self._publisher.reply(device, slot, message)
        self.parts.publish += time.perf_counter() - started_s

    def write_checkpoint(self, device: str, slot: int, checkpoint: Checkpoint, expiry_s: int) -> None:
        """Checkpoints are off here."""

    def clear_checkpoint(self, device: str, slot: int) -> None:
        """Checkpoints are off here."""

    def round(self, payloads: Sequence[tuple[str, bytes]]) -> Parts:
        """Take the payloads of all devices and run steps until each has its verdict."""
        while self._link.n_acknowledged < self._link.sent[0]:
            time.sleep(0.001)
        self.verdicts.clear()
        parts = self.parts = Parts()
        sent_before = self._link.traffic.n_sent
        begun_s = time.perf_counter()
        windows = [self._admit(topic, payload) for topic, payload in payloads]
        parts.receive = time.perf_counter() - begun_s
        for taken in windows:
            self._conductor.on_window(taken.device, taken.slot, taken.window, taken.arrived_s)
        self._conductor.pump()
        parts.plan = time.perf_counter() - begun_s - parts.receive
        while len(self.verdicts) < len(payloads):
            flight = self._done.get(timeout=WAIT_S)
            result = flight.future.result()
            parts.forward += result.step_s - result.search_s
            parts.judge += result.search_s
            with self._link.batch():
                self._conductor.finish(flight)
            self._conductor.pump()
        waiting_s = time.perf_counter()
        while self._link.sent[0] - sent_before < len(payloads):
            time.sleep(0.0002)
        ended_s = max(waiting_s, self._link.sent[1])
        parts.publish += ended_s - waiting_s
        parts.rest = ended_s - begun_s - parts.total
        return parts

    def close(self) -> None:
        """Free the engine's sessions."""
        self._conductor.close()

    def _admit(self, topic: str, payload: bytes) -> Admitted:
        taken = self._admission.admit(topic, payload, time.monotonic(), is_retained=False)
        if not isinstance(taken, Admitted):
            raise SystemExit(f"not admitted: {taken.reason}")
        return taken


@contextmanager
def judging_timed(rig: Rig) -> Iterator[None]:
    """Count the time in `judge_each` as part of `Parts.judge`."""
    plain: Callable[..., Any] = conductor_module.judge_each

    def timed(*arguments: Any) -> Any:  # noqa: ANN401 - passed on
        started_s = time.perf_counter()
        try:
            return plain(*arguments)
        finally:
            rig.parts.judge += time.perf_counter() - started_s

    vars(conductor_module)["judge_each"] = timed
    try:
        yield
    finally:
        vars(conductor_module)["judge_each"] = plain


def measure(
    engine: Engine, link: TimedLink, settings: SamplerSettings, arguments: argparse.Namespace
) -> list[Parts]:
    """Steps of all sessions, after each has said what it will say."""
    random = np.random.default_rng(0)
    prompts = random.integers(5, engine.info.vocab_size, (arguments.sessions, arguments.cached)).tolist()
    devices = [Device(i, prompt, settings, engine.info.target) for i, prompt in enumerate(prompts)]
    rig = Rig(engine, link, arguments.sessions * arguments.tokens)
    with judging_timed(rig):
        rig.round([(device.topic, device.opening()) for device in devices])
        for _ in range(arguments.tokens):
            for device in devices:
                device.truth += rig.verdicts[device.name].tokens
            rig.round([(device.topic, device.one_token()) for device in devices])
        found = [
            rig.round([(device.topic, device.window(arguments.tokens)) for device in devices])
            for _ in range(arguments.repeats + N_WARM)
        ]
    rig.close()
    return found[N_WARM:]


def report(found: Sequence[Parts], name: str, top_k: int, top_p: float) -> bool:
    """Print medians; whether the goal for this model holds, if there is one."""
    total_s = median(parts.total for parts in found)
    share = median(parts.share for parts in found)
    asked = f"top-k {top_k or 'none'}" + (f", top-p {top_p:g}" if top_p < 1.0 else "")
    print(f"{asked}: step {total_s * 1e3:.1f} ms, of it not the forward pass {share:.1%}")
    for field in fields(Parts):
        part_s = median(getattr(parts, field.name) for parts in found)
        print(f"    {field.name:<10}{part_s * 1e3:8.2f} ms {part_s / total_s:7.1%}")
    goal = GOALS.get((name, top_k)) if top_p == 1.0 else None
    if goal is None:
        return True
    print(f"    goal below {goal:.0%}: {'met' if share < goal else 'missed'}", flush=True)
    return share < goal


@contextmanager
def linked(folder: Path) -> Iterator[TimedLink]:
    """A verifier's link to a private broker of its own."""
    fleet = FleetDirectory.create(folder / "fleet", fleet=FLEET)
    fleet.add_backend("verifier", VERIFIER)
    identity = f"verifier.{VERIFIER}"
    with PrivateBroker(fleet.broker_files(), folder / "broker") as broker:
        endpoint = Endpoint(broker.host, broker.backend_port, fleet.endpoint_tls(identity))
        options = LinkOptions(identity, max_in_flight=MAX_IN_FLIGHT)
        link = TimedLink(endpoint, options)
        link.start()
        try:
            link.wait_connected(WAIT_S)
            yield link
        finally:
            link.stop()


def main() -> int:
    """Print the parts; exit code 1 when a goal is missed."""
    arguments = _arguments()
    print(describe_machine())
    with ExitStack() as parts:
        folder = Path(parts.enter_context(tempfile.TemporaryDirectory(prefix="sled-bench-")))
        name, target = "bundled", Path(__file__).parents[1] / "provisioning/pair/target"
        if arguments.shape:
            name = arguments.shape
            target = random_target(folder / "model", name)
        elif arguments.target:
            name, target = arguments.target.name, arguments.target
        engine = load_engine(
            target, dtype=arguments.dtype, device=arguments.device, n_threads=arguments.threads
        )
        parts.callback(engine.shutdown)
        torch.set_num_threads(arguments.threads or torch.get_num_threads())
        link = parts.enter_context(linked(folder))
        shape = f"{arguments.sessions} x {arguments.tokens} at {arguments.cached} cached"
        print(f"{engine.info.model} {engine.info.dtype}, vocabulary {engine.info.vocab_size}, {shape}")
        is_met = True
        for top_k in arguments.top_k:
            settings = SamplerSettings(temperature=1.0, top_k=top_k, top_p=arguments.top_p, seed=7)
            found = measure(engine, link, settings, arguments)
            is_met &= report(found, name, top_k, arguments.top_p)
    return 0 if is_met else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    model = parser.add_mutually_exclusive_group()
    model.add_argument("--shape", choices=SHAPES, help="random weights of this shape")
    model.add_argument("--target", type=Path, help="model directory; default: the bundled target")
    parser.add_argument("--dtype", default="auto", help="auto, bfloat16, or float32 as in `sled demo`")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--sessions", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=8, help="of each session in a step")
    parser.add_argument("--cached", type=int, default=100, help="of each session before it")
    parser.add_argument("--top-k", type=int, nargs="+", default=[40, 0], metavar="K", help="0 for none")
    parser.add_argument("--top-p", type=float, default=1.0, metavar="P", help="1 for none")
    parser.add_argument("--repeats", type=int, default=15)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
