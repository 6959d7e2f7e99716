"""Chats to ids and ids to text: equality with the reference tokenizer, injection, turns, whole characters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from device_agent.drafters import load_vocabulary
from device_agent.tokenizer import ChatMessage, ChatRole, ChatTokenizer
from protocol.errors import ModelError
from protocol.packed_tokens import MAX_TOKEN_ID
from tests.tiny_models import CHAT_TEMPLATE, SPECIAL_TOKENS, TinyPair

BOS, END, USER, ASSISTANT = 0, 1, 3, 4
ROLES: tuple[ChatRole, ...] = ("system", "user", "assistant")
TEXTS = st.text(max_size=60).filter(lambda text: not any(special in text for special in SPECIAL_TOKENS))
SPELT = st.lists(st.sampled_from([*SPECIAL_TOKENS, "<|", "|>", "end", "<", " ", "hi"]), max_size=8).map(
    "".join
)


@pytest.fixture(scope="module")
def tokenizer(tiny_pair: TinyPair) -> ChatTokenizer:
    return ChatTokenizer(load_vocabulary(tiny_pair.draft))


@pytest.fixture(scope="module")
def reference(tiny_pair: TinyPair) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(tiny_pair.target)


@dataclass
class ByteVocabulary:
    """One token per byte, so that tests can cut characters wherever they like; templates as given."""

    chat_template: str | None = CHAT_TEMPLATE
    model: str = "bytes"
    model_hash: str = "0" * 64
    size: int = 258
    fingerprint: str = "f" * 16
    trained_context: int = 64
    bos_text: str = "<s>"
    eos_text: str = "</s>"
    adds_bos: bool = True
    stop_ids: frozenset[int] = frozenset({257})
    control_tokens: Mapping[str, int] = field(default_factory=lambda: {"<s>": 256, "</s>": 257})
    user_defined_tokens: frozenset[str] = frozenset()

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def piece(self, token: int) -> bytes:
        return bytes([token]) if token < 256 else b""


class TestOpening:
    @given(texts=st.lists(TEXTS, min_size=1, max_size=4))
    def test_equals_the_reference_in_one_go(
        self, tokenizer: ChatTokenizer, reference: PreTrainedTokenizerFast, texts: list[str]
    ) -> None:
        messages = [ChatMessage(ROLES[i % 3], text) for i, text in enumerate(texts)]
        expected = reference.apply_chat_template(
            [{"role": message.role, "content": message.content} for message in messages],
            add_generation_prompt=True,
            return_dict=False,
        )
        assert tokenizer.opening(messages) == expected

    @given(text=SPELT)
    def test_a_control_token_that_is_typed_stays_text(self, tokenizer: ChatTokenizer, text: str) -> None:
        tokens = tokenizer.opening([ChatMessage("user", text)])
        assert [token for token in tokens if token < len(SPECIAL_TOKENS)] == [BOS, USER, END, ASSISTANT]
        assert tokenizer.decode(tokens) == text

    def test_a_user_defined_token_of_the_template_cannot_be_typed_either(self) -> None:
        class Vocabulary(ByteVocabulary):
            def encode(self, text: str) -> list[int]:
                return list(text.replace("[INST]", "\0").encode())

        vocabulary = Vocabulary("[INST]{{ messages[0].content }}", user_defined_tokens=frozenset({"[INST]"}))
        tokens = ChatTokenizer(vocabulary).opening([ChatMessage("user", "a[INST]b")])
        assert bytes(tokens) == b"\0a[INST]b"

    def test_text_that_is_not_unicode_is_replaced(self, tokenizer: ChatTokenizer) -> None:
        tokens = tokenizer.opening([ChatMessage("user", "a\ud800b\udcffc")])
        assert tokenizer.decode(tokens) == "a?b?c"

    def test_a_base_model_just_continues_the_text(self) -> None:
        tokenizer = ChatTokenizer(ByteVocabulary(chat_template=None))
        assert tokenizer.opening([ChatMessage("user", "Once")]) == [256, *b"Once"]
        assert tokenizer.next_turn("more", ord("x")) == list(b"\nmore")

    def test_what_the_template_refuses_is_said(self) -> None:
        tokenizer = ChatTokenizer(ByteVocabulary("{{ raise_exception('no system messages here') }}"))
        with pytest.raises(ModelError, match="no system messages here"):
            tokenizer.opening([ChatMessage("system", "x")])

    @pytest.mark.parametrize(
        "template", ["{% if %}", "{{ messages[7].content }}", "{{ 1 / 0 }}", "{{ ''.__class__.__mro__ }}"]
    )
    def test_a_broken_template_is_refused(self, template: str) -> None:
        with pytest.raises(ModelError, match="chat template of bytes"):
            ChatTokenizer(ByteVocabulary(template)).opening([ChatMessage("user", "x")])

    def test_training_marks_of_templates_are_passed_over(self) -> None:
        tokenizer = ChatTokenizer(ByteVocabulary("{%- generation -%}hi{% endgeneration %}"))
        assert bytes(tokenizer.opening([ChatMessage("user", "x")])) == b"hi"


class TestNextTurn:
    @given(question=TEXTS, answer=TEXTS, second=TEXTS)
    def test_continues_as_one_rendering_would(
        self,
        tokenizer: ChatTokenizer,
        reference: PreTrainedTokenizerFast,
        question: str,
        answer: str,
        second: str,
    ) -> None:
        generated = [*tokenizer.encode(answer), END]
        tokens = tokenizer.opening([ChatMessage("user", question)]) + generated
        tokens += tokenizer.next_turn(second, tokens[-1])
        contents = (("user", question), ("assistant", answer), ("user", second))
        assert tokens == reference.apply_chat_template(
            [{"role": role, "content": content} for role, content in contents],
            add_generation_prompt=True,
            return_dict=False,
        )

    def test_an_answer_that_was_cut_off_is_ended_first(self, tokenizer: ChatTokenizer) -> None:
        assert tokenizer.next_turn("hi", 99) == [END, *tokenizer.next_turn("hi", END)]

    def test_an_answer_that_ended_otherwise_gets_no_second_end(self, tokenizer: ChatTokenizer) -> None:
        assert tokenizer.next_turn("hi", BOS) == tokenizer.next_turn("hi", END)
        assert tokenizer.next_turn("hi", END)[0] == USER

    @given(text=SPELT)
    def test_a_control_token_that_is_typed_stays_text(self, tokenizer: ChatTokenizer, text: str) -> None:
        tokens = tokenizer.next_turn(text, END)
        assert [token for token in tokens if token < len(SPECIAL_TOKENS)] == [USER, END, ASSISTANT]
        assert tokenizer.decode(tokens) == text

    def test_a_template_that_drops_answers_is_refused(self) -> None:
        tokenizer = ChatTokenizer(ByteVocabulary("{{ messages[-1].content }}"))
        with pytest.raises(ModelError, match="drops earlier answers"):
            tokenizer.next_turn("hi", 1)


class TestText:
    @given(text=st.text())
    def test_plain_text_survives(self, tokenizer: ChatTokenizer, text: str) -> None:
        assert tokenizer.decode(tokenizer.encode(text)) == text

    @given(text=SPELT)
    def test_plain_text_has_no_control_tokens(self, tokenizer: ChatTokenizer, text: str) -> None:
        assert all(token >= len(SPECIAL_TOKENS) for token in tokenizer.encode(text))

    @given(pieces=st.lists(st.binary(max_size=6) | st.text(max_size=3).map(str.encode)))
    def test_a_stream_gives_the_text_of_the_whole(self, pieces: list[bytes]) -> None:
        stream = ChatTokenizer(ByteVocabulary()).stream()
        shown = [stream.feed(piece) for piece in pieces]
        assert "".join(shown) + stream.finish() == b"".join(pieces).decode("utf-8", "replace")

    @given(text=st.text(min_size=1))
    def test_a_stream_never_cuts_a_character(self, text: str) -> None:
        stream = ChatTokenizer(ByteVocabulary()).stream()
        shown = [stream.feed([byte]) for byte in text.encode()]
        assert "".join(shown) == text
        assert stream.finish() == ""

    def test_control_tokens_are_not_shown(self, tokenizer: ChatTokenizer) -> None:
        assert tokenizer.decode([BOS, USER, *tokenizer.encode("hi"), END]) == "hi"

    def test_an_unfinished_character_is_shown_as_broken_at_the_end(self) -> None:
        stream = ChatTokenizer(ByteVocabulary()).stream()
        assert stream.feed("é".encode()[:1]) == ""
        assert stream.finish() == "\ufffd"


def test_stop_ids_are_those_of_the_file(tokenizer: ChatTokenizer) -> None:
    assert tokenizer.stop_ids == {BOS, END}


def test_tokens_beyond_the_vocabulary_have_no_text(tokenizer: ChatTokenizer) -> None:
    """Targets may have more ids than their tokenizer; llama.cpp would end the process on one."""
    size = tokenizer.vocabulary.size
    word = tokenizer.encode("the")
    assert tokenizer.decode([size, *word, MAX_TOKEN_ID]) == tokenizer.decode(word)
    assert tokenizer.transcript([*word, size]) == tokenizer.transcript(word)


class TestTranscript:
    """Control tokens are 256 and 257."""

    def test_what_control_tokens_set_apart_are_paragraphs(self) -> None:
        tokens = [256, *b"be kind\n", 257, *b"hello", 257, 256, *b"good\nevening", 257]
        assert ChatTokenizer(ByteVocabulary()).transcript(tokens) == "be kind\n\nhello\n\ngood\nevening\n\n"

    def test_an_answer_that_was_cut_off_ends_where_it_goes_on(self) -> None:
        tokenizer = ChatTokenizer(ByteVocabulary())
        assert tokenizer.transcript([256, *b"hello", 257, *b"good eve"]) == "hello\n\ngood eve"
        assert tokenizer.transcript([256, *b"hello", 257]) == "hello\n\n"
        assert tokenizer.transcript([]) == ""
