"""The batch policies side by side in one run of the real service: bundled target, real broker, wall clock.

    python -m bench.live_policies [--load 12] [--rate 6] [--repeats 5]

A verifier process for each policy, all of them connected throughout; open-loop loads go to one after the
other, the same to each, several times over, so that what else the machine does falls on all alike. Devices
are synthetic: they draft the target's own tokens with errors, at a device's rate and behind a device's link,
over MQTT connections and identities of their own. What counts is said in `bench.policies`.
"""

from __future__ import annotations

import argparse
import heapq
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from queue import Empty, Queue
from statistics import mean, stdev
from types import TracebackType
from typing import Any, Self

from bench.machine import describe_machine
from bench.open_load import GREEDY_SAMPLING, HIGHEST_RATE, Answers, Load, Visitor, visitors
from bench.policies import Outcome, outcome
from bench.virtual_clock import VirtualDevice
from broker_config.private_broker import PrivateBroker
from cli.verifier_process import VerifierProcess
from edge_verifier.engines import load_reference
from protocol import topics
from protocol.codec import decode_reply, encode
from protocol.identifiers import SLOTS
from protocol.link import Endpoint, Link, LinkOptions, Received, Subscription, TlsFiles
from protocol.messages import Window
from provisioning.catalogue import bundled_pair
from provisioning.fleet_directory import FleetDirectory

POLICIES = ("deadline", "greedy", "static")
FLEET = "bench"
N_LINKS = 40
N_PROMPTS = 8
READY_S = 180.0
VOCAB_SIZE = 4096


class WallTimeline:
    """What happens when, by the machine's monotonic clock."""

    def __init__(self) -> None:
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()

    @property
    def now_s(self) -> float:
        """The present time."""
        return time.monotonic()

    def after(self, delay_s: float, do: Callable[[], None]) -> None:
        """Do it then."""
        heapq.heappush(self._events, (self.now_s + delay_s, next(self._order), do))

    def run_due(self) -> float:
        """Do what is due; seconds until the next thing is."""
        while self._events and self._events[0][0] <= self.now_s:
            heapq.heappop(self._events)[2]()
        return self._events[0][0] - self.now_s if self._events else 1.0

    def clear(self) -> None:
        """Forget what has not happened."""
        self._events.clear()


class LiveSite:
    """Broker, a verifier process for each policy, links for the devices; where `VirtualDevice`s live."""

    def __init__(self, folder: Path, rate_tokens_s: float) -> None:
        self.timeline = WallTimeline()
        self.target = ""
        self.vocab_size = VOCAB_SIZE
        self._folder = folder
        self._rate_tokens_s = rate_tokens_s
        self._fleet = FleetDirectory.create(folder / "fleet", fleet=FLEET)
        for policy in POLICIES:
            self._fleet.add_backend("verifier", policy)
        self._broker = PrivateBroker(self._fleet.broker_files(), folder / "broker")
        self._received: Queue[tuple[str, Received]] = Queue()
        self._links: dict[str, Link] = {}
        self._verifier = ""
        self._places: dict[str, tuple[str, int]] = {}
        self._at_place: dict[tuple[str, int], VirtualDevice] = {}
        self._parts = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as parts:
            parts.enter_context(self._broker)
            processes = [parts.enter_context(self._start_verifier(policy)) for policy in POLICIES]
            for number in range(N_LINKS):
                self._add_link(f"bench-{number}", parts)
            ready = [process.wait_ready(READY_S) for process in processes]
            self.target = str(ready[0]["target"])
            self._parts = parts.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._parts.close()

    def run(self, verifier: str, load: Load, sessions: Sequence[Visitor], first: int) -> Outcome:
        """The sessions of a load at one verifier; devices are numbered from `first` on."""
        self._verifier = verifier
        self._places.clear()
        self._at_place.clear()
        devices = [each.device(self, f"d{first + i}") for i, each in enumerate(sessions)]
        started_s = self.timeline.now_s
        for device, each in zip(devices, sessions, strict=True):
            self.timeline.after(each.opens_s, device.open)
        until_s = started_s + max(each.opens_s + each.needed_s for each in sessions)
        while self.timeline.now_s < until_s and any(device.finished is None for device in devices):
            self._take(min(0.1, self.timeline.run_due()))
        self.timeline.clear()
        return outcome(load, sessions, devices)

    def deliver(self, device: VirtualDevice, window: Window) -> None:
        """See `Place.deliver`."""
        identity, slot = self._place(device)
        topic = topics.WINDOW.topic(FLEET, v=self._verifier, d=identity, n=slot)
        self._links[identity].publish(topic, encode(window))

    def _place(self, device: VirtualDevice) -> tuple[str, int]:
        """A free slot for each session, on a connection that has few."""
        if device.name not in self._places:
            free = (
                (f"bench-{number}", slot)
                for slot in SLOTS
                for number in range(N_LINKS)
                if (other := self._at_place.get((f"bench-{number}", slot))) is None or other.finished
            )
            place = next(free, None)
            if place is None:
                raise SystemExit(f"more than {N_LINKS * len(SLOTS)} sessions at a time: give a lower load")
            self._places[device.name] = place
            self._at_place[place] = device
        return self._places[device.name]

    def _take(self, wait_s: float) -> None:
        try:
            identity, event = self._received.get(timeout=max(0.0, wait_s))
        except Empty:
            return
        names = topics.VERDICT.parse(event.topic)
        if names is None or names["v"] != self._verifier:
            return
        device = self._at_place.get((identity, int(names["n"])))
        reply = decode_reply(event.payload)
        if device is not None and reply.uid == device.uid:
            self.timeline.after(device.habits.delay_s(device.random), lambda: device.on_reply(reply))

    def _start_verifier(self, policy: str) -> VerifierProcess:
        settings = self._folder / f"{policy}.toml"
        settings.write_text(
            f'policy = "{policy}"\ndisplay_rate_tokens_s = {self._rate_tokens_s}\n'
            f"max_display_rate_tokens_s = {HIGHEST_RATE * self._rate_tokens_s}\nquota_sessions = 8\n"
        )
        return VerifierProcess(
            [
                *("--fleet", str(self._fleet.path), "--name", policy, "--config", str(settings)),
                *("--broker", f"{self._broker.host}:{self._broker.backend_port}"),
                *("--dtype", "float32", "--threads", "1"),
            ],
            log_file=self._folder / f"{policy}.log",
        )

    def _add_link(self, identity: str, parts: ExitStack) -> None:
        home = self._folder / identity
        home.mkdir()
        issued = self._fleet.authority("device").issue(identity)
        (home / "key.pem").write_bytes(issued.key_pem)
        (home / "cert.pem").write_bytes(issued.certificate_pem)
        tls = TlsFiles(self._fleet.server_ca_file, home / "cert.pem", home / "key.pem")
        endpoint = Endpoint(self._broker.host, self._broker.device_port, tls)

        def on_event(event: Any) -> None:  # noqa: ANN401 - any event of a link
            if isinstance(event, Received):
                self._received.put((identity, event))

        link = Link(endpoint, LinkOptions(identity), on_event)
        link.start()
        parts.callback(link.stop)
        link.wait_connected(READY_S)
        link.subscribe([Subscription(topics.VERDICT.filter(FLEET, d=identity))])
        link.wait_subscribed(READY_S)
        self._links[identity] = link


