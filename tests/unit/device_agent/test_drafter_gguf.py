"""The GGUF drafter: coupling with the same weights, rollback, limits, quantised files, memory."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import llama_cpp
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from device_agent.drafters import gguf_drafter, llamacpp, load_drafter
from device_agent.drafters.gguf_drafter import GgufDrafter
from protocol import gguf_file
from protocol.errors import ModelError
from protocol.fingerprint import file_sha256, vocabulary_fingerprint
from protocol.messages import SamplerSettings
from protocol.sampler import choose
from protocol.vocabulary import hf_vocabulary
from tests.tiny_models import TinyPair

PROMPT = [0, 3, 45, 67, 89, 101, 7, 222, 300, 41, 1, 4]
SAMPLED = SamplerSettings(temperature=0.8, seed=11)
GREEDY = SamplerSettings()


@pytest.fixture
def drafter(tiny_pair: TinyPair) -> Iterator[GgufDrafter]:
    made = GgufDrafter.load(tiny_pair.target_gguf, n_threads=1)
    yield made
    made.close()


def target_alone(directory: Path, prompt: list[int], settings: SamplerSettings, n: int) -> list[int]:
    """Tokens of the plain transformers model, the whole text computed anew for each."""
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    tokens = list(prompt)
    with torch.inference_mode():
        for _ in range(n):
            row = model(torch.tensor([tokens])).logits[0, -1].numpy()
            tokens.append(choose(row, settings, len(tokens)))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("settings", [GREEDY, SAMPLED, SamplerSettings(temperature=1.3, top_k=20, seed=5)])
def test_a_draft_with_the_weights_of_the_target_is_nearly_always_right(
    tiny_pair: TinyPair, drafter: GgufDrafter, settings: SamplerSettings
) -> None:
    answer = target_alone(tiny_pair.target, PROMPT, settings, 150)
    n_right = 0
    for i, token in enumerate(answer):
        drafter.sync(PROMPT + answer[:i])
        n_right += drafter.draft(settings, 1) == [token]
    assert n_right >= 0.97 * len(answer)


def test_info_names_the_file_and_the_vocabulary_of_the_target(
    tiny_pair: TinyPair, drafter: GgufDrafter
) -> None:
    assert drafter.info.name == "llama.cpp"
    assert drafter.info.model == "tiny-target"
    assert drafter.info.model_hash == file_sha256(tiny_pair.target_gguf)
    assert drafter.info.vocabulary == vocabulary_fingerprint(hf_vocabulary(tiny_pair.target))
    assert (drafter.info.vocab_size, drafter.info.max_context) == (320, 1024)


def test_rolling_back_equals_a_fresh_prefill(tiny_pair: TinyPair, drafter: GgufDrafter) -> None:
    rng = random.Random(1)
    text = [rng.randrange(320) for _ in range(700)]  # more than one batch
    drafter.sync(text)
    drafter.draft(SAMPLED, 9)
    for length in (699, 512, 511, 3, 1):
        wanted = [*text[:length], 17, 18]
        drafter.sync(wanted)
        fresh = GgufDrafter.load(tiny_pair.target_gguf, n_threads=1)
        fresh.sync(wanted)
        np.testing.assert_allclose(drafter._row, fresh._row, atol=2e-2)
        assert drafter.draft(SAMPLED, 6) == fresh.draft(SAMPLED, 6)
        fresh.close()
        drafter.sync(text)


def test_truncating_to_a_prefix_drafts_as_before(drafter: GgufDrafter) -> None:
    drafter.sync(PROMPT)
    first = drafter.draft(SAMPLED, 8)
    drafter.sync(PROMPT)
    assert drafter.draft(SAMPLED, 8) == first
    drafter.sync(PROMPT + first[:3])
    assert drafter.draft(SAMPLED, 5) == first[3:]


def test_drafting_twice_goes_on_where_the_first_ended(drafter: GgufDrafter) -> None:
    drafter.sync(PROMPT)
    together = drafter.draft(SAMPLED, 10)
    drafter.sync(PROMPT)
    assert drafter.draft(SAMPLED, 4) + drafter.draft(SAMPLED, 6) == together


def test_noise_is_that_of_the_absolute_position(drafter: GgufDrafter) -> None:
    drafter.sync(PROMPT)
    assert drafter.draft(SAMPLED, 1) == [choose(drafter._row, SAMPLED, len(PROMPT))]
    assert drafter.draft(SAMPLED, 1) == [choose(drafter._row, SAMPLED, len(PROMPT) + 1)]


def test_only_new_tokens_are_computed(drafter: GgufDrafter, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fully accepted window and its bonus cost one decode of two tokens: the last draft and the bonus."""
    drafter.sync(PROMPT)
    drafts = drafter.draft(SAMPLED, 4)
    decoded: list[int] = []
    decode = drafter._context.decode
    monkeypatch.setattr(
        drafter._context, "decode", lambda tokens: decoded.append(len(tokens)) or decode(tokens)
    )
    drafter.sync([*PROMPT, *drafts, 55])
    assert decoded == [2]


def test_a_full_context_ends_the_draft(tiny_pair: TinyPair) -> None:
    small = GgufDrafter.load(tiny_pair.draft, max_context=len(PROMPT) + 3, n_threads=1)
    small.sync(PROMPT)
    assert len(small.draft(SAMPLED, 8)) == 3
    assert small.draft(SAMPLED, 8) == []
    small.sync(PROMPT * 2)
    assert small.draft(SAMPLED, 8) == []
    small.sync(PROMPT[:5])
    assert len(small.draft(SAMPLED, 8)) == 8
    small.close()


