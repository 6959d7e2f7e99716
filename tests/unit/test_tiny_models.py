"""The tiny models mean the same to transformers and to llama.cpp, since other tests rest on that."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from device_agent.drafters import load_vocabulary
from device_agent.drafters.llamacpp import Context, Model
from protocol.vocabulary import check_vocabularies
from tests.tiny_models import TinyPair, make_tiny_pair


def test_logits_agree(tiny_pair: TinyPair) -> None:
    torch.set_num_threads(1)
    tokens = list(range(5, 305, 3))
    model = AutoModelForCausalLM.from_pretrained(tiny_pair.target, dtype=torch.float32)
    with torch.inference_mode():
        expected = model(torch.tensor([tokens])).logits[0, -1].numpy()
    row = Context(Model(tiny_pair.target_gguf), 128, 1).decode(tokens)
    assert expected.std() > 0.5
    np.testing.assert_allclose(row, expected, atol=2e-2)  # the cache is fp16


@pytest.mark.parametrize(
    "text", ["Turn the lamp off!", "Grüße \U0001f600\n\n\t12345  x", "<|en", " a'll  b", ""]
)
def test_tokens_agree(tiny_pair: TinyPair, text: str) -> None:
    reference = AutoTokenizer.from_pretrained(tiny_pair.target)
    tokens = load_vocabulary(tiny_pair.draft).encode(text)
    assert tokens == reference(text, add_special_tokens=False)["input_ids"]


def test_all_share_one_vocabulary(tiny_pair: TinyPair) -> None:
    files = (tiny_pair.target_gguf, tiny_pair.draft, tiny_pair.stranger)
    assert len({check_vocabularies(file, tiny_pair.target) for file in files}) == 1


def test_the_same_arguments_give_the_same_files(tiny_pair: TinyPair, tmp_path: Path) -> None:
    again = make_tiny_pair(tmp_path)
    assert again.draft.read_bytes() == tiny_pair.draft.read_bytes()
    weights = "model.safetensors"
    assert (again.target / weights).read_bytes() == (tiny_pair.target / weights).read_bytes()
