"""Real processes that hold one target together, without a broker."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_verifier.engines import load_engine
from tests.rank_program import OPTIONS, logits_by_tokens, text_of

MakeModel = Callable[..., Path]

WAIT_S = 350.0
pytestmark = pytest.mark.timeout(400)


def run_ranks(
    n: int, scenario: str, *targets: Path, n_awaited: int | None = None
) -> list[list[dict[str, Any]]]:
    """What each of `n` processes prints; beyond the first `n_awaited` they are killed at the end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {**os.environ, "WORLD_SIZE": str(n), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    common |= {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.rank_program", scenario, *map(str, targets)]
    ranks = [
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            text=True,
        )
        for rank in range(n)
    ]
    try:
        outputs = [rank.communicate(timeout=WAIT_S)[0] for rank in ranks[:n_awaited]]
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()
    return [[json.loads(line) for line in output.splitlines()] for output in outputs]


def assert_like_one_process(found: Sequence[dict[str, Any]], targets: Sequence[Path]) -> None:
    assert len(found) == len(targets)
    for each, target in zip(found, targets, strict=True):
        engine = load_engine(target, **OPTIONS)
        expected = logits_by_tokens(engine, text_of(engine.info.vocab_size))
        engine.shutdown()
        np.testing.assert_allclose(each["logits"], expected, rtol=1e-4, atol=1e-4)
        assert each["is_exact"] or "moe" in str(target), target


def test_two_processes_compute_what_one_does_and_batches_change_no_bit(make_model: MakeModel) -> None:
    names = ("qwen2", "gemma2", "phi3", "gpt-neox", "qwen3-moe")
    targets = [make_model(name) for name in names]
    leader, follower = run_ranks(2, "compare", *targets)
    assert follower == []
    assert_like_one_process(leader, targets)


@pytest.mark.slow
def test_three_processes_add_up_in_one_order_and_uneven_parts_fit(make_model: MakeModel) -> None:
    """With three an all-reduce would add in orders that depend on where an element lies."""
    shape = {"num_attention_heads": 6, "num_key_value_heads": 3, "hidden_size": 96}
    targets = [
        make_model("llama", **shape, intermediate_size=100, vocab_size=161),
        make_model("qwen2", **shape, tie_word_embeddings=True),
    ]
    leader, *followers = run_ranks(3, "compare", *targets)
    assert followers == [[], []]
    assert_like_one_process(leader, targets)


@pytest.mark.slow
def test_a_group_may_be_idle_for_longer_than_an_answer_may_take(make_model: MakeModel) -> None:
    assert run_ranks(2, "idle", make_model("llama")) == [[{"is_lost": False}], []]


@pytest.mark.slow
def test_a_process_that_hangs_is_noticed_and_named(make_model: MakeModel) -> None:
    [[lost]] = run_ranks(2, "hang", make_model("llama"), n_awaited=1)
    assert lost["lost"].startswith("process 1 of 2 has ended or hangs")
    assert lost["hint"]


@pytest.mark.slow
def test_processes_that_were_told_different_things_do_not_begin(make_model: MakeModel) -> None:
    found = run_ranks(2, "differ", make_model("llama"))
    refusals = [each["refused"] for [each] in found if "refused" in each]
    assert refusals
    assert set(refusals) == {"process 1 of the target has another KV budget than process 0"}


@pytest.mark.parametrize(
    ("architecture", "heads", "complaint", "hint"),
    [
        ("gpt2", {}, "architecture gpt2 has no plan", "without torchrun"),
        ("gemma", {}, "4 attention heads and 1 key-value heads, which 2 processes", "without torchrun"),
        (
            "llama",
            {"num_attention_heads": 6, "num_key_value_heads": 3, "hidden_size": 96},
            "6 attention heads and 3 key-value heads, which 2 processes cannot share evenly",
            "split over 3 processes",
        ),
    ],
)
def test_a_target_that_cannot_be_split_is_refused_by_name(
    architecture: str, heads: dict[str, int], complaint: str, hint: str, make_model: MakeModel
) -> None:
    from transformers import AutoConfig  # noqa: PLC0415 - with torch

    from edge_verifier.engines.hf_shards import distribution  # noqa: PLC0415 - the same
    from protocol.errors import ModelError  # noqa: PLC0415

    class Two:
        size = 2

    config = AutoConfig.from_pretrained(make_model(architecture, **heads))
    with pytest.raises(ModelError, match=complaint) as refusal:
        distribution(config, Two())  # type: ignore[arg-type]  # only its size is asked for
    assert hint in refusal.value.hint
