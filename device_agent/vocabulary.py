"""What a tokenizer needs to know of a model file; `device_agent.drafters.load_vocabulary` reads one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class Vocabulary(Protocol):
    """The tokens of one model: constant, and safe to use from several threads.

    Attributes:
        model: name of the model, for people.
        model_hash: sha256 of the file, 64 hex digits.
        size: number of token ids.
        fingerprint: `protocol.fingerprint.vocabulary_fingerprint` of the tokens.
        trained_context: positions that the model was trained for.
        chat_template: the model's Jinja chat template; None when the file has none.
        bos_text, eos_text: tokens that begin and end a document; empty when there is none.
        adds_bos: whether a plain document begins with the first of them.
        stop_ids: tokens that end a message or a text.
        control_tokens: text and id of every token that stands for structure, not for text.
        user_defined_tokens: texts that `encode` takes as one token wherever they occur.
    """

    @property
    def model(self) -> str: ...
    @property
    def model_hash(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def trained_context(self) -> int: ...
    @property
    def chat_template(self) -> str | None: ...
    @property
    def bos_text(self) -> str: ...
    @property
    def eos_text(self) -> str: ...
    @property
    def adds_bos(self) -> bool: ...
    @property
    def stop_ids(self) -> frozenset[int]: ...
    @property
    def control_tokens(self) -> Mapping[str, int]: ...
    @property
    def user_defined_tokens(self) -> frozenset[str]: ...

    def encode(self, text: str) -> list[int]:
        """The tokens of plain text; never a control token, none added at either end."""

    def piece(self, token: int) -> bytes:
        """The bytes that `token` adds to the text; a control token adds none, nor one beyond `size`.

        Targets may have more token ids than their tokenizer, without a text.
        """
