"""How soon sessions go on after a loss: bundled target in fp32, two verifier processes, sessions that talk.

    python -m bench.recovery [--sessions 16] [--repeats 3]

For `kill -9` and a black hole of one verifier: from the fault to the first token that another one lets each
of its sessions commit. For a broker killed and restarted 2 s later: from its return to each session's next
token. Goals: medians of 2, 8 and 3 s.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from bench.chaos_models import TablePace, new_agent
from bench.chaos_plan import BROKER, VERIFIERS, Fault
from bench.chaos_site import ChaosSite
from bench.link_scenario import PERFECT
from bench.machine import describe_machine
from device_agent.agent import DeviceAgent
from device_agent.chat import ChatOptions, ChatSession
from device_agent.chat_events import Failed, TextDelta
from protocol.identifiers import SLOTS

GOALS_S = {"verifier killed": 2.0, "verifier black-holed": 8.0, "broker restarted": 3.0}
BROKER_DOWN_S = 2.0
HOLE_S = 30.0
READY_S = 300.0
CALM_S = 5.0
PROMPT = "tell me a long story about this house"


@dataclass
class Talk:
    """One session that never stops talking: when it committed, and with which verifier."""

    agent: DeviceAgent
    commits: list[tuple[float, str]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    chat: ChatSession | None = None

    def run(self, stop: threading.Event) -> None:
        """Until `stop`; conversation after conversation."""
        while not stop.is_set():
            chat = self.agent.chat(ChatOptions(temperature=1.0, max_tokens=300))
            with chat:
                self.chat = chat
                for event in chat.send(PROMPT):
                    if isinstance(event, TextDelta) and event.tokens:
                        self.commits.append((time.monotonic(), chat.verifier))
                    elif isinstance(event, Failed):
                        self.failures.append(str(event.error))
                    if stop.is_set():
                        chat.stop()

    @property
    def verifier(self) -> str:
        return self.chat.verifier if self.chat else ""

    def first_commit_s(self, from_s: float, without: str) -> float | None:
        """Seconds from `from_s` to the first commit that owes nothing to verifier `without`."""
        found = (at_s - from_s for at_s, name in [*self.commits] if at_s > from_s and name != without)
        return next(found, None)


class Recovery:
    """Talks on a site, and faults while they go on."""

    def __init__(self, site: ChaosSite, talks: Sequence[Talk]) -> None:
        self._site = site
        self._talks = talks

    def verifier_killed(self) -> list[float]:
        """Seconds without tokens of each session of the killed verifier."""
        victim = self._busiest()
        fault = Fault(0.0, "kill", victim, 0.0)
        found = self._measure(lambda: self._site.begin(fault), victim)
        self._site.end(fault)
        return found

    def verifier_black_holed(self) -> list[float]:
        """The same for one whose host falls silent."""
        victim = self._busiest()
        found = self._measure(lambda: self._site.links[victim].black_hole(HOLE_S), victim)
        time.sleep(HOLE_S)
        return found

    def broker_restarted(self) -> list[float]:
        """Seconds from the broker's return."""
        fault = Fault(0.0, "broker_forgets", BROKER, BROKER_DOWN_S)
        self._site.begin(fault)
        time.sleep(BROKER_DOWN_S)
        return self._measure(lambda: self._site.end(fault), "")

    def calm_down(self) -> None:
        """Until both verifiers are known everywhere, and everybody talks."""
        deadline_s = time.monotonic() + READY_S
        while any(_alive(talk.agent) != set(VERIFIERS) for talk in self._talks):
            if time.monotonic() > deadline_s:
                raise TimeoutError("the verifiers are not back")
            time.sleep(0.1)
        time.sleep(CALM_S)

    def _busiest(self) -> str:
        return Counter(talk.verifier for talk in self._talks).most_common(1)[0][0]

    def _measure(self, act: Callable[[], None], victim: str) -> list[float]:
        affected = [talk for talk in self._talks if not victim or talk.verifier == victim]
        started_s = time.monotonic()
        act()
        from_s = started_s if victim else time.monotonic()
        deadline_s = from_s + HOLE_S
        while any(talk.first_commit_s(from_s, victim) is None for talk in affected):
            if time.monotonic() > deadline_s:
                break
            time.sleep(0.02)
        firsts = (talk.first_commit_s(from_s, victim) for talk in affected)
        return [HOLE_S if first is None else first for first in firsts]


def _alive(agent: DeviceAgent) -> frozenset[str]:
    return agent.call(lambda: agent._adverts.alive)  # noqa: SLF001 - nobody else needs it


def measure(n_sessions: int, n_repeats: int, folder: Path) -> tuple[dict[str, list[float]], list[str]]:
    """Seconds of every affected session by fault, and what failed on the way."""
    found: dict[str, list[float]] = {name: [] for name in GOALS_S}
    stop = threading.Event()
    with ChaosSite(folder, (), "bundled", 1) as site, ExitStack() as parts:
        n_devices = -(-n_sessions // len(SLOTS))
        agents = []
        for number in range(n_devices):
            home = site.install(f"dev-{number + 1}", PERFECT)
            agents.append(parts.enter_context(new_agent("bundled", home, TablePace())))
        for agent in agents:
            site.wait_ready(agent, READY_S)
        talks = [Talk(agents[number % n_devices]) for number in range(n_sessions)]
        recovery = Recovery(site, talks)
        recovery.calm_down()
        threads = [threading.Thread(target=talk.run, args=(stop,), daemon=True) for talk in talks]
        for thread in threads:
            thread.start()
        for _ in range(n_repeats):
            recovery.calm_down()
            found["verifier killed"] += recovery.verifier_killed()
            recovery.calm_down()
            found["verifier black-holed"] += recovery.verifier_black_holed()
            recovery.calm_down()
            found["broker restarted"] += recovery.broker_restarted()
        stop.set()
        for thread in threads:
            thread.join(30.0)
    return found, [failure for talk in talks for failure in talk.failures]


def main() -> int:
    """Print the table; exit code 1 when a median misses its goal or a turn failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sessions", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    print(describe_machine())
    with tempfile.TemporaryDirectory(prefix="sled-recovery-") as folder:
        found, failures = measure(arguments.sessions, arguments.repeats, Path(folder))
    print(f"{'s':<24}sessions   median      max     goal")
    for name, values in found.items():
        median = statistics.median(values)
        print(f"{name:<24}{len(values):>8}{median:>9.2f}{max(values):>9.2f}{GOALS_S[name]:>9.1f}")
    for failure in failures:
        print(f"failed: {failure}")
    is_good = all(statistics.median(values) <= GOALS_S[name] for name, values in found.items())
    return 0 if is_good and not failures else 1


if __name__ == "__main__":
    sys.exit(main())