def test_nothing_is_drafted_from_nothing(drafter: GgufDrafter) -> None:
    assert drafter.draft(SAMPLED, 4) == []
    drafter.sync(PROMPT)
    assert drafter.draft(SAMPLED, 0) == []
    drafter.sync([])
    assert drafter.draft(SAMPLED, 4) == []


def test_an_unsure_model_stops_early(drafter: GgufDrafter) -> None:
    drafter.sync(PROMPT)
    assert drafter.draft(SAMPLED, 8, min_probability=1.0) == []
    drafter.sync(PROMPT)
    every = drafter.draft(SAMPLED, 8)
    drafter.sync(PROMPT)
    some = drafter.draft(SAMPLED, 8, min_probability=0.01)
    assert some == every[: len(some)]


def test_nothing_is_drafted_after_the_end_of_a_message(
    drafter: GgufDrafter, monkeypatch: pytest.MonkeyPatch
) -> None:
    drafter.sync(PROMPT)
    every = drafter.draft(SAMPLED, 8)
    monkeypatch.setattr(drafter, "_stop_ids", frozenset({every[3]}))
    drafter.sync(PROMPT)
    assert drafter.draft(SAMPLED, 8) == every[: every.index(every[3]) + 1]


def test_a_small_model_gets_one_thread_by_default(
    tiny_pair: TinyPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[int] = []
    make = gguf_drafter.Context
    monkeypatch.setattr(
        gguf_drafter, "Context", lambda model, size, n: threads.append(n) or make(model, size, n)
    )
    GgufDrafter.load(tiny_pair.draft).close()
    assert threads == [1]


@pytest.mark.parametrize("token", [-1, 320, 2**31])
def test_a_token_outside_the_vocabulary_is_refused_and_the_drafter_goes_on(
    drafter: GgufDrafter, token: int
) -> None:
    drafter.sync(PROMPT)
    expected = drafter.draft(SAMPLED, 3)
    with pytest.raises(ModelError, match=rf"token {token} .* 320 tokens"):
        drafter.sync([*PROMPT, token])
    assert drafter.draft(SAMPLED, 3) == []
    drafter.sync(PROMPT)
    assert drafter.draft(SAMPLED, 3) == expected


def test_closing_twice_is_fine_and_using_it_afterwards_is_refused(tiny_pair: TinyPair) -> None:
    drafter = GgufDrafter.load(tiny_pair.draft, n_threads=1)
    drafter.close()
    drafter.close()
    with pytest.raises(ModelError, match="closed"):
        drafter.sync(PROMPT)


@pytest.mark.parametrize("file_type", ["F16", "Q8_0", "Q4_0"])
def test_quantised_files_run_and_mostly_agree(tiny_pair: TinyPair, tmp_path: Path, file_type: str) -> None:
    """Q8_0 and Q4_0 are the formats that crash llama.cpp on AMX hosts when weights are repacked."""
    path = tmp_path / f"{file_type}.gguf"
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{file_type}")
    assert llama_cpp.llama_model_quantize(bytes(tiny_pair.target_gguf), bytes(path), parameters) == 0
    exact = load_drafter("llama.cpp", tiny_pair.target_gguf, n_threads=1)
    quantised = load_drafter("llama.cpp", path, n_threads=2)
    quantised.sync(PROMPT * 20)  # long enough for the batched kernels
    exact.sync(PROMPT)
    text = PROMPT + exact.draft(SAMPLED, 60)
    n_equal = 0
    for length in range(len(PROMPT), len(text)):
        quantised.sync(text[:length])
        n_equal += quantised.draft(SAMPLED, 1) == [text[length]]
    assert n_equal >= (30 if file_type == "Q4_0" else 54)
    exact.close()
    quantised.close()


def test_a_thousand_rounds_leave_no_memory_behind(drafter: GgufDrafter) -> None:
    statm = Path("/proc/self/statm")
    if not statm.exists():
        pytest.skip("reads the resident size from /proc")
    rng = random.Random(2)

    def rounds(n: int) -> int:
        for _ in range(n):
            drafter.sync(PROMPT + [rng.randrange(320) for _ in range(rng.randrange(12))])
            drafter.draft(SAMPLED, 4)
        return int(statm.read_text().split()[1]) * 4096

    before = rounds(200)
    assert rounds(1000) - before < 2_000_000


def test_native_messages_stay_off_stderr(tiny_pair: TinyPair, capfd: pytest.CaptureFixture[str]) -> None:
    drafter = GgufDrafter.load(tiny_pair.draft, n_threads=1)
    drafter.sync(PROMPT)
    drafter.draft(GREEDY, 2)
    drafter.close()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("crashes", [True, False])
def test_weights_are_not_repacked_where_that_crashes(
    tiny_pair: TinyPair, monkeypatch: pytest.MonkeyPatch, *, crashes: bool
) -> None:
    """x86 hosts with AMX cannot be had for every test run, so the parameter itself is pinned."""
    given: list[bool] = []
    load = llama_cpp.llama_model_load_from_file
    monkeypatch.setattr(gguf_file, "_REPACKING_CRASHES", crashes)
    monkeypatch.setattr(
        llama_cpp,
        "llama_model_load_from_file",
        lambda path, parameters: given.append(parameters.use_extra_bufts) or load(path, parameters),
    )
    llamacpp.Model(tiny_pair.draft).close()
    assert given == [not crashes]
