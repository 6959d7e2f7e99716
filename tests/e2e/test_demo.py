"""The demo, for real: Mosquitto, a verifier process, the bundled pair; tokens equal to the target alone."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from broker_config.running_broker import RunningBroker
from tests.e2e.sled import Done, Running, sled
from tests.tiny_models import TinyPair

PROMPTS = [
    "lower the kitchen blinds",
    "what can you do",
    "turn on the living room light",
    "please set the bedroom fan to high",
    "is the front door locked?",
    "tell me a short story",
    "lock the front door",
    "open the garage door",
    "Once upon a time there was a fox",
    "who are you",
    "toggle the bedroom light",
    "what is 12 plus 30?",
    "play some music in the living room",
    "thank you, good night",
    "dim the kitchen light to 20 percent",
    "Write one sentence about the sea.",
    "I am cold",
    "is anything still on?",
    "close all the blinds",
    "hello",
    "turn everything off",
    "how do I list files in Python?",
    "make the living room cosy",
    "Ünïcode: grüße an die küche \N{ELECTRIC LIGHT BULB}",
]
FIELDS = {
    "text",
    "tokens",
    "rounds",
    "drafted",
    "accepted",
    "uplink_bytes",
    "downlink_bytes",
    "time_to_first_token_s",
    "tokens_per_s",
    "seed",
    "temperature",
    "dtype",
    "prompt_ids",
    "token_ids",
    "identical_to_target",
}
MAX_BYTES_PER_ROUND = 400


def demo(home: Path, *arguments: str) -> tuple[Done, list[dict[str, Any]]]:
    done = sled(home, "--log-file", str(home / "demo.log"), "demo", "--check", "--json", *arguments)
    assert done.exit_code == 0, done.stderr
    return done, done.objects()


def batches_of_several(log: Path) -> list[int]:
    """Sizes of the verifier's steps that held windows of more than one session, from its own log."""
    sizes = [int(size) for size in re.findall(r"step number=\d+ sessions=(\d+) ", log.read_text())]
    return [size for size in sizes if size > 1]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("temperature", ["0", "0.8"])
def test_eight_devices_give_the_text_of_the_target_alone(tmp_path: Path, temperature: str) -> None:
    """Eight concurrent sessions, two different draft models, 24 prompts and seeds, one verifier."""
    prompts = [part for prompt in PROMPTS for part in ("--prompt", prompt)]
    verifier_log = tmp_path / "verifier.log"
    _, answers = demo(
        tmp_path,
        *("--devices", "8", "--temperature", temperature, "--max-tokens", "32", "--seed", "20250611"),
        *("--draft", "draft", "--draft", "draft-micro", "--verifier-log", str(verifier_log)),
        *prompts,
    )
    assert len(answers) == len(PROMPTS)
    assert len({answer["seed"] for answer in answers}) == len(PROMPTS)
    assert {answer["device"] for answer in answers} == {f"demo-{i}" for i in range(1, 9)}
    assert {answer["draft"] for answer in answers} == {"draft", "draft-micro"}
    for answer in answers:
        assert answer.keys() >= FIELDS
        assert answer["dtype"] == "float32"
        assert answer["tokens"] == len(answer["token_ids"]) > 0
        assert answer["identical_to_target"] is True, answer
    assert sum(answer["accepted"] for answer in answers) > 0
    assert len(batches_of_several(verifier_log)) > 10


@pytest.mark.timeout(200)
def test_a_round_costs_less_than_400_bytes_each_way(tmp_path: Path) -> None:
    prompts = [part for prompt in PROMPTS[:6] for part in ("--prompt", prompt)]
    _, answers = demo(tmp_path, *prompts, "--max-tokens", "48", "--temperature", "0.7")
    assert sum(answer["rounds"] for answer in answers) > 2 * len(answers)
    for answer in answers:
        assert answer["max_uplink_bytes_per_round"] < MAX_BYTES_PER_ROUND
        assert answer["max_downlink_bytes_per_round"] < MAX_BYTES_PER_ROUND


@pytest.mark.timeout(200)
def test_without_a_terminal_one_prompt_is_answered_and_figures_are_printed(tmp_path: Path) -> None:
    done = sled(tmp_path, "demo")
    assert done.exit_code == 0, done.stderr
    assert len(done.stdout.strip()) > 0
    assert re.search(r"\d+ tokens", done.stderr)
    assert "Traceback" not in done.stderr


@pytest.mark.timeout(200)
def test_any_target_directory_and_gguf_draft_go_together(tmp_path: Path, tiny_pair: TinyPair) -> None:
    models = (
        "--target",
        str(tiny_pair.target),
        "--draft",
        str(tiny_pair.draft),
        "--draft",
        str(tiny_pair.stranger),
    )
    limits = ("--devices", "2", "--max-tokens", "24", "--temperature", "0.9")
    _, answers = demo(tmp_path, *models, *limits, "--prompt", "turn on the light")
    assert [answer["identical_to_target"] for answer in answers] == [True, True]
    assert [answer["draft"] for answer in answers] == [str(tiny_pair.draft), str(tiny_pair.stranger)]


@pytest.mark.timeout(200)
def test_a_broker_that_crashes_is_started_again_and_the_answers_go_on(
    tmp_path: Path, tiny_pair: TinyPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # where the demo has its fleet
    models = ("--target", str(tiny_pair.target), "--draft", str(tiny_pair.draft))
    prompts = [part for prompt in PROMPTS[:4] for part in ("--prompt", prompt)]
    running = Running(tmp_path / "home", "demo", "--check", "--json", "--max-tokens", "24", *models, *prompts)
    running.wait_for("are running")
    (broker,) = tmp_path.glob("sled-demo-*/fleet/broker")
    crashed = RunningBroker.find(broker)
    assert crashed is not None
    os.kill(crashed.pid, signal.SIGSEGV)
    assert running.process.wait(120) == 0, running.stderr
    assert running.end(signal.SIGINT) == 0
    assert running.stderr.count("the broker was ended by SIGSEGV; it is started again") == 1
    answers = [json.loads(line) for line in running.stdout.splitlines()]
    assert [answer["identical_to_target"] for answer in answers] == [True] * 4