def target_answers(seed: int = 1) -> Answers:
    """Prompts of random tokens with the bundled target's own answers; made once, then drawn from."""
    chance, target = random.Random(seed), load_reference(bundled_pair().target, "float32")
    known: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    while len(known) < N_PROMPTS:
        prompt = tuple(chance.randrange(10, VOCAB_SIZE) for _ in range(chance.randint(20, 200)))
        answer = tuple(target.generate(prompt, GREEDY_SAMPLING, len(prompt) + 120))
        if len(answer) >= 40:
            known.append((prompt, answer))

    def draw(chance: random.Random, n_prompt: int, n_answer: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        prompt, answer = min(known, key=lambda pair: (abs(len(pair[0]) - n_prompt), chance.random()))
        return prompt, answer[:n_answer]

    return draw


def runs(site: LiveSite, load: Load, n_repeats: int, answers: Answers) -> Iterator[dict[str, Outcome]]:
    """An outcome of each policy for each repeat; the order rotates."""
    first = 0
    for repeat in range(n_repeats):
        each = Load(load.mix, load.n_busy, load.rate_tokens_s, load.seconds, load.seed + repeat)
        sessions = [*visitors(each, answers)]
        found = {}
        for i in range(len(POLICIES)):
            policy = POLICIES[(repeat + i) % len(POLICIES)]
            found[policy] = site.run(policy, each, sessions, first)
            first += len(sessions)
        line = ", ".join(f"{name} {found[name].goodput:.1f} {found[name].served:.0%}" for name in POLICIES)
        print(f"repeat {repeat + 1}: {len(sessions)} sessions; {line}", flush=True)
        yield found


def main() -> int:
    """Print mean and deviation of each policy."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--load", type=int, default=12, help="sessions busy at a time")
    parser.add_argument("--rate", type=float, default=6.0, help="tokens a second that a reader needs")
    parser.add_argument("--seconds", type=float, default=20.0, help="time in which sessions open")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--mix", default="chat")
    arguments = parser.parse_args()
    print(describe_machine(), flush=True)
    answers = target_answers()
    load = Load(arguments.mix, arguments.load, arguments.rate, arguments.seconds, seed=200)
    with (
        tempfile.TemporaryDirectory(prefix="sled-policies-") as folder,
        LiveSite(Path(folder), arguments.rate) as site,
    ):
        found = [*runs(site, load, arguments.repeats, answers)]
    for policy in POLICIES:
        goodputs = [each[policy].goodput for each in found]
        served = mean(each[policy].served for each in found)
        deviation = stdev(goodputs) if len(goodputs) > 1 else 0.0
        print(f"{policy:<9} {mean(goodputs):7.1f} ± {deviation:.1f} tokens/s in time, {served:.0%} served")
    print(describe_machine())
    return 0


if __name__ == "__main__":
    sys.exit(main())
