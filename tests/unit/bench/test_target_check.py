"""The check in one pass says what decoding one token at a time says, and finds a single wrong token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from bench.chaos_models import check_engine
from bench.history import Turn
from bench.target_check import CHUNK, TargetCheck
from edge_verifier.engine import Engine, EngineInfo
from edge_verifier.engines.hf_reference import TargetAlone
from edge_verifier.engines.table_engine import TableEngine
from protocol.coupling import Ends, decode_alone
from protocol.errors import ModelError
from protocol.messages import SamplerSettings
from provisioning.catalogue import bundled_pair

Decode = Callable[[Sequence[int], SamplerSettings, int], tuple[list[int], str]]
SAMPLED = SamplerSettings(temperature=1.0, seed=11)
GREEDY = SamplerSettings(temperature=0.0, seed=12)
PROMPT = tuple(range(5, 25))


def table_decode(prompt: Sequence[int], settings: SamplerSettings, limit: int) -> tuple[list[int], str]:
    """A table's own text; it never stops by itself."""
    return decode_alone(TableEngine().next_logits, prompt, settings, Ends(frozenset(), limit, 512))


def answer(decode: Decode, prompt: Sequence[int], settings: SamplerSettings, n_tokens: int) -> Turn:
    limit = len(prompt) + n_tokens
    tokens, reason = decode(prompt, settings, limit)
    return Turn(tuple(prompt), tuple(tokens), settings, limit, reason)


def conversation(decode: Decode) -> list[Turn]:
    """Three turns on one text, the second greedy, the last one stopped by its user."""
    first = answer(decode, PROMPT, SAMPLED, 30)
    second = answer(decode, (*first.text, 3, 4, 5), GREEDY, CHUNK)
    third = answer(decode, (*second.text, 6, 7), SAMPLED, 40)
    stopped = replace(third, tokens=third.tokens[: len(third.tokens) // 2], reason="stopped")
    return [first, second, stopped]


@pytest.fixture(scope="module")
def table() -> Engine:
    return TableEngine()


def test_right_answers_pass_in_one_pass_for_all_turns_of_a_session(table: Engine) -> None:
    check = TargetCheck(table)
    turns = conversation(table_decode)
    assert check(turns) == ["", "", ""]
    assert check.n_passes == 1
    assert check.n_tokens == sum(len(turn.tokens) for turn in turns)


def test_every_single_wrong_token_is_found_where_it_stands(table: Engine) -> None:
    check = TargetCheck(table)
    turn = answer(table_decode, PROMPT, SAMPLED, 60)
    assert len(turn.tokens) == 60
    for number, token in enumerate(turn.tokens):
        wrong = (*turn.tokens[:number], token ^ 1, *turn.tokens[number + 1 :])
        assert check([replace(turn, tokens=wrong)]) == [
            f"token {number} is {token ^ 1}, the target alone says {token}"
        ]


def test_a_wrong_token_in_an_early_turn_is_found_though_later_turns_build_on_it(table: Engine) -> None:
    first, second, _ = conversation(table_decode)
    wrong = replace(first, tokens=(first.tokens[0] ^ 1, *first.tokens[1:]))
    later = answer(table_decode, (*wrong.text, 3, 4, 5), second.settings, 20)
    found = TargetCheck(table)([wrong, later])
    assert found[0].startswith("token 0 is")
    assert found[1] == ""


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        pytest.param(lambda turn: replace(turn, tokens=turn.tokens[:-1]), "ended by limit", id="cut short"),
        pytest.param(lambda turn: replace(turn, tokens=()), "ended by limit after 0", id="empty"),
        pytest.param(lambda turn: replace(turn, limit=turn.limit - 1), "follows the end", id="too long"),
        pytest.param(lambda turn: replace(turn, reason="stop"), "ended by stop", id="other reason"),
        pytest.param(
            lambda turn: replace(turn, settings=turn.settings.model_copy(update={"seed": 1})),
            "the target alone says",
            id="other seed",
        ),
    ],
)
def test_an_answer_that_ends_elsewhere_or_has_another_seed_is_found(
    table: Engine, change: Callable[[Turn], Turn], complaint: str
) -> None:
    turn = answer(table_decode, PROMPT, SAMPLED, 25)
    assert complaint in TargetCheck(table)([change(turn)])[0]


def test_answers_that_share_no_text_have_passes_of_their_own(table: Engine) -> None:
    check = TargetCheck(table)
    turns = [answer(table_decode, PROMPT, SAMPLED, 20), answer(table_decode, PROMPT, GREEDY, 20)]
    assert check(turns) == ["", ""]
    assert check.n_passes == 2


def test_what_follows_a_stop_token_is_found_even_if_the_target_would_say_it() -> None:
    right = answer(table_decode, PROMPT, SAMPLED, 40)
    stop_id = right.tokens[17]
    number = right.tokens.index(stop_id)
    check = TargetCheck(TableEngine(stop_ids=frozenset({stop_id})))
    assert check([right]) == [f"token {number + 1} follows the end (stop) of what the target alone says"]
    ended = replace(right, tokens=right.tokens[: number + 1], reason="stop")
    assert check([ended]) == [""]


def test_an_engine_whose_bits_depend_on_the_batch_is_refused() -> None:
    class Inexact(TableEngine):
        @property
        def info(self) -> EngineInfo:
            return replace(super().info, is_exact=False)

    with pytest.raises(ModelError, match="not exact"):
        TargetCheck(Inexact())


def test_the_bundled_target_in_one_pass_says_what_it_says_token_by_token() -> None:
    """The reference is plain transformers, which shares no attention or cache with the engine."""
    alone = TargetAlone(bundled_pair().target, "float32")
    engine = check_engine("bundled")
    try:

        def decode(prompt: Sequence[int], settings: SamplerSettings, limit: int) -> tuple[list[int], str]:
            tokens = alone.generate(prompt, settings, limit)
            reason = "stop" if tokens[-1] in engine.info.stop_ids else "limit"
            return tokens, reason

        turns = conversation(decode)
        check = TargetCheck(engine)
        assert check(turns) == ["", "", ""]
        number = len(turns[1].tokens) // 2
        wrong = (*turns[1].tokens[:number], turns[1].tokens[number] ^ 1, *turns[1].tokens[number + 1 :])
        assert f"token {number} is" in check([turns[0], replace(turns[1], tokens=wrong)])[1]
    finally:
        engine.shutdown()
