"""Batched generation with a transformers model, for samples and checks."""

from collections.abc import Sequence

import torch
from transformers import LlamaForCausalLM

from training.chat import DOCUMENT, END, SPECIAL_TOKENS

STOP_IDS = [SPECIAL_TOKENS.index(END), SPECIAL_TOKENS.index(DOCUMENT)]
PADDING_ID = SPECIAL_TOKENS.index(DOCUMENT)


def continued(
    model: LlamaForCausalLM,
    prompts: Sequence[Sequence[int]],
    most: int,
    temperature: float = 0.0,
    rows: int = 48,
) -> list[list[int]]:
    """At most `most` new tokens after each prompt, the stop token included.

    Prompts of like length run together, `rows` at a time; the result is in the order
    of the prompts.
    """
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    answers: dict[int, list[int]] = {}
    for start in range(0, len(order), rows):
        chosen = order[start : start + rows]
        found = _batch(model, [prompts[index] for index in chosen], most, temperature)
        answers |= dict(zip(chosen, found, strict=True))
    return [answers[index] for index in range(len(prompts))]


def _batch(
    model: LlamaForCausalLM, prompts: Sequence[Sequence[int]], most: int, temperature: float
) -> list[list[int]]:
    longest = max(map(len, prompts))
    ids = torch.full((len(prompts), longest), PADDING_ID)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    sampling = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
    with torch.no_grad():
        out = model.generate(
            ids.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=most,
            eos_token_id=STOP_IDS,
            pad_token_id=PADDING_ID,
            **sampling,
        )
    return [_until_stop(row[longest:].tolist()) for row in out]


def _until_stop(ids: Sequence[int]) -> list[int]:
    ends = [index for index, token in enumerate(ids) if token in STOP_IDS]
    return list(ids[: ends[0] + 1] if ends else ids)
